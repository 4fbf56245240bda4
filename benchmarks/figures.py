"""The common form of a measurement: figures with their goals, printed as one JSON line."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Peer:
    """What another program came to on the same work. ``value`` None: it isn't installed here."""

    name: str
    version: str | None
    value: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value and the goal that it is held against."""

    what: str
    value: float
    unit: str
    goal: float
    better: Literal["lower", "higher"] = "lower"
    peer: Peer | None = None

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the goal; equal is enough."""
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal

    def to_json(self) -> dict[str, Any]:
        peer = self.peer and {
            "name": self.peer.name,
            "version": self.peer.version,
            "value": None if self.peer.value is None else float(f"{self.peer.value:.4g}"),
        }
        return {
            "what": self.what,
            "value": float(f"{self.value:.4g}"),
            "unit": self.unit,
            "goal": self.goal,
            "better": self.better,
            "met": self.met,
            "peer": peer,
        }


def tell(line: str) -> None:
    """Say something beside the result, on stderr."""
    print(line, file=sys.stderr, flush=True)


def tell_machine() -> None:
    """Say what the figures were measured on, and how busy it was."""
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    tell(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {load}")


def report(benchmark: str, figures: Sequence[Figure]) -> None:
    """Print the result: one JSON line on stdout."""
    print(json.dumps({"benchmark": benchmark, "figures": [figure.to_json() for figure in figures]}))
