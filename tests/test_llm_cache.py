"""Answers that are kept across runs."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import Transient
from corerun.interfaces import ChatReply, Degradation, Price, ProviderInfo, ToolCall, Usage
from corerun.llm.budget import Budget
from corerun.llm.cache import cache_file
from corerun.llm.client import LlmSettings
from corerun.testing.fake import FakeProvider
from tests.support.language_models import ASK, REMOTE, Journal, client


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


def run(environ: dict[str, str], provider: Any, mode: str = "write", **options: Any) -> Any:
    return client(provider, environ=environ, settings=LlmSettings(cache=mode, retries=0), **options)


def counting(info: ProviderInfo = REMOTE) -> FakeProvider:
    """Answers 1, 2, 3 ... so that samples of one prompt differ."""
    provider = FakeProvider(info=info)
    provider._function = lambda request, ctx: ChatReply(
        str(len(provider.calls)), usage=Usage(10, 5, cost_usd=0.25), tool_calls=(ToolCall("c", "f", "{}"),)
    )
    return provider


async def test_a_later_run_is_answered_without_a_call_and_each_sample_stays_itself(
    environ: dict[str, str],
) -> None:
    first = counting()
    models = run(environ, first)
    assert [(await models.ask("r", "p", ASK)).value for _ in range(3)] == ["1", "2", "3"]
    models.close()
    journal, second = Journal(), counting()
    models = run(environ, second, journal=journal, budget=Budget(tokens=1000, usd=0.0))
    answers = [await models.ask("r", "other purpose", ASK, node="elsewhere") for _ in range(3)]
    assert ([answer.value for answer in answers], second.calls) == (["1", "2", "3"], [])
    assert answers[0].reply.tool_calls == (ToolCall("c", "f", "{}"),)
    record = journal.of("call_answered")[0]
    assert (record["cache_hit"], record["saved_usd"], record["cost_usd"]) == (True, 0.25, 0.0)
    assert (record["price_source"], record["attempts"]) == ("cache", 0)
    assert models.ledger.totals.to_json() == {"usd": 0.0, "tokens": 0, "calls": 3}
    models.close()


async def test_reading_only_keeps_nothing_and_off_finds_nothing(environ: dict[str, str]) -> None:
    read_first = run(environ, counting(), "read")
    await read_first.ask("r", "p", ASK)
    assert not cache_file(environ).exists()
    written = run(environ, counting())
    await written.ask("r", "p", ASK)
    provider = counting()
    reading = run(environ, provider, "read")
    for _ in range(2):
        await reading.ask("r", "p", ASK)
    assert len(provider.calls) == 1, "the second sample isn't there and isn't kept"
    off = counting()
    await run(environ, off, "off").ask("r", "p", ASK)
    assert len(off.calls) == 1
    for models in (read_first, written, reading):
        models.close()


async def test_another_request_model_or_address_is_another_question(environ: dict[str, str]) -> None:
    writing = run(environ, counting())
    await writing.ask("r", "p", ASK)
    writing.close()
    other = counting(ProviderInfo("fake", address="https://elsewhere/v1"))
    for provider, options, model in (
        (counting(), {"temperature": 0.5}, "fake::echo"),
        (counting(), {"seed": 1}, "fake::echo"),
        (counting(), {}, "fake::other"),
        (other, {}, "fake::echo"),
    ):
        models = run(environ, provider, "read", model=model)
        await models.ask("r", "p", ASK, **options)
        assert len(provider.calls) == 1
        models.close()


async def test_an_answer_without_a_feature_is_none_for_a_strict_question(environ: dict[str, str]) -> None:
    lost = ChatReply("no seed", degradations=(Degradation("seed"),))
    models = run(environ, FakeProvider([lost]))
    await models.ask("r", "p", ASK, seed=7)
    models.close()
    for strict, value in ((False, "no seed"), (True, "asked anew")):
        models = run(environ, FakeProvider(["asked anew"]))
        assert (await models.ask("r", "p", ASK, seed=7, strict=strict)).value == value
        models.close()


async def test_failures_are_not_kept(environ: dict[str, str]) -> None:
    models = run(environ, FakeProvider([Transient("away"), "good"]))
    with pytest.raises(Exception, match="away"):
        await models.ask("r", "p", ASK)
    models.close()
    provider = FakeProvider(["good"])
    again = run(environ, provider)
    assert (await again.ask("r", "p", ASK)).value == "good"
    assert len(provider.calls) == 1
    again.close()


async def test_a_file_that_cannot_be_used_is_told_once_and_costs_no_answer(environ: dict[str, str]) -> None:
    path = cache_file(environ)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is no database, and long enough to be looked at as one" * 30)
    journal = Journal()
    models = run(environ, counting(), journal=journal)
    assert [(await models.ask("r", "p", ASK)).value for _ in range(2)] == ["1", "2"]
    assert len(journal.of("warning")) == 1


async def test_a_damaged_answer_is_asked_again(environ: dict[str, str]) -> None:
    models = run(environ, counting())
    await models.ask("r", "p", ASK)
    models.close()
    with sqlite3.connect(cache_file(environ)) as file:
        file.execute("UPDATE answers SET reply = ?", (b"\x00",))
    file.close()
    provider = counting()
    models = run(environ, provider)
    assert (await models.ask("r", "p", ASK)).value == "1"
    assert len(provider.calls) == 1
    models.close()


async def test_the_file_is_its_owners_and_holds_no_question(environ: dict[str, str]) -> None:
    models = run(environ, counting(), prices={"echo": Price(1, 1)})
    await models.ask("r", "p", ASK)
    models.close()
    path = cache_file(environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"terse" not in path.read_bytes()
