"""How a node of an experiment stage is expanded and scored, and when the stage is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corerun.errors import ModelError
from corerun.execution.collect import remove_tree
from corerun.interfaces import Node, Outcome, Run, Tree
from corerun.runs import events as kinds
from corerun.search.tree import finished_before, running_at
from corerun_bfts import judgements
from corerun_bfts.experiment import Laboratory, Record, ask
from corerun_bfts.history import remembered, running_row
from corerun_bfts.programs import extract_program, head
from corerun_bfts.prompts import Prompts
from corerun_bfts.stages import Stage

WRITING = frozenset({"bfts.draft", "bfts.improve", "bfts.debug", "bfts.tune", "bfts.ablate"})
SETTLED_FOR = 4
"""Finished nodes for which a best node has stood before a model is asked whether that is enough."""

WIDENING: Mapping[str, Any] = {"name": "", "description": "", "setting": {}, "exhausted": False}


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
        self._reached = root_sets
        self._search = laboratory.settings.agent.search
        self._written: dict[str, Written] = {}
        self._ideas: dict[str, asyncio.Future[Mapping[str, Any] | None]] = {}
        self._under_way: set[str] = set()
        self._leader: Node | None = None
        self._leads_since = 0
        self._judged: set[str] = set()
        self.complete = False
        """The stage's goals are reached (or there is nothing left to try)."""
        self.substage_done = False
        self._exhausted = False
        self._recall_programs(laboratory.run)

    def _recall_programs(self, run: Run) -> None:
        if not run.resumed:
            return
        for event in run.events():
            if event.type == kinds.CALL_ANSWERED and event.data["purpose"] in WRITING:
                try:
                    _, code = extract_program(event.data["text"])
                except ValueError:
                    continue
                self._written[event.data["node"]] = Written(code, event.seq)

    # ---------------------------------------------------------------------------- expansion

    async def expand(self, run: Run, tree: Tree, node: Node) -> Outcome:
        """Write the node's program and take it through all steps."""
        run.forget(node.id)
        self._under_way.add(node.id)
        limit = self._lab.settings.exec.node_timeout or 3 * self._lab.settings.exec.timeout + 600
        try:
            async with asyncio.timeout(limit):
                return await self._expand(run, tree, node)
        except TimeoutError:
            return Outcome("failed", reason=f"the node took longer than {limit:g} s", data={"op": "timeout"})
        finally:
            self._idea_of(node.id, default=None)

    async def _expand(self, run: Run, tree: Tree, node: Node) -> Outcome:
        op = self._op(tree, node)
        parent = tree.nodes[node.parent] if node.parent else None
        record = Record(op, self._stage.number)
        if op == "draft":
            tried, running = self._history(tree, node)
            ordinal = sum(1 for root in tree.roots if tree.nodes[root].seq < node.seq)
            question = self._prompts.draft(ordinal, tried, running)
        elif op == "debug":
            assert parent is not None
            question = self._prompts.debug(
                _parent_facts(parent), parent.data.get("code", ""), _failure_facts(parent)
            )
            record.name = parent.data.get("name", "")
            record.description = parent.data.get("description", "")
            record.setting = parent.data.get("setting", {})
            record.extra["widens"] = parent.data.get("widens", False)
        elif op == "improve":
            assert parent is not None
            tried, running = self._history(tree, node)
            feedback = self._feedback(node, parent, tree)
            question = self._prompts.improve(
                _parent_facts(parent), parent.data["code"], tried, running, feedback
            )
        else:
            assert parent is not None
            idea = await self._next_idea(run, tree, node, parent)
            if idea["exhausted"]:
                self.complete = self._exhausted = True
                return Outcome("void", reason="nothing is left to try", data={"op": op})
            if not idea["name"]:
                record.op, record.extra["widens"] = "widen", True
            record.name, record.description = idea["name"], idea["description"]
            record.setting = idea["setting"]
            question = self._prompts.apply(op, _parent_facts(parent), parent.data["code"], idea)
        try:
            answer = await ask(run, question, node.id)
        except ModelError as error:
            if error.fatal:
                raise
            # Without a program there is nothing to debug.
            reason = f"{type(error).__name__}: {error.message}"
            return Outcome("failed", reason=reason, open=False, data={"op": op, "stage": self._stage.number})
        record.plan, record.code = answer.value
        self._written[node.id] = Written(record.code, answer.seq)
        record.extra["faults"] = _planted(record.code)
        record.extra["plot_base"] = self._plot_base(tree, parent)
        if parent is not None and self._time_push(node, parent, tree):
            record.extra["exec_time_feedback"] = self._feedback(node, parent, tree).get("time", "")
        outcome = await self._lab.examine(node, self._prompts, record)
        return self._closed(outcome)

    def _op(self, tree: Tree, node: Node) -> str:
        if node.parent is None:
            return "draft"
        if tree.nodes[node.parent].status == "failed":
            return "debug"
        return self._stage.kind

    def _closed(self, outcome: Outcome) -> Outcome:
        """Whether the node may be expanded: in stages that work on the carried program, a good one
        may not; nor one that covers fewer data sets than the stage has reached."""
        if outcome.status != "good":
            return outcome
        fewer = self._root is not None and len(outcome.data["metric"]["sets"]) < self._reached
        if self._stage.kind == "improve" and not fewer:
            return outcome
        return Outcome(outcome.status, outcome.score, outcome.reason, open=False, data=outcome.data)

    # ------------------------------------------------------------------------------ history

    def _history(self, tree: Tree, node: Node) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        done = [other for other in finished_before(tree, node.asked_at) if other.status != "void"]
        tried = remembered(done, self._lab.settings.agent.memory_max_chars)
        running = []
        for other in running_at(tree, node.asked_at):
            if other.id == node.id:
                continue
            written = self._written.get(other.id)
            code = written.code if written and written.seq < node.asked_at else ""
            running.append(running_row(other, self._op(tree, other), code, self._known_idea(other)))
        return tried, running

    def _known_idea(self, node: Node) -> Mapping[str, Any] | None:
        if node.data:
            return {"name": node.data.get("name", ""), "setting": node.data.get("setting", {})}
        future = self._ideas.get(node.id)
        return future.result() if future is not None and future.done() else None

    def _idea_of(
        self, node: str, **value: Mapping[str, Any] | None
    ) -> asyncio.Future[Mapping[str, Any] | None]:
        future = self._ideas.get(node)
        if future is None:
            future = self._ideas[node] = asyncio.get_running_loop().create_future()
        if value and not future.done():
            future.set_result(value["default"])
        return future

    async def _next_idea(self, run: Run, tree: Tree, node: Node, parent: Node) -> Mapping[str, Any]:
        """The next setting. Ideas are made one at a time, in ask order, so that none comes twice."""
        for other in running_at(tree, node.asked_at):
            if other.seq < node.seq and not other.data:
                await self._idea_of(other.id)
        if self._widens(tree, node):
            self._idea_of(node.id, default=WIDENING)
            return WIDENING
        if self._exhausted:
            return {**WIDENING, "exhausted": True}
        tried, running = self._history(tree, node)
        question = self._prompts.next_idea(
            self._stage.kind, _parent_facts(parent), parent.data["code"], tried, running
        )
        answer = await ask_idea(run, question, node.id)
        self._idea_of(node.id, default=answer)
        return answer

    def _widens(self, tree: Tree, node: Node) -> bool:
        return self._stage.number == 2 and self._stage.sub == 1 and node.seq == 1

    # ----------------------------------------------------------------------------- feedback

    def _feedback(self, node: Node, parent: Node, tree: Tree) -> dict[str, Any]:
        found = {
            "review": parent.data.get("analysis", ""),
            "plots": parent.data.get("vlm_feedback_summary", ""),
        }
        if self._time_push(node, parent, tree):
            found["time"] = (
                f"The program ran {parent.data['exec_time']:.0f} s of "
                f"{self._lab.settings.exec.timeout:.0f} s: there is room for more epochs, a bigger model or more data."
            )
        return {key: value for key, value in found.items() if value}

    def _time_push(self, node: Node, parent: Node, tree: Tree) -> bool:
        fraction = self._lab.settings.agent.stage3_min_time_fraction
        if self._stage.number != 3 or not fraction or self._lab.written_by == "rules":
            return False
        limit = self._lab.settings.agent.stages.limit(3)
        ran = parent.data.get("exec_time", 0.0)
        return node.seq > limit / 2 and ran < fraction * self._lab.settings.exec.timeout

    def _plot_base(self, tree: Tree, parent: Node | None) -> str:
        code = parent.data.get("plot_code", "") if parent else ""
        if not code and self._root is not None:
            code = tree.nodes[self._root].data.get("plot_code", "")
        return str(code)

    # --------------------------------------------------------------------------------- end

    def covers(self, node: Node) -> bool:
        """Whether a good node was measured on all data sets that the stage has reached."""
        return len(node.data["metric"]["sets"]) >= self._reached

    def best(self, tree: Tree) -> Node | None:
        """The stage's best: first what covers the data sets, then the score, then the earlier one."""
        chosen = self._lab.run.noted(f"selected:{self._stage.scope}")
        return (
            tree.good[chosen] if chosen in tree.good else max(tree.good.values(), key=self.rank, default=None)
        )

    def rank(self, node: Node) -> tuple[bool, float, int]:
        """Orders good nodes; the highest is the best."""
        return (self.covers(node), float("-inf") if node.score is None else node.score, -node.seq)

    async def finished(self, run: Run, tree: Tree) -> bool:
        """Whether the stage has what it wants."""
        self._update(run, tree)
        if self.complete or self.substage_done:
            return True
        agent = self._lab.settings.agent
        if self._stage.number == 1 and agent.stages.stage1_until == "drafts" and self._drafts_settled(tree):
            self.complete = True
            return True
        best = self._leader
        if best is None or best.id == self._root or best.id in self._judged:
            return False
        if tree.done - self._leads_since < SETTLED_FOR:
            return False
        if self._stage.number == 2:
            self.complete = await self._judge(run, tree, best, "stage")
        elif self._stage.sub < agent.max_substages:
            self.substage_done = await self._judge(run, tree, best, "substage")
        return self.complete or self.substage_done

    def _update(self, run: Run, tree: Tree) -> None:
        """Take in what was told since the last call: data sets reached, the leader, workspaces to remove."""
        if self._leader is None and tree.good:
            self._lead(tree, list(tree.good.values()))
        told = [tree.nodes[key] for key in sorted(self._under_way) if tree.nodes[key].done_at is not None]
        for node in told:
            self._under_way.discard(node.id)
            if not self._lab.settings.keep_workspaces:
                for attempt in range(node.attempt + 1):
                    remove_tree(str(run.dir / "nodes" / f"{node.id}.{attempt}"))
        good = [node for node in told if node.status == "good"]
        wider = max((len(node.data["metric"]["sets"]) for node in good if node.data.get("widens")), default=0)
        if wider > self._reached:
            self._reached = wider
            good = list(tree.good.values())
        self._lead(tree, good)

    def _lead(self, tree: Tree, candidates: list[Node]) -> None:
        best = max([*candidates, *([self._leader] if self._leader else [])], key=self.rank, default=None)
        if best is not None and (self._leader is None or best.id != self._leader.id):
            since = best.done_at or 0
            earlier = [node for node in tree.nodes.values() if node.counted and node.done_at is not None]
            self._leader = best
            self._leads_since = sum(1 for node in earlier if (node.done_at or 0) <= since)

    def _drafts_settled(self, tree: Tree) -> bool:
        if len(tree.roots) < self._search.num_drafts or not tree.good:
            return False
        busy = {node.root for node in tree.running.values()}
        depth = self._search.max_debug_depth if self._search.debug_prob > 0 else 0
        mending = {node.root for node in tree.open_failed.values() if node.debug_depth < depth}
        settled = {node.root for node in tree.good.values()}
        return all(root in settled or root not in busy | mending for root in tree.roots)

    async def _judge(self, run: Run, tree: Tree, best: Node, kind: str) -> bool:
        self._judged.add(best.id)
        # A resumed run may come here with more nodes in the question: the first judgement stands.
        key = f"judged:{best.id}:{kind}"
        known = run.noted(key)
        if known is not None:
            return bool(known)
        tried = remembered(
            [node for node in tree.nodes.values() if node.done_at], self._lab.settings.agent.memory_max_chars
        )
        question = judgements.stage_complete(
            kind,
            self._prompts.context,
            self._stage.number,
            self._stage.goals,
            _parent_facts(best),
            tried,
        )
        try:
            answer = await ask(run, question, f"{best.id}.{kind}")
        except ModelError as error:
            if error.fatal:
                raise
            run.warn(f"{self._stage.scope}: no usable judgement of the stage: {error.message}")
            run.note(key, False)
            return False
        run.note(key, answer.value.is_complete)
        return bool(answer.value.is_complete)


