"""How a node of an experiment stage is expanded and scored, and when the stage is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from corerun.errors import CallFailed, CorerunError
from corerun.execution.collect import remove_tree
from corerun.interfaces import Node, Outcome, Run, Tree
from corerun.runs import events as kinds
from corerun.search.tree import finished_before, running_at
from corerun_bfts import judgements
from corerun_bfts.experiment import Record, examine
from corerun_bfts.history import remembered, running_row
from corerun_bfts.laboratory import Laboratory, ask
from corerun_bfts.programs import extract_program, head
from corerun_bfts.prompts import Prompts
from corerun_bfts.questions import Question
from corerun_bfts.stages import Stage
from corerun_bfts.standing import Standing, set_count

Idea = Mapping[str, Any]
WRITING = frozenset({"bfts.draft", "bfts.improve", "bfts.debug", "bfts.tune", "bfts.ablate"})
WIDENING: Idea = {"name": "", "description": "", "setting": {}, "exhausted": False}
EXHAUSTED: Idea = {**WIDENING, "exhausted": True}
SETTLED_FOR = 4
"""Finished nodes for which a best node has stood before a model is asked whether that is enough."""
VOTES = 5
"""Good nodes that must contradict the metric's direction before a person is warned."""


@dataclass(frozen=True, slots=True)
class Written:
    """A program as it was written, and the number of the record that holds it."""

    code: str
    seq: int


