"""A researcher without memory: what it answers follows from the question alone, so runs can be compared."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from corerun.interfaces import CallContext, ChatRequest
from tests.support.openai_server import Reply, forced_tool, text, tool

METRIC = "validation_error"
SETS = ("synth_a", "synth_b", "synth_c")

_SECTION = re.compile(r"^# (.+)\n((?:(?!# ).*\n?)*)", re.MULTILINE)
_PLACE = re.compile(r"/[^\s'\"]*/experiments/[^/\s'\"]+/")

PLOT = """\
import os, struct, zlib

def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

rows = b"".join(b"\\0" + bytes([shade]) * 24 for shade in range(0, 240, 15))
body = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 16, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
for folder in {folders!r}:
    os.makedirs(folder, exist_ok=True)
    for name in {names!r}:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"\\x89PNG\\r\\n\\x1a\\n" + body + chunk(b"IEND", b""))
"""

EXPERIMENT = """\
import os
import numpy as np

working_dir = os.path.join(os.getcwd(), 'working')
os.makedirs(working_dir, exist_ok=True)
seed = int(os.environ.get("CORERUN_SEED", "0"))
experiment_data = {{}}
for number, name in enumerate({sets!r}):
    error = {error!r} + 0.01 * number + 0.001 * seed
    curve = [error + 0.5 / (epoch + 1) for epoch in range(5)] + [error]
    for epoch, value in enumerate(curve):
        print(f"epoch {{epoch}}: validation_loss = {{value:.4f}}")
    experiment_data[name] = {{
        "metrics": {{"train": curve, "val": curve}},
        "losses": {{"train": curve, "val": curve}},
        "predictions": np.zeros(4),
        "ground_truth": np.ones(4),
    }}
np.save(os.path.join(working_dir, 'experiment_data.npy'), experiment_data)
# As real programs do: a progress bar, and a plot of the name that the plot program uses as well.
print("\\r".join(f"step {{step}} of 600" for step in range(600)))
with open(os.path.join(working_dir, 'curves.png'), 'wb') as file:
    file.write(b"a first sketch")
"""


class Question:
    """What a model is asked, whichever way it came: ``tool`` is the structured answer's name or ""."""

    def __init__(self, tool_name: str, message: str, images: int = 0) -> None:
        self.tool = tool_name
        self.images = images
        self.sections: dict[str, str] = {title: body.strip() for title, body in _SECTION.findall(message)}
        self.text = _PLACE.sub("RUN/", message)

    @property
    def task(self) -> str:
        return self.sections["Task"]

    @property
    def stage(self) -> int:
        return int(self.sections["Stage"])

    @property
    def draft(self) -> int | None:
        """The number of the draft that is asked for, None if it is no draft."""
        number = self.sections.get("Number of this draft, from 0")
        return None if number is None else int(number)

    @property
    def wants_plots(self) -> bool:
        return "plot program" in self.task and not self.wants_figures

    @property
    def wants_figures(self) -> bool:
        return "figures of the" in self.task

    @property
    def wants_reader(self) -> bool:
        return "prints for every data set" in self.task

    @property
    def wants_experiment(self) -> bool:
        return not (self.tool or self.wants_plots or self.wants_figures or self.wants_reader)

    def rng(self) -> random.Random:
        return random.Random(hashlib.sha256(self.text.encode()).digest())


Answer = Mapping[str, Any] | str


