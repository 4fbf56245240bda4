"""A provider without a server: scripted replies and faults, deterministic, for tests of any plugin."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from corerun.errors import (
    AuthFailed,
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelNotFound,
    QuotaExceeded,
    RequestRefused,
    Transient,
    Unsupported,
    UsageError,
)
from corerun.inputs.documents import read_json_lines
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Connection,
    Degradation,
    Json,
    ProviderInfo,
    ToolCall,
    Usage,
)

Reply: TypeAlias = Any
"""A `ChatReply`, a text, JSON data (sent as its text) or an exception (raised)."""

FAULTS: dict[str, type[ModelError]] = {
    "401": AuthFailed,
    "402": QuotaExceeded,
    "404": ModelNotFound,
    "400": RequestRefused,
    "auth": AuthFailed,
    "quota": QuotaExceeded,
    "model_not_found": ModelNotFound,
    "context": ContextTooLong,
    "refused": ContentRefused,
    "unsupported": Unsupported,
    "transient": Transient,
    **dict.fromkeys(("408", "409", "425", "429", "500", "502", "503", "504", "529"), Transient),
}
_TOO_MANY = ("429", "529")
_FAIL = re.compile(r"fail:(\w+?)(?:x(\d+))?")
_CHARACTERS_PER_TOKEN = 4


class FakeCall(NamedTuple):
    """One call that a `FakeProvider` was given."""

    request: ChatRequest
    context: CallContext


def connect(connection: Connection) -> FakeProvider:
    """The fake provider that answers by the model's name; there is nothing to configure."""
    return FakeProvider()


class FakeProvider:
    """Answers from ``replies``, or by the model's name when there are none.

    ``replies`` is an iterable of replies, used up in order, or a function of the request and its
    context; the function may be a coroutine. ``calls`` lists what was asked.

    Models: ``echo`` (the last user text), ``json`` (the smallest instance of the schema),
    ``script:PATH`` (a JSON Lines file, see `read_script`), ``fail:FAULT`` and ``fail:FAULTxN``
    (fails, always or N times, then answers), e.g. ``fail:429x2``.
    """

    def __init__(
        self,
        replies: Iterable[Reply] | Callable[[ChatRequest, CallContext], Reply] | None = None,
        *,
        info: ProviderInfo | None = None,
    ) -> None:
        self.info = info or ProviderInfo("fake", needs_key=False, is_local=True, vision=True)
        self.calls: list[FakeCall] = []
        self._function = replies if callable(replies) else None
        self._left: Iterator[Reply] | None = None
        if replies is not None and not callable(replies):
            self._left = iter(replies)
        self._scripts: dict[str, list[Json]] = {}
        self._failures: dict[str, int] = {}

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        self.calls.append(FakeCall(request, ctx))
        if self._function is not None:
            reply = self._function(request, ctx)
            if inspect.isawaitable(reply):
                reply = await reply
        elif self._left is not None:
            reply = next(self._left, RequestRefused("the fake provider has no reply left"))
        else:
            reply = self._by_model(request, ctx)
        return _as_reply(reply, request)

    def _by_model(self, request: ChatRequest, ctx: CallContext) -> Reply:
        model = request.model
        if model == "echo":
            return _last_user_text(request)
        if model == "json":
            return smallest(request.schema or {})
        if model.startswith("script:"):
            return self._next_of_script(model.removeprefix("script:"), ctx)
        fault = _FAIL.fullmatch(model)
        if fault and fault[1] in FAULTS:
            count = self._failures[model] = self._failures.get(model, 0) + 1
            if fault[2] is None or count <= int(fault[2]):
                return FAULTS[fault[1]](f"a fault that was asked for: {fault[1]}")
            return _last_user_text(request) if request.schema is None else smallest(request.schema)
        raise ModelNotFound(
            f"the fake provider has no model {model!r}",
            hint="it has echo, json, script:PATH and fail:FAULTxN, e.g. fake::fail:429x2",
        )

    def _next_of_script(self, path: str, ctx: CallContext) -> Reply:
        if path not in self._scripts:
            self._scripts[path] = read_script(Path(path))
        lines = self._scripts[path]
        for index, line in enumerate(lines):
            if line.get("purpose") in (None, ctx.purpose):
                return _of_line(lines.pop(index))
        return RequestRefused(f"the script {path} has no reply left for {ctx.purpose}")


