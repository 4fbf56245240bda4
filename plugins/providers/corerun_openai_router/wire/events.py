"""Takes a body of server-sent events apart, in whatever pieces it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from corerun.interfaces import Json

_FIELDS = (b"data", b"event", b"id", b"retry", b":")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``kind`` is its name, ``message`` without one, and for what servers also send:

    ``done``: the end by ``[DONE]``; ``broken``: data that is no JSON, as text; ``plain``: the body is
    no stream of events, and ``data`` is all of it, as bytes.
    """

    kind: str
    data: Json = None


class EventReader:
    """Reads bytes into events. Lines may end in CR LF, comments are skipped, ``data:`` needs no blank.

    A line of data that is whole by itself is an event, even if the server forgets the empty line that
    ought to follow; otherwise the lines up to the next empty one are read together.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._plain: list[bytes] | None = None
        self._started = False
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that end in ``chunk``."""
        if self._plain is not None:
            self._plain.append(chunk)
            return
        *ended, rest = chunk.split(b"\n")
        for number, end in enumerate(ended):
            line = b"".join((*self._line, end))
            self._line.clear()
            yield from self._read_line(line.removesuffix(b"\r"))
            if self._plain is not None:
                self._plain.extend((b"\n", b"\n".join((*ended[number + 1 :], rest))))
                return
        if rest:
            self._line.append(rest)

    def close(self) -> Iterator[Event]:
        """The events that end with the body."""
        yield from self._read_line(b"".join(self._line).removesuffix(b"\r"))
        if self._plain is not None:
            yield Event("plain", b"".join(self._plain))
        else:
            yield from self._read_line(b"")

    def _read_line(self, line: bytes) -> Iterator[Event]:
        if not self._started:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            if not line.strip():
                return
            self._started = True
            if not line.startswith(_FIELDS):
                self._plain = [line]
                return
        if not line:
            if self._data:
                yield self._event(b"\n".join(self._data))
            self._name = ""
            self._data.clear()
        elif line.startswith(b"data:"):
            text = line[5:].strip()
            if self._data:
                self._data.append(text)
            elif text:
                event = self._event(text)
                if event.kind != "broken":
                    yield event
                else:
                    self._data.append(text)
        elif line.startswith(b"event:"):
            self._name = line[6:].strip().decode("utf-8", "replace")

    def _event(self, data: bytes) -> Event:
        text = data.decode("utf-8", "replace")
        if text == "[DONE]":
            return Event("done")
        try:
            return Event(self._name or "message", json.loads(text))
        except (ValueError, RecursionError):
            return Event("broken", text)
