"""One question to a model: replay, retries, budget, re-asks and what the journal holds of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from corerun.errors import (
    AuthFailed,
    BadAnswer,
    BudgetExceeded,
    ContentRefused,
    ContextTooLong,
    EnvironmentRefused,
    InfrastructureError,
    ModelError,
    ModelNotFound,
    QuotaExceeded,
    Transient,
    Unsupported,
    UsageError,
)
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Degradation,
    Message,
    Price,
    ProviderInfo,
    Role,
    ToolCall,
    Usage,
)
from corerun.llm.budget import Budget
from corerun.llm.client import LanguageModels, LlmSettings
from corerun.llm.directory import ModelTarget, Pace
from corerun.llm.messages import assistant, call_key, image, reask, request_bytes, shortened, user
from corerun.llm.retry import wait_before_retry
from corerun.testing.fake import FakeProvider
from tests.support.language_models import ASK, REMOTE, Clock, Journal, client


class Point(BaseModel):
    x: int


# --------------------------------------------------------------------------------- one good call


async def test_a_question_is_written_down_before_and_after_it_is_asked() -> None:
    journal = Journal()
    provider = FakeProvider([ChatReply("There.", usage=Usage(10, 2), model="echo-1")])
    answer = await client(provider, journal=journal).ask("writer", "where", ASK, node="n1")
    assert (answer.value, answer.replayed) == ("There.", False)
    assert journal.types() == ["call_asked", "call_answered"]
    asked, answered = journal.events[0].data, journal.events[1].data
    assert answer.seq == journal.events[1].seq
    assert asked["key"] == answered["key"]
    assert json.loads(journal.blobs[asked["prompt"]])["messages"][1] == {"role": "user", "content": "Where?"}
    assert set(asked) == {"key", "node", "role", "purpose", "model", "prompt"}
    assert {
        "key": answered["key"],
        "node": "n1",
        "role": "writer",
        "purpose": "where",
        "provider": "fake",
        "model_requested": "fake::echo",
        "model_answered": "echo-1",
        "text": "There.",
        "cost_usd": 0.0,
        "price_source": "local",
        "attempts": 1,
        "finish": "stop",
    }.items() <= answered.items()
    assert answered["usage"]["prompt"] == 10


async def test_roles_choose_model_and_options_and_the_caller_overrides_them() -> None:
    provider = FakeProvider(lambda request, ctx: "ok")
    roles = {
        "coder": Role(model="fake::big", temperature=0.7, max_tokens=100, top_p=0.5, reasoning_effort="low")
    }
    models = client(provider, roles=roles)
    await models.ask("coder", "p", ASK)
    await models.ask("coder", "p", ASK, temperature=0.0, max_tokens=5, top_p=0.0, stop=("END",))
    await models.ask("unknown", "p", ASK)
    first, second, third = (call.request for call in provider.calls)
    assert (first.model, first.temperature, first.max_tokens, first.top_p) == ("big", 0.7, 100, 0.5)
    assert first.reasoning_effort == "low"
    assert (second.temperature, second.max_tokens, second.top_p, second.stop) == (0.0, 5, 0.0, ("END",))
    assert (third.model, third.temperature) == ("echo", None)


async def test_the_provider_is_told_purpose_node_facts_and_deadline() -> None:
    provider = FakeProvider(lambda request, ctx: "ok")
    facts = {"idea": "x"}
    await client(provider, seed=7).ask("r", "draft", ASK, node="n", facts=facts, strict=True)
    context = provider.calls[0].context
    assert (context.purpose, context.node, context.strict) == ("draft", "n", True)
    assert context.facts == {"idea": "x", "seed": 7, "attempt": 0}
    assert context.deadline == 600.0
    assert facts == {"idea": "x"}


async def test_a_bad_model_string_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="bad model string"):
        await client(model="::x").ask("r", "p", ASK)


# ------------------------------------------------------------------------------------ replay


async def test_an_answered_call_is_never_sent_again() -> None:
    journal = Journal()
    provider = FakeProvider(["one", "two", {"x": 3}])
    models = client(provider, journal=journal)
    first = [await models.ask("r", "p", ASK, node="n") for _ in range(2)]
    structured = await models.ask("r", "q", ASK, node="n", schema=Point)

    silent = FakeProvider([])
    resumed_journal = journal.resumed()
    resumed = client(silent, journal=resumed_journal)
    assert resumed.ledger.totals == models.ledger.totals
    again = [await resumed.ask("r", "p", ASK, node="n") for _ in range(2)]
    assert [answer.value for answer in again] == ["one", "two"]
    assert all(answer.replayed for answer in again)
    assert [answer.seq for answer in again] == [answer.seq for answer in first]
    assert [answer.reply for answer in again] == [answer.reply for answer in first]
    assert (await resumed.ask("r", "q", ASK, node="n", schema=Point)).value == structured.value == Point(x=3)
    assert silent.calls == [] and resumed_journal.events == []


async def test_equal_questions_of_different_nodes_and_purposes_are_different_calls() -> None:
    journal = Journal()
    models = client(FakeProvider(iter("abcd")), journal=journal)
    for node, purpose in [("n1", "p"), ("n2", "p"), ("n1", "q"), (None, "p")]:
        await models.ask("r", purpose, ASK, node=node)
    assert len({data["key"] for data in journal.of("call_asked")}) == 4


async def test_calls_side_by_side_find_their_own_answers_in_any_order() -> None:
    journal = Journal()
    models = client(FakeProvider(lambda request, ctx: str(request.messages[0].content)), journal=journal)
    await asyncio.gather(*(models.ask("r", "p", [user(word)], node="n") for word in "abc"))
    silent = FakeProvider([])
    resumed = client(silent, journal=journal.resumed())
    answers = [await resumed.ask("r", "p", [user(word)], node="n") for word in "cab"]
    assert [answer.value for answer in answers] == ["c", "a", "b"]
    assert silent.calls == []


async def test_the_second_attempt_of_a_node_is_given_the_answers_of_the_first() -> None:
    provider = FakeProvider(["one", "two"])
    models = client(provider)
    first = await models.ask("r", "p", ASK, node="n")
    models.forget("n")
    again = await models.ask("r", "p", ASK, node="n")
    assert (again.value, again.replayed, again.seq) == ("one", True, first.seq)
    assert (await models.ask("r", "p", ASK, node="n")).value == "two"


async def test_replay_costs_no_budget_and_works_offline_budget_or_not() -> None:
    journal = Journal()
    await client(FakeProvider(["one"]), journal=journal).ask("r", "p", ASK)
    resumed = client(FakeProvider([]), journal=journal.resumed(), budget=Budget(tokens=0))
    assert (await resumed.ask("r", "p", ASK)).replayed
    with pytest.raises(BudgetExceeded, match=r"budget\.tokens"):
        await resumed.ask("r", "p", ASK)


async def test_a_refused_answer_is_refused_again_on_replay() -> None:
    journal = Journal()
    provider = FakeProvider([ChatReply("no", finish="refusal")])
    with pytest.raises(ContentRefused):
        await client(provider, journal=journal).ask("r", "p", ASK)
    assert journal.types() == ["call_asked", "call_answered"]
    with pytest.raises(ContentRefused):
        await client(FakeProvider([]), journal=journal.resumed()).ask("r", "p", ASK)


# ------------------------------------------------------------------------------------ retries


async def test_transient_failures_are_retried_and_counted() -> None:
    journal, clock = Journal(), Clock()
    provider = FakeProvider([Transient("overload"), Transient("reset"), ChatReply("ok", requests=2)])
    answer = await client(provider, journal=journal, clock=clock).ask("r", "p", ASK)
    assert answer.value == "ok"
    assert len(provider.calls) == 3
    assert 0.25 <= clock.waits[0] <= 0.5 < 1.0 <= clock.waits[1] <= 2.0
    data = journal.of("call_answered")[0]
    assert (data["attempts"], data["requests"]) == (3, 4)
    assert data["latency_s"] == pytest.approx(sum(clock.waits))


async def test_exhausted_retries_are_an_infrastructure_error() -> None:
    journal, clock = Journal(), Clock()
    provider = FakeProvider(lambda request, ctx: Transient("overload"))
    with pytest.raises(InfrastructureError, match="6 attempts: overload") as caught:
        await client(provider, journal=journal, clock=clock).ask("r", "p", ASK)
    assert isinstance(caught.value.__cause__, Transient)
    assert (len(provider.calls), len(clock.waits)) == (6, 5)
    assert journal.types() == ["call_asked", "call_failed"]
    assert journal.of("call_failed")[0]["kind"] == "InfrastructureError"


async def test_the_servers_wish_is_honoured_up_to_the_limit() -> None:
    clock = Clock()
    provider = FakeProvider([Transient("slow down", retry_after=40.0), "ok"])
    await client(provider, clock=clock).ask("r", "p", ASK)
    assert 40.0 <= clock.waits[0] <= 44.0
    provider = FakeProvider([Transient("slow down", retry_after=121.0), "ok"])
    with pytest.raises(InfrastructureError, match="121 s"):
        await client(provider).ask("r", "p", ASK)
    assert len(provider.calls) == 1


async def test_no_wait_goes_beyond_the_deadline() -> None:
    clock = Clock()
    provider = FakeProvider(lambda request, ctx: Transient("slow down", retry_after=100.0))
    with pytest.raises(InfrastructureError, match="no time is left"):
        await client(provider, clock=clock, settings=LlmSettings(deadline_s=250.0)).ask("r", "p", ASK)
    assert clock.now < 250.0


async def test_the_deadline_covers_re_asks_too() -> None:
    clock = Clock()

    def slow_nonsense(request: ChatRequest, ctx: CallContext) -> str:
        clock.now += 50.0
        deadlines.append(ctx.deadline)
        return "nonsense"

    deadlines: list[float] = []
    with pytest.raises(InfrastructureError, match="before the deadline"):
        await client(
            FakeProvider(slow_nonsense), clock=clock, settings=LlmSettings(deadline_s=100.0, repairs=5)
        ).ask("r", "p", ASK, schema=Point)
    assert deadlines == [100.0, 100.0]


async def test_a_call_that_hangs_is_ended_by_the_deadline() -> None:
    journal = Journal()

    async def hang(request: ChatRequest, ctx: CallContext) -> str:
        await asyncio.Event().wait()
        return "never"

    with pytest.raises(InfrastructureError, match="before the deadline"):
        await client(FakeProvider(hang), journal=journal, settings=LlmSettings(deadline_s=0.01)).ask(
            "r", "p", ASK
        )
    assert journal.types() == ["call_asked", "call_failed"]


@pytest.mark.parametrize(
    "error",
    [AuthFailed, QuotaExceeded, ModelNotFound, ContextTooLong, ContentRefused, Unsupported],
)
async def test_other_errors_pass_through_after_one_request(error: type[ModelError]) -> None:
    journal = Journal()
    provider = FakeProvider([error("because"), "never"])
    with pytest.raises(error, match="because"):
        await client(provider, journal=journal).ask("r", "p", ASK)
    assert len(provider.calls) == 1
    failed = journal.of("call_failed")[0]
    assert (failed["kind"], failed["message"], failed["model"]) == (error.kind, "because", "fake::echo")


async def test_a_broken_provider_gives_one_line() -> None:
    journal = Journal()
    provider = FakeProvider([TypeError("two\nlines"), "never"])
    with pytest.raises(ModelError, match="provider 'fake' broke: TypeError: two lines"):
        await client(provider, journal=journal).ask("r", "p", ASK)
    assert journal.types() == ["call_asked", "call_failed"]


async def test_cancelling_records_nothing_and_frees_the_place() -> None:
    journal, started = Journal(), asyncio.Event()

    async def hang_once(request: ChatRequest, ctx: CallContext) -> str:
        if not started.is_set():
            started.set()
            await asyncio.Event().wait()
        return "ok"

    models = client(FakeProvider(hang_once), journal=journal, settings=LlmSettings(concurrency=1))
    task = asyncio.create_task(models.ask("r", "p", ASK))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal.types() == ["call_asked"]
    assert (await models.ask("r", "p", ASK)).value == "ok"


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_waits_grow_fourfold_up_to_the_cap_and_half_of_them_is_random(failures: int, seed: int) -> None:
    full = min(30.0, 0.5 * 4.0 ** (failures - 1))
    assert full / 2 <= wait_before_retry(failures, None, random.Random(seed)) <= full


async def test_waits_are_the_same_in_every_run() -> None:
    waits = []
    for _ in range(2):
        clock = Clock()
        await client(FakeProvider([Transient("a"), Transient("b"), "ok"]), clock=clock, seed=3).ask(
            "r", "p", ASK
        )
        waits.append(clock.waits)
    assert waits[0] == waits[1]


# -------------------------------------------------------------------------------------- lanes


class Gate:
    """A provider function whose calls wait until the test lets them go."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Any]] = []
        self.most = 0

    async def __call__(self, request: ChatRequest, ctx: CallContext) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self.most = max(self.most, sum(not one.done() for one in self.waiting))
        return await future


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_so_many_calls_at_once_first_come_first_served() -> None:
    gate = Gate()
    provider = FakeProvider(gate)
    models = client(provider, settings=LlmSettings(concurrency=2))
    tasks = [asyncio.create_task(models.ask("r", "p", [user(str(i))])) for i in range(5)]
    done = 0
    while done < 5:
        await settle()
        gate.waiting[done].set_result("ok")
        done += 1
    await asyncio.gather(*tasks)
    assert gate.most == 2
    assert [call.request.messages[0].content for call in provider.calls] == list("01234")


