"""Looks at the memory, processes and disk of all running programs, from one timer per event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from corerun.execution.cgroups import Group
from corerun.execution.disk_use import measure
from corerun.execution.processes import memory_bytes
from corerun.interfaces import Limits

CALM_S, ALERT_S = 0.1, 0.02
"""Seconds between two looks: usually, and when memory grows fast or is half used up."""
FAST_MB_PER_S = 200
DISK_INTERVAL_S = 1.0
_LOOKS = 10
"""Looks at all calm programs together take at most one part in so many of the time."""
_WALKS = 20
"""The same for walks through their files."""
_HURRY = 10
"""And for those through the files of one program while much is written."""
_MIB = 1024 * 1024


@dataclass(eq=False, slots=True)
class Watch:
    """One program under watch. ``members`` are its processes now; ``breach`` is called once, with the
    limit's name and a sentence. ``group`` is what the kernel holds it in.
    """

    members: Callable[[], list[int]]
    limits: Limits
    memory_mb: int
    workspace: str
    breach: Callable[[str, str], None]
    group: Group
    peak_mb: float = 0.0
    next_look: float = field(default_factory=lambda: time.monotonic() + ALERT_S)
    done: bool = False
    _used: int = 0
    _looked: float = field(default_factory=time.monotonic)
    _walk_allowed: float = 0.0
    _walk_due: float = field(default_factory=lambda: time.monotonic() + DISK_INTERVAL_S)
    _size: int = 0
    _free: int = -1

    def look(self, now: float, others: int) -> None:
        """Look at what is due, and say when to look again; ``others`` are watched beside it."""
        begin = time.thread_time()
        alert = not self.group.holds_all and self._look_at_processes(now)
        calm = max(CALM_S, _LOOKS * (others + 1) * (time.thread_time() - begin))
        self.next_look = now + (ALERT_S if alert else calm)
        if not self.done and (now >= self._walk_due or (now >= self._walk_allowed and self._fills_up())):
            self._look_at_rest(others)

    def _look_at_processes(self, now: float) -> bool:
        """Whether the next look should come soon."""
        pids = self.members()
        limit = self.memory_mb * _MIB
        used = memory_bytes(pids, limit / 2)
        fast = used - self._used > FAST_MB_PER_S * _MIB * (now - self._looked)
        self._used, self._looked = used, now
        self.peak_mb = max(self.peak_mb, used / _MIB)
        if used > limit:
            self._stop("oom", f"used {used // _MIB} MB of memory, limit {self.memory_mb} MB")
        elif len(pids) > self.limits.pids:
            self._stop("pids", f"had {len(pids)} processes, limit {self.limits.pids}")
        return fast or used > limit / 2

    def _fills_up(self) -> bool:
        """Whether so much was written to the disk, by whomever, that the limit may be passed."""
        try:
            facts = os.statvfs(self.workspace)
        except OSError:
            return False
        free = facts.f_bfree * facts.f_frsize
        if self._free < 0:
            self._free = free
        return self._free - free > self.limits.disk_mb * _MIB - self._size

    def _look_at_rest(self, others: int) -> None:
        begin = time.thread_time()
        too_much = self._disk_breach(self.members())
        if self.group.oom_kills():
            # One of them is dead, and the others may wait for it for ever.
            self._stop("oom", f"used more than {self.memory_mb} MB of memory")
        elif too_much:
            self._stop("disk", too_much)
        # Not the time that passed: on a busy machine that is long, and others' doing.
        cost, end = time.thread_time() - begin, time.monotonic()
        self._walk_allowed = end + _HURRY * cost
        self._walk_due = end + max(DISK_INTERVAL_S, _WALKS * (others + 1) * cost)

    def look_back(self) -> str:
        """What a program left that has ended, perhaps sooner than its files were looked at: a sentence if
        it is more than it may, else nothing."""
        return self._disk_breach([])

    def _disk_breach(self, pids: list[int]) -> str:
        limits = self.limits
        self._size, files = measure(self.workspace, pids, limits.files)
        self._free = -1
        if self._size > limits.disk_mb * _MIB:
            return f"wrote {self._size // _MIB} MB, limit {limits.disk_mb} MB"
        return f"made more than {limits.files} files" if files > limits.files else ""

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
        if self._timer is not None:
            self._timer.cancel()
        self._sleep()

    def remove(self, watch: Watch) -> None:
        self._watches.discard(watch)
        if not self._watches and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sleep(self) -> None:
        now = time.monotonic()
        # Looks that are due at nearly the same time are taken together.
        pause = max(ALERT_S, min(watch.next_look for watch in self._watches) - now)
        self._timer = asyncio.get_running_loop().call_later(pause, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        for watch in tuple(self._watches):
            if not watch.done and now >= watch.next_look - ALERT_S / 2:
                watch.look(time.monotonic(), len(self._watches) - 1)
        self._sleep()


_watchdogs: WeakKeyDictionary[asyncio.AbstractEventLoop, Watchdog] = WeakKeyDictionary()


def watchdog() -> Watchdog:
    """The running loop's watchdog."""
    return _watchdogs.setdefault(asyncio.get_running_loop(), Watchdog())


def default_memory_mb(slots: int) -> int:
    """Three quarters of the memory that is free now, shared among ``slots`` programs."""
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return max(64, int(line.split()[1]) * 3 // 4 // 1024 // max(1, slots))
    return 1024
