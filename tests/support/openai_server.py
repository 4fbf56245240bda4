"""A real HTTP server on 127.0.0.1 that speaks OpenAI's chat completions and says what a test tells it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHARACTERS_PER_TOKEN = 4

_SCRATCH = tempfile.TemporaryDirectory(prefix="openai-server-")
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Request:
    """What came over the wire; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def page(self) -> str:
        """The path without its query."""
        return self.path.partition("?")[0]


@dataclass(frozen=True)
class Reply:
    """A chat completion. ``message`` and ``top`` replace or add fields of the message and the document."""

    content: Any = None
    calls: tuple[tuple[str, Any], ...] = ()
    finish: str | None = "stop"
    usage: Any = "count"
    message: Mapping[str, Any] = field(default_factory=dict)
    top: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """Bytes instead of an answer. ``send``: how many of them before the connection is closed; None: all."""

    status: int = 500
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    send: int | None = None
    silent: bool = False


@dataclass(frozen=True)
class Delay:
    """An answer that comes later."""

    seconds: float
    reply: Any


Answer = Callable[[dict[str, Any]], Any]
"""Body of a request -> `Reply`, `Fault`, `Delay`, dict, str, or an awaitable of one of them.

A dict answers a forced tool as that tool's arguments, and any other question as JSON text.
"""


def text(content: str, **fields: Any) -> Reply:
    """A plain answer; ``fields`` are those of `Reply`."""
    return Reply(content=content, **fields)


def tool(name: str, arguments: Any, **fields: Any) -> Reply:
    """A tool call; ``arguments`` that are no string are written as JSON."""
    return Reply(calls=((name, arguments),), finish=fields.pop("finish", "tool_calls"), **fields)


