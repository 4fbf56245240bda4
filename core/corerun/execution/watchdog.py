"""Looks at the memory, processes and disk of all running programs, from one timer per event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from corerun.execution.processes import descendants, memory_bytes
from corerun.interfaces import Limits

INTERVAL_S = 0.25
DISK_INTERVAL_S = 2.0
_DISK_SHARE = 50
_MIB = 1024 * 1024


@dataclass(eq=False, slots=True)
class Watch:
    """One program under watch. ``breach`` is called once, with the limit's name and a sentence."""

    pid: int
    limits: Limits
    memory_mb: int
    workspace: str
    breach: Callable[[str, str], None]
    peak_mb: float = 0.0
    next_disk: float = field(default_factory=lambda: time.monotonic() + DISK_INTERVAL_S)
    done: bool = False

    def look(self) -> None:
        pids = descendants(self.pid)
        limit = self.memory_mb * _MIB
        used = memory_bytes(pids, limit / 2)
        self.peak_mb = max(self.peak_mb, used / _MIB)
        if used > limit:
            self._stop("oom", f"used {used // _MIB} MB of memory, limit {self.memory_mb} MB")
        elif len(pids) > self.limits.pids:
            self._stop("pids", f"had {len(pids)} processes, limit {self.limits.pids}")
        elif time.monotonic() >= self.next_disk:
            self._look_at_disk()

    def _look_at_disk(self) -> None:
        begin = time.monotonic()
        size, files = measure(self.workspace)
        end = time.monotonic()
        # A walk through very many files is dear: it may take no more than a small share of the time.
        self.next_disk = end + max(DISK_INTERVAL_S, _DISK_SHARE * (end - begin))
        if size > self.limits.disk_mb * _MIB:
            self._stop("disk", f"wrote {size // _MIB} MB, limit {self.limits.disk_mb} MB")
        elif files > self.limits.files:
            self._stop("disk", f"made {files} files, limit {self.limits.files}")

    def _stop(self, limit: str, message: str) -> None:
        self.done = True
        self.breach(limit, message)


class Watchdog:
    """The watches of one event loop; its timer runs only while there are any."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watch: Watch) -> None:
        self._watches.add(watch)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._tick)

    def remove(self, watch: Watch) -> None:
        self._watches.discard(watch)
        if not self._watches and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._tick)
        for watch in tuple(self._watches):
            if not watch.done:
                watch.look()


_watchdogs: WeakKeyDictionary[asyncio.AbstractEventLoop, Watchdog] = WeakKeyDictionary()


def watchdog() -> Watchdog:
    """The running loop's watchdog."""
    return _watchdogs.setdefault(asyncio.get_running_loop(), Watchdog())


def measure(folder: str) -> tuple[int, int]:
    """Bytes on disk below a folder, and the number of files; links are not followed."""
    size = count = 0
    todo = [folder]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # Deleted or shut while we looked.
    return size, count


def default_memory_mb(slots: int) -> int:
    """Three quarters of the memory that is free now, shared among ``slots`` programs."""
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return max(64, int(line.split()[1]) * 3 // 4 // 1024 // max(1, slots))
    return 1024
