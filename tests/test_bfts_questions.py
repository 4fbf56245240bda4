"""What models are told: the messages hold every fact that a rule-based provider is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from corerun.interfaces import CallContext, ChatReply, ChatRequest, ProviderInfo
from corerun.llm.messages import message_text
from corerun_bfts.questions import Section, ask_about, shown
from corerun_bfts.sdk import run_job
from corerun_recipes.provider import RecipesProvider
from tests.support.jobs import clean_environ

UNTOLD = {"seed", "attempt"}
"""Facts that only make a rule-based answer reproducible."""
SMALL = {
    "strategy": "greedy",
    "bfts.agent.stages.stage1_max_iters": 5,
    "bfts.agent.stages.stage2_max_iters": 3,
    "bfts.agent.stages.stage3_max_iters": 2,
    "bfts.agent.stages.stage4_max_iters": 2,
    "bfts.agent.multi_seed_eval.num_seeds": 1,
}


class Overheard:
    """The recipes, with every call written down."""

    def __init__(self) -> None:
        self.recipes = RecipesProvider()
        self.calls: list[tuple[str, str, Mapping[str, Any]]] = []

    @property
    def info(self) -> ProviderInfo:
        return self.recipes.info

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        text = "\n".join(message_text(message) for message in request.messages)
        self.calls.append((ctx.purpose, text, ctx.facts))
        return await self.recipes.complete(request, ctx)


@pytest.fixture(scope="module")
def overheard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Overheard, Mapping[str, Any]]:
    import asyncio

    place = tmp_path_factory.mktemp("overheard")
    provider = Overheard()
    manifest = asyncio.run(
        run_job(settings=SMALL, cwd=place, environ=clean_environ(place), providers={"recipes": provider})
    )
    return provider, manifest


def test_every_fact_stands_in_the_messages(overheard: tuple[Overheard, Mapping[str, Any]]) -> None:
    provider, _ = overheard
    for purpose, text, facts in provider.calls:
        for name, value in facts.items():
            told = name in UNTOLD or value in (None, "", [], {}) or shown(value) in text
            assert told, f"{purpose}: the fact {name} is in no message"


def test_every_purpose_of_a_run_was_overheard(overheard: tuple[Overheard, Mapping[str, Any]]) -> None:
    provider, _ = overheard
    assert {purpose for purpose, _, _ in provider.calls} >= {
        "bfts.metric",
        "bfts.draft",
        "bfts.debug",
        "bfts.improve",
        "bfts.tune_idea",
        "bfts.tune",
        "bfts.ablate_idea",
        "bfts.ablate",
        "bfts.review",
        "bfts.parse_metric",
        "bfts.plot",
        "bfts.seed_plot",
        "bfts.overall_plan",
        "bfts.draft_summary",
        "bfts.aggregate_plots",
    }


def test_values_on_test_rows_are_told_to_nobody(overheard: tuple[Overheard, Mapping[str, Any]]) -> None:
    provider, manifest = overheard
    texts = [text for _, text, _ in provider.calls]
    values = [f"{value:.12g}" for value in manifest["best"]["metric"]["test"].values()]
    on_validation = [f"{value:.12g}" for value in manifest["best"]["metric"]["sets"].values()]
    secret = [value for value in values if value not in on_validation and len(value) > 8]
    assert secret
    assert not [value for value in secret for text in texts if value in text]


def test_another_strategy_searches_the_same_domain(overheard: tuple[Overheard, Mapping[str, Any]]) -> None:
    _, manifest = overheard
    assert (manifest["status"], manifest["strategy"]) == ("success", "greedy")


def test_a_section_without_content_is_no_part_of_the_message(tmp_path: Path) -> None:
    question = ask_about("code", "x", "you", "do it", [Section("Empty", "a", ""), Section("Zero", "b", 0)])
    text = message_text(question.messages[1])
    assert "Empty" not in text and "# Zero\n0" in text
    assert question.facts == {"a": "", "b": 0}