class StageDomain:
    """One stage or sub-stage. Everything that goes into a prompt follows from the journal as it was
    when the node was asked, so that a resumed run puts the same questions."""

    def __init__(
        self, laboratory: Laboratory, stage: Stage, prompts: Prompts, root: str | None, root_sets: int
    ) -> None:
        self._lab = laboratory
        self._stage = stage
        self._prompts = prompts
        self._root = root
        self._search = laboratory.settings.agent.search
        self._standing = Standing(root_sets)
        self._written: dict[str, Written] = {}
        self._recorded: dict[str, Idea] = {}
        self._ideas: dict[str, asyncio.Future[Idea]] = {}
        self._judged: set[str] = set()
        self.complete = False
        """The stage's goals are reached, or there is nothing left to try."""
        self.substage_done = False
        if laboratory.run.resumed:
            self._recall(laboratory.run)

    def _recall(self, run: Run) -> None:
        """Programs and ideas that earlier processes of this run have recorded."""
        for event in run.events():
            if event.type == kinds.CALL_ANSWERED and event.data["purpose"] in WRITING:
                try:
                    _, code = extract_program(event.data["text"])
                except ValueError:
                    continue
                self._written[event.data["node"]] = Written(code, event.seq)
        for event in run.events(self._stage.scope):
            if event.type == kinds.NODE_DONE:
                self._recorded[event.data["node"]] = event.data["data"]

    # ---------------------------------------------------------------------------- expansion

    async def expand(self, run: Run, tree: Tree, node: Node) -> Outcome:
        """Write the node's program and take it through all steps."""
        run.forget(node.id)
        record = Record(self._op(tree, node), self._stage.number)
        limit = self._lab.settings.exec.node_timeout or 3 * self._lab.settings.exec.timeout + 600
        try:
            async with asyncio.timeout(limit):
                return await self._expand(run, tree, node, record)
        except TimeoutError:
            return self._failed(record, f"the node took longer than {limit:g} s")
        except CallFailed as error:
            return self._failed(record, f"{type(error).__name__}: {error.message}")
        except CorerunError:
            raise
        except Exception as error:
            return self._failed(record, f"{type(error).__name__}: {error}")
        finally:
            self._settle_idea(node.id, WIDENING)

    def _failed(self, record: Record, reason: str) -> Outcome:
        """A failure that isn't the program's: closed, since there is nothing in it to debug."""
        data = {"op": record.op, "stage": record.stage, "name": record.name, "setting": dict(record.setting)}
        return Outcome("failed", reason=reason, open=False, data=data)

    async def _expand(self, run: Run, tree: Tree, node: Node, record: Record) -> Outcome:
        parent = tree.nodes[node.parent] if node.parent else None
        if record.op in ("tune", "ablate"):
            assert parent is not None
            idea = await self._next_idea(run, tree, node, parent)
            if idea["exhausted"]:
                self._standing.exhausted = True
                return Outcome("void", reason="nothing is left to try", data={"op": record.op})
            record.take(idea)
            question = self._prompts.apply(record.op, _facts(parent), parent.data["code"], idea)
            if not idea["name"]:
                record.op, record.extra["widens"] = "widen", True
        else:
            if record.op == "debug":
                assert parent is not None
                record.take(parent.data)
                record.extra["widens"] = parent.data.get("widens", False)
            self._settle_idea(node.id, {**WIDENING, "name": record.name, "setting": record.setting})
            question = self._program_question(tree, node, parent, record.op)
        answer = await ask(run, question, node.id)
        record.plan, record.code = answer.value
        self._written[node.id] = Written(record.code, answer.seq)
        record.extra["faults"] = _planted(record.code)
        record.plot_base = self._plot_base(tree, parent)
        if parent is not None and record.op == "improve":
            record.extra["exec_time_feedback"] = self._time_push(node, parent)
        return self._closed(await examine(self._lab, node, self._prompts, record))

    def _program_question(self, tree: Tree, node: Node, parent: Node | None, op: str) -> Question:
        if op == "debug":
            assert parent is not None
            return self._prompts.debug(_facts(parent), parent.data.get("code", ""), _failure(parent))
        tried, running = self._history(tree, node)
        if parent is None:
            ordinal = sum(1 for root in tree.roots if tree.nodes[root].seq < node.seq)
            return self._prompts.draft(ordinal, tried, running)
        feedback = self._feedback(node, parent)
        return self._prompts.improve(_facts(parent), parent.data["code"], tried, running, feedback)

    def _op(self, tree: Tree, node: Node) -> str:
        if node.parent is None:
            return "draft"
        return "debug" if tree.nodes[node.parent].status == "failed" else self._stage.kind

    def _closed(self, outcome: Outcome) -> Outcome:
        """Whether a good node may be expanded: not in stages that work on the carried program, nor
        if it covers fewer data sets than the stage has reached."""
        if outcome.status != "good":
            return outcome
        fewer = self._root is not None and len(outcome.data["metric"]["sets"]) < self._standing.reached
        return replace(outcome, open=self._stage.kind == "improve" and not fewer)

    def _feedback(self, node: Node, parent: Node) -> dict[str, str]:
        found = {
            "review": parent.data.get("analysis", ""),
            "plots": parent.data.get("vlm_feedback_summary", ""),
            "time": self._time_push(node, parent),
        }
        return {key: value for key, value in found.items() if value}

    def _time_push(self, node: Node, parent: Node) -> str:
        """Words for a program of the creative stage that uses little of its time."""
        agent, limit = self._lab.settings.agent, self._lab.settings.exec.timeout
        ran = parent.data.get("exec_time", 0.0)
        late = self._stage.number == 3 and node.seq > agent.stages.limit(3) / 2
        if not late or ran >= agent.stage3_min_time_fraction * limit or self._lab.written_by == "rules":
            return ""
        return (
            f"The program ran {ran:.0f} s of {limit:.0f} s: there is room for more epochs, a bigger model "
            "or more data."
        )

    def _plot_base(self, tree: Tree, parent: Node | None) -> str:
        code = parent.data.get("plot_code", "") if parent else ""
        if not code and self._root is not None:
            code = tree.nodes[self._root].data.get("plot_code", "")
        return str(code)

    # ------------------------------------------------------------------------------ history

    def _history(self, tree: Tree, node: Node) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows on what was finished, and what was running, when ``node`` was asked."""
        done = [other for other in finished_before(tree, node.asked_at) if other.status != "void"]
        running = []
        for other in running_at(tree, node.asked_at):
            if other.id != node.id:
                written = self._written.get(other.id)
                code = written.code if written and written.seq < node.asked_at else ""
                running.append(running_row(other, self._op(tree, other), code, self._known_idea(other)))
        return remembered(done, self._lab.settings.agent.memory_max_chars), running

    # -------------------------------------------------------------------------------- ideas

    async def _next_idea(self, run: Run, tree: Tree, node: Node, parent: Node) -> Idea:
        """The next setting. Ideas are made one at a time, in ask order, so that none comes twice."""
        for other in running_at(tree, node.asked_at):
            if other.seq < node.seq and other.done_at is None and other.id not in self._recorded:
                await self._future(other.id)
        idea = await self._new_idea(run, tree, node, parent)
        self._settle_idea(node.id, idea)
        return idea

    async def _new_idea(self, run: Run, tree: Tree, node: Node, parent: Node) -> Idea:
        if self._stage.number == 2 and self._stage.sub == 1 and node.seq == 1:
            return WIDENING
        if self._standing.exhausted:
            return EXHAUSTED
        tried, running = self._history(tree, node)
        kind, code = self._stage.kind, parent.data["code"]
        answer = await ask(run, self._prompts.next_idea(kind, _facts(parent), code, tried, running), node.id)
        idea = answer.value
        if idea.exhausted:
            return EXHAUSTED
        name = idea.name.strip() or "unnamed"
        return {**WIDENING, "name": name, "description": idea.description, "setting": idea.setting}

    def _future(self, node: str) -> asyncio.Future[Idea]:
        if node not in self._ideas:
            self._ideas[node] = asyncio.get_running_loop().create_future()
        return self._ideas[node]

    def _settle_idea(self, node: str, idea: Idea) -> None:
        future = self._future(node)
        if not future.done():
            future.set_result(idea)

    def _known_idea(self, node: Node) -> Idea:
        """The idea of a node that was asked earlier; the journal's word counts before memory's."""
        if node.data or node.id in self._recorded:
            return node.data or self._recorded[node.id]
        future = self._future(node.id)
        return future.result() if future.done() else WIDENING

    # ---------------------------------------------------------------------------------- end

    def best(self, tree: Tree) -> Node | None:
        """The stage's best: what a model selected, else what covers the data sets with the best score."""
        chosen = self._lab.run.noted(f"selected:{self._stage.scope}")
        if chosen in tree.good:
            return tree.good[chosen]
        return max(tree.good.values(), key=self._standing.rank, default=None)

    async def finished(self, run: Run, tree: Tree) -> bool:
        """Whether the stage has what it wants."""
        self._settle(run, self._standing.update(tree))
        self.complete = self.complete or self._standing.exhausted
        if self.complete or self.substage_done:
            return True
        agent = self._lab.settings.agent
        if self._stage.number == 1 and agent.stages.stage1_until == "drafts" and self._drafts_settled(tree):
            self.complete = True
            return True
        best = self._standing.leader
        if best is None or best.id == self._root or best.id in self._judged:
            return False
        if self._standing.stood(tree) < SETTLED_FOR:
            return False
        if self._stage.number == 2:
            self.complete = await self._judge(run, tree, best, "stage")
        elif self._stage.sub < agent.max_substages:
            self.substage_done = await self._judge(run, tree, best, "substage")
        return self.complete or self.substage_done

    def _settle(self, run: Run, told: list[Node]) -> None:
        """What is due once nodes are in the journal: their workspaces go, odd votes are reported."""
        if not self._lab.settings.keep_workspaces:
            for node in told:
                for attempt in range(node.attempt + 1):
                    remove_tree(str(run.dir / "nodes" / f"{node.id}.{attempt}"))
        votes, maximize = self._standing.lower_is_better, self._lab.metric.maximize
        if votes[maximize] >= VOTES and votes[maximize] > votes[not maximize]:
            run.warn(
                f"most programs say that {self._lab.metric.name} is to be "
                f"{'minimised' if maximize else 'maximised'}, the run keeps its direction"
            )

    def _drafts_settled(self, tree: Tree) -> bool:
        """All drafts worked, were mended or were given up, and at least one works."""
        if len(tree.roots) < self._search.num_drafts or not tree.good:
            return False
        depth = self._search.max_debug_depth if self._search.debug_prob > 0 else 0
        busy = {node.root for node in tree.running.values()}
        busy |= {node.root for node in tree.open_failed.values() if node.debug_depth < depth}
        settled = {node.root for node in tree.good.values()}
        return all(root in settled or root not in busy for root in tree.roots)

    async def _judge(self, run: Run, tree: Tree, best: Node, kind: str) -> bool:
        self._judged.add(best.id)
        # A resumed run may come here with more nodes in the question: the first judgement stands.
        key = f"judged:{best.id}:{kind}"
        known = run.noted(key)
        if known is None:
            known = await self._ask_judgement(run, tree, best, kind)
            run.note(key, known)
        return bool(known)

    async def _ask_judgement(self, run: Run, tree: Tree, best: Node, kind: str) -> bool:
        done = [node for node in tree.nodes.values() if node.done_at is not None and node.status != "void"]
        question = judgements.stage_complete(
            kind,
            self._prompts.context,
            self._stage.number,
            self._stage.goals,
            _facts(best),
            remembered(done, self._lab.settings.agent.memory_max_chars),
        )
        try:
            answer = await ask(run, question, f"{best.id}.{kind}")
        except CallFailed as error:
            run.warn(f"{self._stage.scope}: no usable judgement of the stage: {error.message}")
            return False
        return bool(answer.value.is_complete)


