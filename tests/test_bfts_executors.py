"""Where programs run makes no difference to what a run finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corerun_bfts.sdk import load_run, run_job
from tests.support.jobs import clean_environ

SMALL = {
    "scheduler": "batch",
    "bfts.agent.stages.stage1_max_iters": 3,
    "bfts.agent.stages.stage2_max_iters": 2,
    "bfts.agent.stages.stage3_max_iters": 1,
    "bfts.agent.stages.stage4_max_iters": 1,
    "bfts.agent.multi_seed_eval.num_seeds": 1,
    "bfts.plot_agg_reflections": 0,
}


def picture(run_dir: str) -> dict[str, Any]:
    trees = load_run(run_dir).trees
    return {
        node.id: (scope, node.parent, node.status, node.score, node.data.get("code"))
        for scope, tree in trees.items()
        for node in tree.nodes.values()
    }


async def test_worker_processes_find_the_same_tree_as_this_process(tmp_path: Path) -> None:
    found = []
    for executor in ("inline", "process"):
        manifest = await run_job(
            settings=SMALL | {"executor": executor, "run_id": executor},
            cwd=tmp_path,
            environ=clean_environ(tmp_path),
        )
        assert manifest["status"] == "success"
        found.append(picture(manifest["paths"]["run_dir"]))
    assert found[0] == found[1] and len(found[0]) > 10
