"""Reads a streamed answer: hands its pieces out as they come, and at the end the whole of it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator

from corerun.errors import StreamCut, Transient
from corerun.interfaces import Delta, Json
from corerun_openai_router.wire.assembly import Assembly
from corerun_openai_router.wire.endpoint import Endpoint
from corerun_openai_router.wire.events import Event, EventReader
from corerun_openai_router.wire.transport import Response, Streamed


async def read_stream(streamed: Streamed, endpoint: Endpoint) -> AsyncGenerator[Delta | Response]:
    """The pieces of an answer, and last the whole answer as a plain response.

    A refusal, an error before the first piece and a server that doesn't stream give a response alone.
    Raises `Transient` if the stream broke off before its first piece, afterwards `StreamCut`.
    """
    if not 200 <= streamed.status < 300:
        content = b"".join([chunk async for chunk in streamed.chunks])
        yield Response(streamed.status, streamed.headers, content)
        return
    reader = _StreamReader(endpoint)
    try:
        async for chunk in streamed.chunks:
            for delta in reader.read(chunk):
                yield delta
            if reader.has_ended:
                break
    except Transient as error:
        reader.break_off(error)
    for delta in reader.close():
        yield delta
    yield Response(streamed.status, streamed.headers, reader.content)


class _StreamReader:
    """The state of one stream that is being read."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._events = EventReader()
        self._assembly = Assembly()
        self._fault: Transient | None = None
        self._error: Json = None
        self._plain: bytes | None = None
        self._has_handed_out = False
        self.has_ended = False

    def read(self, chunk: bytes) -> Iterator[Delta]:
        """The pieces in ``chunk``."""
        yield from self._take(self._events.feed(chunk))

    def break_off(self, error: Transient) -> None:
        """Note that nothing more will come. It doesn't matter once the server said why it ends."""
        self.has_ended = True
        if not self._assembly.has_finished:
            self._fault = error

    def close(self) -> Iterator[Delta]:
        """The pieces that the end completes. Raises `Transient` or `StreamCut` if it came too early."""
        if not self.has_ended:
            yield from self._take(self._events.close())
        yield from self._hand_out(self._assembly.close())
        if not self.has_ended:
            self.break_off(Transient(self._endpoint.say("the stream ended before its answer was complete")))
        if self._error is not None and self._has_handed_out:
            said = self._error if isinstance(self._error, str) else json.dumps(self._error)
            self._fault = Transient(self._endpoint.say(f"the stream ended with an error: {said}"))
        if self._fault is not None and self._has_handed_out:
            raise StreamCut(self._fault.message, partial=self._assembly.text, hint=self._fault.hint)
        if self._fault is not None:
            raise self._fault

    @property
    def content(self) -> bytes:
        """The whole answer as the body of a plain one."""
        if self._plain is not None:
            return self._plain
        return json.dumps(
            self._assembly.document() if self._error is None else {"error": self._error}
        ).encode()

    def _hand_out(self, deltas: Iterator[Delta]) -> Iterator[Delta]:
        for delta in deltas:
            self._has_handed_out = True
            yield delta

    def _take(self, events: Iterator[Event]) -> Iterator[Delta]:
        for event in events:
            if event.kind == "broken":
                self.break_off(Transient(self._endpoint.say(f"the stream holds no JSON: {event.data}")))
            elif event.kind == "plain":
                self._plain, self.has_ended = event.data, True
            elif event.kind == "done":
                self.has_ended = True
            elif error := _error_in(event):
                self._error, self.has_ended = error, True
            elif isinstance(event.data, dict):
                yield from self._hand_out(self._assembly.add(event.data))
            if self.has_ended:
                return


def _error_in(event: Event) -> Json:
    """The error that an event tells, in one of the ways that servers have for it; None: none."""
    if event.kind == "error" and not isinstance(event.data, dict):
        return event.data
    if not isinstance(event.data, dict):
        return None
    choices = event.data.get("choices")
    for holder in (event.data, *(choices if isinstance(choices, list) else ())):
        if isinstance(holder, dict) and holder.get("error"):
            return holder["error"]
    is_error = event.kind == "error" or event.data.get("object") == "error"
    return event.data if is_error else None
