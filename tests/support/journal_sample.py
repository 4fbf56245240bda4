"""A realistic journal of an experiment search, with texts that try to break whatever shows them."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path
from typing import Any

from corerun.interfaces import Event
from corerun.runs import events as kinds

MARKER = "corerun-payload-ran"
HOSTILE = (
    f"</script><script>document.title='{MARKER}'</script>",
    f"<img src=x onerror=\"document.title='{MARKER}'\">",
    f"[link](javascript:document.title='{MARKER}') and javascript:alert(1)",
    "line\u2028separator \u2029 paragraph, <!--<script>, ]]>, &lt;b&gt;",
    "\x1b[31mred\x1b[0m \x1b]0;owned\x07 \r overwritten [bold red]markup[/bold red]",
)
STAGES = (
    (1, "initial_implementation", "Basic working program on a simple data set.", 8),
    (2, "baseline_tuning", "Tune hyperparameters on three data sets, keep the architecture.", 10),
    (3, "creative_research", "New ideas that raise the score, with insight into why.", 10),
    (4, "ablation_studies", "Remove one component per node and measure what is lost.", 6),
)
MODEL = "openai::gpt-4.1-mini"
SETS = ("digits", "wine", "breast_cancer")
KNOBS = ("learning_rate", "width", "weight_decay", "mixup", "label_smoothing", "dropout", "warmup", "noise")


def png(width: int = 240, height: int = 140, shift: int = 0) -> bytes:
    """A small valid picture of a rising curve."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            curve = height - 12 - int((height - 30) * (1 - 2.718 ** (-(x + 1) / (30 + shift))))
            inside = abs(y - curve) < 2
            rows += bytes((31, 90, 150)) if inside else bytes((250, 250, 248))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(rows)))
        + chunk(b"IEND", b"")
    )


def program(settings: dict[str, float], fault: str = "") -> str:
    """An experiment program as a model would write it."""
    lines = ["import os", "import numpy as np", "from sklearn.datasets import load_digits", ""]
    lines += [
        "working_dir = os.path.join(os.getcwd(), 'working')",
        "os.makedirs(working_dir, exist_ok=True)",
        "",
    ]
    lines += [f"{name} = {value!r}" for name, value in settings.items()]
    lines += ["", "", "def train(features, labels, rng):"]
    lines += ["    weights = rng.normal(0, 0.1, (features.shape[1], 10))", "    for epoch in range(40):"]
    lines += ["        logits = features @ weights", "        weights -= gradient(logits, labels)"]
    lines += [f"        {fault}"] if fault else []
    lines += [
        "        print(f'epoch {epoch}: validation_loss = {loss(weights):.4f}')",
        "    return weights",
        "",
    ]
    lines += ["np.save(os.path.join(working_dir, 'experiment_data.npy'), experiment_data)", ""]
    return "\n".join(lines)


