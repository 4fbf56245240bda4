"""Builds messages and the canonical JSON of a request, from which call keys and prompt blobs follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from corerun.interfaces import ChatReply, ChatRequest, Json, Message, Part, ToolCall
from corerun.llm.extraction import strip_reasoning

RAW_ANSWER_CHARACTERS = 4000
MAX_PROBLEMS = 10
IMAGE_OMITTED = "[image omitted]"

_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
_compact = json.JSONEncoder(separators=(",", ":")).encode


def system(text: str) -> Message:
    """A system turn."""
    return Message("system", text)


def user(*parts: str | Part) -> Message:
    """A user turn: one text stays a plain string, anything else becomes a tuple of parts."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return Message("user", parts[0])
    return Message(
        "user", tuple(Part("text", text=part) if isinstance(part, str) else part for part in parts)
    )


def assistant(text: str) -> Message:
    """A turn of the model."""
    return Message("assistant", text)


def image(data: bytes, media_type: str = "image/png") -> Part:
    """An image as a part of a user turn."""
    return Part("image", data=data, media_type=media_type)


def has_images(messages: Sequence[Message]) -> bool:
    """Whether any turn carries an image."""
    return any(
        part.kind == "image"
        for message in messages
        if not isinstance(message.content, str)
        for part in message.content
    )


def without_images(messages: Sequence[Message]) -> tuple[Message, ...]:
    """``messages`` with the text of each alone; a turn of nothing but images says so."""
    return tuple(
        message
        if isinstance(message.content, str)
        else replace(message, content=message_text(message) or IMAGE_OMITTED)
        for message in messages
    )


def message_text(message: Message) -> str:
    """The text of a turn; its images are left out."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if part.kind == "text")


def request_json(request: ChatRequest) -> Json:
    """The canonical form of a request; an image is named by media type, sha256 and size in bytes."""
    return {
        "model": request.model,
        "messages": [_message_json(message) for message in request.messages],
        "schema": request.schema,
        "schema_name": request.schema_name,
        "tools": list(request.tools),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "stop": list(request.stop),
        "reasoning_effort": request.reasoning_effort,
        "extra": dict(request.extra),
    }


def request_bytes(request: ChatRequest) -> bytes:
    """`request_json` as UTF-8: what is hashed, and what is kept as the prompt's blob."""
    return _canonical(request_json(request)).encode("utf-8", "replace")


def call_key(node: str | None, purpose: str, n: int, request: ChatRequest | bytes) -> str:
    """The name of one call, 64 hex characters: equal for the same call of a run and of its resumption.

    ``n`` counts, from 0, the equal requests of ``purpose`` in ``node``: k equal prompts stay k
    distinct calls, and calls that run side by side find their own answers whatever their order.
    """
    body = request if isinstance(request, bytes) else request_bytes(request)
    head = _compact([node, purpose, n]).encode()
    return hashlib.sha256(head + b"\n" + body).hexdigest()


def reask(request: ChatRequest, reply: ChatReply, problems: Sequence[str]) -> ChatRequest:
    """The request that shows the model its own answer and what is wrong with it."""
    shown = "\n".join(f"- {problem}" for problem in problems[:MAX_PROBLEMS])
    complaint = f"Your answer can't be used:\n{shown}\nAnswer again, complete and in the form asked for."
    text = shortened(strip_reasoning(reply.text)[0])
    turns: list[Message] = []
    if reply.tool_calls:
        # A tool call without its result makes the whole history illegal for most servers.
        calls = tuple(replace(call, arguments=_legal_arguments(call)) for call in reply.tool_calls)
        turns.append(Message("assistant", text, tool_calls=calls, reasoning=reply.reasoning))
        turns += [Message("tool", complaint, tool_call_id=call.id) for call in calls]
    else:
        turns += [Message("assistant", text or "(no answer)", reasoning=reply.reasoning), user(complaint)]
    max_tokens = request.max_tokens
    if reply.finish == "length" and max_tokens is not None:
        max_tokens *= 2
    return replace(request, messages=(*request.messages, *turns), max_tokens=max_tokens)


def printable(text: str) -> str:
    """``text`` with surrogate pairs joined, and lone ones, which no file can hold, replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shortened(text: str, limit: int = RAW_ANSWER_CHARACTERS) -> str:
    """``text`` with its middle cut out where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters cut ...]\n{text[-half:]}"


def _legal_arguments(call: ToolCall) -> str:
    try:
        legal = isinstance(json.loads(call.arguments), dict) and len(call.arguments) <= RAW_ANSWER_CHARACTERS
    except (ValueError, RecursionError):
        legal = False
    return call.arguments if legal else json.dumps({"_invalid": shortened(call.arguments)})


def _message_json(message: Message) -> Json:
    content: Json = message.content
    if not isinstance(message.content, str):
        content = [_part_json(part) for part in message.content]
    found: dict[str, Json] = {"role": message.role, "content": content}
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _part_json(part: Part) -> Json:
    if part.kind != "image":
        return {"kind": part.kind, "text": part.text}
    digest = hashlib.sha256(part.data).hexdigest()
    return {"kind": "image", "media_type": part.media_type, "sha256": digest, "bytes": len(part.data)}
