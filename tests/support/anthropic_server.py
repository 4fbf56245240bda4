"""A real HTTP server on 127.0.0.1 that speaks Anthropic's Messages API, as strict as the API itself."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.anthropic_rules import Broken, check_body
from tests.support.http_server import Delay, Fault, HttpServer, Request, fault, in_thread

CHARACTERS_PER_TOKEN = 4
KEY = "sk-ant-a-very-secret-key-0123456789"
PIECE = 7
"""Bytes that are sent at a time: lines and characters are torn apart."""


@dataclass(frozen=True)
class Said:
    """An answer. ``then``: the number of events after which the connection is closed, or an error event.

    ``usage`` replaces fields of the counted one; ``blocks`` are blocks of other kinds, sent first.
    """

    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    stop: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[Mapping[str, Any], ...] = ()
    cut_after: int | None = None
    error: Mapping[str, Any] | None = None
    whole: bool = False


Answer = Callable[[dict[str, Any]], Any]
"""Body of a request -> `Said`, `Fault`, `Delay`, dict, str, or an awaitable of one of them.

A dict answers a forced tool as that tool's input, and any other question as JSON text.
"""


def api_error(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> Fault:
    """An error in the API's own form."""
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_test"}
    return fault(status, body, headers)


def refuse(message: str) -> Fault:
    """The API's answer to a request that it can't take."""
    return api_error(400, "invalid_request_error", message)


