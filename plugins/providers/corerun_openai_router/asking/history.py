"""Writes messages in a form that every server accepts, calls of tools and their results included."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from corerun.errors import Unsupported
from corerun.interfaces import Json, Message, Part, ToolCall
from corerun.llm.extraction import strip_reasoning
from corerun.llm.messages import IMAGE_OMITTED, printable

GO_ON = "Go on."
"""The user's turn of a conversation that has none, for servers that insist on one."""

_LARGEST_IMAGE = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _OpenCall:
    """A call that waits for its result. ``id`` is unique in its turn, ``given_id`` may not be."""

    id: str
    given_id: str
    name: str


class CallForm(Enum):
    """How calls of functions and their results are written."""

    TOOLS = "tools"
    FUNCTIONS = "functions"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Manner:
    """How messages are written. ``roles`` renames roles; ``thinking`` sends past thinking back."""

    calls: CallForm = CallForm.TOOLS
    images: bool = True
    thinking: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)


def write_messages(messages: Sequence[Message], manner: Manner) -> list[Json]:
    """``messages`` in OpenAI's shape.

    Each call of an assistant's turn has an id of its own and is followed by one result, each
    result follows its call. As text, calls and results are written out in words; without images
    only the text of a message is kept. Raises `Unsupported` for an image over 20 MB.
    """
    written: list[Json] = []
    strays: list[Json] = []
    waiting: list[_OpenCall] = []
    for message in messages:
        content = _content(message, manner)
        if message.role == "tool":
            call = _take(waiting, message.tool_call_id)
            if call is not None and manner.calls is not CallForm.TEXT:
                written.append(_result(call, content, manner))
            else:
                strays.append({"role": "user", "content": _as_result(call, content)})
            continue
        written += _close(waiting, strays, manner)
        waiting = _open_calls(message.tool_calls)
        strays = []
        turn: dict[str, Json] = {"role": manner.roles.get(message.role, message.role), "content": content}
        if manner.thinking and message.role == "assistant":
            turn["reasoning_content"] = printable(message.reasoning)
        if waiting:
            _add_calls(turn, waiting, message.tool_calls, manner)
        written.append(turn)
    return written + _close(waiting, strays, manner)


def most_calls(messages: Sequence[Message]) -> int:
    """The largest number of calls in one turn."""
    return max((len(message.tool_calls) for message in messages), default=0)


def add_to_last_user_turn(written: list[Json], text: str) -> None:
    """Put ``text`` at the end of the last user's turn, or in a turn of its own if that isn't the last."""
    last = written[-1] if written else {}
    if last.get("role") != "user":
        written.append({"role": "user", "content": text})
    elif isinstance(last["content"], str):
        written[-1] = {**last, "content": f"{last['content']}\n\n{text}" if last["content"] else text}
    else:
        written[-1] = {**last, "content": [*last["content"], {"type": "text", "text": text}]}


def _add_calls(
    turn: dict[str, Json], opened: Sequence[_OpenCall], calls: Sequence[ToolCall], manner: Manner
) -> None:
    if manner.calls is CallForm.TOOLS:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _function(given)}
            for call, given in zip(opened, calls, strict=True)
        ]
    elif manner.calls is CallForm.FUNCTIONS:
        turn["function_call"] = _function(calls[0])
    else:
        lines = [f"called {call.name}({printable(call.arguments)})" for call in calls]
        content = turn["content"]
        if isinstance(content, str):
            turn["content"] = "\n".join([content, *lines] if content else lines)
        else:
            turn["content"] = [*content, {"type": "text", "text": "\n".join(lines)}]


def _result(call: _OpenCall, content: Json, manner: Manner) -> Json:
    if manner.calls is CallForm.FUNCTIONS:
        return {"role": "function", "name": call.name, "content": content}
    return {"role": "tool", "tool_call_id": call.id, "content": content}


def _open_calls(calls: Sequence[ToolCall]) -> list[_OpenCall]:
    if not calls:
        return []
    opened: list[_OpenCall] = []
    given = {call.id for call in calls}
    for number, call in enumerate(calls):
        unique = call.id
        if not unique or any(unique == other.id for other in opened):
            unique = f"call_{number}"
            while unique in given:
                unique += "_"
        opened.append(_OpenCall(unique, call.id, call.name))
    return opened


def _take(waiting: list[_OpenCall], given_id: str | None) -> _OpenCall | None:
    """The first waiting call of that id; a result without an id answers the first of all."""
    for call in waiting:
        if not given_id or given_id == call.given_id:
            waiting.remove(call)
            return call
    return None


def _close(waiting: Sequence[_OpenCall], strays: list[Json], manner: Manner) -> list[Json]:
    """What must follow before the next turn: results that are missing, then those of no call."""
    if not waiting or manner.calls is CallForm.TEXT:
        return strays
    return [_result(call, "no result", manner) for call in waiting] + strays


def _function(call: ToolCall) -> Json:
    return {"name": call.name, "arguments": _valid_arguments(call.arguments)}


def _valid_arguments(text: str) -> str:
    # A server parses past arguments again: a malformed call would break every later request.
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    return printable(text or "{}") if is_object else json.dumps({"_invalid": printable(text)})


def _as_result(call: _OpenCall | None, content: Json) -> Json:
    title = f"result of {call.name}:" if call else "result:"
    if isinstance(content, str):
        return f"{title} {content}"
    return [{"type": "text", "text": title}, *content]


def _content(message: Message, manner: Manner) -> Json:
    """One string where there is no image: some servers take no list of parts."""
    content = message.content
    if isinstance(content, str):
        # A model that reads its own past thinking as an answer goes on thinking aloud.
        return printable(strip_reasoning(content)[0] if message.role == "assistant" else content)
    if manner.images and any(part.kind == "image" for part in content):
        return [_part(part) for part in content]
    texts = [printable(part.text) for part in content if part.kind != "image"]
    return "\n".join(texts) if texts or not content else IMAGE_OMITTED


def _part(part: Part) -> Json:
    if part.kind != "image":
        return {"type": "text", "text": printable(part.text)}
    if len(part.data) > _LARGEST_IMAGE:
        raise Unsupported(f"an image of {len(part.data)} bytes is larger than the limit of {_LARGEST_IMAGE}")
    data = base64.b64encode(part.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type or 'image/png'};base64,{data}"}}