@pytest.mark.parametrize("limit", [Transient("429", retry_after=1.0), Transient("429", limited=True)])
async def test_a_rate_limit_lets_one_probe_through_before_the_rest(limit: Transient) -> None:
    gate, clock = Gate(), Clock()
    models = client(FakeProvider(gate), clock=clock, settings=LlmSettings(concurrency=8))
    tasks = [asyncio.create_task(models.ask("r", "p", [user(str(i))])) for i in range(4)]
    await settle()
    assert len(gate.waiting) == 4
    for future in gate.waiting:
        future.set_result(limit)
    await settle()
    assert len(gate.waiting) == 5, "one probe, the others wait"
    gate.waiting[4].set_result("ok")
    await settle()
    assert len(gate.waiting) == 8
    for future in gate.waiting[5:]:
        future.set_result("ok")
    assert [answer.value for answer in await asyncio.gather(*tasks)] == ["ok"] * 4


async def test_a_call_that_is_cancelled_behind_a_probe_leaves_its_tokens() -> None:
    gate, clock = Gate(), Clock()
    alias = ModelTarget("slow", "fake", "m", pace=Pace(concurrency=8, tokens_per_minute=600))
    models = client(FakeProvider(gate), model="slow", targets=[alias], clock=clock)
    first = asyncio.create_task(models.ask("r", "p", [user("0")]))
    await settle()
    gate.waiting[0].set_result(Transient("429", retry_after=1.0))
    await settle()
    waiting = [asyncio.create_task(models.ask("r", "p", [user(str(i))], max_tokens=40)) for i in range(9)]
    await settle()
    assert len(gate.waiting) == 2, "the probe alone is sent"
    for task in waiting:
        task.cancel()
    gate.waiting[1].set_result("ok")
    await first
    before = clock.now
    last = asyncio.create_task(models.ask("r", "p", [user("last")], max_tokens=10))
    await settle()
    gate.waiting[2].set_result("ok")
    await last
    assert clock.now == before