class Journal:
    """Collects events with rising numbers and times."""

    def __init__(self, seed: int, hostile: bool) -> None:
        self.rng = random.Random(seed)
        self.hostile = hostile
        self.events: list[Event] = []
        self.now = 1_790_000_000.0
        self.made = 0

    def emit(self, type: str, **data: Any) -> None:
        self.events.append(Event(len(self.events), self.now, type, data))

    def text(self, plain: str) -> str:
        return f"{plain} {self.rng.choice(HOSTILE)}" if self.hostile else plain

    def node_id(self) -> str:
        self.made += 1
        return f"{self.rng.getrandbits(64):016x}"

    def call(self, node: str, role: str, purpose: str) -> None:
        key = f"{node}-{purpose}-{len(self.events)}"
        common = {"key": key, "node": node, "role": role, "purpose": purpose}
        self.emit(kinds.CALL_ASKED, **common, model=MODEL, prompt="0" * 64)
        latency = round(self.rng.uniform(0.4, 3.0), 2)
        self.now += latency * 0.6
        prompt, completion = self.rng.randint(900, 4000), self.rng.randint(120, 1600)
        usage = {"prompt": prompt, "completion": completion, "reasoning": 0, "cached": 0, "estimated": False}
        cost = round(prompt * 0.4e-6 + completion * 1.6e-6, 6)
        self.emit(
            kinds.CALL_ANSWERED, **common, provider="openai", model_requested=MODEL, model_answered=MODEL,
            text="the answer", tool_calls=[], reasoning="", finish="stop", usage=usage, cost_usd=cost,
            price_source="table", latency_s=latency, attempts=1, requests=1, degradations=[],
        )  # fmt: skip

    def execute(self, node: str, label: str, status: str = "ok", most: float = 9.0) -> float:
        wall = round(self.rng.uniform(0.5, most), 2)
        self.now += wall * 0.5
        result = {"status": status, "exit_code": 0 if status == "ok" else 1, "wall_s": wall}
        result |= {"cpu_s": wall * 0.9, "max_rss_mb": 210.0}
        self.emit(
            kinds.EXECUTION_DONE, key=f"{node}-{label}", node=node, attempt=0, label=label, result=result,
            code_sha256="0" * 64, env={}, limits={}, network="none", queue_s=0.2, prev="",
        )  # fmt: skip
        return wall

    def ask(self, scope: str, parent: str | None, seq: int, *, counted: bool = True) -> str:
        node = self.node_id()
        self.emit(
            kinds.NODE_ASKED, scope=scope, node=node, parent=parent, seq=seq, hint={}, attempt=0,
            counted=counted, batch=None,
        )  # fmt: skip
        return node

    def done(self, scope: str, node: str, seq: int, status: str, score: float | None, **data: Any) -> None:
        reason = "" if status == "good" else self.text("ValueError: operands could not be broadcast together")
        self.emit(
            kinds.NODE_DONE, scope=scope, node=node, seq=seq, attempt=0, status=status, score=score,
            reason=reason, open=True, data=data,
        )  # fmt: skip

    def experiment(
        self, scope: str, stage: int, parent: str | None, seq: int, op: str, settings: dict[str, float],
        score: float, *, fails: bool = False, planted: bool = False, sets: int = 3, name: str = "",
    ) -> str:  # fmt: skip
        """One node with its calls and programs."""
        node = self.ask(scope, parent, seq)
        self.call(node, "code", f"bfts.{op}")
        fault = "features = features.reshape(-1, 65)" if fails else ""
        wall = self.execute(node, "program", "exception" if fails else "ok")
        self.call(node, "feedback", "bfts.review")
        metric = {"name": "validation_accuracy", "maximize": True}
        data: dict[str, Any] = {
            "op": op, "stage": stage, "plan": self.text(f"Plan of {op} {seq}: change {name or 'the model'}."),
            "code": program(settings, fault), "exec_time": wall, "name": name, "written_by": "model",
            "output": self.text(f"epoch 39: validation_loss = {1 - score:.4f}\nsaved experiment_data.npy"),
            "timing": {"llm_s": 4.1, "exec_s": wall, "queue_s": 0.2, "total_s": wall + 4.3},
            "tokens": {"prompt": 5200, "completion": 1800, "cost_usd": 0.0049, "calls": 4},
        }  # fmt: skip
        if name:
            data["setting"] = {name: settings.get(name, 0.1)}
        if fails:
            data |= {
                "exc_type": "ValueError",
                "exc_info": self.text("cannot reshape array of size 64 into (65)"),
            }
            data["exc_stack"] = [["runfile.py", 15, "train", "features = features.reshape(-1, 65)"]]
            data["faults"] = ["shape"] if planted else []
            self.done(scope, node, seq, "failed", None, **data)
            return node
        self.call(node, "feedback", "bfts.parse_metric")
        self.call(node, "code", "bfts.plot")
        self.execute(node, "plot", most=2.0)
        self.call(node, "vlm", "bfts.plot_review")
        names = SETS[:sets]
        values = {item: round(score + self.rng.uniform(-0.02, 0.02), 4) for item in names}
        tests = {item: round(value - 0.015, 4) for item, value in values.items()}
        plots = [f"logs/0-run/experiment_results/experiment_{node}/curves_{i}.png" for i in range(2)]
        data |= {
            "metric": metric | {"value": score, "sets": values, "test": tests},
            "analysis": self.text("The loss falls on every data set and the accuracy rises until epoch 30."),
            "plots": plots,
            "plot_code": "import matplotlib.pyplot as plt\nplt.plot(curve)\n",
            "plot_analyses": [{"plot_path": plots[0], "analysis": self.text("Both curves flatten.")}],
            "vlm_feedback_summary": self.text("Plots are readable and labelled."),
        }  # fmt: skip
        self.done(scope, node, seq, "good", score, **data)
        return node


