"""Ctrl-C and SIGTERM while a run lives: the first Ctrl-C lets what runs end, anything more stops it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

from corerun.job.live import LiveRun

GRACE_S = 3.0
"""Seconds that what runs gets after the first Ctrl-C."""


@contextlib.asynccontextmanager
async def stop_on_signals(run: LiveRun) -> AsyncIterator[None]:
    """First Ctrl-C: ask for nothing new and give what runs a moment; second, or SIGTERM: stop now."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def first() -> None:
        if run.stopping:
            task.cancel()
            return
        run.stopping = True
        print("corerun: stopping; press Ctrl-C again to stop at once", file=sys.stderr)  # noqa: T201
        loop.call_later(GRACE_S, task.cancel)

    def now() -> None:
        run.stopping = True
        task.cancel()

    try:
        loop.add_signal_handler(signal.SIGINT, first)
        loop.add_signal_handler(signal.SIGTERM, now)
    except (ValueError, RuntimeError):  # not in the main thread: the caller's signals stay the caller's
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
