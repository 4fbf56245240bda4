"""The scripted provider, and the contracts that tell plugin authors what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

import corerun
from corerun.errors import (
    AuthFailed,
    ModelNotFound,
    RequestRefused,
    Transient,
    Unsupported,
    UsageError,
)
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Component,
    Degradation,
    Message,
    ProviderInfo,
    ToolCall,
    Usage,
)
from corerun.llm.structured import json_schema, validate
from corerun.testing.contract import plugin_contract, provider_contract
from corerun.testing.fake import FakeProvider, read_script, smallest

pytest_plugins = ["corerun.testing.fixtures"]

CONTEXT = CallContext("p")


def request(model: str, schema: Any = None) -> ChatRequest:
    return ChatRequest(model, (Message("system", "s"), Message("user", "say this")), schema=schema)


async def test_echo_says_the_last_user_text_with_estimated_usage() -> None:
    reply = await FakeProvider().complete(request("echo"), CONTEXT)
    assert (reply.text, reply.model, reply.finish) == ("say this", "echo", "stop")
    assert reply.usage == Usage(prompt=3, completion=2, estimated=True)


class Inner(BaseModel):
    n: int = Field(ge=3)


class Outer(BaseModel):
    name: str = Field(min_length=2)
    inner: Inner
    many: list[Inner] = Field(min_length=2)
    ratio: float = Field(gt=0, lt=1)
    flag: bool
    maybe: int | None
    optional: str = "left out"


async def test_json_gives_the_smallest_instance_of_the_schema() -> None:
    schema = json_schema(Outer)
    reply = await FakeProvider().complete(request("json", schema), CONTEXT)
    data = json.loads(reply.text)
    assert validate(Outer, data).inner.n == 3
    assert "optional" not in data and data["name"] == "xx" and len(data["many"]) == 2
    assert smallest({"enum": ["a", "b"]}) == "a"
    assert smallest({"type": "integer", "maximum": -4}) == -4
    assert smallest({"type": "integer", "exclusiveMinimum": 4}) == 5
    assert smallest({"type": "integer", "minimum": -3}) == 0
    assert smallest({"type": "number", "exclusiveMaximum": 0}) == -1


async def test_faults_by_model_name_are_counted() -> None:
    provider = FakeProvider()
    for _ in range(2):
        with pytest.raises(Transient):
            await provider.complete(request("fail:429x2"), CONTEXT)
    assert (await provider.complete(request("fail:429x2"), CONTEXT)).text == "say this"
    for _ in range(3):
        with pytest.raises(AuthFailed):
            await provider.complete(request("fail:401"), CONTEXT)
    for unknown in ("nothing", "fail:teapot"):
        with pytest.raises(ModelNotFound):
            await provider.complete(request(unknown), CONTEXT)


async def test_replies_in_order_of_every_kind_are_recorded() -> None:
    whole = ChatReply("whole", finish="length")
    provider = FakeProvider(["text", {"a": 1}, [1], whole, Unsupported("no")])
    texts = [(await provider.complete(request("m"), CONTEXT)).text for _ in range(3)]
    assert texts == ["text", '{"a": 1}', "[1]"]
    assert await provider.complete(request("m"), CONTEXT) is whole
    with pytest.raises(Unsupported):
        await provider.complete(request("m"), CONTEXT)
    with pytest.raises(RequestRefused, match="no reply left"):
        await provider.complete(request("m"), CONTEXT)
    assert len(provider.calls) == 6
    assert provider.calls[0].request.model == "m" and provider.calls[0].context is CONTEXT


async def test_scripts_answer_by_purpose_and_in_order(tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    lines = [
        {"text": "first", "usage": {"prompt": 3}, "model": "named"},
        {"purpose": "special", "json": {"x": 1}},
        {"fault": 429, "retry_after": 2},
        {"tool_calls": [{"name": "f", "arguments": {"x": 2}}], "degradations": ["seed"]},
    ]
    script.write_text("\n\n".join(json.dumps(line) for line in lines))
    provider = FakeProvider()
    ask = request(f"script:{script}")
    first = await provider.complete(ask, CONTEXT)
    assert (first.text, first.usage.prompt, first.model) == ("first", 3, "named")
    with pytest.raises(Transient) as caught:
        await provider.complete(ask, CONTEXT)
    assert caught.value.retry_after == 2
    called = await provider.complete(ask, CONTEXT)
    assert called.tool_calls == (ToolCall("call_0", "f", '{"x": 2}'),)
    assert (called.finish, called.degradations) == ("tool", (Degradation("seed"),))
    assert (await provider.complete(ask, CallContext("special"))).text == '{"x": 1}'
    with pytest.raises(RequestRefused, match="no reply left for p"):
        await provider.complete(ask, CONTEXT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\nnot json', "not JSON"),
        ('{"text": "a"}\n{"txt": "b"}', "a line needs"),
        ('{"text": "a"}\n[]', "a line needs"),
        ('{"text": "a"}\n{"fault": "teapot"}', "unknown fault 'teapot'"),
    ],
)
def test_a_bad_script_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_script(script)
    assert caught.value.where == f"{script}:2"


def test_a_missing_script_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_script(tmp_path / "missing.jsonl")


def test_the_fixture_makes_fakes(fake_provider: Callable[..., FakeProvider]) -> None:
    assert fake_provider(["a"]).calls == []


# ---------------------------------------------------------------------------------- contracts


async def test_a_good_provider_fulfils_the_contract() -> None:
    await provider_contract(FakeProvider(), "json")


async def test_a_provider_that_waits_fulfils_the_contract() -> None:
    async def answer(request: ChatRequest, ctx: CallContext) -> Any:
        await asyncio.sleep(0)
        return "yes" if request.schema is None else smallest(request.schema)

    await provider_contract(FakeProvider(answer), "m")


async def test_a_provider_may_refuse() -> None:
    await provider_contract(FakeProvider(lambda request, ctx: Unsupported("not that purpose")), "m")


async def stubborn(request: ChatRequest, ctx: CallContext) -> Any:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    return {"word": "yes"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda request, ctx: ChatReply("yes", finish="done"), "finish 'done'"),
        (lambda request, ctx: ChatReply(""), "empty answer"),
        (lambda request, ctx: ChatReply("yes", usage=Usage(prompt=-1)), "token counts"),
        (lambda request, ctx: ChatReply("yes", usage=Usage(1, 1, reasoning=2)), "contained in completion"),
        (lambda request, ctx: ChatReply("yes", usage=Usage(1, 1, cached=2)), "contained in prompt"),
        (lambda request, ctx: ChatReply("yes", usage=Usage(cost_usd=float("nan"))), "cost_usd"),
        (lambda request, ctx: "no JSON", "no JSON was found"),
        (lambda request, ctx: KeyError("choices"), "only classes of corerun.errors"),
        (lambda request, ctx: AuthFailed("no key"), "a plain request failed: AuthFailed"),
        (stubborn, "cancelled call must not be answered"),
    ],
)
async def test_broken_providers_are_told_what_is_wrong(answer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await provider_contract(FakeProvider(answer), "m")


async def test_a_provider_needs_its_facts() -> None:
    with pytest.raises(AssertionError, match="name, and kind"):
        await provider_contract(FakeProvider(info=ProviderInfo("x", kind="magic")), "echo")


def plugin(*components: Any, hook: str = "corerun_providers", marked: bool = True) -> types.ModuleType:
    module = types.ModuleType("some_plugin")

    def offer() -> tuple[Any, ...]:
        return components

    setattr(module, hook, corerun.hookimpl(offer) if marked else offer)
    return module


GOOD = Component("fake", "corerun.testing.fake:FakeProvider")


def test_a_good_plugin_fulfils_the_contract() -> None:
    assert plugin_contract(plugin(GOOD)) == [GOOD]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (plugin(GOOD, hook="corerun_provider"), "corerun_provider is no hook"),
        (plugin(GOOD, marked=False), "isn't marked"),
        (plugin("fake"), "Component objects"),
        (plugin(Component("Fake Name", GOOD.target)), "the name 'Fake Name'"),
        (plugin(GOOD, GOOD), "the same name twice"),
        (plugin(Component("fake", "corerun.testing.fake")), "'module:attribute'"),
        (plugin(Component("fake", "corerun.testing.nothing:X")), "can't be imported"),
        (plugin(Component("fake", "corerun.testing.fake:Nothing")), "can't be imported"),
        (plugin(Component("fake", "corerun.errors:CorerunError")), "lacks complete"),
        (types.ModuleType("empty"), "no hook"),
    ],
)
def test_broken_plugins_are_told_what_is_wrong(module: types.ModuleType, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        plugin_contract(module)
