"""Writes messages as the turns of Anthropic's Messages API, calls of tools and their results included."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from corerun.errors import Unsupported
from corerun.interfaces import Json, Message, Part, ToolCall
from corerun.llm.messages import IMAGE_OMITTED, printable

LARGEST_IMAGE = 10 * 1024 * 1024
"""Characters of base64, as the API counts; models that take less say so themselves."""

_OPENING = "Go on."
_EMPTY = "(empty)"
_NO_RESULT = "no result"
_MEDIA_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_GOOD_ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class _OpenCall:
    """A call that waits for its result. ``id`` is unique and legal, ``given_id`` may be neither."""

    id: str
    given_id: str
    name: str


def write_messages(
    messages: Sequence[Message], *, tools: bool = True, images: bool = True
) -> tuple[str, list[Json]]:
    """The system text and the turns: roles alternate, the first turn is a user's.

    Every call is answered in the turn after it, by its result or by a note that there is none.
    Without ``tools`` calls and results are written out as text, without ``images`` only the text of
    a message is kept. Raises `Unsupported` for an image that the API can't take.
    """
    writer = _Writer(tools, images)
    system: list[str] = []
    for message in messages:
        if message.role in ("system", "developer"):
            system.append(_plain(message.content))
        else:
            writer.add(message)
    return "\n\n".join(text for text in system if text.strip()), writer.finished()


class _Writer:
    def __init__(self, tools: bool, images: bool) -> None:
        self._tools = tools
        self._images = images
        self._turns: list[Json] = []
        self._waiting: list[_OpenCall] = []
        self._results: dict[str, Json] = {}
        self._strays: list[Json] = []
        self._used: set[str] = set()

    def add(self, message: Message) -> None:
        if message.role == "tool":
            self._take_result(message)
            return
        self._close()
        if message.role == "assistant":
            blocks = self._said(message)
            if blocks:
                self._append("assistant", blocks)
        else:
            self._append("user", self._blocks(message.content) or [_text(_EMPTY)])

    def finished(self) -> list[Json]:
        self._close()
        if not self._turns:
            self._append("user", [_text(_OPENING)])
        return self._turns

    def _append(self, role: str, blocks: list[Json]) -> None:
        if role == "assistant" and not self._turns:
            self._append("user", [_text(_OPENING)])
        if self._turns and self._turns[-1]["role"] == role:
            self._turns[-1]["content"] += blocks
        else:
            self._turns.append({"role": role, "content": blocks})

    def _said(self, message: Message) -> list[Json]:
        """A model's turn: text, and calls as blocks or as text. The API takes no images there."""
        text = _plain(message.content)
        blocks = [_text(text)] if text.strip() else []
        for call in message.tool_calls:
            if self._tools:
                opened = _OpenCall(self._unique_id(call.id), call.id, call.name)
                self._waiting.append(opened)
                arguments = _arguments(call)
                blocks.append({"type": "tool_use", "id": opened.id, "name": call.name, "input": arguments})
            else:
                self._waiting.append(_OpenCall(call.id, call.id, call.name))
                blocks.append(_text(f"called {call.name}({printable(call.arguments)})"))
        return blocks

    def _unique_id(self, given: str) -> str:
        found = given if _GOOD_ID.fullmatch(given) else f"call_{len(self._used)}"
        while found in self._used:
            found += "_"
        self._used.add(found)
        return found

    def _take_result(self, message: Message) -> None:
        """The result of the waiting call of that id; one without an id answers the first of all."""
        blocks = self._blocks(message.content)
        given = message.tool_call_id
        call = next(
            (
                call
                for call in self._waiting
                if call.id not in self._results and given in (None, call.given_id)
            ),
            None,
        )
        if call is not None and self._tools:
            result = {"type": "tool_result", "tool_use_id": call.id, "content": blocks or _NO_RESULT}
            self._results[call.id] = result
        else:
            self._strays += [_text(f"result of {call.name}:" if call else "result:"), *blocks]

    def _close(self) -> None:
        """Write the results that are due; they come first in their turn, in the order of the calls."""
        blocks: list[Json] = []
        if self._tools:
            for call in self._waiting:
                missing = {"type": "tool_result", "tool_use_id": call.id, "content": _NO_RESULT}
                blocks.append(self._results.get(call.id, missing))
        blocks += self._strays
        self._waiting, self._results, self._strays = [], {}, []
        if blocks:
            self._append("user", blocks)

    def _blocks(self, content: str | tuple[Part, ...]) -> list[Json]:
        """Blocks of a user's turn; the API refuses empty texts."""
        if isinstance(content, str):
            return [_text(printable(content))] if content.strip() else []
        blocks: list[Json] = []
        omitted = False
        for part in content:
            if part.kind != "image":
                blocks += [_text(printable(part.text))] if part.text.strip() else []
            elif self._images:
                blocks.append(_image(part))
            else:
                omitted = True
        return blocks or ([_text(IMAGE_OMITTED)] if omitted else [])


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _plain(content: str | tuple[Part, ...]) -> str:
    if isinstance(content, str):
        return printable(content)
    return "\n".join(printable(part.text) for part in content if part.kind != "image")


def _arguments(call: ToolCall) -> Json:
    # The API takes objects only: a malformed call would break every later request.
    try:
        found = json.loads(printable(call.arguments) or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"_invalid": printable(call.arguments)}


def _image(part: Part) -> Json:
    media_type = (part.media_type or "image/png").lower().replace("image/jpg", "image/jpeg")
    if media_type not in _MEDIA_TYPES:
        known = ", ".join(sorted(_MEDIA_TYPES))
        raise Unsupported(f"Anthropic's API takes images as {known}, not as {printable(media_type)!r}")
    data = base64.b64encode(part.data).decode("ascii")
    if len(data) > LARGEST_IMAGE:
        raise Unsupported(
            f"an image of {len(part.data)} bytes is larger than Anthropic's API takes "
            f"({LARGEST_IMAGE * 3 // 4} bytes)"
        )
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
