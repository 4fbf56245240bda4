"""Retries of one model call: how long to wait, and one lane per model that calls queue in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from corerun.errors import CorerunError, InfrastructureError, ProviderBroken, Transient
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Provider

BASE_S = 0.5
GROWTH = 4.0
CAP_S = 30.0
FAILURES_THAT_CLOSE = 5
CLOSING_WINDOW_S = 30.0


def wait_before_retry(failures: int, wish: float | None, rng: random.Random) -> float:
    """Seconds to wait after the ``failures``-th failure in a row, the first being 1.

    A server's ``wish`` is granted with up to a tenth on top; else the wait grows fourfold from 0.5 s
    to 30 s, so that five retries outlast a server that is away for 30 s. Up to half of it is taken
    off at random, so that callers don't come back all at once.
    """
    if wish is not None:
        return max(wish, 0.0) * rng.uniform(1.0, 1.1)
    return min(CAP_S, BASE_S * GROWTH ** (failures - 1)) * rng.uniform(0.5, 1.0)


class Lane:
    """The queue of one model: so many calls at once, first come first served.

    After a rate limit, or `FAILURES_THAT_CLOSE` failures in a row, the lane is closed for all but
    one call, the probe; it opens again when the probe is through. So an overloaded server is asked
    by one caller, not by all of them.
    """

    def __init__(self, concurrency: int) -> None:
        self._places = asyncio.Semaphore(concurrency)
        self._probe: object | None = None
        self._opened = asyncio.Event()
        self._opened.set()
        self._failures: list[float] = []

    @asynccontextmanager
    async def place(self) -> AsyncIterator[object]:
        """A place in the lane; the ticket names its holder."""
        async with self._places:
            ticket = object()
            try:
                yield ticket
            finally:
                self._open(ticket)

    async def passage(self, ticket: object) -> None:
        """Waits until the lane is open, or closed with ``ticket`` as the probe."""
        while self._probe is not None and self._probe is not ticket:
            await self._opened.wait()

    def failed(self, ticket: object, now: float, *, limited: bool) -> None:
        """Notes a transient failure; ``limited``: the server itself asked to be left alone."""
        self._failures = [*self._failures[1 - FAILURES_THAT_CLOSE :], now]
        in_a_row = len(self._failures) == FAILURES_THAT_CLOSE
        close = limited or (in_a_row and now - self._failures[0] <= CLOSING_WINDOW_S)
        if close and self._probe is None:
            self._probe = ticket
            self._opened.clear()

    def succeeded(self, ticket: object) -> None:
        """Notes an answer: the failures in a row are over."""
        self._failures.clear()
        self._open(ticket)

    def _open(self, ticket: object) -> None:
        if self._probe is ticket:
            self._probe = None
            self._opened.set()


async def attempt(provider: Provider, request: ChatRequest, context: CallContext) -> ChatReply:
    """One answer of ``provider``; what it may not raise becomes `ProviderBroken`."""
    try:
        return await provider.complete(request, context)
    except CorerunError:
        raise
    except Exception as error:
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        raise ProviderBroken(
            f"the provider {provider.info.name!r} broke: {summary}",
            hint="this is a fault of the provider's plugin",
        ) from error


async def with_retries(
    send: Callable[[], Awaitable[ChatReply]],
    *,
    lane: Lane,
    ticket: object,
    rng: random.Random,
    retries: int,
    max_wait_s: float,
    seconds_left: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> tuple[ChatReply, int]:
    """The reply and the number of attempts, within ``seconds_left``. Only `Transient` is tried again.

    Raises `InfrastructureError` when the attempts or the time are used up, and when the server wants
    a longer wait than ``max_wait_s``.
    """
    too_late = "no usable answer came before the deadline of its question"
    if seconds_left <= 0:
        raise InfrastructureError(too_late)
    deadline = clock() + seconds_left
    failures = 0
    try:
        async with asyncio.timeout(seconds_left) as scope:
            while True:
                await lane.passage(ticket)
                try:
                    reply = await send()
                except Transient as error:
                    failures += 1
                    lane.failed(ticket, clock(), limited=error.retry_after is not None)
                    wait = wait_before_retry(failures, error.retry_after, rng)
                    if failures > retries:
                        why = f"the model gave no answer in {failures} attempts"
                    elif (error.retry_after or 0.0) > max_wait_s:
                        why = f"the model's server asks to wait {error.retry_after:.0f} s"
                    elif clock() + wait >= deadline:
                        why = f"no time is left to wait {wait:.1f} s for the model"
                    else:
                        await sleep(wait)
                        continue
                    raise InfrastructureError(f"{why}: {error.message}", hint=error.hint) from error
                lane.succeeded(ticket)
                return reply, failures + 1
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise InfrastructureError(too_late) from error
