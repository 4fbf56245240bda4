"""The next point from the history: a bandit over knobs, neighbours, ablations and repairs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from corerun.interfaces import Json

from .book import (
    BASE,
    FAULTS,
    KNOBS,
    LATER_NODE_FAULT,
    SECOND_DRAFT_TWO_FAULTS,
    STEP_CAP,
    Value,
    estimated_steps,
)
from .points import Point, read_point

DRAWS_BEFORE_TWO_KNOBS = 60
DRAWS = 240


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished good program: its point, its node and its score (higher is better)."""

    point: Point
    node: str
    score: float


@dataclass(frozen=True, slots=True)
class Move:
    """A new point, the trial that it builds on, and per changed knob its record so far (gains, tries)."""

    point: Point
    base: Trial
    record: Mapping[str, tuple[int, int]]


def trials(items: Iterable[Mapping[str, Json]], recipe: str) -> list[Trial]:
    """The good programs of a history that the book can read, in the history's order."""
    found = []
    for item in items:
        point = read_point(item["head"])
        if item["status"] == "good" and item["score"] is not None and point and point.recipe == recipe:
            found.append(Trial(point, item["node"], float(item["score"])))
    return found


def configurations(items: Iterable[Mapping[str, Json]]) -> set[tuple[Value, ...]]:
    """All configurations of a history, failed and unfinished ones too."""
    points = (read_point(item["head"]) for item in items)
    return {point.key for point in points if point}


def improved(
    history: Sequence[Trial], taken: set[tuple[Value, ...]], group: str, sets: int, rng: random.Random
) -> Move | None:
    """One knob of the best trial changed; None when no new point was found.

    The knob is drawn by Thompson sampling from Beta(1 + gains, 1 + tries without gain), its value
    from those that no single change of this stage has judged yet; after 60 draws without a new
    point two knobs change at once, to any value.
    """
    best, record, judged = _replay(history)
    knobs = [knob for knob in KNOBS if KNOBS[knob].group == group and len(best.point.idea.values(knob)) > 1]
    for draw in range(DRAWS):
        drawn = sorted(knobs, key=lambda knob: -_sample(record.get(knob, (0, 0)), rng))
        chosen = drawn[: 1 if draw < DRAWS_BEFORE_TWO_KNOBS else 2]
        options = {knob: _targets(best.point, knob) for knob in chosen}
        if len(chosen) == 1:
            options = {
                knob: [v for v in values if (knob, v) not in judged] for knob, values in options.items()
            }
        if not all(options.values()):
            continue
        setting = {knob: rng.choice(values) for knob, values in options.items()}
        point = replace(best.point.moved(setting), sets=sets, outer="")
        if point.key not in taken and affordable(point):
            return Move(point, best, {knob: record.get(knob, (0, 0)) for knob in setting})
    return None


def ablations(root: Point) -> list[dict[str, Value]]:
    """Every setting that takes one component of the root away, in the table's order."""
    settings: list[dict[str, Value]] = []
    for knob, entry in KNOBS.items():
        without = BASE[knob] if entry.neutral is None else entry.neutral
        setting = {knob: without}
        if root.config[knob] != without and affordable(root.moved(setting)):
            settings.append(setting)
    return settings


def affordable(point: Point) -> bool:
    """Whether a program of this point stays under the cap of estimated steps on all data sets."""
    return estimated_steps(point.idea, len(point.idea.sets), point.config) <= STEP_CAP


def with_faults(point: Point, draft: int | None, rng: random.Random) -> Point:
    """The point with planted faults: one or two in the second draft, now and then one in a later node."""
    if draft == 0:
        return point
    if draft == 1:
        count = 2 if rng.random() < SECOND_DRAFT_TWO_FAULTS else 1
    else:
        count = 1 if rng.random() < LATER_NODE_FAULT else 0
    drawn = rng.sample(list(FAULTS), count)
    return replace(point, faults=tuple(fault for fault in FAULTS if fault in drawn))


@dataclass(frozen=True, slots=True)
class Repair:
    """A mended point and what was done, as a clause."""

    point: Point
    text: str


def repaired(point: Point, exc_type: str, timed_out: bool, not_finite: bool) -> Repair:
    """The point with one cause of its failure taken away."""
    for fault in point.faults:
        if exc_type and FAULTS[fault].exc_type == exc_type:
            return Repair(_without(point, fault), f"the planted fault is taken out ({FAULTS[fault].text})")
    if timed_out:
        return _shortened(point)
    if not exc_type and not not_finite and "never_saved" in point.faults:
        return Repair(
            _without(point, "never_saved"), f"the planted fault is taken out ({FAULTS['never_saved'].text})"
        )
    if not_finite:
        lower = [value for value in KNOBS["lr"].values if float(value) <= float(point.config["lr"]) / 9]
        rate = lower[-1] if lower else KNOBS["lr"].values[0]
        return Repair(
            replace(point, config={**point.config, "lr": rate}),
            f"the values were not finite, so lr goes from {point.config['lr']} to {rate}",
        )
    return Repair(replace(point, faults=()), "the cause is not in the book, so the program is written afresh")


def _without(point: Point, fault: str) -> Point:
    return replace(point, faults=tuple(other for other in point.faults if other != fault))


def _shortened(point: Point) -> Repair:
    setting = {
        knob: KNOBS[knob].values[max(0, KNOBS[knob].values.index(point.config[knob]) - 1)]
        for knob in ("epochs", "members")
    }
    changes = ", ".join(f"{knob} {point.config[knob]} -> {value}" for knob, value in setting.items())
    return Repair(
        replace(point, config={**point.config, **setting}), f"it ran out of time, so it does less ({changes})"
    )


def _sample(record: tuple[int, int], rng: random.Random) -> float:
    gains, tries = record
    return rng.betavariate(1 + gains, 1 + tries - gains)


def _targets(point: Point, knob: str) -> list[Value]:
    """Where a move may take a knob: next to its value, or to any other one where order means nothing."""
    values, value = point.idea.values(knob), point.config[knob]
    if not KNOBS[knob].ordered:
        return [other for other in values if other != value]
    place = values.index(value)
    return list(values[max(0, place - 1) : place]) + list(values[place + 1 : place + 2])


def _replay(
    history: Sequence[Trial],
) -> tuple[Trial, dict[str, tuple[int, int]], set[tuple[str, Value]]]:
    """The best trial; per knob how often a change of it beat the best before (gains, tries); and the
    values that lost when nothing else was changed, on either side."""
    best, record, judged = history[0], dict[str, tuple[int, int]](), set[tuple[str, Value]]()
    for trial in history[1:]:
        if trial.point.sets != best.point.sets:
            # Scores over different data sets don't compare: more sets win, and nothing is learnt.
            best = max(best, trial, key=lambda one: one.point.sets)
            continue
        gained = trial.score > best.score
        changed = best.point.differences(trial.point)
        for knob in changed:
            if len(changed) == 1:
                judged.add((knob, (best if gained else trial).point.config[knob]))
            gains, tries = record.get(knob, (0, 0))
            record[knob] = (gains + gained, tries + 1)
        if gained:
            best = trial
    return best, record, judged