# ----------------------------------------------------------------------------------- re-asks


async def test_a_bad_answer_is_shown_to_the_model_and_asked_again() -> None:
    journal = Journal()
    provider = FakeProvider(['{"x": "many"}', {"x": 2}])
    answer = await client(provider, journal=journal).ask("r", "p", ASK, schema=Point, node="n")
    assert answer.value == Point(x=2)
    again = provider.calls[1]
    assert again.request.messages[:2] == ASK
    assert again.request.messages[2] == assistant('{"x": "many"}')
    assert "- x: Input should be a valid integer" in str(again.request.messages[3].content)
    assert [call.context.facts["attempt"] for call in provider.calls] == [0, 1]
    assert provider.calls[0].request.schema == provider.calls[1].request.schema
    assert provider.calls[0].request.schema_name == "Point"
    assert [data["purpose"] for data in journal.of("call_answered")] == ["p", "p"]


async def test_after_two_re_asks_the_answer_is_bad() -> None:
    journal = Journal()
    provider = FakeProvider(lambda request, ctx: "no JSON here")
    with pytest.raises(BadAnswer, match="3 tries") as caught:
        await client(provider, journal=journal).ask("r", "p", ASK, schema=Point)
    assert caught.value.raw == "no JSON here"
    assert len(provider.calls) == 3
    resumed = FakeProvider([])
    with pytest.raises(BadAnswer):
        await client(resumed, journal=journal.resumed()).ask("r", "p", ASK, schema=Point)
    assert resumed.calls == []