class WideningDomain(StageDomain):
    """Runs one carried program on more data sets, and mends it if that fails."""

    def widest(self, tree: Tree) -> Node | None:
        """The good node that was measured on most data sets, the root left out."""
        good = [node for node in tree.good.values() if node.counted]
        return max(good, key=lambda node: (set_count(node), -node.seq), default=None)

    async def finished(self, run: Run, tree: Tree) -> bool:
        self._settle(run, self._standing.update(tree))
        return self.widest(tree) is not None


def _facts(node: Node) -> dict[str, Any]:
    metric = node.data.get("metric") or {}
    return {
        "node": node.id,
        "op": node.data.get("op", ""),
        "head": head(node.data.get("code", "")),
        "faults": node.data.get("faults", []),
        "score": node.score,
        "sets": metric.get("sets", {}),
    }


def _failure(node: Node) -> dict[str, str]:
    data = node.data
    return {
        "exc_type": data.get("exc_type", ""),
        "exc_message": (data.get("exc_info") or {}).get("message", ""),
        "reason": node.reason,
        "review": data.get("analysis", ""),
        "plots": data.get("vlm_feedback_summary", ""),
        "output_tail": data.get("output", ""),
        "name": data.get("name", ""),
    }


def _planted(code: str) -> list[str]:
    """Faults that built-in recipes say they planted, read from the program's first line."""
    first = head(code).removeprefix("# recipe:")
    try:
        return list(json.loads(first).get("faults", [])) if first else []
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []
