"""Streamed answers: what is handed out, what comes together at the end, and what an early end means."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import ContentRefused, ModelError, RequestRefused, StreamCut, Transient
from corerun.interfaces import CallContext, Connection, Delta, Usage
from corerun_openai_router.provider import OpenAIRouter
from corerun_openai_router.wire.endpoint import endpoint_of
from corerun_openai_router.wire.stream import read_stream
from corerun_openai_router.wire.transport import Response, Streamed
from tests.support.openai_server import Fault, OpenAIServer, fault, hang_up
from tests.support.router import CONTEXT, QUESTION

ENDPOINT = endpoint_of(Connection(environ={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}))


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def piece(finish: str | None = None, /, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(id="c-1", created=1_700_000_000, model="m-1", choices=[choice])


def call(number: int | None, arguments: Any = None, /, **fields: Any) -> dict[str, Any]:
    """A fragment of a tool call; ``name`` and ``id`` are where servers put them."""
    function = {"name": fields.pop("name")} if "name" in fields else {}
    if arguments is not None:
        function["arguments"] = arguments
    return {**({} if number is None else {"index": number}), **fields, "function": function}


DONE = b"data: [DONE]\n\n"
STOP = piece("stop")


async def read(
    *chunks: bytes, status: int = 200, end: Exception | None = None
) -> tuple[list[Delta], Response]:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
        if end is not None:
            raise end

    *deltas, response = [item async for item in read_stream(Streamed(status, {}, body()), ENDPOINT)]
    assert isinstance(response, Response)
    assert all(isinstance(delta, Delta) and delta.text for delta in deltas)
    return [delta for delta in deltas if isinstance(delta, Delta)], response


def joined(deltas: Sequence[Delta], kind: str = "text") -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)


async def message(*chunks: bytes) -> dict[str, Any]:
    _, response = await read(*chunks)
    document: dict[str, Any] = json.loads(response.content)
    found: dict[str, Any] = document["choices"][0]["message"]
    return found


async def calls(*fragments: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Identifiers, names and arguments of the calls that come together from ``fragments``."""
    found = await message(
        *(piece(tool_calls=[fragment]) for fragment in fragments), piece("tool_calls"), DONE
    )
    return [
        (one["id"], one["function"]["name"], one["function"]["arguments"])
        for one in found.get("tool_calls", [])
    ]


# ------------------------------------------------------------------------------------ whole answers


async def test_pieces_come_at_once_and_the_whole_answer_at_the_end() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    deltas, response = await read(
        piece(role="assistant", content=""),
        piece(reasoning_content="Let me see."),
        piece(content="Eleven "),
        piece(content="km"),
        STOP,
        event(id="c-1", choices=[], usage=usage),
        DONE,
    )
    assert deltas == [Delta("reasoning", "Let me see."), Delta("text", "Eleven "), Delta("text", "km")]
    assert json.loads(response.content) == {
        "object": "chat.completion",
        "id": "c-1",
        "created": 1_700_000_000,
        "model": "m-1",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Eleven km",
                    "reasoning_content": "Let me see.",
                },
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
    }


