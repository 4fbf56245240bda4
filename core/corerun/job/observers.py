"""Hands events to observers without ever letting one of them slow or break a run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence

from corerun.errors import CorerunError, PluginError
from corerun.interfaces import Event, Observer
from corerun.plugins import PluginManager

logger = logging.getLogger("corerun.observers")
QUEUE = 10_000
END_S = 10.0
"""Seconds that observers together get for what is left when a run ends."""


class ObserverRelay:
    """One thread and one bounded queue per observer; the oldest events are dropped, and counted.

    Raises `PluginError` for an observer that can't be made.
    """

    def __init__(self, names: Sequence[str], manager: PluginManager) -> None:
        self._feeds = [_Feed(name, _made(name, manager)) for name in dict.fromkeys(names)]

    def put(self, event: Event) -> None:
        """Take an event; never waits."""
        for feed in self._feeds:
            feed.put(event)

    @contextlib.asynccontextmanager
    async def running(self, run: str) -> AsyncIterator[None]:
        """Deliver events while the block runs, and what is left at its end."""
        for feed in self._feeds:
            feed.begin(run)
        try:
            yield
        finally:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        for feed in self._feeds:
            feed.finish()
        for feed in self._feeds:
            feed.wait(END_S / len(self._feeds))


class _Feed:
    def __init__(self, name: str, observer: Observer) -> None:
        self._name = name
        self._observer = observer
        self._run = ""
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._open = True
        self._changed = threading.Condition()
        # A daemon: an observer that hangs must not keep the process.
        self._thread = threading.Thread(target=self._deliver, name=f"corerun-observer-{name}", daemon=True)

    def put(self, event: Event) -> None:
        with self._changed:
            if not self._open:
                return
            if len(self._events) >= QUEUE:
                self._events.popleft()
                self._dropped += 1
            self._events.append(event)
            self._changed.notify()

    def begin(self, run: str) -> None:
        self._run = run
        self._thread.start()

    def finish(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("observer %s is still busy; it is left behind", self._name)
        if self._dropped:
            logger.warning("observer %s was too slow: %d events dropped", self._name, self._dropped)

    def _deliver(self) -> None:
        try:
            while (event := self._next()) is not None:
                self._observer.on_event(self._run, event)
        except Exception:
            logger.exception("observer %s failed and is left out from here on", self._name)
            self.finish()
        try:
            self._observer.close()
        except Exception:
            logger.exception("observer %s failed at its end", self._name)

    def _next(self) -> Event | None:
        with self._changed:
            self._changed.wait_for(lambda: self._events or not self._open)
            return self._events.popleft() if self._events else None


def _made(name: str, manager: PluginManager) -> Observer:
    kind = manager.get("observers", name)
    try:
        observer: Observer = kind()
    except CorerunError:
        raise
    except Exception as error:
        raise PluginError(f"observer {name} can't start: {type(error).__name__}: {error}") from error
    return observer