async def test_parsers_have_the_same_loop() -> None:
    def one_number(text: str) -> int:
        if not text.isdigit():
            raise ValueError("expected one number")
        return int(text)

    provider = FakeProvider(["seven", "<think>hm</think>7"])
    assert (await client(provider).ask("r", "p", ASK, parse=one_number)).value == 7
    assert "- expected one number" in str(provider.calls[1].request.messages[-1].content)


async def test_an_answer_that_was_cut_off_gets_twice_the_room() -> None:
    provider = FakeProvider([ChatReply('{"x": ', finish="length"), ChatReply("{", finish="length"), {"x": 1}])
    await client(provider).ask("r", "p", ASK, schema=Point, max_tokens=100)
    assert [call.request.max_tokens for call in provider.calls] == [100, 200, 400]
    provider = FakeProvider([ChatReply('{"x": ', finish="length"), {"x": 1}])
    await client(provider).ask("r", "p", ASK, schema=Point)
    assert provider.calls[1].request.max_tokens is None


async def test_the_same_wrong_answer_at_temperature_0_warms_the_model_up() -> None:
    provider = FakeProvider(["bad", "bad", {"x": 1}])
    await client(provider).ask("r", "p", ASK, schema=Point, temperature=0.0)
    assert [call.request.temperature for call in provider.calls] == [0.0, 0.0, 0.3]


