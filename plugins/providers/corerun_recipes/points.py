"""A point is one experiment of the book; a program's first line holds it, so code is the only record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from corerun.errors import Unsupported
from corerun.interfaces import Json

from .book import FAULTS, IDEAS, KNOBS, Idea, Value

PREFIX = "# recipe: "


@dataclass(frozen=True, slots=True)
class Point:
    """A full configuration on the first ``sets`` data sets of an idea.

    ``outer`` names the extra level of the data file that tuning and ablation programs have.
    """

    recipe: str
    sets: int
    config: Mapping[str, Value]
    faults: tuple[str, ...] = ()
    outer: str = ""

    @property
    def key(self) -> tuple[Value, ...]:
        """The configuration in the table's order, for comparing and hashing."""
        return tuple(self.config[knob] for knob in KNOBS)

    @property
    def idea(self) -> Idea:
        return IDEAS[self.recipe]

    def head(self) -> str:
        """The program's first line."""
        data = {"idea": self.recipe, "sets": self.sets, "config": {k: self.config[k] for k in KNOBS}}
        if self.outer:
            data["outer"] = self.outer
        if self.faults:
            data["faults"] = list(self.faults)
        return PREFIX + json.dumps(data)

    def moved(self, setting: Mapping[str, Value]) -> Point:
        """This point with some knobs set anew, free of faults."""
        return replace(self, config={**self.config, **setting}, faults=())

    def differences(self, other: Point) -> dict[str, Value]:
        """The knobs in which ``other`` differs from this point, with ``other``'s values."""
        return {k: other.config[k] for k in KNOBS if other.config[k] != self.config[k]}


def read_point(head: str) -> Point | None:
    """The point that a program's first line holds; None when the line is not one of the book's."""
    if not head.startswith(PREFIX):
        return None
    try:
        data = json.loads(head[len(PREFIX) :])
        idea, sets, config = IDEAS[data["idea"]], data["sets"], dict(data["config"])
        faults, outer = tuple(data.get("faults", ())), data.get("outer", "")
        known = (
            config.keys() == KNOBS.keys()
            and all(allowed(idea, knob, value) for knob, value in config.items())
            and type(sets) is int
            and 1 <= sets <= len(idea.sets)
            and all(fault in FAULTS for fault in faults)
            and isinstance(outer, str)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Point(idea.name, sets, config, faults, outer) if known else None


def own_point(head: str) -> Point:
    """Like `read_point`, but a program that the book did not write is refused."""
    point = read_point(head)
    if point is None:
        raise Unsupported(
            "recipes can go on only from programs that it wrote itself",
            hint="set --model to let a language model read other programs",
        )
    return point


def checked_setting(idea: Idea, setting: Mapping[str, Json]) -> dict[str, Value]:
    """A setting from a question, refused when the book has no such knob or value."""
    for knob, value in setting.items():
        if not (knob in KNOBS and allowed(idea, knob, value)):
            raise Unsupported(
                f"recipes has no setting {knob} = {value!r} for the idea {idea.name}",
                hint="set --model to ask a language model",
            )
    return dict(setting)


def allowed(idea: Idea, knob: str, value: Json) -> bool:
    """Whether the idea's table has this value; True is not 1, and a list is no value at all."""
    return type(value) in (str, int, float) and value in idea.values(knob)