def fault(status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> Fault:
    """Any status with any body; a body that is neither bytes nor text is written as JSON."""
    if isinstance(body, bytes):
        return Fault(status, body, headers or {})
    kind = "text/plain" if isinstance(body, str) else "application/json"
    data = body if isinstance(body, str) else json.dumps(body)
    return Fault(status, data.encode(), {"content-type": kind, **(headers or {})})


def cut_json() -> Fault:
    """Status 200 and the first half of an answer, with a content length that fits it."""
    return Fault(200, b'{"choices": [{"message": {"content": "ha', {"content-type": "application/json"})


def cut_body() -> Fault:
    """Status 200 and fewer bytes than the content length promises."""
    return Fault(200, b'{"choices": []}', {"content-type": "application/json"}, send=5)


def hang_up() -> Fault:
    """The connection is closed without a byte."""
    return Fault(silent=True)


def delay(seconds: float, reply: Any) -> Delay:
    """``reply``, but only after ``seconds``."""
    return Delay(seconds, reply)


class OpenAIServer:
    """An asynchronous context manager: the server listens inside the block.

    ``requests`` holds everything that came, ``calls`` counts chat completions, ``usage`` holds
    prompt and completion tokens per model as the server reported them, ``peak`` is the largest
    number of chat completions under way at once. An exception of ``answer`` is answered with
    status 501, which nobody retries, and raised at the end of the block.
    """

    def __init__(self, answer: Answer, *, models: Sequence[str] = ("test-model",)) -> None:
        self._answer = answer
        self._models = tuple(models)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._number = next(_NUMBERS)
        self.peak = 0
        self.port = 0
        self.requests: list[Request] = []
        self.usage: dict[str, dict[str, int]] = {}
        self.errors: list[Exception] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def calls(self) -> int:
        return len(self.bodies)

    @property
    def bodies(self) -> list[Any]:
        """The bodies of the chat completions, in the order in which they came."""
        return [request.body for request in self.requests if request.page.endswith("/chat/completions")]

    def environ(self, key: str = "test-key") -> dict[str, str]:
        """The variables that make this server the default provider, of which nobody knows anything yet."""
        learned = str(Path(_SCRATCH.name) / f"caps-{self._number}.sqlite")
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": key, "CORERUN_CAPS_PATH": learned}

    async def __aenter__(self) -> OpenAIServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        if self.errors:
            raise self.errors[0]

    # ------------------------------------------------------------------------------- connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays open."""
        line = (await reader.readline()).decode("latin-1").split()
        if len(line) < 2:
            return False
        headers: dict[str, str] = {}
        while header := (await reader.readline()).decode("latin-1").strip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(line[0], line[1], headers, json.loads(raw) if raw else None)
        self.requests.append(request)
        answer = await self._respond(request)
        if answer.silent:
            return False
        head = {"content-type": "application/json", **answer.headers, "content-length": str(len(answer.body))}
        lines = [f"HTTP/1.1 {answer.status} Status", *(f"{name}: {value}" for name, value in head.items())]
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body[: answer.send])
        await writer.drain()
        return answer.send is None and headers.get("connection", "").lower() != "close"

    async def _respond(self, request: Request) -> Fault:
        if request.page.endswith("/models"):
            return _document({"object": "list", "data": [{"id": model} for model in self._models]})
        if not request.page.endswith("/chat/completions"):
            return fault(404, f"no such page: {request.path}")
        self._under_way += 1
        self.peak = max(self.peak, self._under_way)
        try:
            answer = self._answer(request.body)
            while inspect.isawaitable(answer) or isinstance(answer, Delay):
                if isinstance(answer, Delay):
                    await asyncio.sleep(answer.seconds)
                    answer = answer.reply
                else:
                    answer = await answer
            if isinstance(answer, Fault):
                return answer
            return _document(self._completion(request.body, _as_reply(answer, request.body)))
        except Exception as error:
            self.errors.append(error)
            return fault(501, f"the test's answer failed: {type(error).__name__}: {error}")
        finally:
            self._under_way -= 1

    def _completion(self, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.content}
        if reply.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{len(self.requests)}_{number}",
                    "type": "function",
                    "function": {
                        "name": name,
                        "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                    },
                }
                for number, (name, arguments) in enumerate(reply.calls)
            ]
        message.update(reply.message)
        usage = reply.usage
        if usage == "count":
            usage = self._count(body, message)
        return {
            "id": f"chatcmpl-{len(self.requests)}",
            "object": "chat.completion",
            "created": 1_700_000_000 + len(self.requests),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
            "usage": usage,
            **reply.top,
        }

    def _count(self, body: dict[str, Any], message: dict[str, Any]) -> dict[str, int]:
        prompt = len(json.dumps(body["messages"])) // CHARACTERS_PER_TOKEN
        completion = len(json.dumps(message)) // CHARACTERS_PER_TOKEN
        total = self.usage.setdefault(body["model"], {"prompt_tokens": 0, "completion_tokens": 0})
        total["prompt_tokens"] += prompt
        total["completion_tokens"] += completion
        counts = {"prompt_tokens": prompt, "completion_tokens": completion}
        return {**counts, "total_tokens": prompt + completion}


def forced_tool(body: Mapping[str, Any]) -> str | None:
    """The name of the function that a request forces, if it forces one."""
    choice = body.get("tool_choice")
    return choice["function"]["name"] if isinstance(choice, dict) else None


def _as_reply(answer: Any, body: dict[str, Any]) -> Reply:
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, dict):
        name = forced_tool(body)
        return tool(name, answer) if name else text(json.dumps(answer))
    assert isinstance(answer, str), f"a test's server can't answer with {type(answer).__name__}"
    return text(answer)


def _document(data: dict[str, Any]) -> Fault:
    return Fault(200, json.dumps(data).encode(), {"content-type": "application/json"})


@contextmanager
def serve_in_thread(answer: Answer, *, models: Sequence[str] = ("test-model",)) -> Iterator[OpenAIServer]:
    """The same server in a thread of its own, for tests whose clients are other processes."""
    server = OpenAIServer(answer, models=models)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