def read_script(path: Path) -> list[Json]:
    """The lines of a script, one JSON object each.

    Keys: ``text`` or ``json`` or ``tool_calls`` (``[{name, arguments}]``) or ``fault`` (a name of
    `FAULTS`) with ``retry_after``; beside them ``reasoning``, ``finish``, ``usage``, ``model``,
    ``degradations``, and ``purpose`` to answer only calls of that purpose. Raises `UsageError`.
    """
    lines: list[Json] = []
    for where, data in read_json_lines(path):
        if not isinstance(data, dict) or not data.keys() & {"text", "json", "tool_calls", "fault"}:
            raise UsageError("a line needs text, json, tool_calls or fault", where=where)
        if "fault" in data and str(data["fault"]) not in FAULTS:
            raise UsageError(f"unknown fault {data['fault']!r}", hint=", ".join(FAULTS), where=where)
        lines.append(data)
    return lines


def smallest(schema: Json) -> Json:
    """The smallest instance of a JSON Schema without references: required keys only, empty values."""
    if schema.get("enum"):
        return schema["enum"][0]
    for choices in ("anyOf", "oneOf"):
        if schema.get(choices):
            return smallest(schema[choices][0])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    if kind in ("integer", "number"):
        return _least_number(schema, kind)
    if kind == "boolean":
        return False
    if kind == "null":
        return None
    if kind == "array":
        return [smallest(schema.get("items", {})) for _ in range(schema.get("minItems", 0))]
    properties = schema.get("properties", {})
    return {key: smallest(properties.get(key, {})) for key in schema.get("required", ())}


def _least_number(schema: Json, kind: str) -> Json:
    """0 where it is allowed, else the bound next to it."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    step: float = 1
    if kind == "number" and above is not None and (high is not None or below is not None):
        step = ((high if high is not None else below) - above) / 2
    if above is not None and above >= 0:
        return above + step
    if below is not None and below <= 0:
        return below - step
    if low is not None and low > 0:
        return low
    return high if high is not None and high < 0 else 0


def _as_reply(reply: Reply, request: ChatRequest) -> ChatReply:
    if isinstance(reply, BaseException):
        raise reply
    if isinstance(reply, ChatReply):
        return reply
    text = reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)
    asked = sum(len(m.content) for m in request.messages if isinstance(m.content, str))
    usage = Usage(_tokens(asked), _tokens(len(text)), estimated=True)
    return ChatReply(text=text, usage=usage, model=request.model)


def _of_line(line: Json) -> Reply:
    if "fault" in line:
        fault = FAULTS[str(line["fault"])]
        message = str(line.get("message", f"a fault that was asked for: {line['fault']}"))
        if issubclass(fault, Transient):
            limited = line["fault"] in _TOO_MANY
            return fault(message, retry_after=line.get("retry_after"), limited=limited)
        return fault(message)
    text = json.dumps(line["json"], ensure_ascii=False) if "json" in line else line.get("text", "")
    calls = tuple(
        ToolCall(call.get("id", f"call_{index}"), call["name"], _argument_text(call.get("arguments", "")))
        for index, call in enumerate(line.get("tool_calls", ()))
    )
    return ChatReply(
        text=text,
        tool_calls=calls,
        reasoning=line.get("reasoning", ""),
        finish=line.get("finish", "tool" if calls else "stop"),
        usage=Usage(**line.get("usage", {})),
        model=line.get("model", ""),
        degradations=tuple(Degradation(feature) for feature in line.get("degradations", ())),
    )


def _argument_text(arguments: Json) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _last_user_text(request: ChatRequest) -> str:
    for message in reversed(request.messages):
        if message.role == "user":
            if isinstance(message.content, str):
                return message.content
            return "\n".join(part.text for part in message.content if part.kind == "text")
    return ""


def _tokens(characters: int) -> int:
    return -(-characters // _CHARACTERS_PER_TOKEN)