async def ask_idea(run: Run, question: Any, node: str) -> Mapping[str, Any]:
    """Ask for the next setting."""
    answer = await ask(run, question, node)
    idea = answer.value
    return {
        "name": idea.name.strip() or "unnamed",
        "description": idea.description,
        "setting": idea.setting,
        "exhausted": idea.exhausted,
    }


def _parent_facts(node: Node) -> dict[str, Any]:
    metric = node.data.get("metric") or {}
    return {
        "node": node.id,
        "op": node.data.get("op", ""),
        "head": head(node.data.get("code", "")),
        "faults": node.data.get("faults", []),
        "score": node.score,
        "sets": metric.get("sets", {}),
    }


def _failure_facts(node: Node) -> dict[str, str]:
    data = node.data
    return {
        "exc_type": data.get("exc_type", ""),
        "exc_message": (data.get("exc_info") or {}).get("message", ""),
        "reason": node.reason,
        "output_tail": data.get("output", ""),
        "name": data.get("name", ""),
    }


def _planted(code: str) -> list[str]:
    """Faults that built-in recipes say they planted, read from the program's first line."""
    first = head(code).removeprefix("# recipe:")
    try:
        return list(json.loads(first).get("faults", [])) if first else []
    except (ValueError, AttributeError):
        return []
