"""What an alias lends to its calls, which model answers when another can't, and answers in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from corerun.errors import (
    AuthFailed,
    BadAnswer,
    BudgetExceeded,
    ContentRefused,
    ContextTooLong,
    EnvironmentRefused,
    InfrastructureError,
    RequestRefused,
    StreamCut,
    Transient,
    Unsupported,
)
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Delta, Price, ProviderInfo, Role, Usage
from corerun.llm.budget import Budget
from corerun.llm.client import LlmSettings
from corerun.llm.directory import ModelTarget, Pace
from corerun.llm.messages import image, user
from corerun.testing.fake import FakeProvider
from tests.support.language_models import ASK, Clock, Journal, client

CHAIN = [
    ModelTarget("first", "a", "big", fallbacks=("second",)),
    ModelTarget("second", "b", "small", fallbacks=("first", "third")),
    ModelTarget("third", "c", "tiny"),
]


def always(reply: Any) -> FakeProvider:
    return FakeProvider(lambda request, ctx: reply)


def chain(a: Any, b: Any, c: Any, **options: Any) -> Any:
    return client({"a": a, "b": b, "c": c}, model="first", targets=CHAIN, **options)


# --------------------------------------------------------------------------------- aliases


async def test_an_alias_lends_options_that_role_and_caller_override() -> None:
    provider = always("ok")
    alias = ModelTarget(
        "writer", "fake", "m", options=Role(temperature=0.5, max_tokens=10, top_p=0.9), extra={"think": False}
    )
    roles = {"own": Role(model="writer", temperature=0.1)}
    models = client(provider, model="writer", targets=[alias], roles=roles)
    await models.ask("r", "p", ASK)
    await models.ask("own", "p", ASK)
    await models.ask("own", "p", ASK, temperature=0.0, extra={"n": 1})
    lent, own, called = (call.request for call in provider.calls)
    assert (lent.model, lent.temperature, lent.max_tokens, lent.top_p) == ("m", 0.5, 10, 0.9)
    assert (own.temperature, own.max_tokens) == (0.1, 10)
    assert (called.temperature, called.extra) == (0.0, {"think": False, "n": 1})


async def test_an_alias_has_its_own_price_time_and_pace() -> None:
    journal, clock = Journal(), Clock()
    reply = ChatReply("ok", usage=Usage(100_000, 100_000))
    alias = ModelTarget(
        "mine", "fake", "m", price=Price(1.0, 2.0), timeout_s=5.0, pace=Pace(requests_per_minute=1)
    )
    provider = always(reply)
    models = client(provider, model="mine", targets=[alias], journal=journal, clock=clock)
    for _ in range(2):
        await models.ask("r", "p", ASK)
    assert clock.now == pytest.approx(60.0), "one request a minute"
    assert provider.calls[0].context.deadline == 5.0
    answered = journal.of("call_answered")[0]
    assert (answered["cost_usd"], answered["price_source"]) == (pytest.approx(0.3), "config")
    assert (answered["model_requested"], journal.of("call_asked")[0]["model"]) == ("mine", "mine")


# ------------------------------------------------------------------------------- fallbacks


@pytest.mark.parametrize(
    "error",
    [
        AuthFailed("no"),
        ContextTooLong("no"),
        Unsupported("no"),
        RequestRefused("no"),
        Transient("no", retry_after=999.0),
    ],
)
async def test_the_next_model_is_asked_when_one_cannot_answer(error: Exception) -> None:
    journal = Journal()
    a, b, c = always(error), always("from b"), always("from c")
    answer = await chain(a, b, c, journal=journal).ask("r", "p", ASK)
    assert (answer.value, len(a.calls), len(b.calls), len(c.calls)) == ("from b", 1, 1, 0)
    assert b.calls[0].request.model == "small"
    (warning,) = journal.of("warning")
    assert "'first' gave no answer and 'second' is asked instead: " in warning["message"]
    assert journal.of("call_answered")[0]["model_requested"] == "second"


async def test_a_circle_of_fallbacks_ends_and_the_last_error_is_raised() -> None:
    a, b, c = always(AuthFailed("a")), always(AuthFailed("b")), always(ContextTooLong("c"))
    with pytest.raises(ContextTooLong, match="c"):
        await chain(a, b, c).ask("r", "p", ASK)
    assert (len(a.calls), len(b.calls), len(c.calls)) == (1, 1, 1)


async def test_refusals_and_bad_answers_do_not_fall_back() -> None:
    for reply, error in ((ContentRefused("no"), ContentRefused), (ChatReply("x", finish="stop"), BadAnswer)):
        a, b = always(reply), always("1")
        with pytest.raises(error):
            await chain(a, b, b).ask("r", "p", ASK, parse=lambda text: int(text))
        assert b.calls == []


async def test_one_deadline_holds_for_all_of_them() -> None:
    clock = Clock()
    a, b = always(Transient("away")), always(Transient("away"))
    with pytest.raises(InfrastructureError):
        await chain(a, b, b, clock=clock, settings=LlmSettings(retries=99, deadline_s=50.0)).ask(
            "r", "p", ASK
        )
    assert clock.now <= 50.0


async def test_retries_are_counted_over_all_of_them_and_anew_for_a_re_ask() -> None:
    a, b, c = always(Transient("away")), always(Transient("away")), FakeProvider(["no number", "7"])
    models = chain(a, b, c, settings=LlmSettings(retries=3))
    answer = await models.ask("r", "p", ASK, parse=int)
    assert (answer.value, len(a.calls), len(b.calls), len(c.calls)) == (7, 4, 1, 2)
    a, b = always(ContextTooLong("no")), FakeProvider([Transient("away"), "x", Transient("away"), "7"])
    models = chain(a, b, c, settings=LlmSettings(retries=1))
    assert (await models.ask("r", "p", ASK, parse=int)).value == 7


async def test_a_spent_budget_does_not_fall_back() -> None:
    dear = [replace(target, price=Price(1e6, 0.0)) for target in CHAIN[1:]]
    a, b, c = always(AuthFailed("no")), always("from b"), always("from c")
    models = client(
        {"a": a, "b": b, "c": c}, model="first", targets=[CHAIN[0], *dear], budget=Budget(usd=1.0)
    )
    with pytest.raises(BudgetExceeded, match=r"budget\.usd"):
        await models.ask("r", "p", ASK)
    assert (len(a.calls), len(b.calls), len(c.calls)) == (1, 0, 0)


async def test_a_model_that_is_away_is_passed_over_for_a_minute_and_a_wrong_key_for_good() -> None:
    clock = Clock()
    a = FakeProvider([Transient("away", retry_after=999.0), "from a"])
    models = chain(a, always("from b"), always("c"), clock=clock)
    said = [(await models.ask("r", "p", ASK)).value for _ in range(2)]
    clock.now += 61
    assert [*said, (await models.ask("r", "p", ASK)).value] == ["from b", "from b", "from a"]
    locked = always(AuthFailed("no"))
    models = chain(locked, always("from b"), always("c"), clock=clock)
    for _ in range(3):
        await models.ask("r", "p", ASK)
        clock.now += 1000
    assert len(locked.calls) == 1


async def test_a_resumed_run_takes_the_recorded_answer_of_whichever_model_gave_it() -> None:
    journal, clock = Journal(), Clock()
    a = FakeProvider([Transient("away", retry_after=999.0), "late"])
    models = chain(a, always("from b"), always("c"), journal=journal, clock=clock)
    first = [(await models.ask("r", "p", ASK)).value for _ in range(2)]
    clock.now += 61
    first.append((await models.ask("r", "p", ASK)).value)
    assert first == ["from b", "from b", "late"]
    silent = always(AssertionError("paid twice"))
    models = chain(silent, silent, silent, journal=journal.resumed())
    assert [(await models.ask("r", "p", ASK)).value for _ in range(3)] == first
    assert silent.calls == []


async def test_a_re_ask_stays_with_the_model_that_answered() -> None:
    a, b = always(AuthFailed("no")), FakeProvider(["one", "1"])
    answer = await chain(a, b, always("c")).ask("r", "p", ASK, parse=int)
    assert (answer.value, len(a.calls), len(b.calls)) == (1, 1, 2)


async def test_models_that_cannot_serve_are_left_out_before_anything_is_sent() -> None:
    blind = FakeProvider(["never"], info=ProviderInfo("a", is_local=True, vision=False))
    seeing = always("a cat")
    picture = [user("What?", image(b"png"))]
    assert (await chain(blind, seeing, seeing).ask("r", "p", picture)).value == "a cat"
    remote = FakeProvider(["never"], info=ProviderInfo("a", is_local=False))
    offline = {"CORERUN_OFFLINE": "1"}
    assert (await chain(remote, always("near"), seeing, environ=offline).ask("r", "p", ASK)).value == "near"
    with pytest.raises(EnvironmentRefused, match="'first' isn't local"):
        await chain(remote, remote, remote, environ=offline).ask("r", "p", ASK)


# ------------------------------------------------------------------------------- in pieces


class Streaming(FakeProvider):
    """Hands out its pieces, then the reply or an error."""

    def __init__(self, pieces: list[Delta], end: Any) -> None:
        super().__init__(["not streamed"])
        self.pieces = pieces
        self.end = end
        self.streams = 0
        self.closed = 0

    async def stream(self, request: ChatRequest, ctx: CallContext) -> AsyncIterator[Delta]:
        self.streams += 1
        try:
            for piece in self.pieces:
                yield piece
            if isinstance(self.end, Exception):
                raise self.end
            if self.end is not None:
                yield Delta("reply", reply=self.end)
        finally:
            self.closed += 1


async def test_pieces_are_handed_out_and_the_answer_is_the_same() -> None:
    journal = Journal()
    provider = Streaming([Delta("reasoning", "hm"), Delta("text", "a"), Delta("text", "b")], ChatReply("ab"))
    models = client(provider, journal=journal)
    heard: list[Delta] = []
    answer = await models.ask("r", "p", ASK, on_delta=heard.append)
    assert (answer.value, [delta.text for delta in heard]) == ("ab", ["hm", "a", "b"])
    assert (provider.streams, provider.closed) == (1, 1)
    assert journal.of("call_answered")[0]["text"] == "ab"
    heard.clear()
    resumed = client(provider, journal=journal.resumed())
    assert (await resumed.ask("r", "p", ASK, on_delta=heard.append)).replayed
    assert [delta.text for delta in heard] == ["ab"]
    assert (await models.ask("r", "q", ASK)).value == "not streamed", "nobody listens"


async def test_a_provider_that_cannot_stream_answers_in_one_piece() -> None:
    heard: list[Delta] = []
    answer = await client(always("whole")).ask("r", "p", ASK, on_delta=heard.append)
    assert (answer.value, heard) == ("whole", [])


async def test_nothing_is_tried_again_once_a_piece_was_handed_out() -> None:
    provider = Streaming([Delta("text", "half")], Transient("cut", retry_after=0.1))
    with pytest.raises(StreamCut) as caught:
        await client(provider).ask("r", "p", ASK, on_delta=lambda delta: None)
    assert (caught.value.partial, provider.streams) == ("half", 1)
    early = Streaming([], Transient("cut"))
    with pytest.raises(InfrastructureError):
        await client(early, settings=LlmSettings(retries=2)).ask("r", "p", ASK, on_delta=lambda delta: None)
    assert early.streams == 3
    unfinished = Streaming([], None)
    with pytest.raises(InfrastructureError, match="ended without a reply"):
        await client(unfinished, settings=LlmSettings(retries=0)).ask(
            "r", "p", ASK, on_delta=lambda delta: None
        )
