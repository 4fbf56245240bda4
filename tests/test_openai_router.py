"""The router over a real socket: what it sends, with which keys, from which loop or process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import RequestRefused, Unsupported, UnsupportedParameter
from corerun.interfaces import ChatRequest, Connection, Message, Part, ToolCall
from corerun.llm.messages import printable
from corerun_openai_router.asking.request import build
from corerun_openai_router.provider import OpenAIRouter
from tests.support.openai_server import (
    OpenAIServer,
    forced_tool,
    serve_in_thread,
    text,
    tool,
)
from tests.support.router import CONTEXT, KEY, QUESTION, SCHEMA, STRUCTURED, ask

# ---------------------------------------------------------------------------------- what is sent


async def test_a_plain_question_sends_nothing_that_was_not_set() -> None:
    reply, (body,) = await ask("10,935 m")
    assert (reply.text, reply.finish, reply.model, reply.requests) == ("10,935 m", "stop", "test-model", 1)
    assert body == {
        "model": "test-model",
        "messages": [{"role": "user", "content": "How deep is the sea?"}],
    }


async def test_every_parameter_that_was_set_is_sent() -> None:
    request = replace(
        QUESTION,
        temperature=0.0,
        top_p=0.9,
        max_tokens=64,
        seed=0,
        stop=("END",),
        reasoning_effort="low",
        extra={"enable_thinking": False, "user": None},
    )
    _, (body,) = await ask("x", request)
    del body["messages"]
    assert body == {
        "model": "test-model",
        "temperature": 0.0,
        "top_p": 0.9,
        "max_tokens": 64,
        "seed": 0,
        "stop": ["END"],
        "reasoning_effort": "low",
        "enable_thinking": False,
    }


@pytest.mark.parametrize(("openai", "name"), [(False, "max_tokens"), (True, "max_completion_tokens")])
def test_the_name_of_the_token_limit(openai: bool, name: str) -> None:
    body = build(replace(QUESTION, max_tokens=5), openai=openai).body
    assert {key: value for key, value in body.items() if "max" in key} == {name: 5}


async def test_a_schema_is_one_forced_function_and_its_arguments_are_the_text() -> None:
    reply, (body,) = await ask({"metres": 10935}, STRUCTURED)
    assert json.loads(reply.text) == {"metres": 10935}
    assert [call.name for call in reply.tool_calls] == ["submit_depth"] and reply.finish == "tool"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "submit_depth"}}
    function = {"name": "submit_depth", "description": "The depth.", "parameters": SCHEMA}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert "response_format" not in body


async def test_a_schema_without_tools_is_asked_for_in_the_prompt() -> None:
    reply, (body,) = await ask('{"metres": 1}', STRUCTURED, OAIC_DISABLE_TOOLS="Yes")
    assert reply.text == '{"metres": 1}'
    assert "tools" not in body and "tool_choice" not in body
    assert body["response_format"] == {"type": "json_object"}
    (turn,) = body["messages"]
    question, _, instruction = turn["content"].partition("\n\n")
    assert question == "How deep is the sea?" and "JSON" in instruction and '"metres"' in instruction
    assert [lost.feature for lost in reply.degradations] == ["tools"]


async def test_plain_tools_are_sent_and_refused_when_switched_off() -> None:
    function = {"name": "dive", "parameters": {"type": "object", "properties": {}}}
    request = replace(QUESTION, tools=(function,))
    reply, (body,) = await ask(tool("dive", {}), request)
    assert body["tools"] == [{"type": "function", "function": function}] and "tool_choice" not in body
    assert reply.tool_calls[0].name == "dive" and reply.text == ""
    with pytest.raises(Unsupported, match="OAIC_DISABLE_TOOLS"):
        await ask("x", request, OAIC_DISABLE_TOOLS="1")


async def test_an_answer_in_prose_to_a_forced_function_is_handed_on() -> None:
    reply, _ = await ask("It is deep.", STRUCTURED)
    assert reply.text == "It is deep." and reply.tool_calls == ()


CLOSED = {"OPENAI_API_KEY": KEY, "CORERUN_CAPS_PATH": "/dev/null"}
PICTURE = Message("user", (Part("text", "Look:"), Part("image", data=b"\x89PNG", media_type="image/png")))


async def test_images_are_data_urls() -> None:
    _, (body,) = await ask("a fish", replace(QUESTION, messages=(PICTURE,)))
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
    ]


async def test_images_are_left_out_where_vision_is_off() -> None:
    alone = Message("user", (Part("image", data=b"x"),))
    request = replace(QUESTION, messages=(PICTURE, alone))
    reply, (body,) = await ask("?", request, OAIC_DISABLE_VISION="on")
    assert [message["content"] for message in body["messages"]] == ["Look:", "[image omitted]"]
    assert [dropped.feature for dropped in reply.degradations] == ["images"]
    router = OpenAIRouter(Connection(environ={**CLOSED, "OAIC_DISABLE_VISION": "1"}))
    assert router.info.vision is False
    with pytest.raises(UnsupportedParameter, match="OAIC_DISABLE_VISION") as caught:
        await router.complete(request, replace(CONTEXT, strict=True))
    assert (caught.value.parameter, caught.value.status) == ("images", 0)


def test_an_image_that_is_too_large_is_refused() -> None:
    image = Message("user", (Part("image", data=bytes(20 * 1024 * 1024 + 1)),))
    with pytest.raises(Unsupported, match="larger than the limit"):
        build(replace(QUESTION, messages=(image,)))


def test_text_parts_are_one_string_where_there_is_no_image() -> None:
    message = Message("user", (Part("text", "one"), Part("text", "two")))
    body = build(replace(QUESTION, messages=(message,))).body
    assert body["messages"] == [{"role": "user", "content": "one\ntwo"}]


@pytest.mark.parametrize("request_", [replace(QUESTION, messages=()), replace(QUESTION, max_tokens=0)])
def test_a_request_that_no_server_could_answer_is_not_sent(request_: ChatRequest) -> None:
    with pytest.raises(RequestRefused):
        build(request_)


TEXT_ONLY = frozenset({"tools", "functions"})
HISTORY = (
    Message("user", "go"),
    Message("assistant", "", (ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "g", '{"cut": '))),
    Message("tool", "one", tool_call_id="a"),
    Message("user", "and?"),
)


def test_a_history_of_tools_is_made_legal() -> None:
    messages = build(replace(QUESTION, messages=HISTORY)).body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
    calls = messages[1]["tool_calls"]
    assert messages[1]["content"] == ""
    assert calls[0]["function"]["arguments"] == '{"x": 1}'
    assert json.loads(calls[1]["function"]["arguments"]) == {"_invalid": '{"cut": '}
    assert [message.get("tool_call_id") for message in messages[2:4]] == ["a", "b"]


def test_without_tools_a_history_of_tools_is_text() -> None:
    messages = build(replace(QUESTION, messages=HISTORY), TEXT_ONLY).body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "user"]
    assert messages[1]["content"] == 'called f({"x": 1})\ncalled g({"cut": )'
    assert messages[2]["content"] == "result of f: one"
    assert messages[3]["content"] == "and?"
    assert all("tool_calls" not in message for message in messages)


CALLS = st.builds(ToolCall, st.sampled_from(["", "a", "call_1", "call_2"]), st.just("f"), st.text(max_size=8))
TURNS = st.one_of(
    st.builds(Message, st.sampled_from(["user", "system"]), st.text(max_size=8)),
    st.builds(Message, st.just("assistant"), st.text(max_size=4), st.lists(CALLS, max_size=3).map(tuple)),
    st.builds(
        Message,
        st.just("tool"),
        st.text(max_size=4),
        st.just(()),
        st.sampled_from([None, "a", "b", "call_0", "zzz"]),
    ),
)


def test_ids_that_are_missing_or_given_twice_are_made_unique() -> None:
    calls = tuple(ToolCall(given_id, "f", "{}") for given_id in ("call_1", "", "", "call_2", "call_2"))
    messages = (
        Message("assistant", "", calls),
        Message("tool", "a", tool_call_id="call_2"),
        Message("tool", "b", tool_call_id="call_2"),
    )
    first, *results = build(replace(QUESTION, messages=messages)).body["messages"]
    ids = [call["id"] for call in first["tool_calls"]]
    assert len(set(ids)) == 5 and ids[0] == "call_1" and ids[3] == "call_2"
    assert {result["tool_call_id"]: result["content"] for result in results} == {
        **dict.fromkeys(ids, "no result"),
        ids[3]: "a",
        ids[4]: "b",
    }


@given(st.lists(TURNS, min_size=1, max_size=8), st.booleans())
def test_any_history_is_legal(turns: list[Message], tools: bool) -> None:
    body = build(replace(QUESTION, messages=tuple(turns)), frozenset() if tools else TEXT_ONLY).body
    json.dumps(body).encode()
    waiting: list[str] = []
    for message in body["messages"]:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
            continue
        assert waiting == [], "a call without a result"
        waiting = [call["id"] for call in message.get("tool_calls", ())]
        assert all(waiting) and len(set(waiting)) == len(waiting)
        assert not waiting or tools
        for call in message.get("tool_calls", ()):
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
    assert waiting == []


async def test_lone_surrogates_go_neither_out_nor_in() -> None:
    request = replace(QUESTION, messages=(Message("user", "a\ud800b"),))
    reply, (body,) = await ask(text("c\udc00d"), request)
    assert body["messages"][0]["content"] == "a\ufffdb"
    assert reply.text == "c\ufffdd"


@given(st.text(st.characters(), max_size=20))
def test_clean_text_can_be_written(value: str) -> None:
    cleaned = printable(value)
    cleaned.encode()
    assert cleaned == value or any("\ud800" <= character <= "\udfff" for character in value)


# ------------------------------------------------------------------------------ loops, processes


async def test_many_calls_at_once_share_their_connections() -> None:
    async with OpenAIServer(lambda body: body["messages"][0]["content"]) as server:
        router = OpenAIRouter(Connection(environ=server.environ(KEY)))
        requests = [replace(QUESTION, messages=(Message("user", str(number)),)) for number in range(40)]
        replies = await asyncio.gather(*(router.complete(request, CONTEXT) for request in requests))
        assert [reply.text for reply in replies] == [str(number) for number in range(40)]
        reported = server.usage["test-model"]
        assert sum(reply.usage.prompt for reply in replies) == reported["prompt_tokens"]
        await router.aclose()


def test_one_router_serves_two_event_loops() -> None:
    with serve_in_thread(lambda body: "x") as server:
        router = OpenAIRouter(Connection(environ=server.environ(KEY)))

        async def call() -> str:
            try:
                return (await router.complete(QUESTION, CONTEXT)).text
            finally:
                await router.aclose()

        assert [asyncio.run(call()), asyncio.run(call())] == ["x", "x"]
        assert server.calls == 2


def test_another_process_reaches_the_server_and_the_sdk_is_loaded_late() -> None:
    program = (
        "import asyncio, os, sys\n"
        "from corerun.interfaces import *\n"
        "from corerun_openai_router.provider import OpenAIRouter\n"
        "router = OpenAIRouter(Connection(environ=os.environ))\n"
        "router.check()\n"
        "assert 'openai' not in sys.modules and 'pydantic' not in sys.modules\n"
        "request = ChatRequest('m', (Message('user', 'hi'),), schema={'type': 'object'})\n"
        "print(asyncio.run(router.complete(request, CallContext('x'))).text)\n"
    )
    with serve_in_thread(lambda body: {"forced": forced_tool(body)}) as server:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **server.environ(KEY)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"forced": "answer"}
