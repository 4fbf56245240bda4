"""Builds the questions of an experiment search: what a model reads and the same as structured facts.

Messages and facts come from one list of sections, so a rule-based provider never sees a fact that
a language model isn't told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corerun.interfaces import Message, Part


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a question: a heading for people, a key and a value for the facts."""

    title: str
    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Question:
    """Everything `Run.ask` needs beside the node."""

    role: str
    purpose: str
    messages: tuple[Message, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    schema: type | None = None


def shown(value: Any) -> str:
    """A fact as it stands in a message."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return "\n".join(f"- {_compact(item)}" for item in value)
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def ask_about(
    role: str,
    purpose: str,
    who: str,
    task: str,
    sections: Sequence[Section],
    *,
    rules: Sequence[str] = (),
    schema: type | None = None,
    images: Sequence[Part] = (),
) -> Question:
    """A question: who answers, what is to be done, what is known, and which rules hold."""
    parts = [f"# Task\n{task}"]
    parts += [f"# {section.title}\n{shown(section.value)}" for section in sections if _told(section.value)]
    if rules:
        parts.append("# Rules\n" + "\n".join(f"- {rule}" for rule in rules))
    text = "\n\n".join(parts)
    content: str | tuple[Part, ...] = (Part("text", text), *images) if images else text
    facts = {section.key: section.value for section in sections}
    return Question(role, purpose, (Message("system", who), Message("user", content)), facts, schema)


def _told(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def context(idea: Mapping[str, Any], stage: int, stage_sets: int, timeout_s: float) -> list[Section]:
    """What every question of a run begins with. Each stage is told its own part of the idea."""
    hidden = {"Related Work"}
    if stage != 3:
        hidden.add("Experiments")
    if stage != 4:
        hidden.add("Risk Factors and Limitations")
    return [
        Section("Research idea", "idea", {key: idea[key] for key in idea if key not in hidden}),
        Section("Stage", "stage", stage),
        Section("Number of data sets in this stage", "stage_sets", stage_sets),
        Section("Seconds that a program may run", "timeout_s", timeout_s),
    ]


RESEARCHER = (
    "You are a careful machine-learning researcher. You write complete, correct Python programs and "
    "change one thing at a time, for a reason that you state."
)
REVIEWER = "You are a strict reviewer of machine-learning experiments. You judge by what you are shown."


def program_rules(
    metric: Mapping[str, Any], timeout_s: float, *, outer: bool, more: Sequence[str]
) -> list[str]:
    """What every experiment program must keep to."""
    level = (
        "experiment_data has one more outer level here: {name of this change: {data set: {...}}}."
        if outer
        else "experiment_data maps each data set's name to its record."
    )
    direction = "higher" if metric["maximize"] else "lower"
    return [
        "Answer with a short plan in prose, then exactly one ```python block with the whole program.",
        "One self-contained file, run as it is: no command line, no `if __name__ == '__main__'` guard.",
        "Begin with: import os; working_dir = os.path.join(os.getcwd(), 'working'); "
        "os.makedirs(working_dir, exist_ok=True).",
        "Read data only from ./input or from installed packages; there is no network.",
        "If torch is used, move models and tensors to cuda when torch.cuda.is_available(), else the CPU.",
        "Print the validation loss of every epoch.",
        f"Track the primary metric {metric['name']} ({direction} is better) per epoch on validation rows, "
        "under metrics['val'], and the same on training rows under metrics['train'].",
        level + " A record is {'metrics': {'train': [...], 'val': [...]}, 'losses': {'train': [...], "
        "'val': [...]}, 'predictions': array, 'ground_truth': array}; optionally metrics['test'] holds "
        "one value on rows that were used for nothing else.",
        "End with: np.save(os.path.join(working_dir, 'experiment_data.npy'), experiment_data).",
        "Take the random seed from the environment variable CORERUN_SEED (0 if unset).",
        f"Finish within {timeout_s:.0f} seconds.",
        *more,
    ]