def test_a_re_ask_is_short_legal_and_free_of_thinking() -> None:
    request = ChatRequest("m", ASK)
    long = "<think>secret thoughts</think>" + "a" * 3000 + "b" * 3000
    turns = reask(request, ChatReply(long), [f"problem {i}" for i in range(30)]).messages
    shown, complaint = str(turns[2].content), str(turns[3].content)
    assert "secret" not in shown and len(shown) < 4100 and "2000 characters cut" in shown
    assert complaint.count("- problem") == 10
    calls = (ToolCall("c1", "submit", "{not json"), ToolCall("c2", "submit", '{"x": 1}'))
    turns = reask(request, ChatReply("", tool_calls=calls, finish="tool"), ["wrong"]).messages
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool", "tool"]
    assert json.loads(turns[2].tool_calls[0].arguments) == {"_invalid": "{not json"}
    assert turns[2].tool_calls[1] == calls[1]
    assert [turn.tool_call_id for turn in turns[3:]] == ["c1", "c2"]
    assert shortened("abc") == "abc"


# ------------------------------------------------------------------- what is refused beforehand


async def test_offline_only_local_providers_answer() -> None:
    remote = FakeProvider(["never"], info=REMOTE)
    with pytest.raises(EnvironmentRefused, match="CORERUN_OFFLINE"):
        await client(remote, environ={"CORERUN_OFFLINE": "1"}).ask("r", "p", ASK)
    assert remote.calls == []
    assert (await client(environ={"CORERUN_OFFLINE": "yes"}).ask("r", "p", ASK)).value == "Where?"


