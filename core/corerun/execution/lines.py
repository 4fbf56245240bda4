"""JSON objects, one a line, over a socket or a pair of pipes, in the event loop's thread."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable

from corerun.interfaces import Json

OUTGOING_BYTES = 64 * 1024 * 1024


class Channel:
    """Sends and receives JSON objects. Owns its descriptors.

    ``on_message`` gets each object; ``on_close`` is called once with an empty text at the end of
    the stream, or with what was wrong: a line that is too long, no JSON or no object.
    """

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        on_message: Callable[[dict[str, Json]], None],
        on_close: Callable[[str], None],
        *,
        line_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_message = on_message
        self._on_close = on_close
        self._line_bytes = line_bytes
        self._received = bytearray()
        self._queue = bytearray()
        self._flushing = False
        self._closed = False
        for descriptor in {incoming, outgoing}:
            os.set_blocking(descriptor, False)
        self._loop.add_reader(incoming, self._readable)

    def send(self, message: Json) -> None:
        """Queue one object; all that is queued in one turn of the loop goes out together."""
        if self._closed:
            return
        self._queue += json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "backslashreplace"
        )
        self._queue += b"\n"
        if len(self._queue) > OUTGOING_BYTES:
            self._end("the other side doesn't read its answers")
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close without a call of ``on_close``."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._incoming)
        self._loop.remove_writer(self._outgoing)
        for descriptor in {self._incoming, self._outgoing}:
            os.close(descriptor)

    def _end(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_close(reason)

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            while self._queue:
                del self._queue[: os.write(self._outgoing, self._queue)]
        except BlockingIOError:
            self._loop.add_writer(self._outgoing, self._flush)
            return
        except OSError:
            self._end("")
            return
        self._loop.remove_writer(self._outgoing)
        self._flushing = False

    def _readable(self) -> None:
        try:
            data = os.read(self._incoming, 262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end("")
            return
        searched = len(self._received)
        self._received += data
        begin = 0
        while not self._closed and (end := self._received.find(b"\n", max(begin, searched))) >= 0:
            line = bytes(self._received[begin:end])
            begin = end + 1
            self._take(line)
        del self._received[:begin]
        if len(self._received) > self._line_bytes:
            self._end(f"a line of more than {self._line_bytes} bytes")

    def _take(self, line: bytes) -> None:
        if len(line) > self._line_bytes:
            self._end(f"a line of more than {self._line_bytes} bytes")
            return
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self._end("a line that is no JSON")
            return
        if isinstance(message, dict):
            self._on_message(message)
        else:
            self._end("a line that is no JSON object")