def _stage(
    journal: Journal, number: int, carried: tuple[str, float, dict[str, float]] | None, limit: int
) -> Any:
    name, goals = STAGES[number - 1][1], STAGES[number - 1][2]
    scope, rng = f"{number}_{name}_1_sub", journal.rng
    title = journal.text(name.replace("_", " "))
    journal.emit(kinds.STAGE_STARTED, scope=scope, title=title, number=number, goals=goals, max_nodes=limit)
    best: tuple[str, float, dict[str, float]] = ("", 0.0, {})
    good: list[tuple[str, float, dict[str, float]]] = []
    failed: list[tuple[str, dict[str, float]]] = []
    root, offset, seen = None, 0, 0
    if carried is not None:
        covered = 1 if number == 2 else 3
        root = journal.ask(scope, None, 0, counted=False)
        value = {"name": "validation_accuracy", "maximize": True, "value": carried[1]}
        journal.done(
            scope, root, 0, "good", carried[1], op="carried", origin_id=carried[0], plan="Carried over.",
            code=program(carried[2]), metric=value | {"sets": dict.fromkeys(SETS[:covered], carried[1])},
            stage=number,
        )  # fmt: skip
        best, offset = (root, carried[1], carried[2]), 1
    while seen < limit:
        seq = seen + offset
        fails = rng.random() < 0.18
        if failed and rng.random() < 0.9:
            parent, settings = failed.pop()
            op, base = "debug", 0.84
        elif root is None and seen < 3:
            parent, settings, op, base = None, {"learning_rate": 0.1, "width": 64.0 + seen}, "draft", 0.83
        elif number in (2, 4):
            op = "widen" if number == 2 and seen == 0 else {2: "tune", 4: "ablate"}[number]
            parent, base, settings = str(root), best[1], dict(carried[2] if carried else {})
        else:
            chosen = max(good, key=lambda item: item[1]) if good else best
            if not chosen[0]:
                parent, settings, op, base = None, {"learning_rate": 0.2}, "draft", 0.82
            else:
                parent, base, settings, op = chosen[0], chosen[1], dict(chosen[2]), "improve"
        name = KNOBS[seq % len(KNOBS)] if op in ("tune", "ablate") else ""
        settings = settings | {KNOBS[seq % len(KNOBS)]: round(rng.uniform(0.01, 0.5), 3)}
        step = rng.uniform(-0.03, 0.0) if op == "ablate" else rng.uniform(-0.02, 0.016)
        score = round(min(0.962, base + step), 4)
        node = journal.experiment(
            scope, number, parent, seq, op, settings, score, fails=fails, planted=rng.random() < 0.7,
            sets=1 if number == 1 else 3, name=name,
        )  # fmt: skip
        if fails:
            failed.append((node, settings))
        else:
            good.append((node, score, settings))
            best = (node, score, settings) if score > best[1] else best
        seen += 1
    journal.emit(
        kinds.STAGE_DONE,
        scope=scope,
        best=best[0],
        nodes=seen,
        good=len(good),
        failed=seen - len(good),
        wall_s=1.0,
    )
    seeds = f"{scope}.seeds"
    origin = journal.ask(seeds, None, 0, counted=False)
    journal.done(seeds, origin, 0, "good", best[1], op="carried", origin_id=best[0], code=program(best[2]))
    for seed in range(3):
        rerun = journal.ask(seeds, origin, seed + 1, counted=False)
        journal.execute(rerun, "program")
        score = round(best[1] - rng.uniform(0.0, 0.01), 4)
        journal.done(seeds, rerun, seed + 1, "good", score, op="seed", seed=seed, origin_id=best[0])
    return best


def sample(*, hostile: bool = True, seed: int = 7, finished: bool = True) -> list[Event]:
    """About forty nodes in four stages, one resume, warnings, and one node still running at the end."""
    journal = Journal(seed, hostile)
    journal.emit(
        kinds.RUN_STARTED, schema=kinds.SCHEMA, run="20261126_few_labels_attempt_0", job="bfts",
        plugin="bfts",
        seed=seed, argv=["corerun"], versions={"corerun": "0.1.0"}, settings={}, identity={},
        inputs={"idea": {"Title": journal.text("Learning digits from few labels"), "Name": "few_labels"}},
        models={MODEL: {"kind": "model"}},
    )  # fmt: skip
    carried = None
    for number, _, _, limit in STAGES:
        carried = _stage(journal, number, carried, limit)
        if number == 2:
            journal.emit(kinds.WARNING, message=journal.text("seeds_identical: equal results over seeds"))
            journal.emit(kinds.DEGRADED, model=MODEL, feature="json_schema", reason="HTTP 400")
            journal.now += 86_400
            journal.emit(kinds.RUN_RESUMED, argv=["corerun"], versions={}, workers=2)
    if not finished:
        journal.ask("4_ablation_studies_1_sub", None, 20)
        return journal.events
    for name in ("best_per_stage.png", "ablations.png"):
        journal.emit(kinds.FILE_MADE, path=f"figures/{name}", bytes=1, sha256="0" * 64)
    best = {
        "id": carried[0], "score": carried[1], "metric": "validation_accuracy",
        "seeds": {"val": {"mean": 0.952, "sd": 0.009, "n": 3}, "test": {"mean": 0.939, "sd": 0.005, "n": 3}},
    }  # fmt: skip
    first = {
        "id": "f" * 16, "score": 0.83, "metric": "validation_accuracy",
        "seeds": {"val": {"mean": 0.914, "sd": 0.016, "n": 3}, "test": {"mean": 0.884, "sd": 0.012, "n": 3}},
    }  # fmt: skip
    journal.emit(kinds.RUN_DONE, status="success", exit_code=0, error=None, best=best, first_good=first)
    return journal.events


def write_plots(events: list[Event], run_dir: Path) -> None:
    """Put the pictures that the events name below ``run_dir``."""
    picture = png()
    paths = [event.data["path"] for event in events if event.type == kinds.FILE_MADE]
    for event in events:
        paths += event.data["data"].get("plots", ()) if event.type == kinds.NODE_DONE else ()
    for path in paths:
        target = run_dir / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture)
