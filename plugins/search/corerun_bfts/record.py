"""A run as it stands in its journal: stages, nodes, seeds, notes. What `load_run` returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corerun.errors import UsageError
from corerun.interfaces import Event, Node
from corerun.runs import events as kinds
from corerun.runs import journal
from corerun.runs.fold import RunState, fold
from corerun.search.records import asked_node, done_outcome
from corerun.search.tree import SearchTree
from corerun_bfts.questions import Section, context
from corerun_bfts.stages import DATA_SETS


@dataclass(slots=True)
class StageRecord:
    """One stage or sub-stage with its tree, and what was chosen from it."""

    scope: str
    number: int
    title: str
    goals: str
    tree: SearchTree
    started: float
    best: str | None = None
    ended: float | None = None

    @property
    def nodes(self) -> list[Node]:
        """The counted nodes that are done: no carried root, nothing that was only asked."""
        return [node for node in self.tree.nodes.values() if node.counted and node.done_at is not None]

    @property
    def good(self) -> list[Node]:
        return [node for node in self.nodes if node.status == "good"]

    @property
    def best_node(self) -> Node | None:
        """The node that was carried on; while the stage runs, the best so far."""
        return self.tree.nodes.get(self.best) if self.best else self.tree.best


@dataclass(slots=True)
class RunRecord:
    """Everything that a run's journal says of its search."""

    events: Sequence[Event]
    state: RunState
    stages: list[StageRecord] = field(default_factory=list)
    trees: dict[str, SearchTree] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.state.started.data["settings"] if self.state.started else {}

    @property
    def idea(self) -> Mapping[str, Any]:
        return dict(self.state.notes.get("idea", {}))

    @property
    def metric(self) -> Mapping[str, Any]:
        return dict(self.state.notes.get("metric", {}))

    def context(self, stage: int) -> list[Section]:
        """What questions about a stage begin with."""
        timeout = float(self.settings.get("bfts", {}).get("exec", {}).get("timeout", 0.0))
        return context(self.idea, stage, 1 if stage == 1 else DATA_SETS, timeout)

    def seeds(self, scope: str) -> list[Node]:
        """Finished seed reruns of a stage's best node."""
        tree = self.trees.get(f"{scope}.seeds")
        return [node for node in tree.nodes.values() if node.data.get("op") == "seed"] if tree else []

    def seed_stats(self, scope: str) -> dict[str, Any] | None:
        """Statistics over the good seed reruns of a stage's best node; None without any."""
        good = [node for node in self.seeds(scope) if node.status == "good"]
        return statistics([node.data["metric"] for node in good]) if good else None

    def stage_of(self, number: int) -> StageRecord | None:
        """The last sub-stage of a main stage."""
        return next((stage for stage in reversed(self.stages) if stage.number == number), None)

    def node(self, node_id: str) -> Node | None:
        """A node of any scope."""
        return next((tree.nodes[node_id] for tree in self.trees.values() if node_id in tree.nodes), None)


def first_good(record: RunRecord) -> Node | None:
    """The working node of the first stage that was asked for first; which of them ended first is chance."""
    return next((node for stage in record.stages if stage.number == 1 for node in stage.good), None)


def overall_best(record: RunRecord) -> Node | None:
    """The best of all stages' best nodes: most data sets, then the score, then the earlier stage."""
    bests = [stage.best_node for stage in record.stages]
    found = [node for node in bests if node is not None and node.data.get("metric")]
    return max(
        found, key=lambda node: (len(node.data["metric"]["sets"]), node.score or float("-inf")), default=None
    )


def statistics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of a metric over reruns: overall, per data set, and on test rows."""
    sets = sorted({name for metric in metrics for name in metric["sets"]})
    tested = [metric["test"] for metric in metrics if metric.get("test")]
    found: dict[str, Any] = {
        "metric": metrics[0]["name"],
        "maximize": metrics[0]["maximize"],
        **spread([metric["value"] for metric in metrics]),
        "datasets": [
            {"dataset": name, **spread([m["sets"][name] for m in metrics if name in m["sets"]])}
            for name in sets
        ],
        "test": spread([math.fsum(test.values()) / len(test) for test in tested]) if tested else None,
    }
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, sample standard deviation, standard error and the values themselves."""
    n = len(values)
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else 0.0
    return {"n": n, "mean": mean, "std": std, "sem": std / math.sqrt(n), "values": list(values)}


def fold_record(events: Sequence[Event]) -> RunRecord:
    """The record of a journal, finished or not."""
    record = RunRecord(events, fold(events))
    stages: dict[str, StageRecord] = {}
    for event in events:
        data = event.data
        scope = str(data.get("scope"))
        if event.type == kinds.NODE_ASKED:
            tree = record.trees.setdefault(data["scope"], SearchTree(data["scope"]))
            if data["node"] in tree.nodes:
                tree.readmit(data["node"], data["attempt"])
            else:
                tree.ask(asked_node(event))
        elif event.type == kinds.NODE_DONE:
            record.trees[data["scope"]].finish(data["node"], done_outcome(event), event.seq)
        elif event.type == kinds.STAGE_STARTED:
            tree = record.trees.setdefault(scope, SearchTree(scope))
            stages[scope] = StageRecord(scope, data["number"], data["title"], data["goals"], tree, event.t)
        elif event.type == kinds.STAGE_DONE and scope in stages:
            stages[scope].best, stages[scope].ended = data["best"], event.t
    record.stages = list(stages.values())
    return record


def load_run(run_dir: str | Path) -> RunRecord:
    """The typed journal of a run directory, read only."""
    path = Path(run_dir) / "events.jsonl"
    if not path.is_file():
        raise UsageError(f"{run_dir} holds no journal (events.jsonl)")
    events, _ = journal.read(path)
    return fold_record(events)