@pytest.mark.parametrize(
    "body",
    [
        piece(content="hi") + STOP + DONE,
        (piece(content="hi") + STOP + DONE).replace(b"\n", b"\r\n"),
        (piece(content="hi") + STOP + DONE).replace(b"data: ", b"data:"),
        (piece(content="hi") + STOP + DONE).replace(b"\n\n", b"\n"),
        b": OPENROUTER PROCESSING\n\n" + piece(content="hi") + b": ping\n\n" + STOP + DONE,
        b"\xef\xbb\xbf\n\n" + piece(content="hi") + STOP + DONE,
        b"event: message\nid: 1\nretry: 100\n" + piece(content="hi") + STOP + DONE,
        piece(content="hi") + STOP,
        piece(content="hi") + STOP.rstrip(b"\n"),
        piece(content="hi") + DONE,
        piece(content="hi") + STOP + DONE + b"data: junk\n\n",
        piece(content="hi") + STOP + b"data: junk\n\n",
        b"data:\n\ndata: null\n\n" + piece(content="hi") + STOP,
        b'data: {"choices":\ndata: [{"delta": {"content": "hi"},\ndata: "finish_reason": "stop"}]}\n\n',
        piece(content=["h", {"type": "text", "text": "i"}]) + STOP,
        event(choices=[{"message": {"content": "hi"}, "finish_reason": "stop"}]),
        piece("stop", content="hi") + event(usage={"prompt_tokens": 1}),
    ],
    ids=lambda body: repr(body)[:40],
)
async def test_every_way_to_write_a_stream_is_read(body: bytes) -> None:
    deltas, response = await read(body)
    assert joined(deltas) == "hi"
    assert json.loads(response.content)["choices"][0]["message"]["content"] == "hi"


async def test_a_silent_connection_after_the_end_costs_nothing() -> None:
    deltas, _ = await read(piece(content="hi"), STOP, end=Transient("silent for 60 s"))
    assert joined(deltas) == "hi"


async def test_the_first_of_several_choices_is_read() -> None:
    def both(first: str, second: str) -> bytes:
        one, two = (
            {"index": number, "delta": {"content": text}} for number, text in ((0, first), (1, second))
        )
        return event(choices=[one]) + event(choices=[two])

    deltas, _ = await read(both("a", "x"), both("b", "y"), STOP, DONE)
    assert joined(deltas) == "ab"


@pytest.mark.parametrize(
    "end",
    [
        event(choices=[], usage={"prompt_tokens": 3}),
        event(choices=[{"index": 0, "delta": {}, "usage": {"prompt_tokens": 3}}]),
        event(choices=[], x_groq={"id": "r", "usage": {"prompt_tokens": 3}}),
        event(choices=[], usage=None) + event(usage={"prompt_tokens": 3}) + event(choices=[], usage=None),
    ],
)
async def test_usage_is_found_where_servers_put_it(end: bytes) -> None:
    _, response = await read(piece("stop", content="hi"), end, DONE)
    assert json.loads(response.content)["usage"] == {"prompt_tokens": 3}


async def test_thoughts_come_under_several_names() -> None:
    for delta in (
        {"reasoning": "hm"},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
    ):
        deltas, response = await read(piece(**delta), piece("stop", content="x"))
        assert joined(deltas, "reasoning") == "hm"
        assert json.loads(response.content)["choices"][0]["message"]["reasoning_content"] == "hm"


async def test_a_refusal_is_kept_for_the_reader_of_the_whole() -> None:
    deltas, response = await read(piece(refusal="I can"), piece(refusal="not"), STOP, DONE)
    assert deltas == []
    assert json.loads(response.content)["choices"][0]["message"]["refusal"] == "I cannot"


async def test_surrogates_are_joined_over_pieces_and_lone_ones_replaced() -> None:
    def escaped(text: str) -> bytes:
        return b'data: {"choices": [{"delta": {"content": "' + text.encode() + b'"}}]}\n\n'

    deltas, response = await read(escaped("a\\ud83d"), escaped("\\ude00b\\ude00"), escaped("\\ud83d"), DONE)
    assert joined(deltas) == "a\N{GRINNING FACE}b\ufffd\ufffd"
    assert json.loads(response.content)["choices"][0]["message"]["content"] == joined(deltas)


# -------------------------------------------------------------------------------------------- calls


