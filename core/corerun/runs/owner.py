"""Which process owns a run: a name that no later process, boot or machine has again."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from corerun import __version__


@dataclass(frozen=True, slots=True)
class Owner:
    """A process. ``start_time`` is in clock ticks since the boot that ``boot_id`` names."""

    host: str
    pid: int
    start_time: int
    boot_id: str
    since: str
    corerun: str

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host} since {self.since}"

    def to_json(self) -> bytes:
        """The content of a lock."""
        return json.dumps(asdict(self)).encode()

    @property
    def is_local(self) -> bool:
        """Whether it belongs to this machine, as booted now, so that it can be looked for."""
        return self.host == socket.gethostname() and self.boot_id == _boot_id()

    @property
    def runs_here(self) -> bool:
        """Whether it is a living process of this machine. A pid that was given away again is not."""
        return self.is_local and _start_time(self.pid) == self.start_time


class Refusal(Exception):
    """Another process owns the run. ``holder`` is None where nobody knows which."""

    def __init__(self, holder: Owner | None, hint: str = "") -> None:
        super().__init__(f"held by {holder}")
        self.holder = holder
        self.hint = hint


def this_process() -> Owner:
    """The process that asks."""
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        start_time=_start_time(os.getpid()) or 0,
        boot_id=_boot_id(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        corerun=__version__,
    )


def read_owner(body: bytes) -> Owner | None:
    """The process that the content of a lock names; None if it names none."""
    try:
        content = json.loads(body)
        return Owner(**{name: kind(content[name]) for name, kind in _FIELDS.items()})
    except (ValueError, KeyError, TypeError):
        return None


_FIELDS = {"host": str, "pid": int, "start_time": int, "boot_id": str, "since": str, "corerun": str}


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> int | None:
    """None for a process that is gone, or that was killed and only waits for its parent."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = line[line.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
