"""Searching: nodes, trees, strategies, domains."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from corerun.interfaces.component import Json

if TYPE_CHECKING:
    from corerun.interfaces.runs import Run


@dataclass(frozen=True, slots=True)
class Expansion:
    """A strategy's wish: expand ``parent`` (None: make a new root)."""

    parent: str | None = None
    hint: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an expansion. Higher scores are better.

    ``status``: good; failed; infra (not the candidate's fault, the driver tries once more); void
    (there was nothing to expand, so it counts nowhere).
    """

    status: str
    score: float | None = None
    reason: str = ""
    open: bool = True
    data: Mapping[str, Json] = field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """One candidate. Only the driver writes it.

    ``seq`` is the ask number in its scope, from 0. ``asked_at``/``done_at`` are numbers of journal
    records; what a node may know of the others follows from them, not from the clock.
    """

    id: str
    parent: str | None
    root: str
    depth: int
    seq: int
    status: str = "running"
    score: float | None = None
    open: bool = True
    reason: str = ""
    data: Mapping[str, Json] = field(default_factory=dict)
    hint: Mapping[str, Json] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)
    debug_depth: int = 0
    attempt: int = 0
    counted: bool = True
    asked_at: int = 0
    done_at: int | None = None


class Tree(Protocol):
    """A search tree as strategies and domains see it: read only, every view kept up to date."""

    scope: str
    nodes: dict[str, Node]
    roots: list[str]
    running: dict[str, Node]
    good: dict[str, Node]
    open_failed: dict[str, Node]
    best: Node | None
    asked: int
    done: int


class Strategy(Protocol):
    """Says which node to expand next. ``ask`` changes nothing; ``tell`` rebuilds all state.

    ``ask`` may return fewer than ``slots``; an empty answer means wait or, with nothing running,
    that the search is exhausted.
    """

    def ask(self, tree: Tree, slots: int, rng: random.Random) -> Sequence[Expansion]: ...

    def tell(self, tree: Tree, node: Node) -> None: ...


class Domain(Protocol):
    """Says how a node is expanded and scored, and when the search is finished."""

    async def expand(self, run: Run, tree: Tree, node: Node) -> Outcome: ...

    async def finished(self, run: Run, tree: Tree) -> bool: ...
