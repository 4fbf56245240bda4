"""`python -m benchmarks.recipes_gain`: the search on built-in recipes against drawing points at random."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import corerun_bfts
from benchmarks.figures import Figure, Peer, report, tell, tell_machine
from corerun import __version__
from corerun.interfaces import CallContext, ChatReply, ChatRequest, ProviderInfo
from corerun_bfts.sdk import run_job
from corerun_recipes.moves import affordable, configurations
from corerun_recipes.points import Point, own_point
from corerun_recipes.provider import RecipesProvider
from corerun_recipes.question import Question, question, with_program
from corerun_recipes.render import program

IDEAS = Path(corerun_bfts.__file__).parent / "example" / "ideas.json"
GAINS = {"few_labels": 0.02, "calibration": 0.05, "regression": 0.0}
"""What the best program must gain over the first draft, on rows that the search never saw. Nothing is
promised on regression beyond not being worse."""
FULL = {"order": [1, 2, 3, 4], "stage1_max_iters": 8, "stage2_max_iters": 10, "stage3_max_iters": 10}
FULL |= {"stage4_max_iters": 6}
QUICK = {"order": [1], "stage1_max_iters": 2}
MODEL = "default-no-faults"


class RandomPoints:
    """Recipes whose next point is drawn at random from the whole table, where theirs is a move.

    Drafts, ablations, reviews and plots are those of the recipes.
    """

    info = ProviderInfo("random", needs_key=False, is_local=True, vision=False, kind="rules")

    def __init__(self) -> None:
        self._recipes = RecipesProvider()

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        if ctx.purpose not in ("bfts.improve", "bfts.tune_idea"):
            return await self._recipes.complete(request, ctx)
        asked = question(ctx, plant_faults=False)
        point = drawn(asked)
        if ctx.purpose == "bfts.improve":
            return ChatReply(text=with_program("A point drawn at random.", program(point)), model="random")
        root = own_point(asked.facts["root"]["head"])
        setting = root.differences(point)
        idea = {"name": f"random {ctx.node}", "description": "A point drawn at random.", "setting": setting}
        return ChatReply(text=json.dumps(idea | {"exhausted": False}), model="random")


def drawn(asked: Question) -> Point:
    """A point that wasn't tried and isn't too dear, every knob drawn for itself."""
    taken = configurations([*asked.facts["tried"], *asked.facts["running"]])
    start = own_point(asked.facts["parent" if "parent" in asked.facts else "root"]["head"])
    while True:
        config = {knob: asked.rng.choice(asked.idea.values(knob)) for knob in start.config}
        point = replace(start, config=config, sets=asked.sets, faults=(), outer="")
        if point.key not in taken and affordable(point):
            return point


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.recipes_gain", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one tiny search: shows that it works")
    parser.add_argument("--ideas", default="few_labels", help=f"comma-separated, of {', '.join(GAINS)}")
    parser.add_argument("--seeds", type=int, default=3, help="searches per idea, each with its control")
    options = parser.parse_args(arguments)
    ideas = options.ideas.split(",")
    if unknown := set(ideas) - set(GAINS):
        parser.error(f"unknown idea {', '.join(sorted(unknown))}")
    tell_machine()
    seeds = 1 if options.quick else options.seeds
    report("recipes_gain", [measure(idea, seeds, options.quick) for idea in ideas])


def measure(idea: str, seeds: int, quick: bool) -> Figure:
    """Gain on test rows over the first draft, of the search and of its control, mean over searches."""
    gains: dict[str, list[float]] = {"recipes": [], "random": []}
    for seed in range(seeds):
        for provider, found in gains.items():
            with tempfile.TemporaryDirectory(prefix="corerun-bench-") as place:
                manifest = asyncio.run(run(Path(place), idea, provider, seed, quick))
            first, best = (test_score(manifest[name]) for name in ("first_good", "best"))
            found.append((best - first) * (1 if manifest["metric"]["maximize"] else -1))
            tell(
                f"{idea}, seed {seed}, {provider}: first draft {_spread(manifest['first_good'])}, "
                f"best {_spread(manifest['best'])}"
            )
    means = {provider: statistics.mean(found) for provider, found in gains.items()}
    spread = statistics.stdev(gains["recipes"]) if seeds > 1 else float("nan")
    tell(f"{idea}: gain {means['recipes']:.4f} (sd over searches {spread:.4f}), random {means['random']:.4f}")
    metric = manifest["metric"]["name"]
    what = f"{idea}: gain of the best program over the first draft on test rows, mean of {seeds} searches"
    peer = Peer("random points", __version__, means["random"])
    return Figure(what, means["recipes"], metric, GAINS[idea], "higher", peer)


async def run(place: Path, idea: str, provider: str, seed: int, quick: bool) -> Mapping[str, Any]:
    """One search under the limits of the packaged example; its manifest."""
    names = [entry["Name"] for entry in json.loads(IDEAS.read_text(encoding="utf-8"))]
    stages = QUICK if quick else FULL
    settings: dict[str, Any] = {
        "model": f"{provider}::{MODEL}",
        "seed": seed,
        "workers": 2,
        "out_root": str(place),
        "bfts.load_ideas": str(IDEAS),
        "bfts.idea_idx": names.index(idea),
        "bfts.exec.timeout": 60,
        "bfts.generate_report": False,
        "bfts.plot_agg_reflections": 0,
        "bfts.agent.search.debug_prob": 1.0,
        "bfts.agent.multi_seed_eval.num_seeds": 2 if quick else 5,
        "bfts.agent.stages.stage1_until": "limit",
        **{f"bfts.agent.stages.{key}": value for key, value in stages.items()},
    }
    providers = {"random": RandomPoints()} if provider == "random" else {}
    manifest = await run_job(
        settings=settings, providers=providers, cwd=place, environ={"HOME": str(place)}, accept_weak=True
    )
    if manifest["status"] != "success":
        raise SystemExit(f"the search ended as {manifest['status']}: {manifest.get('error')}")
    return manifest


def test_score(measured: Mapping[str, Any]) -> float:
    """Mean over seeds of the value on test rows."""
    return float(measured["seeds"]["test"]["mean"])


def _spread(measured: Mapping[str, Any]) -> str:
    test = measured["seeds"]["test"]
    return f"{test['mean']:.4f} +- {test['sd'] or 0.0:.4f} (n {test['n']})"


if __name__ == "__main__":
    main()
