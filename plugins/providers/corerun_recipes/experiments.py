"""The purposes that choose an experiment and write its program."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

from corerun.errors import Unsupported
from corerun.interfaces import Json

from .book import DRAFTS, FAULTS, KNOBS, Value
from .moves import (
    Move,
    Trial,
    ablations,
    configurations,
    improved,
    repaired,
    trials,
    with_faults,
)
from .points import Point, checked_setting, own_point
from .question import LABEL, Question, number, with_program
from .render import program

CARRIED = "carried"
"""Name of the outer level when a program is carried over unchanged."""


def metric(asked: Question) -> str:
    """Name, direction and meaning of the idea's primary metric."""
    idea = asked.idea
    return json.dumps({"name": idea.metric, "maximize": idea.maximize, "description": idea.metric_text})


def draft(asked: Question) -> str:
    """One of the three first drafts; when it was tried already, a move away from it."""
    ordinal = int(asked.facts["draft"])
    start = DRAFTS[(ordinal + int(asked.facts["seed"])) % len(DRAFTS)]
    point = Point(asked.idea.name, asked.sets, start)
    taken = _taken(asked)
    if point.key in taken:
        move = improved([Trial(point, "", 0.0)], taken, "tune", asked.sets, asked.rng)
        point = move.point if move else point
    prose = f"Draft {ordinal + 1}: a small network with {_words(_chosen(point))}. {asked.idea.question}"
    return _answer(asked, point, prose, ordinal)


def improve(asked: Question) -> str:
    """The best program of the stage with one knob changed."""
    parent = own_point(asked.facts["parent"]["head"])
    move = _move(
        asked, parent, asked.facts["parent"]["score"], "new" if asked.facts["stage"] == 3 else "tune"
    )
    if move is None:
        raise Unsupported(
            "recipes has no untried neighbour of the best program left",
            hint="lower the stage's node limit, or set --model",
        )
    return _answer(asked, move.point, _reasons(move), None)


def tune_idea(asked: Question) -> str:
    """The next setting of the carried root, with all differences to it; exhausted when none is new."""
    root = own_point(asked.facts["root"]["head"])
    move = _move(asked, root, asked.facts["root"]["score"], "tune")
    if move is None:
        return _idea("", "no untried neighbour of the best setting is left", {})
    setting = root.differences(move.point)
    return _idea(_words(setting), _reasons(move), setting)


def ablate_idea(asked: Question) -> str:
    """The next component to leave out of the carried root, each once; exhausted after the last."""
    root = own_point(asked.facts["root"]["head"])
    taken = _taken(asked)
    left = [setting for setting in ablations(root) if root.moved(setting).key not in taken]
    if not left:
        return _idea("", "every component of the best program was left out once", {})
    setting = left[0]
    knob, value = next(iter(setting.items()))
    text = f"Set {knob} back from {root.config[knob]} to {value}, to see what it gives to the best program."
    return _idea(f"{knob} {value} instead of {root.config[knob]}", text, setting)


def vary(asked: Question) -> str:
    """The carried root with a setting (tune, ablate); without one, unchanged on all data sets."""
    root = own_point(asked.facts["root"]["head"])
    setting = checked_setting(asked.idea, asked.facts["setting"])
    point = replace(root.moved(setting), sets=asked.sets, outer=asked.facts["name"] or CARRIED)
    if not setting:
        prose = f"The carried program unchanged, on all {asked.sets} data sets, for a fair comparison."
        return with_program(prose, program(point))
    return _answer(asked, point, f"The carried program with {_words(setting)}.", None)


def debug(asked: Question) -> str:
    """The failed program with one cause taken away."""
    facts = asked.facts
    point = own_point(facts["parent"]["head"])
    reason = facts["reason"].lower()
    # The output decides: a program that saved nothing has no finite metric either.
    not_finite = bool(re.search(r"= -?(nan|inf)\b", facts["output_tail"]))
    timed_out = facts["exc_type"] == "TimeoutError" or "time limit" in reason or "timeout" in reason
    repair = repaired(point, facts["exc_type"], timed_out, not_finite)
    failure = facts["exc_type"] or facts["reason"]
    still = f" {_confession(repair.point)}" if repair.point.faults else ""
    return with_program(f"The program failed ({failure}): {repair.text}.{still}", program(repair.point))


def _answer(asked: Question, point: Point, prose: str, ordinal: int | None) -> str:
    if asked.plant_faults:
        point = with_faults(point, ordinal, asked.rng)
    if point.faults:
        prose = f"{prose} {_confession(point)}"
    return with_program(prose, program(point))


def _confession(point: Point) -> str:
    faults = "; ".join(FAULTS[fault].text for fault in point.faults)
    return f"It carries a planted fault so that debugging is exercised: {faults}."


def _move(asked: Question, start: Point, score: Json, group: str) -> Move | None:
    history = trials(asked.facts["tried"], asked.idea.name)
    if all(trial.point.key != start.key for trial in history):
        history.insert(0, Trial(start, "", float(score)))
    taken = _taken(asked) | {start.key}
    return improved(history, taken, group, asked.sets, asked.rng)


def _taken(asked: Question) -> set[tuple[Value, ...]]:
    """Configurations that were tried or are running; a running idea is known by its setting at first."""
    taken = configurations([*asked.facts["tried"], *asked.facts["running"]])
    for item in asked.facts["running"]:
        if item.get("setting"):
            root = own_point(asked.facts["root"]["head"])
            taken.add(root.moved(checked_setting(asked.idea, item["setting"])).key)
    return taken


def _reasons(move: Move) -> str:
    changes = " and ".join(
        f"{knob} from {move.base.point.config[knob]} to {move.point.config[knob]}" for knob in move.record
    )
    source = f"node {move.base.node}" if move.base.node else "the program that it starts from"
    history = "; ".join(
        f"changes of {knob} won {gains} of {tries} times so far"
        if tries
        else f"{knob} is untried in this stage"
        for knob, (gains, tries) in move.record.items()
    )
    return (
        f"Change {changes}, on top of the best so far ({source}, score {number(move.base.score)}): {history}."
    )


def _idea(name: str, description: str, setting: Mapping[str, Value]) -> str:
    answer = {"name": name, "description": f"{LABEL} {description}", "setting": dict(setting)}
    return json.dumps(answer | {"exhausted": not setting})


def _chosen(point: Point) -> dict[str, Value]:
    """What the point has, without the knobs that stand on "left out"."""
    return {knob: value for knob, value in point.config.items() if value != KNOBS[knob].neutral}


def _words(setting: Mapping[str, Value]) -> str:
    return ", ".join(f"{knob} {value}" for knob, value in setting.items())
