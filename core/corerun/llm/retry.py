"""Retries of one model call: what is tried again, how often, and how long to wait."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from corerun.errors import InfrastructureError, Transient
from corerun.interfaces import ChatReply
from corerun.llm.lane import Lane

BASE_S = 0.5
GROWTH = 4.0
CAP_S = 30.0

_log = logging.getLogger("corerun.models")


def wait_before_retry(failures: int, wish: float | None, rng: random.Random) -> float:
    """Seconds to wait after the ``failures``-th failure in a row, the first being 1.

    A server's ``wish`` is granted with up to a tenth on top; else the wait grows fourfold from 0.5 s
    to 30 s, so that five retries outlast a server that is away for 30 s. Up to half of it is taken
    off at random, so that callers don't come back all at once.
    """
    if wish is not None:
        return max(wish, 0.0) * rng.uniform(1.0, 1.1)
    return min(CAP_S, BASE_S * GROWTH ** (failures - 1)) * rng.uniform(0.5, 1.0)


async def with_retries(
    send: Callable[[], Awaitable[ChatReply]],
    *,
    lane: Lane,
    ticket: object,
    tokens: int,
    seed: str,
    retries: int,
    max_wait_s: float,
    seconds_left: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> tuple[ChatReply, int]:
    """The reply and the number of attempts, within ``seconds_left``. Only `Transient` is tried again.

    The first attempt is admitted to ``lane`` already; ``tokens`` is what each may use, ``seed`` that of
    the chance in the waits. Raises `InfrastructureError` when the attempts or the time are used up, and
    when the server wants a longer wait than ``max_wait_s``.
    """
    too_late = "no usable answer came before the deadline of its question"
    deadline = clock() + seconds_left
    failures = 0
    rng: random.Random | None = None
    is_admitted = True
    try:
        if seconds_left <= 0:
            raise InfrastructureError(too_late)
        async with asyncio.timeout(seconds_left) as scope:
            while True:
                await lane.passage(ticket)
                if not is_admitted:
                    await lane.admit(tokens)
                is_admitted = False
                reply = None
                try:
                    reply = await send()
                except Transient as error:
                    failures += 1
                    rng = rng or random.Random(seed)  # slow to seed, and most calls need none
                    pause = lane.failed(ticket, limited=error.limited)
                    wait = max(pause, wait_before_retry(failures, error.retry_after, rng))
                    if failures > retries:
                        why = f"the model gave no answer in {failures} attempts"
                    elif (error.retry_after or 0.0) > max_wait_s:
                        why = f"the model's server asks to wait {error.retry_after:g} s"
                    elif clock() + wait >= deadline:
                        why = f"no time is left to wait {wait:.1f} s for the model"
                    else:
                        next_try = f"try {failures + 1} of {retries + 1} in {wait:.1f} s"
                        _log.info("%s: %s", next_try, error.message)
                        await sleep(wait)
                        continue
                    raise InfrastructureError(f"{why}: {error.message}", hint=error.hint) from error
                finally:
                    lane.settle(tokens, reply)
                lane.succeeded(ticket)
                return reply, failures + 1
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise InfrastructureError(too_late) from error
    finally:
        if is_admitted:
            lane.release(tokens)
