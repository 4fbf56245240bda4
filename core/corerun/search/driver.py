"""The asynchronous driver: keeps expansions under way, journals them, tells the strategy, resumes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from corerun.errors import (
    EnvironmentRefused,
    InfrastructureError,
    Interrupted,
    ModelUnusable,
    StateError,
    Stopped,
    UsageError,
)
from corerun.interfaces import Domain, Event, Expansion, Node, Outcome, Run, Strategy
from corerun.runs.events import NODE_ASKED, NODE_DONE
from corerun.search.identity import derived_rng, node_id
from corerun.search.records import asked_node, done_outcome, emit_asked, emit_done, open_batch_start
from corerun.search.tree import SearchTree

_ENDS_THE_RUN = (Stopped, EnvironmentRefused, StateError, UsageError, Interrupted, ModelUnusable)


async def search(
    run: Run,
    domain: Domain,
    strategy: Strategy,
    *,
    scope: str,
    max_nodes: int,
    in_flight: int,
    batch: bool = False,
    infra_retries: int = 1,
    tree: SearchTree | None = None,
) -> SearchTree:
    """Search one scope of the run's journal, from wherever the journal left it, and return its tree.

    Ends when ``max_nodes`` counted nodes were asked, when ``domain.finished`` says so or when the
    strategy has nothing to ask while nothing runs; what runs is always waited for. A run that is
    stopping asks for nothing new and ends as `Interrupted`. With
    ``in_flight == 1`` or ``batch`` the result is a pure function of the seed and the outcomes, killed
    and resumed or not. ``tree`` is an empty tree to fill, for a caller that wants to hold it early.

    Raises what stops a run (limits, bad input, a refusing environment, corrupt state, fatal model
    errors) and whatever ``finished`` or the strategy raises, after all running expansions ended.
    """
    if in_flight < 1:
        raise UsageError("in_flight must be at least 1", where=scope)
    tree = SearchTree(scope) if tree is None else tree
    if tree.nodes or tree.scope != scope:
        raise UsageError("a search needs an empty tree of its own scope", where=scope)
    driver = _Driver(run, domain, strategy, tree, max_nodes, in_flight, batch, infra_retries)
    try:
        await driver.resume()
        await driver.go_on()
        if run.stopping:
            raise Interrupted("interrupted", hint="go on with --resume")
    finally:
        await driver.cancel()
    return tree


class _Driver:
    def __init__(
        self,
        run: Run,
        domain: Domain,
        strategy: Strategy,
        tree: SearchTree,
        max_nodes: int,
        in_flight: int,
        batch: bool,
        infra_retries: int,
    ) -> None:
        self.run, self.domain, self.strategy, self.tree = run, domain, strategy, tree
        self.scope = tree.scope
        self.max_nodes, self.in_flight = max_nodes, in_flight
        self.batch, self.infra_retries = batch, infra_retries
        self.in_order = batch or in_flight == 1
        self.tasks: dict[asyncio.Task[Outcome], Node] = {}
        self.question: asyncio.Future[bool] | None = None
        self.question_again = False
        self.answer_first = False
        self.stop = False
        self.batches = 0
        # The nodes of the batch under way, by ask number, with the outcomes that are in so far. The tree
        # and the strategy learn them all at once, so that the order of arrival can't matter.
        self.open_batch: dict[str, tuple[Outcome, int] | None] = {}
        self.warned: set[str] = set()

    # ---------------------------------------------------------------------------------- resuming

    async def resume(self) -> None:
        """Fold the journal with the same calls, in the same order, as when it was written."""
        events = [event for event in self.run.events(self.scope) if event.type in (NODE_ASKED, NODE_DONE)]
        cut = open_batch_start(events) if self.batch else len(events)
        for event in events[:cut]:
            await self._replay(event)
        if cut < len(events):
            # A kill between two records of one batch left the rest of it unasked: ask again, from the
            # same tree with the same generator, and add what isn't recorded.
            wishes = self._choose()
            for event in events[cut:]:
                await self._replay(event)
            recorded = [self.tree.nodes[node].parent for node in self.open_batch]
            if recorded == [wish.parent for wish in wishes[: len(recorded)]]:
                for wish in wishes[len(recorded) :]:
                    self._ask(wish, self.batches)
        for node in self.tree.running.values():
            if self.open_batch.get(node.id) is None:
                self._start(node)
        if not self.in_order and len(self.tree.nodes) > len(self.tree.running):
            # The answer may have been yes before the kill; asking nodes first would pass over it.
            self.answer_first = True
            self._ask_whether_finished()

    async def _replay(self, event: Event) -> None:
        node = self.tree.nodes.get(event.data["node"])
        if event.type == NODE_ASKED:
            if node is None:
                self._admit(asked_node(event), event.data["batch"])
            else:
                self.tree.readmit(node.id, event.data["attempt"])
        elif node is None:
            raise StateError("a node is done that was never asked", where=f"journal record {event.seq}")
        else:
            await self._tell(self._settled(node, done_outcome(event), event.seq))

    # ----------------------------------------------------------------------------------- the loop

    async def go_on(self) -> None:
        while True:
            if not (
                self.stop or self.run.stopping or self.answer_first or (self.batch and self.tree.running)
            ):
                self._fill()
            if not self.tasks and self.question is None:
                return
            await self._collect()

    def _fill(self) -> None:
        wishes = self._choose()
        if not wishes:
            return
        batch = self.batches + 1 if self.batch else None
        # All records first: a batch of which one node is done was asked completely.
        for node in [self._ask(wish, batch) for wish in wishes]:
            self._start(node)

    def _choose(self) -> Sequence[Expansion]:
        """What the strategy wants to be expanded now, without what it may not want."""
        slots = min(self.in_flight - len(self.tree.running), self.max_nodes - self.tree.asked)
        if slots < 1:
            return ()
        rng = derived_rng(self.run.seed, self.scope, len(self.tree.nodes))
        wishes = self.strategy.ask(self.tree, slots, rng)
        return [wish for wish in wishes if self._allowed(wish)][:slots]

    def _allowed(self, wish: Expansion) -> bool:
        if wish.parent is None:
            return True
        parent = self.tree.nodes.get(wish.parent)
        if parent is None:
            fault = "unknown"
        elif parent.status == "running":
            fault = "still running"
        elif not parent.open:
            fault = "closed"
        else:
            return True
        if fault not in self.warned:
            self.warned.add(fault)
            name = type(self.strategy).__name__
            self.run.warn(f"{self.scope}: strategy {name} asked to expand a node that is {fault}; refused")
        return False

    def _ask(self, wish: Expansion, batch: int | None) -> Node:
        number = len(self.tree.nodes)
        identity = node_id(self.run.seed, self.scope, number)
        node = Node(identity, wish.parent, root="", depth=0, seq=number, hint=dict(wish.hint))
        node.asked_at = emit_asked(self.run, self.scope, node, batch)
        return self._admit(node, batch)

    def _admit(self, node: Node, batch: int | None) -> Node:
        if batch is not None:
            self.batches = batch
            self.open_batch[node.id] = None
        return self.tree.ask(node)

    def _start(self, node: Node) -> None:
        self.tasks[asyncio.create_task(self._expand(node))] = node

    async def _expand(self, node: Node) -> Outcome:
        """What became of the node; raises only what ends the run."""
        try:
            outcome = await self.domain.expand(self.run, self.tree, node)
            if outcome.status not in ("good", "failed", "void", "infra"):
                raise ValueError(f"a domain can't answer with status {outcome.status!r}")
            return replace(outcome, score=_score(outcome), reason=_one_line(outcome.reason))
        except InfrastructureError as error:
            return Outcome("infra", reason=_one_line(str(error)))
        except Exception as error:
            if isinstance(error, _ENDS_THE_RUN):
                raise
            return Outcome("failed", reason=_one_line(f"{type(error).__name__}: {error}"))

    async def _collect(self) -> None:
        """Wait for whatever ends first, journal it, then tell it."""
        waited: set[asyncio.Future[Any]] = {*self.tasks, *([self.question] if self.question else [])}
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        failure: BaseException | None = None
        settled: list[tuple[Node, Outcome, int]] = []
        ended = [(self.tasks.pop(task), task) for task in list(self.tasks) if task in done]
        for node, task in sorted(ended, key=lambda pair: pair[0].seq):
            try:
                outcome = task.result()
            except (Exception, asyncio.CancelledError) as error:
                failure = failure or error
                continue
            settled += self._record(node, outcome)
        if failure is not None:
            raise failure
        await self._tell(settled)
        if settled and not self.in_order:
            self._ask_whether_finished()
        if self.question in done:
            self._take_answer()

    def _record(self, node: Node, outcome: Outcome) -> Sequence[tuple[Node, Outcome, int]]:
        if outcome.status == "infra" and node.attempt < self.infra_retries:
            self._retry(node)
            return ()
        if outcome.status == "infra":
            # Closed: nothing in it is worth a debug, and no model shall see it.
            outcome = Outcome("failed", reason=f"infra: {outcome.reason}", open=False, data=outcome.data)
        record = emit_done(self.run, self.scope, node, outcome)
        return self._settled(node, outcome, record)

    def _retry(self, node: Node) -> None:
        self.tree.readmit(node.id, node.attempt + 1)
        emit_asked(self.run, self.scope, node, self.batches if node.id in self.open_batch else None)
        self._start(node)

    def _settled(self, node: Node, outcome: Outcome, record: int) -> Sequence[tuple[Node, Outcome, int]]:
        """The nodes that may be told now that ``node`` is recorded: itself, or its batch if complete."""
        if node.id not in self.open_batch:
            return ((node, outcome, record),)
        self.open_batch[node.id] = (outcome, record)
        batch = [(self.tree.nodes[key], *end) for key, end in self.open_batch.items() if end is not None]
        if len(batch) < len(self.open_batch):
            return ()
        self.open_batch = {}
        return batch

    async def _tell(self, settled: Sequence[tuple[Node, Outcome, int]]) -> None:
        for node, outcome, record in settled:
            self.tree.finish(node.id, outcome, record)
            self.strategy.tell(self.tree, node)
            if self.in_order and await self.domain.finished(self.run, self.tree):
                self.stop = True

    # ---------------------------------------------------- the question beside free running nodes

    def _ask_whether_finished(self) -> None:
        if self.question is not None:
            self.question_again = True
        elif not self.stop:
            self.question = asyncio.ensure_future(self.domain.finished(self.run, self.tree))

    def _take_answer(self) -> None:
        assert self.question is not None
        answer, self.question = self.question.result(), None
        self.stop = self.stop or answer
        self.answer_first = False
        if self.question_again:
            self.question_again = False
            self._ask_whether_finished()

    async def cancel(self) -> None:
        left: list[asyncio.Future[Any]] = [*self.tasks, *([self.question] if self.question else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _score(outcome: Outcome) -> float | None:
    """Only good nodes have one, and only a finite number is one."""
    if outcome.status != "good" or outcome.score is None or not math.isfinite(outcome.score):
        return None
    return float(outcome.score)


def _one_line(text: str, limit: int = 500) -> str:
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
