"""Places for running programs: the node that began first comes first."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator


class Slots:
    """At most ``count`` holders at once, those of the lowest ``order`` first.

    A node runs several short programs around a long one. Were they queued behind other nodes' long
    programs, all nodes under way would wait for places and nobody would write the next program.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def place(self, order: int) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (order, next(self._numbers), turn))
        self._hand_out_soon()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._give_back()
            raise
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self._free += 1
        self._hand_out_soon()

    def _hand_out_soon(self) -> None:
        # Not at once: who gives a place back may want it again in the same breath, for its next program.
        asyncio.get_running_loop().call_soon(self._hand_out)

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
