"""Answers what a running program asks over its inherited socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from corerun.execution.lines import Channel
from corerun.interfaces import Handler, Json

SOCKET_VARIABLE = "CORERUN_SOCKET_FD"
LINE_BYTES = 1024 * 1024
OPEN_CALLS = 1024


class Service:
    """One program's socket: each line ``{"i": n, ...}`` is answered by the handler.

    The handler gets the object without ``i``; the answer is ``{"i": n, "r": ...}``, or ``{"i": n,
    "e": {"type", "msg"}}`` when it raises. Everything that arrives is untrusted: a broken rule of
    the protocol ends the service and is told to ``on_breach``.
    """

    def __init__(self, handler: Handler, on_breach: Callable[[str], None]) -> None:
        ours, theirs = socket.socketpair()
        self.descriptor = theirs.detach()
        self._handler = handler
        self._on_breach = on_breach
        self._calls: dict[int, asyncio.Task[None]] = {}
        incoming = ours.detach()
        self._channel = Channel(incoming, incoming, self._ask, self._ended, line_bytes=LINE_BYTES)

    def release(self) -> None:
        """Close our copy of the program's end, once the program holds it."""
        os.close(self.descriptor)

    async def close(self) -> None:
        """Stop answering; calls under way are cancelled and awaited."""
        self._channel.close()
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _ask(self, message: dict[str, Json]) -> None:
        number = message.pop("i", None)
        if not isinstance(number, int) or number in self._calls:
            self._breach("a call without a number of its own")
        elif len(self._calls) >= OPEN_CALLS:
            self._breach(f"more than {OPEN_CALLS} open calls")
        else:
            self._calls[number] = asyncio.ensure_future(self._answer(number, message))

    async def _answer(self, number: int, message: dict[str, Json]) -> None:
        try:
            self._channel.send({"i": number, "r": await self._handler(message)})
        except Exception as error:
            self._channel.send({"i": number, "e": {"type": type(error).__name__, "msg": str(error)[:2000]}})
        finally:
            self._calls.pop(number, None)

    def _breach(self, reason: str) -> None:
        self._channel.close()
        self._on_breach(reason)

    def _ended(self, reason: str) -> None:
        if reason:
            self._on_breach(reason)
