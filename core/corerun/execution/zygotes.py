"""The zygotes of an event loop, one for each kind of program.

They are a cache: losing one costs the start of another, or of an interpreter per program.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from weakref import WeakKeyDictionary

from corerun.errors import InfrastructureError
from corerun.execution.zygote import Kind, Unsuitable, Zygote

MOST_ZYGOTES = 8
MOST_TROUBLE = 2

_log = logging.getLogger(__name__)


class Zygotes:
    """Those of one event loop, which they don't outlive."""

    def __init__(self) -> None:
        self._by_kind: dict[Kind, asyncio.Task[Zygote | None]] = {}
        self._living: set[Zygote] = set()
        self._asked: Counter[Kind] = Counter()
        self._trouble: Counter[Kind] = Counter()
        self._ending: set[asyncio.Task[None]] = set()
        # A task is what the end of an event loop cancels and waits for.
        self._keeper = asyncio.ensure_future(self._keep())

    async def find(self, kind: Kind, *, at_once: bool) -> Zygote | None:
        """The zygote of a kind, started if need be; None: there can't be any.

        Not ``at_once``: there is none for the first who asks, who may be the only one.
        """
        self._asked[kind] += 1
        if self._trouble[kind] >= MOST_TROUBLE or not (at_once or self._asked[kind] > 1):
            return None
        start = self._by_kind.pop(kind, None)
        if start is not None and start.done():
            zygote = start.result()
            if zygote is None or (reason := zygote.worn()):
                if zygote is not None:
                    zygote.retire(reason)
                start = None
        self._by_kind[kind] = start or asyncio.ensure_future(self._start(kind))
        while len(self._by_kind) > MOST_ZYGOTES:
            self._drop(next(iter(self._by_kind)))
        return await asyncio.shield(self._by_kind[kind])

    def _drop(self, kind: Kind) -> None:
        """Let go of the one that wasn't asked for for the longest time."""
        start = self._by_kind.pop(kind)
        if start.done():
            _retire(start)
        else:
            start.add_done_callback(_retire)

    async def _start(self, kind: Kind) -> Zygote | None:
        zygote = None
        try:
            zygote = Zygote(kind, self)
            self._living.add(zygote)
            await zygote.ready()
            return zygote
        except Unsuitable:
            self._trouble[kind] = MOST_TROUBLE
            return None
        except (OSError, ValueError, InfrastructureError) as error:
            self._trouble[kind] = MOST_TROUBLE
            _log.warning("programs of profile %s start cold: %s", kind.profile, error)
            if zygote is not None:
                self.end_later(zygote)
            return None

    def note_trouble(self, zygote: Zygote, reason: str) -> None:
        """Replace a zygote, and after the second time of its kind have none any more."""
        zygote.retire(reason)
        self._trouble[zygote.kind] += 1
        if self._trouble[zygote.kind] == MOST_TROUBLE:
            _log.warning("programs of profile %s start cold from now on: %s", zygote.kind.profile, reason)

    def end_later(self, zygote: Zygote) -> None:
        """End a zygote without being waited for."""
        if zygote in self._living:
            self._living.discard(zygote)
            task = asyncio.ensure_future(zygote.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all zygotes, those with programs under way when these have ended."""
        for kind in tuple(self._by_kind):
            self._drop(kind)
        await asyncio.gather(*self._ending)

    async def _keep(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            _caches.pop(asyncio.get_running_loop(), None)
            for start in self._by_kind.values():
                start.cancel()
            for zygote in tuple(self._living):
                self.end_later(zygote)
            await asyncio.gather(*self._ending, return_exceptions=True)


def _retire(start: asyncio.Task[Zygote | None]) -> None:
    zygote = None if start.cancelled() else start.result()
    if zygote is not None:
        zygote.retire("too many others")


_caches: WeakKeyDictionary[asyncio.AbstractEventLoop, Zygotes] = WeakKeyDictionary()


def of_this_loop() -> Zygotes:
    """Those of the running loop."""
    loop = asyncio.get_running_loop()
    if loop not in _caches:
        _caches[loop] = Zygotes()
    return _caches[loop]


async def find(kind: Kind, *, at_once: bool) -> Zygote | None:
    """The running loop's zygote of a kind; see `Zygotes.find`."""
    return await of_this_loop().find(kind, at_once=at_once)


async def close() -> None:
    """End the zygotes of the running loop; see `Zygotes.close`."""
    cache = _caches.get(asyncio.get_running_loop())
    if cache is not None:
        await cache.close()
