"""What calls cost: sums over a journal, prices, budgets and the two token files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import BudgetExceeded, ConfigError
from corerun.interfaces import (
    ChatReply,
    ChatRequest,
    Degradation,
    Event,
    Price,
    ProviderInfo,
    ToolCall,
    Usage,
)
from corerun.llm.accounts import Accounts
from corerun.llm.budget import Budget, Reserve
from corerun.llm.directory import ModelTarget
from corerun.llm.ledger import Ledger, interactions, settled, token_tracker
from corerun.llm.messages import image, request_bytes, system, user
from corerun.llm.prices import cost_usd, load_prices, price_of, user_prices_file
from corerun.llm.replay import reply_from_json, reply_to_json
from corerun.testing.fake import FakeProvider

counts = st.integers(0, 10**6)


def answered(seq: int, *, node: str | None = None, cost: float | None = 0.5, **data: Any) -> Event:
    usage = {"prompt": 100, "completion": 20, "reasoning": 5, "cached": 40, "estimated": False}
    record = {
        "key": f"k{seq}",
        "node": node,
        "role": "coder",
        "purpose": "p",
        "model_requested": "fake::m",
        "model_answered": "m-1",
        "booked": "m-1",
        "text": "hello",
        "usage": {**usage, "cost_usd": cost},
        "cost_usd": cost,
    }
    return Event(seq, 1_700_000_000.9, "call_answered", {**record, **data})


def asked_node(node: str, scope: str) -> Event:
    return Event(0, 0.0, "node_asked", {"node": node, "scope": scope})


def test_sums_per_model_role_node_and_scope() -> None:
    events = [
        asked_node("n1", "stage_1"),
        asked_node("n2", "stage_2"),
        answered(1, node="n1"),
        answered(2, node="n2", role="reviewer", booked="m-2"),
        answered(3, node="n2", cost=None, booked="unknown"),
        answered(4),
        Event(5, 0.0, "call_failed", {"key": "k9"}),
    ]
    ledger = Ledger.fold(events)
    assert ledger.totals.to_json() == {"usd": 1.5, "tokens": 480, "calls": 4}
    assert ledger.models["m-1"].to_json() == {"usd": 1.0, "tokens": 240, "calls": 2}
    assert ledger.roles["reviewer"].calls == 1
    assert ledger.nodes["n2"].to_json() == {"usd": 0.5, "tokens": 240, "calls": 2}
    assert {scope: sums.calls for scope, sums in ledger.scopes.items()} == {"stage_1": 1, "stage_2": 2, "": 1}
    assert ledger.unpriced == ("unknown",)
    document = ledger.to_json()
    assert document["models"]["unknown"]["usd"] is None
    assert document["unpriced"] == ["unknown"]
    json.dumps(document)


@given(st.lists(st.tuples(counts, counts, st.none() | st.floats(0, 10)), max_size=8))
def test_every_view_adds_up_to_the_totals(calls: list[tuple[int, int, float | None]]) -> None:
    events = [
        answered(
            seq,
            node=f"n{seq % 3}",
            cost=cost,
            booked=f"m{seq % 2}",
            usage={
                "prompt": prompt,
                "completion": completion,
                "reasoning": 0,
                "cached": 0,
                "estimated": False,
            },
        )
        for seq, (prompt, completion, cost) in enumerate(calls)
    ]
    ledger = Ledger.fold(events)
    for view in (ledger.models, ledger.roles, ledger.nodes, ledger.scopes):
        assert sum(sums.calls for sums in view.values()) == ledger.totals.calls == len(calls)
        assert sum(sums.tokens for sums in view.values()) == ledger.totals.tokens
        assert math.isclose(sum(sums.usd for sums in view.values()), ledger.totals.usd, abs_tol=1e-9)


def test_the_token_tracker_has_the_agreed_shape_and_counts_every_call() -> None:
    events = [answered(1), answered(2), answered(3, cost=None, booked="unknown")]
    tracker = token_tracker(events)
    assert tracker["m-1"] == {
        "tokens": {"prompt": 200, "completion": 40, "reasoning": 10, "cached": 80},
        "cost (USD)": 1.0,
        "calls": 2,
        "estimated_tokens": False,
        "unpriced": False,
    }
    assert tracker["unknown"]["cost (USD)"] is None
    assert tracker["unknown"]["unpriced"] is True


def test_interactions_have_the_agreed_shape() -> None:
    requests = {
        "k1": ChatRequest("m", (system("Be brief."), user("Hello?"))),
        "k2": ChatRequest("m", (user("see", image(b"data")),)),
    }
    blobs = {f"sha-{key}": request_bytes(request) for key, request in requests.items()}
    events = [Event(0, 0.0, "call_asked", {"key": key, "prompt": f"sha-{key}"}) for key in requests]
    events += [answered(1), answered(2, created=1_800_000_000)]
    (first, second) = interactions(events, blobs.__getitem__)["m-1"]
    assert first == {
        "system_message": "Be brief.",
        "prompt": "Hello?",
        "response": "hello",
        "timestamp": 1_700_000_000,
    }
    assert second["timestamp"] == 1_800_000_000  # the server's own time
    assert second["system_message"] is None
    assert second["prompt"][0]["role"] == "user"
    assert second["prompt"][0]["content"][0] == {"kind": "text", "text": "see"}
    assert "data" not in second["prompt"][0]["content"][1]


def test_an_answer_from_the_cache_is_a_call_that_costs_nothing() -> None:
    free = answered(2, cost=0.0, cache_hit=True, saved_usd=0.5, usage={"prompt": 0, "completion": 0})
    ledger = Ledger.fold([answered(1), free])
    assert ledger.totals.to_json() == {"usd": 0.5, "tokens": 120, "calls": 2}
    assert ledger.unpriced == ()
    assert token_tracker([free])["m-1"]["calls"] == 1


# ------------------------------------------------------------------------------------- prices


def test_cached_prompt_tokens_have_their_own_price() -> None:
    usage = Usage(prompt=1_000_000, completion=100_000, cached=400_000)
    assert cost_usd(usage, Price(2.0, 10.0, 0.5)) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 1.0)
    assert cost_usd(usage, Price(2.0, 10.0)) == pytest.approx(2.0 + 1.0)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("openai/gpt-4o-mini", "gpt-4o-mini"),
        ("openai::gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
        ("claude-3-5-sonnet@20241022", "claude-3-5-sonnet"),
        ("gpt-4o-mini-x", None),
        ("my-gpt-4o", None),
        ("", None),
    ],
)
def test_prices_are_looked_up_by_whole_names(model: str, key: str | None) -> None:
    found = price_of(model, load_prices())
    assert (found[1] if found else None) == key


def test_the_shipped_table_is_dated_sane_and_knows_the_usual_models() -> None:
    prices = load_prices()
    for model in ("gpt-4o-mini", "gpt-4.1", "o3-mini", "deepseek-chat", "qwen-plus"):
        assert model in prices
    for price in prices.values():
        assert 0 < price.input <= price.output
        assert price.cached is None or price.cached <= price.input


def test_the_users_prices_win(tmp_path: Path) -> None:
    path = user_prices_file({"HOME": str(tmp_path)})
    assert path == tmp_path / ".config/corerun/prices.yaml"
    assert load_prices(path) == load_prices()
    path.parent.mkdir(parents=True)
    path.write_text("models:\n  gpt-4o: {in: 1, out: 2}\n  mine: {in: 0.5, cached: 0.1, out: 3}\n")
    prices = load_prices(path)
    assert (prices["gpt-4o"], prices["mine"]) == (Price(1, 2), Price(0.5, 3, 0.1))
    assert "gpt-4o-mini" in prices


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "models: 3",
        "- a",
        "models: {m: 5}",
        "models: {m: {in: x, out: 1}}",
        "models: {m: {in: -1, out: 1}}",
    ],
)
def test_a_bad_price_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prices(path)
    assert caught.value.where.startswith(f"{path}:")
    assert "\n" not in str(caught.value)


@given(
    st.builds(
        Usage,
        prompt=st.integers(-5, 100),
        completion=st.integers(-5, 100),
        reasoning=st.integers(-5, 200),
        cached=st.integers(-5, 200),
        cost_usd=st.none() | st.floats(),
    ),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
def test_usage_is_always_put_in_order(usage: Usage, asked: int, said: int) -> None:
    found = settled(usage, asked, said)
    assert 0 <= found.cached <= found.prompt
    assert 0 <= found.reasoning <= found.completion
    assert found.cost_usd is None or (math.isfinite(found.cost_usd) and found.cost_usd >= 0)
    assert found.estimated == (usage.prompt <= 0 or (usage.completion <= 0 and said > 0))


def test_garbled_usage_is_estimated_at_four_characters_per_token() -> None:
    garbled = Usage(prompt=float("nan"), completion=None)  # type: ignore[arg-type]
    assert settled(garbled, 401, 8) == Usage(prompt=101, completion=2, estimated=True)


class OwnPrice(FakeProvider):
    def price(self, model: str) -> Price | None:
        return Price(7.0, 7.0) if model == "own" else None


@pytest.mark.parametrize(
    ("model", "reply_model", "source", "booked", "usd"),
    [
        ("own", "", "provider", "own", 7.0),
        ("listed", "", "table:listed", "listed", 2.0),
        ("listed", "listed-2026-01-01", "table:listed", "listed-2026-01-01", 2.0),
        ("listed", "another", "table:listed", "p::listed", 2.0),
        ("unknown", "", "", "p::unknown", None),
    ],
)
def test_the_answering_model_is_priced_first(
    model: str, reply_model: str, source: str, booked: str, usd: float | None
) -> None:
    provider = OwnPrice(info=ProviderInfo("p"))
    accounts = Accounts(
        Ledger(),
        Budget(),
        prices=lambda: {"listed": Price(2.0, 2.0)},
        elapsed=lambda: 0.0,
        unpriced=lambda model: None,
    )
    reply = ChatReply("x", usage=Usage(1_000_000, 0), model=reply_model)
    bill = accounts.bill(ModelTarget(f"p::{model}", "p", model), provider, reply, 4)
    assert (bill.source, bill.booked) == (source, booked)
    assert bill.usage.cost_usd == (None if usd is None else pytest.approx(usd, abs=1e-4))


def test_local_providers_cost_nothing_and_load_no_prices() -> None:
    def never() -> dict[str, Price]:
        raise AssertionError("prices were loaded")

    accounts = Accounts(Ledger(), Budget(usd=0.0), prices=never, elapsed=lambda: 0.0, unpriced=print)
    provider = FakeProvider()
    target = ModelTarget("fake::gpt-4o", "fake", "gpt-4o")
    accounts.reserve("k", target, provider, ChatRequest("gpt-4o", ()), 4)
    assert accounts.bill(target, provider, ChatReply("x"), 4).usage.cost_usd == 0.0


# ------------------------------------------------------------------------------------- budget


def test_each_limit_is_named_when_it_is_passed() -> None:
    ledger = Ledger.fold([answered(1)])
    Budget().check(ledger, 1e9)
    Budget(usd=0.5, tokens=120, seconds=10).check(ledger, 9.9)
    for budget, elapsed in ((Budget(usd=0.49), 0), (Budget(tokens=119), 0), (Budget(seconds=10), 10)):
        limit = next(name for name in ("usd", "tokens", "seconds") if getattr(budget, name) is not None)
        with pytest.raises(BudgetExceeded, match=rf"budget\.{limit}"):
            budget.check(ledger, elapsed)
    with pytest.raises(BudgetExceeded, match="tokens"):
        Budget(tokens=120).check(ledger, 0, Reserve(tokens=1))


# ------------------------------------------------------------------------------------- records

words = st.text(max_size=5)


@given(
    st.builds(
        ChatReply,
        text=words,
        tool_calls=st.lists(st.builds(ToolCall, words, words, words), max_size=2).map(tuple),
        reasoning=words,
        finish=st.sampled_from(["stop", "length", "tool"]),
        usage=st.builds(
            Usage,
            counts,
            counts,
            counts | st.just(0),
            counts | st.just(0),
            st.booleans(),
            st.none() | st.floats(0, 1),
        ),
        model=words,
        degradations=st.lists(st.builds(Degradation, words), max_size=2).map(tuple),
        requests=st.integers(0, 9),
        created=st.none() | st.integers(0, 2**33),
    )
)
def test_a_reply_survives_the_journal(reply: ChatReply) -> None:
    assert reply_from_json(json.loads(json.dumps(reply_to_json(reply)))) == reply


def test_what_says_nothing_is_left_out_of_the_record() -> None:
    plain = ChatReply("hello", usage=Usage(10, 5, cost_usd=0.5), model="m")
    assert reply_to_json(plain) == {
        "model_answered": "m",
        "text": "hello",
        "finish": "stop",
        "usage": {"prompt": 10, "completion": 5},
        "cost_usd": 0.5,
    }
    full = replace(
        plain,
        usage=Usage(10, 5, 3, 2, True),
        requests=2,
        reasoning="because",
        degradations=(Degradation("seed"),),
        created=1_700_000_000,
    )
    record = reply_to_json(full)
    assert record["usage"] == {"prompt": 10, "completion": 5, "reasoning": 3, "cached": 2, "estimated": True}
    assert (record["requests"], record["created"], record["degradations"]) == (2, 1_700_000_000, ["seed"])