async def test_arguments_are_handed_out_and_put_together() -> None:
    deltas, response = await read(
        piece(tool_calls=[call(0, "", id="a", type="function", name="look")]),
        piece(tool_calls=[call(0, '{"x":')]),
        piece(tool_calls=[call(1, "{}", id="b", name="wait")]),
        piece(tool_calls=[call(0, " 1}")]),
        piece("tool_calls"),
        DONE,
    )
    assert joined(deltas, "tool_args") == '{"x":{} 1}'
    choice = json.loads(response.content)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "wait", "arguments": "{}"}},
    ]


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        ([call(None, '{"x"', id="a", name="f"), call(None, ": 1}")], [("a", "f", '{"x": 1}')]),
        ([call(0, '{"x"', id="a", name="f"), call(0, ": 1}", name="f")], [("a", "f", '{"x": 1}')]),
        ([call(None, '{"x"', name="f"), call(None, ": 1}", name="f")], [("", "f", '{"x": 1}')]),
        ([call(None, "{", id="a", name="f"), call(None, "}", id="a", name="f")], [("a", "f", "{}")]),
        ([call(0, "", id="a", name="get_"), call(0, "{}", name="weather")], [("a", "get_weather", "{}")]),
        ([call(0, "", id="a", name="ge"), call(0, "{}", name="get")], [("a", "get", "{}")]),
        (
            [call(0, "{}", id="a", name="f"), call(0, "{}", id="b", name="f")],
            [("a", "f", "{}"), ("b", "f", "{}")],
        ),
        ([call(None, "{}", name="f"), call(None, "{}", name="g")], [("", "f", "{}"), ("", "g", "{}")]),
        ([call(None, "{}", name="f"), call(None, "{}", name="f")], [("", "f", "{}"), ("", "f", "{}")]),
        ([call(None, "{}", name="f"), call(None, "\n", name="f")], [("", "f", "{}\n")]),
        ([call(0, "{", id="a", name="f"), call(0, "}", id="other", name="f")], [("a", "f", "{}")]),
        ([call(0, {"x": 1}, id="a", name="f")], [("a", "f", '{"x": 1}')]),
        ([call(0, None, id="a", name="f")], [("a", "f", "")]),
        ([{"index": 0, "id": "a"}, call(0, "{}", name="f")], [("a", "f", "{}")]),
        (
            [call(1, "{}", id="b", name="g"), call(0, "{}", id="a", name="f")],
            [("b", "g", "{}"), ("a", "f", "{}")],
        ),
        ([{"index": 0, "id": 3, "function": {"name": 4, "arguments": 5}}], [("", "", "5")]),
    ],
    ids=range(16),
)
async def test_fragments_belong_together_however_servers_cut_them(
    fragments: list[dict[str, Any]], expected: list[tuple[str, str, str]]
) -> None:
    assert await calls(*fragments) == expected


async def test_the_older_field_for_one_call_is_read() -> None:
    found = await message(
        piece(function_call={"name": "f", "arguments": '{"x"'}),
        piece(function_call={"arguments": ": 1}"}),
        piece("function_call"),
    )
    assert found["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    both = {"function_call": {"name": "f", "arguments": "{}"}, "tool_calls": [call(0, "{}", name="f")]}
    assert len((await message(piece(**both), DONE))["tool_calls"]) == 1


# -------------------------------------------------------------------------------------- early ends


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b": ping\n\n",
        piece(role="assistant", content=""),
        b'data: {"choices": [{"del',
        b"data: no\n\n",
    ],
)
async def test_an_end_before_the_first_piece_is_worth_another_try(body: bytes) -> None:
    with pytest.raises(Transient) as caught:
        await read(body)
    assert "127.0.0.1:1" in caught.value.message


@pytest.mark.parametrize(
    "end",
    [
        b"",
        piece(content="!")[:-20],
        b"data: no json\n\n",
        event(error={"message": "overloaded"}),
        b'event: error\ndata: "overloaded"\n\n',
        event(object="error", message="overloaded", code=503),
        event(choices=[{"delta": {}, "finish_reason": "error", "error": {"message": "overloaded"}}]),
    ],
)
async def test_an_end_after_the_first_piece_carries_what_came(end: bytes) -> None:
    with pytest.raises(StreamCut) as caught:
        await read(piece(content="Eleven "), piece(content="km"), end)
    assert caught.value.partial == "Eleven km"
    assert "\n" not in caught.value.message
    assert ("overloaded" in caught.value.message) is (b"overloaded" in end)


