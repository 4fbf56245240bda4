"""Writes messages in a form that every server accepts, calls of tools and their results included."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

from corerun.errors import Unsupported
from corerun.interfaces import ChatRequest, Json, Message, Part, ToolCall
from corerun_openai_router.text import clean

IMAGE_OMITTED = "[image omitted]"

_LARGEST_IMAGE = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _OpenCall:
    """A call that waits for its result. ``id`` is unique in its turn, ``given_id`` may not be."""

    id: str
    given_id: str
    name: str


def write_messages(messages: Sequence[Message], *, tools: bool, images: bool) -> list[Json]:
    """``messages`` in OpenAI's shape.

    Each call of an assistant's turn has an id of its own and is followed by one result, each
    result follows its call. Without ``tools`` calls and results are written out as text, without
    ``images`` only the text of a message is kept. Raises `Unsupported` for an image over 20 MB.
    """
    written: list[Json] = []
    strays: list[Json] = []
    waiting: list[_OpenCall] = []
    for message in messages:
        content = _content(message.content, images)
        if message.role == "tool":
            call = _take(waiting, message.tool_call_id)
            if call is not None and tools:
                written.append({"role": "tool", "tool_call_id": call.id, "content": content})
            else:
                strays.append({"role": "user", "content": _as_result(call, content)})
            continue
        written += _close(waiting, strays, tools)
        waiting = _open_calls(message.tool_calls)
        strays = []
        turn: dict[str, Json] = {"role": message.role, "content": content}
        if waiting and tools:
            turn["tool_calls"] = [
                _call(opened.id, call) for opened, call in zip(waiting, message.tool_calls, strict=True)
            ]
        elif waiting:
            lines = [f"called {call.name}({clean(call.arguments)})" for call in message.tool_calls]
            turn["content"] = "\n".join([content, *lines] if content else lines)
        written.append(turn)
    return written + _close(waiting, strays, tools)


def _open_calls(calls: Sequence[ToolCall]) -> list[_OpenCall]:
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


def _close(waiting: Sequence[_OpenCall], strays: list[Json], tools: bool) -> list[Json]:
    """What must follow before the next turn: results that are missing, then those of no call."""
    missing = [{"role": "tool", "tool_call_id": call.id, "content": "no result"} for call in waiting]
    return (missing if tools else []) + strays


def _call(call_id: str, call: ToolCall) -> Json:
    function = {"name": call.name, "arguments": _valid_arguments(call.arguments)}
    return {"id": call_id, "type": "function", "function": function}


def _valid_arguments(text: str) -> str:
    # A server parses past arguments again: a malformed call would break every later request.
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    return clean(text or "{}") if is_object else json.dumps({"_invalid": clean(text)})


def _as_result(call: _OpenCall | None, content: Json) -> Json:
    title = f"result of {call.name}:" if call else "result:"
    if isinstance(content, str):
        return f"{title} {content}"
    return [{"type": "text", "text": title}, *content]


def _content(content: str | tuple[Part, ...], images: bool) -> Json:
    """One string where there is no image: some servers take no list of parts."""
    if isinstance(content, str):
        return clean(content)
    if images and any(part.kind == "image" for part in content):
        return [_part(part) for part in content]
    texts = [clean(part.text) for part in content if part.kind != "image"]
    return "\n".join(texts) if texts or not content else IMAGE_OMITTED


def _part(part: Part) -> Json:
    if part.kind != "image":
        return {"type": "text", "text": clean(part.text)}
    if len(part.data) > _LARGEST_IMAGE:
        raise Unsupported(f"an image of {len(part.data)} bytes is larger than the limit of {_LARGEST_IMAGE}")
    data = base64.b64encode(part.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type or 'image/png'};base64,{data}"}}


def has_images(request: ChatRequest) -> bool:
    return any(
        part.kind == "image"
        for message in request.messages
        if not isinstance(message.content, str)
        for part in message.content
    )
