"""Stands in for what a search waits for: a model that answers at once, and programs that cost nothing.

Sizes are those of real runs: programs of 5 KB, prose of 2 KB, 2 KB of output, 60 KB of saved files.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corerun.interfaces import CallContext, ChatReply, ChatRequest, ProviderInfo, Usage
from corerun.testing.fake import smallest

METRIC = "validation_loss"
PROSE = ("The change is small and its reason is the history above: the loss still fell when it ended. " * 22)[
    :2000
]
STEP = """\


def step_{number}(weights, inputs, targets, rate={rate}):
    outputs = inputs @ weights
    slope = inputs.T @ (outputs - targets) / len(targets)
    return weights - rate * (slope + {decay} * weights)
"""
PROGRAM_BYTES = 5000
FILE_BYTES = {"experiment_data.npy": 20_000, "loss.png": 20_000, "truth.png": 20_000}
OUTPUT = "".join(f"epoch {epoch}: validation loss {0.9**epoch:.6f}\n" for epoch in range(60))[:2000]

# The steps of a node come in this order, and each leaves a file by which the next knows its turn.
_INTERPRETER = """\
#!/bin/bash
# As a real start does: the last argument says where to write that the program was begun.
result=${!##*'"result": '}
echo >&"${result%%,*}"
cd "$HOME/.." || exit 1
if [ ! -e working ]; then
    { read -r _ _ score; read -r _ _ seconds; } < runfile.py
    mkdir working && cp @FILES@/experiment_data.npy working/
    echo "@OUTPUT@"
    [ "$seconds" = 0 ] || exec sleep "$seconds"
elif [ ! -e reading.json ]; then
    read -r _ _ score < runfile.py
    echo '{"sets": {"one": {"metrics.val": ['"$score"'], "losses.val": ['"$score"']}},
        "structure": {"one": {"metrics": {"val": {"type": "list of float", "shape": [1]}}}},
        "finite": true}' > reading.json
else
    cp @FILES@/*.png working/
fi
"""


def cheap_interpreter(folder: Path) -> Path:
    """A shell script that passes for a Python interpreter and does what experiment programs do.

    It is a real child process, started, limited, watched and collected like any program.
    """
    files = folder / "files"
    files.mkdir(parents=True)
    source = random.Random(0)
    for name, size in FILE_BYTES.items():
        (files / name).write_bytes(source.randbytes(size))
    script = folder / "python"
    text = _INTERPRETER.replace("@FILES@", shlex.quote(str(files))).replace("@OUTPUT@", OUTPUT)
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    return script


def program(number: int, score: float, seconds: float) -> str:
    """A program of about 5 KB that no other call gave; the cheap interpreter reads its first lines."""
    parts = [f"# score {score:.6f}\n# seconds {round(seconds, 3) or 0}\nimport numpy\n"]
    size = 0
    for part in itertools.count():
        if size > PROGRAM_BYTES:
            return "".join(parts)
        parts.append(STEP.format(number=part, rate=f"{number}e-4", decay=f"{part}e-3"))
        size += len(parts[-1])
    raise AssertionError


class FakeModel:
    """A provider that answers every question of an experiment search.

    Programs run ``program_s`` seconds on the mean, lognormal with ``sigma``; 0: they end at once.
    An answer takes ``latency_s``.
    """

    info = ProviderInfo("bench", needs_key=False, is_local=True, vision=True)

    def __init__(
        self, *, program_s: float = 0.0, sigma: float = 0.0, latency_s: float = 0.0, seed: int = 0
    ) -> None:
        self._mean, self._sigma, self._latency_s = program_s, sigma, latency_s
        self._random = random.Random(seed)
        self._numbers = itertools.count()

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        return ChatReply(text=self._text(request, ctx), usage=Usage(3000, 1000), model=request.model)

    def _text(self, request: ChatRequest, ctx: CallContext) -> str:
        if request.schema is None:
            return f"{PROSE}\n\n```python\n{self._program(ctx.purpose)}```\n"
        answer = smallest(request.schema)
        purpose = ctx.purpose.removeprefix("bfts.")
        if purpose in _ANSWERS:
            answer |= _ANSWERS[purpose]
        elif purpose.endswith("_idea"):
            number = next(self._numbers)
            answer |= {"name": f"rate_{number}", "description": PROSE, "setting": {"rate": number}}
        return json.dumps(answer)

    def _program(self, purpose: str) -> str:
        number = next(self._numbers)
        seconds = 0.0
        if self._mean and "plot" not in purpose:
            # So the mean of the draws is the mean that was asked for.
            middle = math.log(self._mean) - self._sigma**2 / 2
            seconds = self._random.lognormvariate(middle, self._sigma)
        return program(number, self._random.uniform(0.5, 1.0), seconds)


_ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "metric": {"name": METRIC, "maximize": False, "description": "loss on validation rows"},
    "review": {"is_bug": False, "summary": PROSE},
    "parse_metric": {
        "valid_metrics_received": True,
        "metric_names": [
            {
                "metric_name": METRIC,
                "lower_is_better": True,
                "description": "loss on validation rows",
                "data": [{"dataset_name": "one", "final_value": 0.7, "best_value": 0.7}],
            }
        ],
    },
    "plot_analysis": {
        "plot_analyses": [{"analysis": PROSE[:800]}, {"analysis": PROSE[:800]}],
        "valid_plots_received": True,
        "vlm_feedback_summary": PROSE[:400],
        "datasets_successfully_tested": ["one"],
    },
}


def ideas_file(folder: Path) -> Path:
    """An ideas file with one idea of usual length."""
    idea = {
        "Name": "rates",
        "Title": "Which step size for which layer?",
        "Short Hypothesis": PROSE[:300],
        "Related Work": PROSE[:600],
        "Abstract": PROSE[:1000],
        "Experiments": PROSE[:600],
        "Risk Factors and Limitations": PROSE[:300],
    }
    path = folder / "ideas.json"
    path.write_text(json.dumps([idea]), encoding="utf-8")
    return path
