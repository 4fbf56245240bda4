"""The four summaries of a run: what models write of it, and the logs of the nodes that count."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from corerun.errors import CallFailed, StateError
from corerun.inputs.names import safe_join
from corerun.interfaces import Node, Run
from corerun.runs import io
from corerun_bfts import judgements
from corerun_bfts.laboratory import ask
from corerun_bfts.record import RunRecord, StageRecord
from corerun_bfts.settings import BftsSettings

NAMES = ("draft", "baseline", "research", "ablation")
LOGGED = (
    "analysis",
    "metric",
    "code",
    "plot_code",
    "plot_plan",
    "plot_analyses",
    "plots",
    "vlm_feedback_summary",
)
SHOWN_PLANS = 12


async def write_summaries(run: Run, record: RunRecord, settings: BftsSettings) -> None:
    """Write ``logs/0-run/<name>_summary.json`` for all four; empty for a stage not reached."""
    plans = Plans(run, record)
    written: dict[str, Any] = {}
    stages = {number: record.stage_of(number) for number in (1, 2, 3, 4)}
    first = stages[1]
    written["draft"] = await _draft(run, record, plans, first) if first else {}
    for number, name in ((2, "baseline"), (3, "research")):
        stage = stages[number]
        written[name] = await _best_with_seeds(run, record, plans, stage) if stage else {}
    written["ablation"] = await _ablations(record, plans, stages[4]) if stages[4] else []
    for name in NAMES:
        if not written[name]:
            run.warn(f"the {name} summary is empty: its stage left nothing to report")
        place = safe_join(run.dir, f"logs/0-run/{name}_summary.json", error=StateError)
        io.replace_json(place, written[name])


class Plans:
    """Overall plans: a node's own plan merged with the plans of the nodes it builds on."""

    def __init__(self, run: Run, record: RunRecord) -> None:
        self._run = run
        self._record = record
        self._made: dict[str, asyncio.Task[str]] = {}

    async def of(self, node: Node) -> str:
        """The overall plan of a node; each is asked for once, however many nodes build on it."""
        origin = self._record.node(node.data["from"]) if "from" in node.data else node
        node = origin or node
        if node.id not in self._made:
            self._made[node.id] = asyncio.create_task(self._merge(node))
        return await self._made[node.id]

    async def _merge(self, node: Node) -> str:
        plan = str(node.data.get("plan", ""))
        parent = self._record.node(node.parent) if node.parent else None
        if parent is None:
            return plan
        before = await self.of(parent)
        try:
            known = self._record.context(int(node.data.get("stage", 1)))
            answer = await ask(self._run, judgements.overall_plan(known, before, plan), node.id)
        except CallFailed:
            return plan
        return str(answer.value.overall_plan)


async def node_log(record: RunRecord, plans: Plans | None, node: Node) -> dict[str, Any]:
    """A node as summaries hold it."""
    data = node.data
    log: dict[str, Any] = {"overall_plan": await plans.of(node) if plans else data.get("plan", "")}
    log |= {key: data[key] for key in LOGGED if data.get(key)}
    if "plots" in log:
        log["plot_paths"] = [_cut(path) for path in log.pop("plots")]
    if data.get("name"):
        log["ablation_name" if data.get("stage") == 4 else "hyperparam_name"] = data["name"]
    if data.get("exp_results_dir"):
        log["exp_results_dir"] = _cut(data["exp_results_dir"])
    log["exp_results_npy_files"] = [_cut(path) for path in data.get("npy_files", [])]
    return log


def _cut(path: str) -> str:
    return path[path.index("experiment_results") :] if "experiment_results" in path else path


def leaves(stage: StageRecord) -> list[Node]:
    """Good nodes of a stage without a good child."""
    return [
        node
        for node in stage.good
        if not any(stage.tree.nodes[child].status == "good" for child in node.children)
    ]


async def _draft(run: Run, record: RunRecord, plans: Plans, stage: StageRecord) -> dict[str, Any]:
    found = leaves(stage)[:SHOWN_PLANS]
    if not found:
        return {}
    texts = await asyncio.gather(*(plans.of(node) for node in found))
    rows = [
        {"node": node.id, "set": name, "metric": metric["name"], "final": value, "best": value}
        for node in found
        for metric in (node.data["metric"],)
        for name, value in metric["sets"].items()
    ]
    figures = [_cut(path) for node in found for path in node.data.get("plots", [])[:2]]
    question = judgements.draft_summary(record.context(1), texts, rows, figures)
    try:
        return dict((await ask(run, question, f"{stage.scope}.summary")).value.model_dump())
    except CallFailed as error:
        run.warn(f"the draft summary could not be written: {error.message}")
        return {}


async def _best_with_seeds(run: Run, record: RunRecord, plans: Plans, stage: StageRecord) -> dict[str, Any]:
    best = stage.best_node
    if best is None:
        return {}
    seeds = [node for node in record.seeds(stage.scope) if node.status == "good"]
    summary: dict[str, Any] = {
        "best node": await node_log(record, plans, best),
        "best node with different seeds": [await node_log(record, None, node) for node in seeds],
    }
    made: Mapping[str, Any] = run.noted(f"aggregation:{stage.scope}") or {}
    if made.get("plots"):
        summary["aggregated results of nodes with different seeds"] = {
            "overall_plan": made.get("plan", ""),
            "plot_code": made["code"],
            "plot_paths": [_cut(path) for path in made["plots"]],
            "exp_results_dir": _cut(made["exp_results_dir"]),
            "exp_results_npy_files": [],
        }
    return summary


async def _ablations(record: RunRecord, plans: Plans, stage: StageRecord) -> list[dict[str, Any]]:
    named: Sequence[Node] = [node for node in leaves(stage) if node.data.get("name")]
    return list(await asyncio.gather(*(node_log(record, plans, node) for node in named)))