class Researcher:
    """Answers every question of the experiment search; ``override`` may answer first.

    ``faulty`` is the share of experiment programs that raise. It serves as the function of a
    `corerun.testing` fake provider (`complete`) and as the answer of the socket server (`respond`).
    """

    def __init__(
        self, override: Callable[[Question], Any] = lambda question: None, *, faulty: float = 0.2
    ) -> None:
        self.override = override
        self.faulty = faulty
        self.asked: list[Question] = []

    def complete(self, request: ChatRequest, context: CallContext) -> Any:
        content = request.messages[1].content
        parts = [] if isinstance(content, str) else content
        message = content if isinstance(content, str) else "\n".join(part.text for part in content)
        images = sum(part.kind == "image" for part in parts)
        return self.answer(Question(request.schema_name, message, images))

    def respond(self, body: dict[str, Any]) -> Any:
        content = body["messages"][1]["content"]
        parts = [] if isinstance(content, str) else content
        message = content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)
        images = sum(part["type"] == "image_url" for part in parts)
        name = forced_tool(body)
        answer = self.answer(Question(name or "", message, images))
        if isinstance(answer, Mapping):
            return tool(name, dict(answer)) if name else text(json.dumps(answer))
        return text(answer) if isinstance(answer, str) else answer

    def answer(self, question: Question) -> Answer | Reply:
        self.asked.append(question)
        given = self.override(question)
        if given is not None:
            answer: Answer | Reply = given
            return answer
        return self.structured(question) if question.tool else self.written(question)

    # ------------------------------------------------------------------------------ structured

    def structured(self, question: Question) -> Answer:
        rng = question.rng()
        match question.tool:
            case "define_metric":
                return {"name": METRIC, "maximize": False, "description": "mean error on validation rows"}
            case "propose_experiment":
                name = f"setting_{rng.randrange(10_000)}"
                return {"name": name, "description": "another value", "setting": {name: rng.random()}}
            case "submit_review":
                failed = "Exception" in question.sections
                return {"is_bug": failed, "summary": "It raised." if failed else "The error falls."}
            case "parse_metrics":
                return parsed(question)
            case "analyze_experiment_plots":
                seen = [{"analysis": f"Plot {n} shows a ramp."} for n in range(question.images)]
                return {
                    "plot_analyses": seen,
                    "valid_plots_received": bool(seen),
                    "vlm_feedback_summary": "The plots are readable.",
                    "datasets_successfully_tested": list(SETS),
                }
            case "evaluate_stage_completion":
                return {"is_complete": False, "reasoning": "There is more to try.", "missing_criteria": []}
            case "generate_substage_goals":
                return {"goals": "Look closer at what helped.", "sub_stage_name": "closer look 2/b"}
            case "merge_plans":
                return {"overall_plan": f"{question.sections['Plan so far'][:80]}, then one more step."}
            case "summarize_drafts":
                return {
                    "Experiment_description": "Drafts.",
                    "Significance": "They run.",
                    "Description": "Constant predictions.",
                    "List_of_included_plots": [],
                    "Key_numerical_results": [],
                }
            case "select_best_implementation":
                return {"selected_id": "no such node", "reasoning": "a guess"}
            case "select_plots":
                return {"selected_plots": re.findall(r"working/[\w.]+\.png", question.sections["Plots"])[:10]}
        raise AssertionError(f"nobody taught the researcher to answer {question.tool}")

    # --------------------------------------------------------------------------------- written

    def written(self, question: Question) -> str:
        if question.wants_experiment:
            rng = question.rng()
            if rng.random() < self.faulty:
                return fenced("This may fail.", "print('start')\nraise ValueError('shapes differ')\n")
            sets = SETS[: int(question.sections["Number of data sets in this stage"])]
            return fenced("A constant prediction.", experiment(rng.uniform(0.2, 0.9), sets))
        if question.wants_figures:
            return fenced("Figures.", PLOT.format(folders=["figures"], names=["one.png", "two.png"]))
        if question.wants_plots:
            return fenced("Plots.", PLOT.format(folders=["working"], names=["curves.png"]))
        return fenced("A reader.", "print('synth_a', 'validation_error', 0.5, 0.5)\n")


def experiment(error: float, sets: tuple[str, ...] | list[str] = SETS) -> str:
    """A program that ends with about ``error`` on every data set and saves what it must."""
    return EXPERIMENT.format(error=round(error, 6), sets=tuple(sets))


def fenced(plan: str, program: str) -> str:
    """An answer with a plan and one program."""
    return f"{plan}\n\n```python\n{program}\n```\n"


def parsed(question: Question, name: str = METRIC, lower_is_better: bool = True) -> dict[str, Any]:
    """The answer that reports the rows which a question shows."""
    shown = question.sections.get("Values read from the saved data", "")
    rows = [json.loads(line.removeprefix("- ")) for line in shown.splitlines() if line.startswith("- ")]
    data = [
        {"dataset_name": row["set"], "final_value": row["final"], "best_value": row["best"]} for row in rows
    ]
    metric = {"metric_name": name, "lower_is_better": lower_is_better, "description": "", "data": data}
    return {"valid_metrics_received": bool(rows), "metric_names": [metric] if rows else []}