async def test_a_broken_connection_is_told_in_its_own_words() -> None:
    broken = Transient("127.0.0.1:1: connection failed: reset", hint="is a server running?")
    with pytest.raises(Transient, match="reset") as first:
        await read(piece(role="assistant"), end=broken)
    assert first.value is broken
    with pytest.raises(StreamCut, match="reset") as later:
        await read(piece(tool_calls=[call(0, '{"x"', name="f")]), end=broken)
    assert (later.value.partial, later.value.hint) == ('{"x"', "is a server running?")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (event(error={"message": "no seed", "code": 400}), {"message": "no seed", "code": 400}),
        (event(error="overloaded"), "overloaded"),
        (event(object="error", message="no", code=400), {"object": "error", "message": "no", "code": 400}),
        (b'event: error\ndata: {"message": "no"}\n\n', {"message": "no"}),
    ],
)
async def test_an_error_before_the_first_piece_is_an_answer_under_success(body: bytes, error: Any) -> None:
    deltas, response = await read(piece(role="assistant") + body)
    assert deltas == [] and response.status == 200
    assert json.loads(response.content) == {"error": error}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"error": {"message": "Unsupported parameter: stream_options"}}'),
        (503, b"data: not now\n\n"),
        (200, b'{"choices": [{"message": {"content": "data: hi\\nthere"}}]}'),
        (200, b"\n <html>\r\n<p>Not an API</p>"),
        (200, b"[1,\n2]"),
    ],
)
async def test_a_refusal_and_a_plain_body_come_as_they_are(status: int, body: bytes) -> None:
    for cut in range(len(body)):
        deltas, response = await read(body[:cut], body[cut:], status=status)
        assert deltas == [] and response.status == status
        assert response.content.split() == body.split()


# -------------------------------------------------------------------------------- from a real server


EVENTS = {"content-type": "text/event-stream"}
HELLO = piece(role="assistant", content="") + piece(content="Eleven ") + piece(content="km")
USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2})


def router_at(base_url: str, folder: Path, transport: str = "direct") -> OpenAIRouter:
    environ = {"OPENAI_BASE_URL": base_url, "CORERUN_TRANSPORT": transport}
    return OpenAIRouter(Connection(environ={**environ, "CORERUN_CAPS_PATH": str(folder / "caps.sqlite")}))


@pytest.mark.parametrize("transport", ["direct", "sdk"])
async def test_the_router_hands_out_pieces_and_then_the_reply(tmp_path: Path, transport: str) -> None:
    answer = fault(200, HELLO + STOP + USAGE + DONE, EVENTS)
    async with OpenAIServer(lambda body: answer if body.get("stream") else "Eleven km") as server:
        router = router_at(server.base_url, tmp_path, transport)
        *deltas, last = [delta async for delta in router.stream(QUESTION, CONTEXT)]
        whole = await router.complete(QUESTION, CONTEXT)
        await router.aclose()
    assert deltas == [Delta("text", "Eleven "), Delta("text", "km")]
    assert last.kind == "reply" and last.reply is not None
    assert last.reply.usage == Usage(prompt=7, completion=2)
    assert (last.reply.model, last.reply.created, last.reply.requests) == ("m-1", 1_700_000_000, 1)
    assert (last.reply.text, last.reply.finish) == (whole.text, whole.finish) == ("Eleven km", "stop")
    assert server.bodies[0] == {**server.bodies[1], "stream": True, "stream_options": {"include_usage": True}}


