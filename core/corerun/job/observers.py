"""Hands events to observers without ever letting one of them slow or break a run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence

from corerun.interfaces import Event, Observer
from corerun.plugins import PluginManager

logger = logging.getLogger("corerun.observers")
QUEUE = 10_000


class ObserverRelay:
    """A bounded queue in front of the observers; the oldest events are dropped, and counted."""

    def __init__(self, run: str, names: Sequence[str], manager: PluginManager) -> None:
        self._run = run
        self._observers: dict[str, Observer] = {name: manager.get("observers", name)() for name in names}
        self._queue: deque[Event] = deque()
        self._ready = asyncio.Event()
        self.dropped = 0

    def put(self, event: Event) -> None:
        """Take an event; never waits."""
        if not self._observers:
            return
        if len(self._queue) >= QUEUE:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(event)
        self._ready.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver events while the block runs, and what is left at its end."""
        task = asyncio.create_task(self._deliver())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._drain()
            for name, observer in self._observers.items():
                self._guarded(name, observer.close)
            if self.dropped:
                logger.warning("observers were too slow: %d events dropped", self.dropped)

    async def _deliver(self) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            self._drain()

    def _drain(self) -> None:
        while self._queue:
            event = self._queue.popleft()
            for name, observer in list(self._observers.items()):
                self._guarded(name, observer.on_event, self._run, event)

    def _guarded(self, name: str, call: object, *arguments: object) -> None:
        try:
            call(*arguments)  # type: ignore[operator]
        except Exception:
            logger.exception("observer %s failed and is left out from here on", name)
            self._observers = {key: value for key, value in self._observers.items() if key != name}