async def test_images_are_not_sent_to_a_provider_that_cannot_see() -> None:
    picture = [user("what is it?", image(b"png bytes"))]
    blind = FakeProvider(
        lambda request, ctx: "a guess", info=ProviderInfo("fake", is_local=True, vision=False)
    )
    journal = Journal()
    with pytest.raises(Unsupported, match="can't see"):
        await client(blind, journal=journal).ask("r", "p", picture, strict=True)
    assert (blind.calls, journal.events) == ([], [])
    models = client(blind, journal=journal)
    answer = await models.ask("r", "p", picture)
    await models.ask("r", "p", [user(image(b"png bytes"))])
    assert [call.request.messages[0].content for call in blind.calls] == ["what is it?", "[image omitted]"]
    assert [dropped.feature for dropped in answer.reply.degradations] == ["images"]
    assert [data["feature"] for data in journal.of("degraded")] == ["images"], "told once"
    journal = Journal()
    maybe = FakeProvider(["a cat"], info=ProviderInfo("fake", is_local=True, vision=None))
    assert (await client(maybe, journal=journal).ask("r", "p", picture)).value == "a cat"
    prompt = json.loads(journal.blobs[journal.of("call_asked")[0]["prompt"]])
    assert prompt["messages"][0]["content"] == [
        {"kind": "text", "text": "what is it?"},
        {
            "kind": "image",
            "media_type": "image/png",
            "sha256": hashlib.sha256(b"png bytes").hexdigest(),
            "bytes": 9,
        },
    ]


# -------------------------------------------------------------------------------- money and time


def priced(**options: Any) -> tuple[FakeProvider, Callable[..., LanguageModels]]:
    provider = FakeProvider(
        lambda request, ctx: ChatReply("ok", usage=Usage(1_000_000, 100_000)), info=REMOTE
    )
    return provider, lambda **more: client(
        provider, model="fake::m", prices={"m": Price(1.0, 10.0)}, **{**options, **more}
    )


async def test_the_budget_for_money_ends_before_it_is_passed() -> None:
    provider, make = priced(budget=Budget(usd=5.0))
    models = make()
    for _ in range(2):
        await models.ask("r", "p", ASK)
    assert models.ledger.totals.usd == pytest.approx(4.0)
    await models.ask("r", "p", ASK)
    with pytest.raises(BudgetExceeded, match=r"budget\.usd \(5 USD\): 6\.0000 USD are spent"):
        await models.ask("r", "p", ASK)
    assert len(provider.calls) == 3


async def test_what_a_call_may_cost_is_set_aside_beforehand() -> None:
    provider, make = priced(budget=Budget(usd=5.0))
    with pytest.raises(BudgetExceeded, match="usd"):
        await make().ask("r", "p", ASK, max_tokens=600_000)
    assert provider.calls == []
    gate = Gate()
    models = client(FakeProvider(gate), budget=Budget(tokens=1500))
    first = asyncio.create_task(models.ask("r", "p", ASK, max_tokens=1000))
    beside = asyncio.create_task(models.ask("r", "q", ASK, max_tokens=1000))
    await settle()
    assert beside.done(), "it is refused while the first is under way"
    with pytest.raises(BudgetExceeded, match="tokens"):
        await beside
    gate.waiting[0].set_result("ok")
    await first
    second = asyncio.create_task(models.ask("r", "q", ASK, max_tokens=1000))
    await settle()
    gate.waiting[1].set_result("ok")
    assert (await second).value == "ok"


