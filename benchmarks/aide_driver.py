"""AIDE's own loop with a model and an interpreter that answer at once; run by an interpreter that has it.

Needs nothing of corerun. Prints one JSON object: its version, and CPU seconds and bytes.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROSE = ("The change is small and its reason is the history above: the loss still fell when it ended. " * 22)[
    :2000
]
STEP = """

def step_{0}(weights, slope, rate={1}e-4):
    return weights - rate * (slope + {0}e-3 * weights)
"""
OUTPUT = "".join(f"epoch {epoch}: validation loss {0.9**epoch:.6f}\n" for epoch in range(60))[:2000]


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def program(number: int) -> str:
    return "import numpy\n" + "".join(STEP.format(part, number) for part in range(52))


def main(nodes: int) -> dict[str, Any]:
    start = cpu_s()
    import_module("aide.run")  # what its command imports
    imported = cpu_s() - start
    agents, settings = import_module("aide.agent"), import_module("aide.utils.config")
    journal = import_module("aide.journal").Journal()
    numbers = iter(range(10**9))

    def query(*, func_spec: Any = None, **_: Any) -> Any:
        if func_spec is None:
            return f"{PROSE[:500]}\n\n```python\n{program(next(numbers))}```"
        metric = random.uniform(0.5, 1.0)
        return {"is_bug": False, "summary": PROSE, "metric": metric, "lower_is_better": True}

    agents.query = query  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="aide-bench-") as place:
        (Path(place) / "data").mkdir()
        raw = settings._load_cfg(use_cli_args=False)
        raw.data_dir, raw.goal = f"{place}/data", PROSE[:1000]
        raw.log_dir, raw.workspace_dir = f"{place}/logs", f"{place}/workspaces"
        config = settings.prep_cfg(raw)
        config.workspace_dir.mkdir(parents=True, exist_ok=True)
        agent = agents.Agent(task_desc=PROSE[:1000], cfg=config, journal=journal)
        result = import_module("aide.interpreter").ExecutionResult([OUTPUT], 0.1, None)
        before = cpu_s()
        for _ in range(nodes):
            agent.step(exec_callback=lambda *_, **__: result)
            settings.save_run(config, journal)
        spent = cpu_s() - before
        # Every file is written anew after every step.
        written = sum(path.stat().st_size for path in config.log_dir.rglob("*") if path.is_file())
    return {
        "version": version("aideml"),
        "import_s": imported,
        "cpu_s": spent / nodes,
        "bytes_per_node": float(written),
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