async def test_a_refusal_before_the_first_piece_goes_down_the_ladder(tmp_path: Path) -> None:
    def answer(body: Any) -> Any:
        if "stream_options" in body:
            return fault(400, {"error": {"message": "Unknown parameter: 'stream_options'."}})
        return fault(200, HELLO + STOP + DONE, EVENTS)

    async with OpenAIServer(answer) as server:
        router = router_at(server.base_url, tmp_path)
        for requests in (2, 1):
            *_, last = [delta async for delta in router.stream(QUESTION, CONTEXT)]
            assert last.reply is not None and last.reply.text == "Eleven km"
            assert [one.feature for one in last.reply.degradations] == ["stream_options"]
            assert last.reply.requests == requests
        await router.aclose()
    assert all(body["stream"] for body in server.bodies)


async def test_a_refusal_under_success_goes_down_the_ladder_too(tmp_path: Path) -> None:
    def answer(body: Any) -> Any:
        refused = event(error={"message": "Unsupported parameter: 'seed'", "code": 400})
        return fault(200, refused if "seed" in body else HELLO + STOP + DONE, EVENTS)

    async with OpenAIServer(answer) as server:
        router = router_at(server.base_url, tmp_path)
        *_, last = [delta async for delta in router.stream(replace(QUESTION, seed=7), CONTEXT)]
        await router.aclose()
    assert last.reply is not None and [one.feature for one in last.reply.degradations] == ["seed"]


async def test_a_server_that_does_not_stream_gives_its_reply_alone(tmp_path: Path) -> None:
    async with OpenAIServer(lambda body: "Eleven km") as server:
        router = router_at(server.base_url, tmp_path)
        deltas = [delta async for delta in router.stream(QUESTION, CONTEXT)]
        await router.aclose()
    assert [delta.kind for delta in deltas] == ["reply"]
    assert deltas[0].reply is not None and deltas[0].reply.text == "Eleven km"


async def collect(router: OpenAIRouter, context: CallContext = CONTEXT) -> str:
    text = ""
    try:
        async for delta in router.stream(QUESTION, context):
            text += delta.text
    finally:
        await router.aclose()
    return text


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (fault(503, {"error": {"message": "overloaded"}}), Transient, "overloaded"),
        (fault(200, event(error={"message": "overloaded"}), EVENTS), Transient, "overloaded"),
        (fault(200, piece(role="assistant"), EVENTS), Transient, "before its answer was complete"),
        (fault(200, HELLO, EVENTS), StreamCut, "before its answer was complete"),
        (Fault(200, HELLO + STOP, EVENTS, send=len(HELLO)), StreamCut, "cut"),
        (Fault(200, HELLO + STOP, EVENTS, send=5), Transient, "cut"),
        (hang_up(), Transient, "connection failed"),
        (fault(200, piece(refusal="I can't") + STOP, EVENTS), ContentRefused, "I can't"),
        (fault(200, piece("content_filter", content="") + DONE, EVENTS), ContentRefused, "filter"),
        (fault(200, "<html>Welcome</html>", {"content-type": "text/html"}), RequestRefused, "Welcome"),
    ],
)
async def test_how_a_stream_fails(tmp_path: Path, answer: Any, error: type[ModelError], said: str) -> None:
    async with OpenAIServer(lambda body: answer) as server:
        with pytest.raises(error) as caught:
            await collect(router_at(server.base_url, tmp_path))
        assert said in caught.value.message and server.calls == 1
    if isinstance(caught.value, StreamCut):
        assert caught.value.partial == "Eleven km"


