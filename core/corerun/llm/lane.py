"""The queue of one model: so many calls at once, so many per minute, one probe when it is in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from corerun.interfaces import ChatReply
from corerun.llm.directory import Pace
from corerun.llm.rates import Bucket

FAILURES_THAT_CLOSE = 5
CLOSING_WINDOW_S = 30.0
CLOSED_S = 10.0


class Lane:
    """First come, first served.

    After a rate limit, or `FAILURES_THAT_CLOSE` failures in a row within `CLOSING_WINDOW_S`, the
    lane is closed for all but one call, the probe, until the probe is answered. A probe that gives up
    leaves its part to the next in the queue. So an overloaded server is asked by one caller, not by
    all of them.
    """

    def __init__(
        self, pace: Pace, clock: Callable[[], float], sleep: Callable[[float], Awaitable[object]]
    ) -> None:
        self._places = asyncio.Semaphore(pace.concurrency or 1)
        self._requests = Bucket(pace.requests_per_minute, clock) if pace.requests_per_minute else None
        self._tokens = Bucket(pace.tokens_per_minute, clock) if pace.tokens_per_minute else None
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._is_closed = False
        self._probe: object | None = None
        self._moved = asyncio.Event()
        self._failures: list[float] = []

    def place(self) -> Place:
        """A place in the lane, to be held by ``async with``."""
        return Place(self._places, self._leave)

    async def admit(self, tokens: int) -> None:
        """Waits until one more request of about ``tokens`` fits into the rates, and books it."""
        if self._requests is None and self._tokens is None:
            return
        async with self._turn:
            while True:
                waits = [bucket.seconds_until(amount) for bucket, amount in self._booked(1, tokens)]
                if max(waits) <= 0:
                    break
                await self._sleep(max(waits))
        for bucket, amount in self._booked(1, tokens):
            bucket.take(amount)

    def settle(self, tokens: int, reply: ChatReply | None) -> None:
        """Corrects what `admit` booked by what was really used; None: no answer came."""
        used = 0 if reply is None else reply.usage.prompt + reply.usage.completion
        requests = 1 if reply is None else reply.requests
        for bucket, amount in self._booked(requests - 1, used - tokens):
            bucket.take(amount)
        if reply is not None:
            for own, left in ((self._requests, reply.requests_left), (self._tokens, reply.tokens_left)):
                if own is not None and left is not None:
                    own.seen(left)

    def release(self, tokens: int) -> None:
        """Gives back what `admit` booked for a request that wasn't sent."""
        for bucket, amount in self._booked(1, tokens):
            bucket.take(-amount)

    async def passage(self, ticket: object) -> None:
        """Waits until the lane is open, or closed with ``ticket`` as the probe."""
        while self._is_closed and self._probe is not ticket:
            if self._probe is None:
                self._probe = ticket
                self._moved.clear()
            else:
                await self._moved.wait()

    def failed(self, ticket: object, *, limited: bool) -> float:
        """Notes a transient failure; ``limited``: the server itself asked to be left alone.

        Gives the seconds for which the model should be left alone at least.
        """
        now = self._clock()
        self._failures = [*self._failures[1 - FAILURES_THAT_CLOSE :], now]
        in_a_row = len(self._failures) == FAILURES_THAT_CLOSE
        broken = in_a_row and now - self._failures[0] <= CLOSING_WINDOW_S
        if (limited or broken) and not self._is_closed:
            self._is_closed = True
            self._probe = ticket
            self._moved.clear()
        return CLOSED_S if broken and not limited else 0.0

    def succeeded(self, ticket: object) -> None:
        """Notes an answer: the failures in a row are over."""
        self._failures.clear()
        if self._probe is ticket:
            self._is_closed = False
        self._leave(ticket)

    def _booked(self, requests: float, tokens: float) -> list[tuple[Bucket, float]]:
        pairs = ((self._requests, requests), (self._tokens, tokens))
        return [(bucket, amount) for bucket, amount in pairs if bucket is not None]

    def _leave(self, ticket: object) -> None:
        if self._probe is ticket:
            self._probe = None
            self._moved.set()


class Place:
    """A place in a lane, given back at the end of the block; it is its holder's ticket."""

    def __init__(self, places: asyncio.Semaphore, leave: Callable[[object], None]) -> None:
        self._places = places
        self._leave = leave

    async def __aenter__(self) -> Place:
        await self._places.acquire()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._leave(self)
        self._places.release()
