"""Reruns of a finished program with other seeds, and their joint plots."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from corerun.errors import CallFailed, StateError
from corerun.inputs.names import safe_join
from corerun.interfaces import Expansion, Node, Outcome, Run, Tree
from corerun.runs import io
from corerun.search.driver import search
from corerun.search.records import carry_root
from corerun_bfts import judgements
from corerun_bfts.experiment import Record, rerun
from corerun_bfts.laboratory import Laboratory, ask, run_script
from corerun_bfts.programs import seeded, trimmed
from corerun_bfts.prompts import Prompts
from corerun_bfts.stages import Stage

TRIES = 2


class SeedDomain:
    """Reruns the one open root; no model is asked."""

    def __init__(self, laboratory: Laboratory, stage: Stage) -> None:
        self._lab = laboratory
        self._stage = stage

    async def expand(self, run: Run, tree: Tree, node: Node) -> Outcome:
        run.forget(node.id)
        root = tree.nodes[tree.roots[0]]
        seed = node.seq - 1
        record = Record(
            "seed",
            self._stage.number,
            plan=f"Seed {seed} of {root.data['origin_id']}",
            code=seeded(root.data["code"], seed),
            name=root.data.get("name", ""),
            extra={"origin_id": root.data["origin_id"]},
        )
        outcome = await rerun(self._lab, node, record, seed, root.data.get("plot_code", ""))
        return Outcome(outcome.status, outcome.score, outcome.reason, open=False, data=outcome.data)

    async def finished(self, run: Run, tree: Tree) -> bool:
        return False


class EverySeed:
    """Asks for the root again and again; the node limit is the number of seeds."""

    def ask(self, tree: Tree, slots: int, rng: random.Random) -> Sequence[Expansion]:
        return [Expansion(tree.roots[0])] * slots

    def tell(self, tree: Tree, node: Node) -> None:
        pass


def carried(node: Node) -> Outcome:
    """A good node as the root of another scope."""
    kept = {key: value for key, value in node.data.items() if key not in ("output", "exc_stack")}
    data = kept | {"op": "carried", "origin_id": node.data.get("origin_id", node.id), "from": node.id}
    return Outcome("good", node.score, data=data)


async def run_seeds(laboratory: Laboratory, stage: Stage, best: Node, *, in_flight: int, batch: bool) -> Tree:
    """Run ``best`` once per seed, in the scope ``<stage>.seeds``."""
    run = laboratory.run
    carry_root(run, stage.seeds, carried(best))
    return await search(
        run,
        SeedDomain(laboratory, stage),
        EverySeed(),
        scope=stage.seeds,
        max_nodes=laboratory.settings.agent.multi_seed_eval.num_seeds,
        in_flight=in_flight,
        batch=batch,
    )


async def aggregate_seeds(
    laboratory: Laboratory, stage: Stage, prompts: Prompts, best: Node, seeds: Sequence[Node]
) -> None:
    """Let the code model plot the seeds together; a failure costs the plots, not the run."""
    run = laboratory.run
    key = f"aggregation:{stage.scope}"
    good = [node for node in seeds if node.status == "good" and node.data.get("npy_files")]
    if run.noted(key) is not None or not good:
        return
    files = [str(run.dir / node.data["npy_files"][0]) for node in good]
    node_id = f"{best.id}-seeds"
    made: dict[str, Any] = {"id": node_id, "best": best.id, "seeds": [node.id for node in good], "plots": []}
    error = ""
    for _ in range(TRIES):
        question = judgements.seed_plot(
            prompts.context,
            laboratory.metric.to_json(),
            files,
            best.data.get("structure"),
            sorted(best.data["metric"]["sets"]),
            best.data.get("plot_code", ""),
            error,
        )
        try:
            answer = await ask(run, question, node_id)
        except CallFailed as bad:
            run.warn(f"{stage.scope}: no plots over seeds: {bad.message}")
            break
        made["plan"], made["code"] = answer.value
        result, workspace = await run_script(
            run,
            laboratory.settings,
            node_id,
            made["code"],
            label="aggregate",
            file_name="aggregation_plotting_code.py",
            collect=("working/*.png",),
            read=files,
        )
        made["output"] = trimmed(result.stdout + result.stderr)
        if result.status == "ok":
            place = f"logs/0-run/experiment_results/seed_aggregation_{node_id}"
            folder = safe_join(run.dir, place, error=StateError)
            io.replace(folder / "aggregation_plotting_code.py", made["code"], sync=False)
            for item in result.files:
                source = workspace / item["path"]
                io.copy_file(source, folder / source.name)
                made["plots"].append(f"{place}/{source.name}")
            made["exp_results_dir"] = place
            break
        error = trimmed(f"{result.exc_type}: {result.exc_msg}\n{result.stderr}")
    else:
        run.warn(f"{stage.scope}: the plots over seeds failed: {error.splitlines()[0][:200]}")
    run.note(key, made)
