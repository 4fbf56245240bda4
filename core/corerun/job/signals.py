"""Ctrl-C and SIGTERM while a run lives: the first Ctrl-C lets what runs end, anything more stops it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator

from corerun.job.live import LiveRun

GRACE_S = 3.0
"""Seconds that what runs gets after the first Ctrl-C."""


class Stopper:
    """Heeds signals as long as `listening`; they stop the task while it is `working`.

    First Ctrl-C: ask for nothing new and give what runs a moment. Second, or SIGTERM: stop now. What
    comes later doesn't disturb the end: what still runs is killed and the end is written to the journal.
    """

    def __init__(self, run: LiveRun) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._works = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over. Outside the main thread they stay the caller's."""
        before = signal.getsignal(signal.SIGINT)
        try:
            self._loop.add_signal_handler(signal.SIGINT, self._interrupt)
            self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        except (ValueError, RuntimeError):
            yield
            return
        try:
            yield
        finally:
            self._loop.remove_signal_handler(signal.SIGINT)
            self._loop.remove_signal_handler(signal.SIGTERM)
            # The loop knows only Python's own.
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """The part of the task that signals may stop."""
        self._works = True
        try:
            yield
        finally:
            self._works = False

    def _interrupt(self) -> None:
        if self._run.stopping:
            self._stop()
        elif self._works:
            self._run.stopping = True
            print("corerun: stopping; press Ctrl-C again to stop at once", file=sys.stderr)  # noqa: T201
            self._loop.call_later(GRACE_S, self._stop)

    def _stop(self) -> None:
        if self._works:
            self._works = False
            self._run.stopping = True
            self._task.cancel()
