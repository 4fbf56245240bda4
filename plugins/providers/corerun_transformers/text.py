"""Text out of tokens: whole characters as they come, an end at a stop string, calls of tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence

from corerun.interfaces import Json, ToolCall

CALL_TAG = "<tool_call>"

_BROKEN = "\ufffd"
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class TextWriter:
    """Grows a text token by token. ``text`` is what is certain so far: no half character and no stop string.

    ``decode`` turns tokens into text. Some tokenizers write a token in another way at the beginning
    of a text, so each one is decoded together with those before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Collection[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stops = tuple(stop for stop in stops if stop)
        self._tokens: list[int] = []
        self._context = 0
        self._read = 0
        self._held = ""

    def push(self, token: int) -> str:
        """What ``token`` adds to the text."""
        self._tokens.append(token)
        added = self._undecoded()
        if not added or added.endswith(_BROKEN):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return self._accept(added)

    def finish(self) -> str:
        """What was held back and belongs to the text after all; a character cut in half doesn't."""
        added = self._accept(self._undecoded().rstrip(_BROKEN))
        if not self.stopped:
            added += self._held
            self.text += self._held
        self._held = ""
        return added

    def _undecoded(self) -> str:
        known = self._decode(self._tokens[self._context : self._read])
        return self._decode(self._tokens[self._context :])[len(known) :]

    def _accept(self, added: str) -> str:
        added = self._held + added
        found = [place for stop in self._stops if (place := added.find(stop)) >= 0]
        if found:
            self.stopped = True
            added, self._held = added[: min(found)], ""
        else:
            kept = len(added) - _overlap(added, self._stops)
            added, self._held = added[:kept], added[kept:]
        self.text += added
        return added


class ProseFilter:
    """Passes a growing text on until a call of a tool begins in it."""

    def __init__(self) -> None:
        self._held = ""
        self._open = True

    def push(self, added: str) -> str:
        """The part of ``added``, and of what was held back before, that is certainly no call."""
        if not self._open:
            return ""
        text = self._held + added
        place = text.find(CALL_TAG)
        self._open = place < 0
        kept = len(text) - _overlap(text, (CALL_TAG,)) if self._open else place
        self._held = text[kept:]
        return text[:kept]


def _overlap(text: str, words: Collection[str]) -> int:
    """Characters at the end of ``text`` that may be the beginning of one of ``words``."""
    longest = max((len(word) for word in words), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(word.startswith(text[-size:]) for word in words if len(word) > size):
            return size
    return 0


def read_calls(text: str, names: Collection[str], first: int = 0) -> tuple[str, tuple[ToolCall, ...]]:
    """``text`` without the calls in it, and the calls; one that can't be read stays text.

    Beside marked calls, a text that is nothing but the JSON of calls of ``names`` is read as such.
    ``first`` is the number in the first call's id: ids may not come again in one conversation.
    """
    found: list[tuple[str, str]] = []

    def take(match: re.Match[str]) -> str:
        calls = _calls(match[1], None)
        found.extend(calls)
        return "" if calls else match[0]

    rest = _CALL.sub(take, text)
    if found:
        before = text.partition(CALL_TAG)[0]
        rest = before + rest[len(before) :].strip()
    elif text.lstrip()[:1] in ("{", "["):
        found = _calls(text, names)
        rest = "" if found else text
    return rest, tuple(
        ToolCall(f"call_{number}", name, arguments) for number, (name, arguments) in enumerate(found, first)
    )


def _calls(text: str, names: Collection[str] | None) -> list[tuple[str, str]]:
    """Name and arguments of each call, none if anything in ``text`` isn't one."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = [_call(item) for item in (data if isinstance(data, list) else [data])]
    calls = [call for call in found if call is not None and (names is None or call[0] in names)]
    return calls if len(calls) == len(found) else []


def _call(data: Json) -> tuple[str, str] | None:
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return None
    arguments = data.get("arguments", data.get("parameters"))
    if isinstance(arguments, str):
        return data["name"], arguments
    return (data["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None
