"""A toy world for the search: find the integer with the highest score. No experiment, no model, no disk."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corerun.errors import InfrastructureError
from corerun.interfaces import Event, Expansion, Node, Outcome, Tree
from corerun.search import derived_rng, finished_before, running_at

TARGET = 700


class Killed(BaseException):
    """Stands for `kill -9`: nothing after the last record happens."""


class ToyRun:
    """A run whose journal is a list. ``kill_after`` k: killed as soon as it holds k records."""

    id = "toy"
    dir = Path("/nonexistent")
    workers = 1
    stopping = False

    def __init__(self, seed: int = 0, journal: Sequence[Event] = (), kill_after: int | None = None) -> None:
        self.seed = seed
        self.journal = list(journal)
        self.resumed = bool(journal)
        self.warnings: list[str] = []
        self.kill_after = kill_after
        self.on_emit: Callable[[Event], None] = lambda event: None

    def emit(self, type: str, **data: Any) -> int:
        event = Event(len(self.journal) + 1, 0.0, type, json.loads(json.dumps(data, allow_nan=False)))
        self.journal.append(event)
        self.on_emit(event)
        if self.kill_after is not None and len(self.journal) >= self.kill_after:
            raise Killed
        return event.seq

    def events(self, scope: str | None = None) -> Sequence[Event]:
        return [event for event in self.journal if scope is None or event.data.get("scope") == scope]

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class ToyDomain:
    """Outcomes follow from a node's id, its attempt, its parent's number and what it may know of others.

    A node takes some turns of the event loop, a number that follows from its id too, so that nodes
    under way end in another order than they began. ``fail``, ``close`` and ``lose`` are the shares of
    nodes that fail, are closed, and lose their first attempt to the infrastructure.
    """

    def __init__(
        self, *, fail: float = 0.3, close: float = 0.0, lose: float = 0.0, goal: float | None = None
    ) -> None:
        self.fail, self.close, self.lose, self.goal = fail, close, lose, goal
        self.expanded: Counter[str] = Counter()
        self.questions: list[int] = []

    async def expand(self, run: Any, tree: Tree, node: Node) -> Outcome:
        self.expanded[node.id] += 1
        rng = derived_rng("toy", node.id)
        known = [
            [other.seq for other in finished_before(tree, node.asked_at)],
            [other.seq for other in running_at(tree, node.asked_at)],
        ]
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        if rng.random() < self.lose and node.attempt == 0:
            raise InfrastructureError("a worker was lost")
        base = rng.randrange(1000) if node.parent is None else int(tree.nodes[node.parent].data["number"])
        data = {"number": base + rng.randrange(-20, 40), "known": known}
        open_ = rng.random() >= self.close
        if rng.random() < self.fail:
            return Outcome("failed", reason="planted", open=open_, data=data)
        return Outcome("good", score=-abs(TARGET - data["number"]), open=open_, data=data)

    async def finished(self, run: Any, tree: Tree) -> bool:
        self.questions.append(tree.done)
        best = tree.best
        return (
            self.goal is not None and best is not None and best.score is not None and best.score >= self.goal
        )


class GatedDomain:
    """Every expansion waits until the test opens its gate, by ask number."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[int] = asyncio.Queue()
        self.gates: dict[int, asyncio.Future[Outcome]] = {}
        self.cancelled: list[int] = []

    async def expand(self, run: Any, tree: Tree, node: Node) -> Outcome:
        gate = self.gates[node.seq] = asyncio.get_running_loop().create_future()
        self.started.put_nowait(node.seq)
        try:
            return await gate
        except asyncio.CancelledError:
            for _ in range(5):
                await asyncio.sleep(0)
            self.cancelled.append(node.seq)
            raise

    def open(self, number: int, outcome: Outcome | Exception) -> None:
        if isinstance(outcome, Exception):
            self.gates[number].set_exception(outcome)
        else:
            self.gates[number].set_result(outcome)

    async def finished(self, run: Any, tree: Tree) -> bool:
        return False


class Fixed:
    """Asks what it is told to: one list of parents per ask number; told node numbers are kept."""

    def __init__(self, wishes: Callable[[Tree, int], Sequence[Expansion]]) -> None:
        self.wishes = wishes
        self.told: list[int] = []
        self.asked: list[tuple[int, int]] = []

    def ask(self, tree: Tree, slots: int, rng: random.Random) -> Sequence[Expansion]:
        self.asked.append((len(tree.nodes), slots))
        return self.wishes(tree, slots)

    def tell(self, tree: Tree, node: Node) -> None:
        self.told.append(node.seq)


class AnyOpen:
    """Expands open nodes at random, or makes a root; uses every slot, and gives nodes a hint."""

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self.open: list[str] = []
        self.told: list[int] = []

    def ask(self, tree: Tree, slots: int, rng: random.Random) -> Sequence[Expansion]:
        choices = [None, *self.open]
        return [Expansion(rng.choice(choices), {"draw": rng.randrange(1000)}) for _ in range(slots)]

    def tell(self, tree: Tree, node: Node) -> None:
        self.told.append(node.seq)
        if node.open:
            self.open.append(node.id)


def drafts(tree: Tree, slots: int) -> Sequence[Expansion]:
    return [Expansion()] * slots


def picture(tree: Tree) -> Any:
    """All of a tree but the numbers of journal records: equal pictures are equal searches."""
    return {
        "nodes": [{**asdict(node), "asked_at": None, "done_at": None} for node in tree.nodes.values()],
        "views": [list(tree.roots), list(tree.running), list(tree.good), list(tree.open_failed)],
        "counts": [tree.asked, tree.done, tree.best and tree.best.id],
    }
