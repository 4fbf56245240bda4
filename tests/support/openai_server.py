"""A real HTTP server on 127.0.0.1 that speaks OpenAI's chat completions and says what a test tells it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.http_server import Delay, Fault, HttpServer, Request, fault, in_thread

CHARACTERS_PER_TOKEN = 4

_SCRATCH = tempfile.TemporaryDirectory(prefix="openai-server-")
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Reply:
    """A chat completion. ``message`` and ``top`` replace or add fields of the message and the document."""

    content: Any = None
    calls: tuple[tuple[str, Any], ...] = ()
    finish: str | None = "stop"
    usage: Any = "count"
    message: Mapping[str, Any] = field(default_factory=dict)
    top: Mapping[str, Any] = field(default_factory=dict)


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


class OpenAIServer(HttpServer):
    """See `HttpServer`. ``calls`` counts chat completions, ``usage`` holds
    prompt and completion tokens per model as the server reported them, ``peak`` is the largest
    number of chat completions under way at once. An exception of ``answer`` is answered with
    status 501, which nobody retries, and raised at the end of the block.
    """

    def __init__(self, answer: Answer, *, models: Sequence[str] = ("test-model",)) -> None:
        super().__init__()
        self._answer = answer
        self._models = tuple(models)
        self._under_way = 0
        self._number = next(_NUMBERS)
        self.peak = 0
        self.usage: dict[str, dict[str, int]] = {}

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

    async def respond(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Fault:
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
    with in_thread(OpenAIServer(answer, models=models)) as server:
        yield server