class Stalled:
    """A server that sends ``data`` and then nothing; ``left`` is set when its client goes away."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.left = asyncio.Event()
        self.base_url = ""

    async def __aenter__(self) -> Stalled:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + self._data)
        await reader.read()
        self.left.set()
        writer.close()


@pytest.mark.parametrize(("data", "error"), [(b": ping\n\n", Transient), (HELLO, StreamCut)])
async def test_the_deadline_ends_the_wait_for_a_piece(
    tmp_path: Path, data: bytes, error: type[ModelError]
) -> None:
    async with Stalled(data) as server:
        with pytest.raises(error, match="deadline"):
            await collect(
                router_at(server.base_url, tmp_path), replace(CONTEXT, deadline=time.monotonic() + 0.3)
            )
        await server.left.wait()


@pytest.mark.parametrize("transport", ["direct", "sdk"])
async def test_who_stops_listening_closes_the_connection(tmp_path: Path, transport: str) -> None:
    async with Stalled(HELLO) as server:
        router = router_at(server.base_url, tmp_path, transport)
        async with aclosing(router.stream(QUESTION, CONTEXT)) as deltas:
            assert await anext(deltas) == Delta("text", "Eleven ")
        await server.left.wait()
        await router.aclose()


@pytest.mark.parametrize("transport", ["direct", "sdk"])
async def test_cancelling_a_listener_closes_the_connection(tmp_path: Path, transport: str) -> None:
    heard = asyncio.Event()

    async def listen() -> None:
        async for _ in router.stream(QUESTION, CONTEXT):
            heard.set()

    async with Stalled(HELLO) as server:
        router = router_at(server.base_url, tmp_path, transport)
        task = asyncio.create_task(listen())
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.left.wait()
        await router.aclose()


# ------------------------------------------------------------------------------------ any division


ANSWER = (
    b"\xef\xbb\xbf: hello\r\n\r\n"
    + piece(role="assistant", content="")
    + piece(reasoning="Höhe? \N{GRINNING FACE}").replace(b"\n", b"\r\n")
    + b'data: {"choices": [{"delta":\ndata:{"content": "\xe6\xb7\xb1\xe3\x81\x84 sea"}}]}\n\n'
    + piece(content=" is \N{MOUNT FUJI}").rstrip(b"\n")
    + b"\n"
    + piece(tool_calls=[call(0, '{"m', id="a", name="depth")])
    + piece(tool_calls=[call(0, 'etres": "\N{CJK UNIFIED IDEOGRAPH-6DF1}"}')])
    + piece("tool_calls")
    + event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 6})
    + DONE
)


@given(st.sets(st.integers(0, len(ANSWER))))
async def test_any_division_into_chunks_gives_the_same_answer(cuts: set[int]) -> None:
    places = [0, *sorted(cuts), len(ANSWER)]
    chunks = [ANSWER[start:end] for start, end in pairwise(places)]
    deltas, response = await read(*chunks)
    whole, expected = await read(ANSWER)
    assert deltas == whole and response == expected
    assert joined(deltas) == "深い sea is \N{MOUNT FUJI}"
    assert joined(deltas, "tool_args") == '{"metres": "\N{CJK UNIFIED IDEOGRAPH-6DF1}"}'
    assert joined(deltas, "reasoning") == "Höhe? \N{GRINNING FACE}"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES_OF_ANSWERS = [
    "choices",
    "delta",
    "message",
    "content",
    "reasoning",
    "thinking",
    "finish_reason",
    "error",
]
NAMES_OF_CALLS = ["tool_calls", "function_call", "function", "name", "arguments", "index", "id", "type"]
FIELDS = st.sampled_from([*NAMES_OF_ANSWERS, *NAMES_OF_CALLS, "usage", "x_groq"])
CHUNKS = st.recursive(
    JSON_VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(FIELDS, CHUNKS, max_size=4), max_size=4))
async def test_chunks_of_any_shape_are_read_or_told(chunks: list[dict[str, Any]]) -> None:
    try:
        deltas, response = await read(*(event(**chunk) for chunk in chunks), DONE)
    except StreamCut as cut:
        assert "error" in cut.message
    else:
        assert response.is_success and json.loads(response.content)
        json.dumps([delta.text for delta in deltas]).encode()


@given(st.binary(max_size=80))
async def test_bytes_of_any_kind_are_read_or_told(body: bytes) -> None:
    try:
        await read(body)
    except (Transient, StreamCut) as error:
        assert "\n" not in error.message
