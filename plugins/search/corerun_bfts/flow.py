"""The walk of a run: metric, stages with carry-over and seeds, first good node, summaries, figures."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from corerun.config import Settings
from corerun.errors import CallFailed, RunFailed
from corerun.interfaces import Node, Run
from corerun.runs import events as kinds
from corerun.search.driver import search
from corerun.search.records import carry_root
from corerun.search.tree import SearchTree
from corerun_bfts import judgements
from corerun_bfts.domain import StageDomain, WideningDomain
from corerun_bfts.figures import aggregate_figures
from corerun_bfts.laboratory import Laboratory, ask
from corerun_bfts.metric import PrimaryMetric
from corerun_bfts.outputs import check_artifacts, write_stage, write_tokens
from corerun_bfts.prompts import Prompts
from corerun_bfts.questions import context
from corerun_bfts.record import RunRecord, first_good, fold_record, overall_best
from corerun_bfts.seeds import aggregate_seeds, carried, run_seeds
from corerun_bfts.settings import BftsSettings
from corerun_bfts.stages import FIRST_GOOD, Stage, first_stage, next_substage
from corerun_bfts.summaries import write_summaries

PACKAGES = ("numpy", "scipy", "pandas", "sklearn", "matplotlib", "torch", "torchvision", "transformers")
"""Packages that a program is told of where they are installed."""
FALLBACK = PrimaryMetric("validation_loss", False, "loss on validation rows")


class Walk:
    """One run of the job, from wherever its journal stands."""

    def __init__(
        self, run: Run, settings: Settings, own: BftsSettings, idea: Mapping[str, Any], preview: str
    ):
        self.run = run
        self.settings = settings
        self.own = own
        self.idea = idea
        self.preview = preview
        self.lab: Laboratory

    async def go(self) -> None:
        """Do all that isn't done yet."""
        if self.run.noted("packages") is None:
            self.run.note("packages", installed_packages(self.own.exec.python))
        self.lab = Laboratory(self.run, self.own, await self._metric())
        best: Node | None = None
        for number in self.own.agent.stages.order:
            best = await self._stage(number, best)
        if best is None:
            raise RunFailed("no stage left a working program", kind="NoWorkingNode")
        await self._first_good()
        if self.own.generate_report:
            await write_summaries(self.run, self._record(), self.own)
        await aggregate_figures(self.run, self.own, self._record())
        check_artifacts(self.run, self.own)

    def _record(self) -> RunRecord:
        return fold_record(self.run.events())

    async def _metric(self) -> PrimaryMetric:
        known = self.run.noted("metric")
        if known is not None:
            return PrimaryMetric(**known)
        if self.own.metric is not None:
            metric = PrimaryMetric(**self.own.metric.model_dump())
        else:
            question = judgements.define_metric(context(self.idea, 1, 1, self.own.exec.timeout))
            try:
                answer = (await ask(self.run, question, "metric")).value
                metric = PrimaryMetric(answer.name, answer.maximize, answer.description)
            except CallFailed as error:
                self.run.warn(f"the model named no metric, {FALLBACK.name} is used: {error.message}")
                metric = FALLBACK
        self.run.note("metric", metric.to_json())
        return metric

    # -------------------------------------------------------------------------------- stages

    async def _stage(self, number: int, carried_node: Node | None) -> Node:
        """One main stage with its sub-stages, seed reruns and joint plots; returns its best node."""
        stage = first_stage(number, self.own.agent.stages.goals)
        left = self.own.agent.stages.limit(number)
        while True:
            prompts = self._prompts(stage)
            tree, best, after = await self._search(stage, prompts, carried_node, left)
            left -= tree.done
            if after is None or left < 1:
                break
            stage, carried_node = next_substage(stage, after["name"], after["goals"]), best
        if self.own.agent.multi_seed_eval.num_seeds:
            seeds = await run_seeds(
                self.lab,
                stage,
                best,
                in_flight=self.settings.expansions,
                batch=self.settings.scheduler == "batch",
            )
            await aggregate_seeds(self.lab, stage, prompts, best, list(seeds.nodes.values())[1:])
            self._same_seeds(stage)
        record = self._record()
        write_stage(self.run.dir, record, stage.scope)
        write_tokens(self.run.dir, record)
        return best

    def _prompts(self, stage: Stage) -> Prompts:
        return Prompts(
            self.idea,
            self.lab.metric.to_json(),
            stage=stage.number,
            stage_name=f"{stage.main}, {stage.slug}",
            goals=stage.goals,
            stage_sets=stage.sets,
            timeout_s=self.own.exec.timeout,
            synthetic_sets=self.own.experiment.num_syn_datasets,
            folds=self.own.agent.k_fold_validation,
            packages=self.run.noted("packages", ""),
            preview=self.preview,
        )

    async def _search(
        self, stage: Stage, prompts: Prompts, before: Node | None, limit: int
    ) -> tuple[SearchTree, Node, Mapping[str, str] | None]:
        """Search one sub-stage; the tree, its best node, and the goals of a next sub-stage if any."""
        record = self._record()
        known = next((one for one in record.stages if one.scope == stage.scope), None)
        if known is not None and known.ended is not None:
            if known.best is None:
                raise _no_working_node(stage)
            return known.tree, known.tree.nodes[known.best], self.run.noted(f"after:{stage.scope}")
        if known is None:
            self.run.emit(
                kinds.STAGE_STARTED,
                scope=stage.scope,
                title=stage.main.replace("_", " "),
                number=stage.number,
                goals=stage.goals,
                max_nodes=limit,
            )
        root = carry_root(self.run, stage.scope, carried(before)) if before is not None else None
        sets = len(before.data["metric"]["sets"]) if before is not None else 1
        domain = StageDomain(self.lab, stage, prompts, root, sets)
        chosen = self.own.agent.search.model_dump()
        if before is not None:
            chosen["num_drafts"] = 0
        strategy = self.run.component("strategies", self.settings.strategy or "bfts")(chosen)
        tree = SearchTree(stage.scope)
        await search(
            self.run,
            domain,
            strategy,
            scope=stage.scope,
            max_nodes=limit,
            in_flight=self.settings.expansions,
            batch=self.settings.scheduler == "batch",
            infra_retries=self.settings.infra_retries,
            tree=tree,
        )
        if self.own.agent.select_by == "llm" and len(tree.good) > 1:
            await self._select(stage, tree)
        best = domain.best(tree)
        after = await self._next_goals(stage, tree, best) if domain.substage_done and best else None
        counted = [node for node in tree.nodes.values() if node.counted and node.done_at is not None]
        self.run.emit(
            kinds.STAGE_DONE,
            scope=stage.scope,
            best=best.id if best else None,
            nodes=len(counted),
            good=sum(node.status == "good" for node in counted),
            failed=sum(node.status == "failed" for node in counted),
        )
        if best is None:
            write_stage(self.run.dir, self._record(), stage.scope)
            raise _no_working_node(stage)
        return tree, best, after

    async def _select(self, stage: Stage, tree: SearchTree) -> None:
        """Let a model choose among the good nodes; an unknown answer leaves the choice to the metric."""
        candidates = [
            {"id": node.id, "metric": node.data["metric"]["sets"], "plan": node.data["plan"][:240]}
            for node in tree.good.values()
        ]
        question = judgements.select_best(self._prompts(stage).context, candidates)
        try:
            answer = await ask(self.run, question, f"{stage.scope}.best")
        except CallFailed as error:
            self.run.warn(f"{stage.scope}: the best node is chosen by its metric: {error.message}")
            return
        if answer.value.selected_id in tree.good:
            self.run.note(f"selected:{stage.scope}", answer.value.selected_id)

    async def _next_goals(self, stage: Stage, tree: SearchTree, best: Node) -> Mapping[str, str] | None:
        facts = {"node": best.id, "score": best.score, "sets": best.data["metric"]["sets"]}
        question = judgements.substage_goals(self._prompts(stage).context, stage.goals, facts, [])
        try:
            answer = (await ask(self.run, question, f"{stage.scope}.goals")).value
        except CallFailed as error:
            self.run.warn(f"{stage.scope}: no goals for a next sub-stage: {error.message}")
            return None
        after = {"name": answer.sub_stage_name, "goals": answer.goals}
        self.run.note(f"after:{stage.scope}", after)
        return after

    def _same_seeds(self, stage: Stage) -> None:
        stats = self._record().seed_stats(stage.scope)
        if stats is not None and stats["n"] > 1 and len(set(stats["values"])) == 1:
            self.run.warn(f"seeds_identical: all seed reruns of {stage.scope} gave the same value")
        if stats is None or stats["n"] < self.own.agent.multi_seed_eval.num_seeds:
            done = stats["n"] if stats else 0
            self.run.warn(
                f"{stage.scope}: {done} of {self.own.agent.multi_seed_eval.num_seeds} seed reruns succeeded"
            )

    # ----------------------------------------------------------------------------- first good

    async def _first_good(self) -> None:
        """Measure the first good node as the best one was: same data sets, same seeds."""
        record = self._record()
        start = first_good(record)
        best = overall_best(record)
        if start is None or best is None or not self.own.agent.multi_seed_eval.num_seeds:
            return
        node: Node | None = start
        if len(start.data["metric"]["sets"]) < len(best.data["metric"]["sets"]):
            node = await self._widened(start)
        if node is None:
            self.run.warn("the first good node could not be run on the best node's data sets")
            return
        await run_seeds(
            self.lab,
            FIRST_GOOD,
            node,
            in_flight=self.settings.expansions,
            batch=self.settings.scheduler == "batch",
        )

    async def _widened(self, start: Node) -> Node | None:
        root = carry_root(self.run, FIRST_GOOD.scope, carried(start))
        domain = WideningDomain(self.lab, FIRST_GOOD, self._prompts(FIRST_GOOD), root, 1)
        chosen = self.own.agent.search.model_dump() | {"num_drafts": 0, "debug_prob": 1.0}
        tree = await search(
            self.run,
            domain,
            self.run.component("strategies", "bfts")(chosen),
            scope=FIRST_GOOD.scope,
            max_nodes=3,
            in_flight=1,
        )
        return domain.widest(tree)


def installed_packages(python: str) -> str:
    """Scientific packages of the interpreter that runs programs; unknown for one that isn't ours."""
    if python:
        return ""
    return ", ".join(name for name in PACKAGES if importlib.util.find_spec(name) is not None)


def _no_working_node(stage: Stage) -> RunFailed:
    return RunFailed(
        f"no program of stage {stage.number} worked within its node limit",
        kind="NoWorkingNode",
        hint="`corerun runs show` lists the failed nodes; raise the stage's limit or use another model",
    )