async def test_the_budget_for_time_is_read_from_the_runs_clock() -> None:
    spent = 0.0
    models = client(
        FakeProvider(lambda request, ctx: "ok"), budget=Budget(seconds=10.0), elapsed=lambda: spent
    )
    await models.ask("r", "p", ASK)
    spent = 10.0
    with pytest.raises(BudgetExceeded, match=r"budget\.seconds"):
        await models.ask("r", "p", ASK)


async def test_a_model_without_a_price_is_named_once_when_money_is_limited() -> None:
    journal = Journal()
    provider = FakeProvider(lambda request, ctx: "ok", info=REMOTE)
    models = client(provider, journal=journal, budget=Budget(usd=1.0))
    for _ in range(2):
        await models.ask("r", "p", ASK)
    assert len(journal.of("warning")) == 1
    assert journal.of("call_answered")[0]["cost_usd"] is None
    assert models.ledger.unpriced == ("fake::echo",)


async def test_the_servers_own_cost_wins_over_the_table() -> None:
    journal = Journal()
    reply = ChatReply("ok", usage=Usage(100, 10, cost_usd=0.25), model="m-2026-01-01")
    models = client(FakeProvider([reply], info=REMOTE), journal=journal, prices={"m": Price(1, 1)})
    await models.ask("r", "p", ASK)
    data = journal.of("call_answered")[0]
    assert (data["cost_usd"], data["price_source"], data["booked"]) == (0.25, "server", "m-2026-01-01")


async def test_degradations_are_told_once_per_model_also_after_a_resume() -> None:
    journal = Journal()
    reply = ChatReply("ok", degradations=(Degradation("seed", "HTTP 400"), Degradation("tools")))
    models = client(FakeProvider(lambda request, ctx: reply), journal=journal)
    for _ in range(2):
        await models.ask("r", "p", ASK)
    assert [data["feature"] for data in journal.of("degraded")] == ["seed", "tools"]
    later = journal.resumed()
    await client(FakeProvider(lambda request, ctx: reply), journal=later).ask("r", "new", ASK)
    assert later.of("degraded") == []


async def test_lone_surrogates_do_not_reach_the_journal() -> None:
    journal = Journal()
    answer = await client(FakeProvider(["a\ud800b 😀"]), journal=journal).ask("r", "p", [user("\ud800")])
    assert answer.value == "a\ufffdb 😀"
    json.dumps(journal.of("call_answered"), ensure_ascii=False).encode()


# ------------------------------------------------------------------------------------- keys


messages = st.lists(st.builds(Message, st.sampled_from(["system", "user"]), st.text(max_size=10)), max_size=3)
requests = st.builds(
    ChatRequest,
    model=st.sampled_from(["a", "b"]),
    messages=messages.map(tuple),
    temperature=st.none() | st.sampled_from([0.0, 1.0]),
    max_tokens=st.none() | st.integers(1, 2),
)


@given(requests, requests)
def test_keys_are_equal_exactly_for_equal_requests(first: ChatRequest, second: ChatRequest) -> None:
    assert (call_key("n", "p", 0, first) == call_key("n", "p", 0, second)) == (first == second)


def test_keys_depend_on_node_purpose_count_and_images() -> None:
    one, other = (ChatRequest("m", (user("see", image(data)),)) for data in (b"1", b"2"))
    keys = {
        call_key(node, p, n, r) for node in ("n", None) for p in "pq" for n in (0, 1) for r in (one, other)
    }
    assert len(keys) == 16
    assert all(len(key) == 64 for key in keys)
    assert call_key("n", "p", 0, one) == call_key("n", "p", 0, request_bytes(one))
