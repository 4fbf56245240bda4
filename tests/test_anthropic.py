"""Claude models through Anthropic's own API: requests, answers, refusals and faults on a real socket."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.errors import (
    AuthFailed,
    ContentRefused,
    ContextTooLong,
    EnvironmentRefused,
    ModelError,
    ModelNotFound,
    QuotaExceeded,
    RequestRefused,
    StreamCut,
    Transient,
    Unsupported,
    UnsupportedParameter,
    UsageError,
)
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Connection,
    Degradation,
    Delta,
    Message,
    Part,
    ToolCall,
)
from corerun.testing.contract import provider_contract
from corerun_anthropic.dialect import output_schema
from corerun_anthropic.history import LARGEST_IMAGE, write_messages
from corerun_anthropic.provider import AnthropicProvider
from corerun_anthropic.request import DEFAULT_MAX_TOKENS, Refusals, build_body
from corerun_anthropic.transport import Lines
from tests.support.anthropic_rules import Broken, check_body, check_schema
from tests.support.anthropic_server import (
    KEY,
    AnthropicServer,
    Said,
    api_error,
    forced_tool,
    refuse,
    serve_in_thread,
)
from tests.support.killing import FAST, Experiment, check_journal, paid
from tests.support.openai_server import Fault, cut_body, delay, fault, hang_up
from tests.support.openai_server import Reply as OpenAIReply
from tests.support.researcher import Researcher

QUESTION = ChatRequest("claude-x", (Message("user", "How deep is the sea?"),))
SCHEMA = {
    "type": "object",
    "description": "The depth.",
    "properties": {"metres": {"type": "number", "minimum": 0}},
    "required": ["metres"],
    "additionalProperties": False,
}
STRUCTURED = replace(QUESTION, schema=SCHEMA, schema_name="submit_depth")
FREE = {"type": "object", "properties": {"any": {"type": "object"}}, "required": ["any"]}
CONTEXT = CallContext("test.ask")
STRICT = CallContext("test.ask", strict=True)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
PNG = Part("image", data=b"\x89PNG", media_type="image/png")


async def ask(
    answer: Any, request: ChatRequest = QUESTION, context: CallContext = CONTEXT, **environ: str
) -> tuple[ChatReply, AnthropicServer]:
    """One call to a server that gives ``answer``, or what it returns for a body."""
    async with AnthropicServer(answer if callable(answer) else lambda body: answer) as server:
        provider = AnthropicProvider(Connection("anthropic", {**server.environ(), **environ}))
        try:
            return await provider.complete(request, context), server
        finally:
            await provider.aclose()
            check_traffic(server)


def check_traffic(server: AnthropicServer) -> None:
    """The SDK's own types take what went over the wire, and the API's rules refused nothing."""
    from anthropic.types import Message as WholeMessage
    from anthropic.types import RawMessageStreamEvent
    from anthropic.types.message_create_params import MessageCreateParamsStreaming
    from pydantic import TypeAdapter

    assert server.refused == []
    for body in server.bodies:
        TypeAdapter(MessageCreateParamsStreaming).validate_python(body)
    for message in server.messages:
        WholeMessage.model_validate(message)
    events: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
    for event in server.events:
        events.validate_python(event)


async def fail(answer: Any, request: ChatRequest = QUESTION, context: CallContext = CONTEXT) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await ask(answer, request, context)
    shown = f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert KEY not in shown and "\n" not in shown
    return caught.value


async def body_of(request: ChatRequest, answer: Any = "Deep.") -> dict[str, Any]:
    """The one body that ``request`` is sent as."""
    _, server = await ask(answer, request)
    (body,) = server.bodies
    return dict(body)


# ------------------------------------------------------------------------------------- requests


async def test_a_plain_question() -> None:
    reply, server = await ask(Said("Very deep.", thinking="Hm."))
    (request,) = server.requests
    assert request.path == "/v1/messages"
    assert request.headers["x-api-key"] == KEY and request.headers["anthropic-version"] == "2023-06-01"
    assert request.body == {
        "model": "claude-x",
        "max_tokens": DEFAULT_MAX_TOKENS,
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "How deep is the sea?"}]}],
    }
    assert (reply.text, reply.reasoning, reply.finish) == ("Very deep.", "Hm.", "stop")
    assert (reply.model, reply.requests, reply.created, reply.degradations) == ("claude-x", 1, None, ())


async def test_all_parameters() -> None:
    request = replace(
        QUESTION,
        messages=(Message("system", "Be brief."), *QUESTION.messages, Message("system", "In metres.")),
        max_tokens=50,
        temperature=0.5,
        stop=("END",),
        reasoning_effort="high",
        extra={"metadata": {"user_id": "u"}, "output_config": {"effort": "max"}, "top_k": None},
    )
    body = await body_of(request)
    assert (body["system"], body["max_tokens"]) == ("Be brief.\n\nIn metres.", 50)
    assert (body["temperature"], body["stop_sequences"]) == (0.5, ["END"])
    assert body["output_config"] == {"effort": "max"} and body["metadata"] == {"user_id": "u"}
    assert "top_k" not in body


async def test_turns_are_merged_and_calls_are_answered() -> None:
    calls = (ToolCall("a", "look", '{"at": "sea"}'), ToolCall("a", "look", "not json"))
    request = replace(
        QUESTION,
        tools=(TOOL,),
        messages=(
            Message("assistant", "Hello."),
            Message("user", "One."),
            Message("user", (Part("text", "Two."), PNG)),
            Message("assistant", "Looking.", calls),
            Message("tool", "blue", tool_call_id="a"),
            Message("tool", "of nothing", tool_call_id="z"),
            Message("user", ""),
        ),
    )
    turns = (await body_of(request))["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert [block["type"] for block in turns[2]["content"]] == ["text", "text", "image"]
    text, first, second = turns[3]["content"]
    assert text == {"type": "text", "text": "Looking."}
    assert (first["input"], second["input"]) == ({"at": "sea"}, {"_invalid": "not json"})
    assert first["id"] == "a" != second["id"]
    results = turns[4]["content"]
    assert results[0]["content"] == [{"type": "text", "text": "blue"}]
    assert results[1] == {"type": "tool_result", "tool_use_id": second["id"], "content": "no result"}
    assert [block["text"] for block in results[2:]] == ["result:", "of nothing", "(empty)"]


async def test_calls_become_text_where_no_tools_or_thoughts_go_with_them() -> None:
    history = (
        *QUESTION.messages,
        Message("assistant", "", (ToolCall("a", "look", "{}"),)),
        Message("tool", "blue", tool_call_id="a"),
    )
    body = await body_of(replace(QUESTION, messages=history))
    assert body["messages"][1]["content"] == [{"type": "text", "text": "called look({})"}]
    assert [block["text"] for block in body["messages"][2]["content"]] == ["result of look:", "blue"]
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    body = await body_of(replace(QUESTION, messages=history, tools=(TOOL,), extra=thinking))
    assert body["messages"][1]["content"][0]["type"] == "text"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        ("none", {"type": "none"}),
        ({"type": "function", "function": {"name": "look"}}, {"type": "tool", "name": "look"}),
        ({"type": "tool", "name": "look"}, {"type": "tool", "name": "look"}),
    ],
)
async def test_the_choice_of_a_tool(given: Any, sent: dict[str, Any]) -> None:
    bare = {"name": "walk", "description": "Go.", "parameters": {"type": "object", "properties": {}}}
    own = {"name": "swim", "input_schema": {"type": "object"}}
    request = replace(QUESTION, tools=(TOOL, bare, own), extra={"tool_choice": given})
    body = await body_of(request)
    assert body["tool_choice"] == sent
    assert body["tools"] == [
        {"name": "look", "input_schema": {"type": "object"}},
        {"name": "walk", "input_schema": {"type": "object", "properties": {}}, "description": "Go."},
        own,
    ]
    thoughtful = await body_of(replace(request, reasoning_effort="low"))
    assert thoughtful["tool_choice"]["type"] in ("auto", "none"), "a model that thinks can't be forced"


async def test_images() -> None:
    request = replace(QUESTION, messages=(Message("user", (PNG, Part("image", data=b"x"))),))
    blocks = (await body_of(request))["messages"][0]["content"]
    assert blocks[0]["source"] == {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}
    reply, server = await ask("Dark.", request, OAIC_DISABLE_VISION="1")
    assert server.bodies[0]["messages"][0]["content"] == [{"type": "text", "text": "[image omitted]"}]
    assert reply.degradations == (Degradation("images", "OAIC_DISABLE_VISION is set"),)
    for part in (
        Part("image", data=b"x", media_type="image/tiff"),
        Part("image", data=bytes(LARGEST_IMAGE * 3 // 4 + 3), media_type="image/png"),
    ):
        with pytest.raises(Unsupported):
            write_messages([Message("user", (part,))])


@pytest.mark.parametrize(
    ("messages", "max_tokens"), [((), None), (QUESTION.messages, 0)], ids=["no message", "no tokens"]
)
async def test_what_no_server_could_answer_is_not_sent(messages: Any, max_tokens: int | None) -> None:
    error = await fail("x", replace(QUESTION, messages=messages, max_tokens=max_tokens))
    assert isinstance(error, RequestRefused)


texts = st.text(st.characters(), max_size=6)
parts = st.one_of(
    texts, st.lists(st.one_of(st.builds(Part, st.just("text"), texts), st.just(PNG)), max_size=3).map(tuple)
)
calls_of = st.lists(
    st.builds(ToolCall, st.sampled_from(["", "a", "b", "ä"]), st.just("look"), texts), max_size=3
).map(tuple)
turns_of = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), parts),
    st.builds(Message, st.just("assistant"), parts, calls_of),
    st.builds(Message, st.just("tool"), parts, tool_call_id=st.sampled_from([None, "", "a", "b", "z"])),
)


@given(st.lists(turns_of, min_size=1, max_size=7).map(tuple), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=300)
def test_whatever_was_said_the_api_takes_it(
    messages: tuple[Message, ...], with_tools: bool, with_schema: bool, without_images: bool
) -> None:
    request = replace(QUESTION, messages=messages, tools=(TOOL,) if with_tools else ())
    if with_schema:
        request = replace(request, schema=FREE, schema_name="submit")
    refusals = Refusals({"images": "no eyes"}) if without_images else Refusals()
    body, _ = build_body(request, refusals)
    try:
        check_body(json.loads(json.dumps(body, ensure_ascii=False).encode()))
    except Broken as broken:
        raise AssertionError(str(broken)) from None


# ------------------------------------------------------------------------------ structured answers


async def test_a_schema_goes_out_as_the_output_format() -> None:
    reply, server = await ask({"metres": 3}, STRUCTURED)
    (body,) = server.bodies
    assert body["output_config"]["format"] == {
        "type": "json_schema",
        "schema": {
            "type": "object",
            "description": "The depth.",
            "properties": {"metres": {"type": "number", "description": "(minimum: 0)"}},
            "required": ["metres"],
            "additionalProperties": False,
        },
    }
    assert "tools" not in body
    assert (reply.text, reply.tool_calls, reply.degradations) == ('{"metres": 3}', (), ())


async def test_a_schema_that_the_format_cannot_say_goes_out_as_a_forced_tool() -> None:
    reply, server = await ask({"any": {"a": 1}}, replace(STRUCTURED, schema=FREE))
    (body,) = server.bodies
    assert forced_tool(body) == "submit_depth" and "output_config" not in body
    assert body["tools"] == [{"name": "submit_depth", "input_schema": FREE}]
    assert (reply.text, reply.finish, reply.degradations) == ('{"any": {"a": 1}}', "tool", ())


async def test_a_model_that_thinks_is_asked_for_its_tool_not_forced() -> None:
    request = replace(STRUCTURED, schema=FREE, reasoning_effort="low")
    body = await body_of(request, '{"any": {}}')
    assert body["tool_choice"] == {"type": "auto"}
    assert "submit_depth" in body["messages"][-1]["content"][-1]["text"]


def old_model(body: dict[str, Any]) -> Any:
    """One that knows no output format."""
    if "format" in body.get("output_config", {}):
        return refuse("'claude-x' does not support output format.")
    return {"metres": 3}


async def test_an_older_model_is_given_a_forced_tool_and_is_remembered() -> None:
    async with AnthropicServer(old_model) as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))
        first = await provider.complete(STRUCTURED, CONTEXT)
        second = await provider.complete(STRUCTURED, CONTEXT)
        await provider.aclose()
    assert [first.requests, second.requests, len(server.bodies)] == [2, 1, 3]
    assert [reply.text for reply in (first, second)] == ['{"metres": 3}'] * 2
    for reply in (first, second):
        (degraded,) = reply.degradations
        assert degraded.feature == "json_schema" and "output format" in degraded.reason


async def test_one_schema_that_is_refused_leaves_the_format_to_others() -> None:
    def answer(body: dict[str, Any]) -> Any:
        shown = body.get("output_config", {}).get("format", {}).get("schema", {})
        if "metres" in shown.get("properties", {}):
            return refuse("output_config.format.schema: Schema is too complex.")
        return {"feet": 1, "metres": 3}

    other = {"type": "object", "properties": {"feet": {"type": "number"}}, "required": ["feet"]}
    async with AnthropicServer(answer) as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))
        await provider.complete(STRUCTURED, CONTEXT)
        await provider.complete(replace(STRUCTURED, schema=other, schema_name="feet"), CONTEXT)
        await provider.aclose()
    assert ["format" in body.get("output_config", {}) for body in server.bodies] == [True, False, True]


async def test_without_tools_and_format_the_prompt_says_it() -> None:
    reply, server = await ask(old_model, STRUCTURED, OAIC_DISABLE_TOOLS="1")
    body = server.bodies[-1]
    assert "tools" not in body and "metres" in body["messages"][-1]["content"][-1]["text"]
    assert json.loads(reply.text) == {"metres": 3}
    with pytest.raises(Unsupported, match="OAIC_DISABLE_TOOLS"):
        await ask("x", replace(QUESTION, tools=(TOOL,)), OAIC_DISABLE_TOOLS="1")


def test_the_dialect_takes_the_schemas_of_the_experiment_search() -> None:
    from pydantic import BaseModel

    from corerun.llm.structured import json_schema
    from corerun_bfts import answers

    models = [value for value in vars(answers).values() if isinstance(value, type)]
    models = [model for model in models if issubclass(model, BaseModel) and model is not BaseModel]
    assert len(models) > 5
    written = [output_schema(json_schema(model)) for model in models]
    for schema in written:
        if schema is not None:
            check_schema(schema)
    assert sum(schema is not None for schema in written) > len(written) // 2


# ------------------------------------------------------------------------------ what is refused


async def test_a_seed_is_never_sent_and_always_said() -> None:
    reply, server = await ask("Deep.", replace(QUESTION, seed=7))
    assert "seed" not in server.bodies[0]
    assert reply.degradations == (Degradation("seed", "Anthropic's API has no seed"),)
    error = await fail("Deep.", replace(QUESTION, seed=7), STRICT)
    assert isinstance(error, UnsupportedParameter) and (error.parameter, error.status) == ("seed", 0)


async def test_values_that_the_api_never_takes() -> None:
    request = replace(QUESTION, temperature=1.5, stop=("\n\n", "END"))
    reply, server = await ask("Deep.", request)
    assert (server.bodies[0]["temperature"], server.bodies[0]["stop_sequences"]) == (1.0, ["END"])
    assert {degraded.feature for degraded in reply.degradations} == {"temperature", "stop"}


REFUSALS = [
    ("temperature", "`temperature` is deprecated for this model."),
    ("temperature", "temperature: Extra inputs are not permitted"),
    ("top_p", "`temperature` and `top_p` cannot both be specified for this model. Please use only one."),
    ("top_p", "top_p: Extra inputs are not permitted"),
    ("reasoning_effort", "This model does not support the effort parameter."),
    ("reasoning_effort", "output_config.effort: Input should be 'low', 'medium' or 'high'"),
    ("reasoning_effort", "output_config: Extra inputs are not permitted"),
    ("stop", "stop_sequences: Extra inputs are not permitted"),
    ("top_k", "top_k: Extra inputs are not permitted"),
    ("images", "claude-x does not support image input"),
]


@pytest.mark.parametrize(("feature", "message"), REFUSALS)
async def test_a_refused_feature_is_left_out_once_and_for_all(feature: str, message: str) -> None:
    request = replace(
        QUESTION,
        messages=(Message("user", (Part("text", "Look."), PNG)),),
        temperature=0.2,
        top_p=0.9,
        reasoning_effort="low",
        stop=("END",),
        extra={"top_k": 5},
    )
    sent = itertools.count()

    def answer(body: dict[str, Any]) -> Any:
        return refuse(message) if next(sent) == 0 else "Deep."

    async with AnthropicServer(answer) as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))
        first = await provider.complete(request, CONTEXT)
        second = await provider.complete(request, CONTEXT)
        await provider.aclose()
    assert (first.requests, second.requests) == (2, 1)
    before, after, later = server.bodies
    assert after == later != before
    for reply in (first, second):
        (degraded,) = reply.degradations
        assert degraded.feature == feature and message.split()[0].strip("`") in degraded.reason
    gone = {"stop": "stop_sequences", "reasoning_effort": "output_config", "images": "messages"}
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed == {gone.get(feature, feature)}
    error = await fail(refuse(message), request, STRICT)
    assert isinstance(error, UnsupportedParameter) and error.status == 400


async def test_a_forced_tool_that_is_refused_becomes_a_request() -> None:
    def answer(body: dict[str, Any]) -> Any:
        if forced_tool(body):
            return refuse("Thinking may not be enabled when tool_choice forces tool use.")
        return Said(calls=(("submit_depth", {"any": {}}),))

    reply, server = await ask(answer, replace(STRUCTURED, schema=FREE))
    assert [body["tool_choice"]["type"] for body in server.bodies] == ["tool", "auto"]
    assert reply.text == '{"any": {}}'


async def test_the_largest_answer_of_a_model_is_learned() -> None:
    def answer(body: dict[str, Any]) -> Any:
        asked = body["max_tokens"]
        if asked > 4096:
            most = "which is the maximum allowed number of output tokens for claude-x"
            return refuse(f"max_tokens: {asked} > 4096, {most}")
        return "Deep."

    reply, server = await ask(answer)
    assert [body["max_tokens"] for body in server.bodies] == [DEFAULT_MAX_TOKENS, 4096]
    assert reply.degradations == (), "nobody asked for more"
    reply, _ = await ask(answer, replace(QUESTION, max_tokens=9000))
    assert [degraded.feature for degraded in reply.degradations] == ["max_tokens"]


async def test_a_field_that_was_not_sent_is_no_reason_to_drop_another() -> None:
    error = await fail(refuse("temperature: Extra inputs are not permitted"), replace(QUESTION, top_p=0.5))
    assert isinstance(error, RequestRefused)


async def test_the_same_request_is_never_sent_twice() -> None:
    request = replace(QUESTION, extra={"output_config": {"effort": "low"}})
    seen: list[str] = []

    def answer(body: dict[str, Any]) -> Any:
        seen.append(json.dumps(body, sort_keys=True))
        return refuse("This model does not support the effort parameter.")

    await fail(answer, request)
    assert len(seen) <= 2


async def test_the_configuration_can_say_what_is_refused() -> None:
    request = replace(STRUCTURED, temperature=0.5)
    async with AnthropicServer(lambda body: {"metres": 1}) as server:
        pins = {"response_format": False, "temperature": False, "tools": True}
        provider = AnthropicProvider(Connection("anthropic", server.environ(), capabilities=pins))
        reply = await provider.complete(request, CONTEXT)
        await provider.aclose()
    assert forced_tool(server.bodies[0]) and "temperature" not in server.bodies[0]
    assert {degraded.feature for degraded in reply.degradations} == {"json_schema", "temperature"}


async def test_what_the_configuration_keeps_is_never_dropped() -> None:
    answer = refuse("temperature: Extra inputs are not permitted")
    async with AnthropicServer(lambda body: answer) as server:
        pins = {"temperature": True}
        provider = AnthropicProvider(Connection("anthropic", server.environ(), capabilities=pins))
        with pytest.raises(RequestRefused):
            await provider.complete(replace(QUESTION, temperature=0.5), CONTEXT)
        await provider.aclose()
    assert len(server.bodies) == 1


async def test_the_configuration_can_add_wordings() -> None:
    def answer(body: dict[str, Any]) -> Any:
        return refuse("no hot answers here") if "temperature" in body else "Deep."

    async with AnthropicServer(answer) as server:
        wording = {"temperature": ("no hot",)}
        provider = AnthropicProvider(Connection("anthropic", server.environ(), wording=wording))
        reply = await provider.complete(replace(QUESTION, temperature=0.5), CONTEXT)
        await provider.aclose()
    assert reply.requests == 2


# --------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool"),
        ("pause_turn", "unknown"),
    ],
)
async def test_why_an_answer_ended(stop: str, finish: str) -> None:
    reply, _ = await ask(Said("Deep.", stop=stop))
    assert reply.finish == finish


async def test_a_refusal() -> None:
    error = await fail(Said("I can't.", stop="refusal"))
    assert isinstance(error, ContentRefused) and "I can't." in error.message


async def test_tokens_of_the_cache_count_as_prompt() -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 1000,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 5},
    }
    reply, _ = await ask(Said("Deep.", usage=usage))
    found = reply.usage
    assert (found.prompt, found.cached, found.completion, found.reasoning) == (1110, 100, 7, 5)
    assert not found.estimated


async def test_blocks_of_other_kinds_are_passed_over() -> None:
    redacted = {"type": "redacted_thinking", "data": "c2VjcmV0"}
    reply, _ = await ask(Said("Deep.", blocks=(redacted,)))
    assert (reply.text, reply.reasoning) == ("Deep.", "")


async def test_a_tool_without_arguments_and_a_cut_one() -> None:
    reply, _ = await ask(Said(calls=(("look", {}), ("walk", {"a": 1}))), replace(QUESTION, tools=(TOOL,)))
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [
        ("look", "{}"),
        ("walk", '{"a": 1}'),
    ]
    assert reply.finish == "tool" and len({call.id for call in reply.tool_calls}) == 2


async def test_a_server_that_does_not_stream_is_understood() -> None:
    reply, _ = await ask(Said("Deep.", calls=(("look", {"a": 1}),), whole=True))
    assert (reply.text, reply.tool_calls[0].arguments) == ("Deep.", '{"a": 1}')


async def test_text_that_no_file_can_hold() -> None:
    reply, _ = await ask(
        Said("half \ud83d a smile"), replace(QUESTION, messages=(Message("user", "\ud83d!"),))
    )
    assert "\ud83d" not in reply.text and reply.text.startswith("half ")


async def test_pieces_come_before_the_whole() -> None:
    said = Said("Deep, 🌊 deep.", thinking="Hm.", calls=(("look", {"at": "it"}),))
    async with AnthropicServer(lambda body: said) as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))
        deltas = [delta async for delta in provider.stream(QUESTION, CONTEXT)]
        reply = await provider.complete(QUESTION, CONTEXT)
        await provider.aclose()

    def joined(kind: str) -> str:
        return "".join(delta.text for delta in deltas if delta.kind == kind)

    assert (joined("text"), joined("reasoning")) == (said.text, said.thinking)
    assert json.loads(joined("tool_args")) == {"at": "it"}
    last = deltas[-1].reply
    assert last is not None and [delta.reply for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert (last.text, last.usage) == (reply.text, reply.usage)


async def collect(provider: AnthropicProvider, into: list[Delta]) -> None:
    async for delta in provider.stream(QUESTION, CONTEXT):
        into.append(delta)


@pytest.mark.parametrize(
    "said",
    [
        Said("Deep, deep.", cut_after=5),
        Said("Deep, deep.", cut_after=5, error={"type": "overloaded_error", "message": "Overloaded"}),
    ],
    ids=["cut", "error event"],
)
async def test_a_stream_that_breaks_off(said: Said) -> None:
    error = await fail(said)
    assert isinstance(error, Transient), "nothing was handed out: it may be asked again"
    deltas: list[Delta] = []
    async with AnthropicServer(lambda body: said) as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))
        with pytest.raises(StreamCut) as caught:
            await collect(provider, deltas)
        await provider.aclose()
    assert caught.value.partial == "".join(delta.text for delta in deltas) == "Deep, deep."


async def test_a_stream_that_breaks_off_before_its_first_piece() -> None:
    broken = Said("Deep.", cut_after=2, error={"type": "api_error", "message": "Internal server error"})
    async with AnthropicServer(lambda body: broken) as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))
        with pytest.raises(Transient):
            await collect(provider, [])
        await provider.aclose()


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9)), max_size=5), st.data())
def test_events_are_the_same_however_they_are_cut(events: list[dict[str, str]], data: st.DataObject) -> None:
    wire = "".join(f"event: x\r\ndata: {json.dumps(event)}\r\n\r\n: a note\n\n" for event in events).encode()
    lines, found = Lines(), []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        found += lines.events(wire[:size])
        wire = wire[size:]
    assert found == events


# ---------------------------------------------------------------------------------------- faults

ERRORS: list[tuple[int, str, str, type[ModelError]]] = [
    (401, "authentication_error", "invalid x-api-key", AuthFailed),
    (403, "permission_error", "Your API key does not have permission to use the model", AuthFailed),
    (402, "billing_error", "There is an issue with your billing", QuotaExceeded),
    (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API.",
        QuotaExceeded,
    ),
    (400, "invalid_request_error", "You have reached your specified API usage limits.", QuotaExceeded),
    (413, "request_too_large", "Request exceeds the maximum size", ContextTooLong),
    (400, "invalid_request_error", "Output blocked by content filtering policy", ContentRefused),
    (400, "invalid_request_error", "messages.0...base64: image exceeds 5 MB maximum", Unsupported),
    (429, "rate_limit_error", "Number of request tokens has exceeded your rate limit", Transient),
    (529, "overloaded_error", "Overloaded", Transient),
    (500, "api_error", "Internal server error", Transient),
    (504, "timeout_error", "Request timed out", Transient),
    (400, "invalid_request_error", "messages: something else is wrong", RequestRefused),
    (404, "not_found_error", "Not Found", RequestRefused),
]


@pytest.mark.parametrize(("status", "kind", "message", "expected"), ERRORS)
async def test_what_the_api_says(status: int, kind: str, message: str, expected: type[ModelError]) -> None:
    sent: list[Any] = []

    def answer(body: dict[str, Any]) -> Any:
        sent.append(body)
        return api_error(status, kind, f"{message} {KEY}")

    error = await fail(answer)
    assert type(error) is expected and message in error.message
    assert len(sent) == 1, "a provider never retries"


@pytest.mark.parametrize(
    ("message", "limit", "used"),
    [
        ("prompt is too long: 200050 tokens > 200000 maximum", 200000, 200050),
        (
            "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease",
            200000,
            188240,
        ),
        ("prompt is too long", None, None),
    ],
)
async def test_a_prompt_that_is_too_long(message: str, limit: int | None, used: int | None) -> None:
    error = await fail(refuse(message))
    assert isinstance(error, ContextTooLong) and (error.limit, error.used) == (limit, used)


@pytest.mark.parametrize(
    ("headers", "wish"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
async def test_the_wait_that_the_server_wishes(headers: Mapping[str, str], wish: float | None) -> None:
    error = await fail(api_error(429, "rate_limit_error", "slow down", headers))
    assert isinstance(error, Transient) and error.retry_after == wish


async def test_a_date_to_come_back_at() -> None:
    past = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}
    error = await fail(api_error(529, "overloaded_error", "Overloaded", past))
    assert isinstance(error, Transient) and error.retry_after == 0.0


async def test_a_server_that_asks_not_to_be_tried_again() -> None:
    error = await fail(api_error(500, "api_error", "no use", {"x-should-retry": "false"}))
    assert isinstance(error, RequestRefused)


async def test_an_unknown_model_is_told_with_those_there_are() -> None:
    error = await fail("x", replace(QUESTION, model="claude-y"))
    assert isinstance(error, ModelNotFound) and error.hint == "the server offers claude-x"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (hang_up(), Transient),
        (cut_body(), Transient),
        (fault(200, b"", {"content-type": "application/json"}), Transient),
        (fault(200, b'{"type": "mess', {"content-type": "application/json"}), Transient),
        (fault(200, "<html>Hello</html>", {"content-type": "text/html"}), RequestRefused),
        (fault(502, "<html>Bad gateway</html>", {"content-type": "text/html"}), Transient),
        (fault(404, "no such page"), RequestRefused),
        (fault(307, b"", {"location": "http://elsewhere.invalid/"}), RequestRefused),
        (api_error(200, "overloaded_error", "Overloaded"), Transient),
        (Said(""), Transient),
    ],
)
async def test_answers_that_are_none(answer: Any, expected: type[ModelError]) -> None:
    assert type(await fail(answer)) is expected


async def test_no_server_at_all(unused_port: int) -> None:
    environ = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{unused_port}"}
    provider = AnthropicProvider(Connection("anthropic", environ))
    with pytest.raises(Transient) as caught:
        await provider.complete(QUESTION, CONTEXT)
    assert "is a server running at" in caught.value.hint
    await provider.aclose()


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


async def test_the_deadline_of_a_call() -> None:
    error = await fail(delay(60, "late"), context=CallContext("test", deadline=time.monotonic() + 0.2))
    assert isinstance(error, Transient) and "deadline" in error.message


async def test_a_cancelled_call_closes_its_connection() -> None:
    async with AnthropicServer(lambda body: delay(60, "late")) as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))
        call = asyncio.ensure_future(provider.complete(QUESTION, CONTEXT))
        async with asyncio.timeout(10):
            while not server.requests:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            while not server.left:
                await asyncio.sleep(0.01)
        await provider.aclose()


# --------------------------------------------------------------------------------------- surroundings


async def test_it_keeps_the_contract_of_providers() -> None:
    async with AnthropicServer(lambda body: {"word": "yes"}) as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))
        await provider_contract(provider, "claude-x")
        await provider.aclose()
        check_traffic(server)


async def test_the_limits_that_are_left_are_told() -> None:
    left = {"anthropic-ratelimit-requests-remaining": "9", "anthropic-ratelimit-tokens-remaining": "8000"}
    message = {
        "type": "message",
        "model": "claude-x",
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "Deep."}],
    }
    reply, _ = await ask(fault(200, message, left))
    assert (reply.requests_left, reply.tokens_left) == (9, 8000)
    assert reply.usage.estimated


async def test_one_object_serves_several_loops_side_by_side() -> None:
    with serve_in_thread(lambda body: "Deep.") as server:
        provider = AnthropicProvider(Connection("anthropic", server.environ()))

        async def twice() -> list[str]:
            replies = await asyncio.gather(*(provider.complete(QUESTION, CONTEXT) for _ in range(2)))
            await provider.aclose()
            return [reply.text for reply in replies]

        others = [asyncio.to_thread(asyncio.run, twice()) for _ in range(2)]
        assert await asyncio.gather(twice(), *others) == [["Deep.", "Deep."]] * 3


@pytest.mark.parametrize(
    ("environ", "base_url", "key"),
    [
        ({"ANTHROPIC_API_KEY": "one", "OAIC_ANTHROPIC_API_KEY": "two"}, "https://api.anthropic.com", "one"),
        ({"OAIC_ANTHROPIC_API_KEY": "two"}, "https://api.anthropic.com", "two"),
        ({"ANTHROPIC_API_KEY": "", "OAIC_ANTHROPIC_API_KEY": "two"}, "https://api.anthropic.com", "two"),
        ({"ANTHROPIC_BASE_URL": "http://127.0.0.1:9/v1/"}, "http://127.0.0.1:9", "none"),
        ({"OAIC_ANTHROPIC_BASE_URL": "http://localhost:9/v1/messages"}, "http://localhost:9", "none"),
    ],
)
def test_where_it_is_and_which_key_it_takes(environ: dict[str, str], base_url: str, key: str) -> None:
    provider = AnthropicProvider(Connection("anthropic", environ))
    provider.check()
    assert (provider.info.address, provider._endpoint.key) == (base_url, key)
    given = Connection("anthropic", environ, base_url="https://user:pw@proxy.example/a", api_key="mine")
    provider = AnthropicProvider(given)
    assert (provider.info.address, provider._endpoint.key) == ("https://proxy.example/a", "mine")
    assert not provider.info.is_local


@pytest.mark.parametrize("url", ["http://api.example.com", "http://169.254.169.254", "ftp://[x"])
def test_a_key_goes_to_no_address_that_others_can_read_or_that_keeps_keys(url: str) -> None:
    environ = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": KEY}
    with pytest.raises(UsageError, match=r"^ANTHROPIC_BASE_URL is "):
        AnthropicProvider(Connection("anthropic", environ)).check()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = AnthropicProvider(Connection("anthropic", {}))
    with pytest.raises(UsageError, match=r"^Missing ANTHROPIC_API_KEY for provider 'anthropic'\.$"):
        provider.check()
    with pytest.raises(UsageError, match="not an http"):
        AnthropicProvider(Connection("anthropic", {"ANTHROPIC_BASE_URL": "ftp://[x"})).check()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "anthropic" else find(name, *more)
    )
    with pytest.raises(EnvironmentRefused) as caught:
        AnthropicProvider(Connection("anthropic", {"ANTHROPIC_API_KEY": "k"})).check()
    assert caught.value.hint == "pip install 'corerun[anthropic]'"


PROGRAM = """
import asyncio, os, sys
from corerun.interfaces import CallContext, ChatRequest, Connection, Message
from corerun_anthropic.provider import AnthropicProvider