class AnthropicServer(HttpServer):
    """See `HttpServer`. ``bodies`` are those of messages, ``refused`` is what the rules
    refused (a test of good requests finds it empty), ``events`` all events and ``messages`` all whole
    messages that were sent. An exception of ``answer`` is answered with status 501 and raised at the
    end of the block.
    """

    def __init__(self, answer: Answer, *, models: Sequence[str] = ("claude-x",), key: str = KEY) -> None:
        super().__init__()
        self._answer = answer
        self._models = tuple(models)
        self._key = key
        self.refused: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.usage = {"input_tokens": 0, "output_tokens": 0}
        self.left = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[Any]:
        return [request.body for request in self.requests if request.path.startswith("/v1/messages")]

    def environ(self, key: str = KEY) -> dict[str, str]:
        """The variables that point Anthropic's provider here."""
        return {"ANTHROPIC_BASE_URL": self.base_url, "ANTHROPIC_API_KEY": key}

    async def respond(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Fault | bool:
        refusal = self._check_headers(request)
        if refusal is not None:
            return refusal
        if request.path.split("?")[0] == "/v1/models":
            data = [{"id": model, "type": "model", "display_name": model} for model in self._models]
            return fault(200, {"data": data, "has_more": False, "first_id": None, "last_id": None})
        if request.path != "/v1/messages":
            return api_error(404, "not_found_error", "Not Found")
        try:
            check_body(request.body)
        except Broken as broken:
            self.refused.append(str(broken))
            return refuse(str(broken))
        if request.body["model"] not in self._models:
            return api_error(404, "not_found_error", f"model: {request.body['model']}")
        try:
            answer = self._answer(request.body)
            while inspect.isawaitable(answer) or isinstance(answer, Delay):
                if isinstance(answer, Delay):
                    await self._pause(answer.seconds, reader)
                    answer = answer.reply
                else:
                    answer = await answer
            if isinstance(answer, Fault):
                return answer
            said = as_said(answer, request.body)
            if said.whole:
                return fault(200, self._message(said, request.body))
            return await self._stream(said, request.body, writer)
        except ConnectionError:
            raise
        except Exception as error:
            self.errors.append(error)
            return api_error(501, "api_error", f"the test's answer failed: {type(error).__name__}: {error}")

    async def _pause(self, seconds: float, reader: asyncio.StreamReader) -> None:
        """Waits; a client that leaves meanwhile is counted in ``left`` and ends the connection."""
        leaving = asyncio.ensure_future(reader.read(1))
        done, _ = await asyncio.wait({leaving}, timeout=seconds)
        if done:
            self.left += 1
            raise ConnectionResetError("the client left")
        leaving.cancel()

    def _check_headers(self, request: Request) -> Fault | None:
        headers = request.headers
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if not given:
            return api_error(401, "authentication_error", "x-api-key header is required")
        if given != self._key:
            return api_error(401, "authentication_error", f"invalid x-api-key: {given}")
        if "anthropic-version" not in headers:
            return refuse("anthropic-version: header is required")
        if request.method == "POST" and headers.get("content-type") != "application/json":
            return refuse("content-type must be application/json")
        return None

    # ---------------------------------------------------------------------------------- messages

    def _message(self, said: Said, body: Mapping[str, Any]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [dict(block) for block in said.blocks]
        if said.thinking:
            content.append({"type": "thinking", "thinking": said.thinking, "signature": "c2lnbmVk"})
        if said.text:
            content.append({"type": "text", "text": said.text, "citations": None})
        for number, (name, arguments) in enumerate(said.calls):
            block = {"type": "tool_use", "id": f"toolu_{len(self.messages)}_{number}", "name": name}
            content.append({**block, "input": arguments})
        usage = {
            "input_tokens": len(json.dumps([body["messages"], body.get("system")])) // CHARACTERS_PER_TOKEN,
            "output_tokens": len(json.dumps(content)) // CHARACTERS_PER_TOKEN,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            **said.usage,
        }
        for name in self.usage:
            self.usage[name] += usage[name] or 0
        message = {
            "id": f"msg_{len(self.messages)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": content,
            "stop_reason": said.stop or ("tool_use" if said.calls else "end_turn"),
            "stop_sequence": None,
            "usage": usage,
        }
        self.messages.append(message)
        return message

    async def _stream(self, said: Said, body: Mapping[str, Any], writer: asyncio.StreamWriter) -> bool:
        head = ("HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked", "", "")
        writer.write("\r\n".join(head).encode())
        events = event_sequence(self._message(said, body))
        if said.cut_after is not None:
            events = events[: said.cut_after]
        if said.error is not None:
            events.append({"type": "error", "error": said.error})
        self.events += [event for event in events if event["type"] not in ("error", "ping")]
        data = "".join(
            f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events
        ).encode("utf-8", "surrogatepass")
        size = max(PIECE, len(data) // 200)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        if said.cut_after is not None and said.error is None:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def event_sequence(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The events by which the API streams a message."""
    start = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(message["content"]):
        empty, deltas = _pieces(block)
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    usage = {"output_tokens": message["usage"]["output_tokens"]}
    details = message["usage"].get("output_tokens_details")
    if details:
        usage["output_tokens_details"] = details
    events.append({"type": "message_delta", "delta": delta, "usage": usage})
    events.append({"type": "message_stop"})
    return events


def _pieces(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    match block["type"]:
        case "text":
            pieces = [{"type": "text_delta", "text": piece} for piece in _halves(block["text"])]
            return {**block, "text": ""}, pieces
        case "thinking":
            pieces = [{"type": "thinking_delta", "thinking": piece} for piece in _halves(block["thinking"])]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*pieces, signature]
        case "tool_use":
            given = block["input"]
            text = given if isinstance(given, str) else json.dumps(given)
            pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *_halves(text))]
            return {**block, "input": {}}, pieces
        case _:
            return dict(block), []


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [piece for piece in (text[:middle], text[middle:]) if piece]


def forced_tool(body: Mapping[str, Any]) -> str | None:
    """The name of the tool that a request forces, if it forces one."""
    choice = body.get("tool_choice") or {}
    return choice["name"] if choice.get("type") == "tool" else None


def as_said(answer: Any, body: dict[str, Any]) -> Said:
    if isinstance(answer, Said):
        return answer
    if isinstance(answer, dict):
        name = forced_tool(body)
        return Said(calls=((name, answer),)) if name else Said(json.dumps(answer))
    assert isinstance(answer, str), f"a test's server can't answer with {type(answer).__name__}"
    return Said(answer)


@contextmanager
def serve_in_thread(answer: Answer, *, models: Sequence[str] = ("claude-x",)) -> Iterator[AnthropicServer]:
    """The same server in a thread of its own, for tests whose clients are other processes."""
    with in_thread(AnthropicServer(answer, models=models)) as server:
        yield server