provider = AnthropicProvider(Connection("anthropic", dict(os.environ)))
provider.check()
assert not {"anthropic", "httpx", "httpx2", "pydantic"} & set(sys.modules)
request = ChatRequest("claude-x", (Message("user", "a very private question"),))
print(asyncio.run(provider.complete(request, CallContext("x"))).text)
"""


def test_the_sdk_reads_nothing_else_from_the_environment_and_logs_nothing() -> None:
    others = {
        "ANTHROPIC_AUTH_TOKEN": "another-token",
        "ANTHROPIC_CUSTOM_HEADERS": "X-Strange: yes",
        "ANTHROPIC_LOG": "debug",
        "ANTHROPIC_PROFILE": "nobody",
    }
    with serve_in_thread(lambda body: "Deep.") as server:
        environ = {"PATH": os.environ["PATH"], **others, **server.environ()}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (0, "Deep.\n"), done.stderr
    assert "private question" not in done.stderr and KEY not in done.stderr
    (request,) = server.requests
    assert "x-strange" not in request.headers and "another-token" not in str(request.headers)
    own = ("x-stainless-os", "x-stainless-arch", "x-stainless-runtime-version")
    assert not any(name in request.headers for name in own)


# ------------------------------------------------------------------------------------ a whole run


class Claude:
    """Answers the experiment search as an older Claude model would: tools, but no output format."""

    def __init__(self) -> None:
        self.researcher = Researcher(faulty=0)

    def __call__(self, body: dict[str, Any]) -> Any:
        if "format" in body.get("output_config", {}):
            return refuse("'claude-x' does not support output format.")
        if body.get("temperature", 1.0) != 1.0:
            return refuse("`temperature` is deprecated for this model.")
        answer = self.researcher.respond(as_openai(body))
        assert isinstance(answer, OpenAIReply)
        if answer.calls:
            return Said(calls=tuple((name, json.loads(json.dumps(given))) for name, given in answer.calls))
        return Said(answer.content)


def as_openai(body: Mapping[str, Any]) -> dict[str, Any]:
    """A first question as the researcher knows it: a system's turn, a user's turn, perhaps a forced tool."""
    blocks = body["messages"][0]["content"]
    content: Any = [
        {"type": "image_url"} if block["type"] == "image" else {"type": "text", "text": block["text"]}
        for block in blocks
    ]
    if len(content) == 1:
        content = content[0]["text"]
    found: dict[str, Any] = {"messages": [{"role": "system"}, {"role": "user", "content": content}]}
    name = forced_tool(body)
    return found | {"tool_choice": {"function": {"name": name}}} if name else found


ROLES = ("code", "feedback", "vlm_feedback")


def test_004_18_a_claude_endpoint_works_for_all_roles(tmp_path: Path) -> None:
    with serve_in_thread(Claude()) as server:
        environ = {**server.environ(), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        run = Experiment(tmp_path, environ, FAST | {"in_flight": 1})
        ended = run.start("--model", "anthropic::claude-x", "--workers", "1")
    assert ended.code == 0, ended.stderr[-3000:]
    assert ended.manifest["status"] == "success" and len(ended.manifest["stages"]) == 4
    assert server.refused == [], "the API's own rules take every request"
    answered, lost = paid(run.events())
    refused = [body for body in server.bodies if isinstance(Claude()(body), Fault)]
    assert len(refused) <= 4, "what was learned is not asked again, but by calls that were under way"
    assert lost == 0 and answered == len(server.bodies) - len(refused)
    images = [body for body in server.bodies if '"type": "image"' in json.dumps(body)]
    assert images and all(forced_tool(body) == "analyze_experiment_plots" for body in images[1:])
    counted = sum(server.usage.values())
    assert ended.manifest["cost"]["tokens"] == counted
    check_journal(run.events())
    for path in run.directory.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("key", "said"),
    [("", "Missing ANTHROPIC_API_KEY for provider 'anthropic'."), ("sk-ant-wrong-key-12345", "x-api-key")],
    ids=["missing", "wrong"],
)
def test_004_19_without_a_good_key_nothing_is_started(tmp_path: Path, key: str, said: str) -> None:
    with serve_in_thread(Claude()) as server:
        environ = {**server.environ(key), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        if not key:
            del environ["ANTHROPIC_BASE_URL"]
        run = Experiment(tmp_path, environ, FAST)
        ended = run.start("--model", "anthropic::claude-x")
    assert ended.code == 2 and said in ended.stderr and "Traceback" not in ended.stderr
    assert key not in ended.stderr or not key
    programs = [] if not key else [event for event in run.events() if event["type"] == "execution_done"]
    assert programs == [], "no program was started"
    if not key:
        assert not (tmp_path / "experiments").exists()
