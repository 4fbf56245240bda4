"""The processes of one program: how they are stopped, killed, and what became of them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from corerun.execution import processes

_BLOCKS_PER_MB = 2048


@dataclass(frozen=True, slots=True)
class Death:
    """How a program ended, in seconds and MB. ``read_mb`` and ``written_mb`` went from and to disks.

    ``leftovers`` are command lines of processes that had to be killed after it, ``left`` is their
    number; ``broken`` says what went wrong with the sandbox itself.
    """

    exit_code: int | None = None
    signal: int | None = None
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    read_mb: float = 0.0
    written_mb: float = 0.0
    left: int = 0
    leftovers: tuple[str, ...] = ()
    broken: str = ""


class Tree(Protocol):
    """The processes of one program."""

    def descriptor(self) -> int:
        """What becomes readable when the program has ended; `finish` closes it.

        Raises OSError where it can't be opened, and nobody would see the end.
        """
        ...

    def members(self) -> list[int]:
        """The program's processes, without those that only watch over it."""
        ...

    def terminate(self) -> None:
        """Ask the program to end."""
        ...

    async def kill(self) -> None:
        """Kill all its processes; returns when none is left alive but perhaps the first."""
        ...

    async def finish(self, *, forced: bool) -> Death:
        """After the end: kill what was left behind, and tell how it ended. ``forced``: before it, too."""
        ...


class SpawnedTree:
    """A child process and what it starts, told from others by marks that it can't lose."""

    def __init__(self, pid: int, exec_id: str) -> None:
        self._pidfd: int | None = None
        self._pid = pid
        self._exec_id = exec_id
        processes.started.add(pid)
        processes.active.add(exec_id)

    def descriptor(self) -> int:
        if self._pidfd is None:
            self._pidfd = os.pidfd_open(self._pid)
        return self._pidfd

    def members(self) -> list[int]:
        return processes.descendants(self._pid)

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGTERM)

    async def kill(self) -> None:
        await processes.kill_execution(self._exec_id, self._pid, with_leader=True)

    async def finish(self, *, forced: bool) -> Death:
        try:
            left: list[str] = []
            try:
                if forced or processes.orphans(self._exec_id, self._pid):
                    left = await processes.kill_execution(self._exec_id, self._pid, with_leader=forced)
            finally:
                # Not blocking: after a failed kill the process may still be there.
                _, status, usage = os.wait4(self._pid, os.WNOHANG)
            return self._told(_death(status, usage), left)
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)
            processes.started.discard(self._pid)
            processes.active.discard(self._exec_id)

    def _told(self, death: Death, left: list[str]) -> Death:
        return replace(death, left=len(left), leftovers=tuple(left[: processes.LEFTOVERS_SHOWN]))


class NamespaceTree(SpawnedTree):
    """A child that made a process namespace and waits for it, as bwrap does.

    The namespace's first process writes how the program ended to ``status`` (a pipe's end that is
    read and closed here); when it dies, all in the namespace die.
    """

    def __init__(self, pid: int, exec_id: str, status: int) -> None:
        super().__init__(pid, exec_id)
        self._status = status
        self._killed = False

    def members(self) -> list[int]:
        first = self._first()
        return processes.descendants(first)[1:] if first else []

    def terminate(self) -> None:
        first = self._first()
        program = processes.children(first)[:1] if first else []
        for pid in program:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGTERM)

    async def kill(self) -> None:
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            # Before there is a namespace, the one who makes it.
            os.kill(self._first() or self._pid, signal.SIGKILL)

    async def finish(self, *, forced: bool) -> Death:
        try:
            return await super().finish(forced=forced)
        finally:
            os.close(self._status)

    def _first(self) -> int | None:
        return next(iter(processes.children(self._pid)), None)

    def _told(self, death: Death, left: list[str]) -> Death:
        return read_status(self._status) or unreported(death, killed=self._killed)


class ForkedTree:
    """A program that a zygote forked; the first process of its namespace has ``pidfd``.

    That one writes how the program ended to ``status``, as for `NamespaceTree`; both descriptors are
    closed here. ``ended`` is told in the end. ``lost`` are guarantees of the sandbox that don't hold
    for a program that was forked.
    """

    def __init__(
        self, pidfd: int, status: int, ended: Callable[[Death], None], lost: tuple[str, ...] = ()
    ) -> None:
        self.lost = lost
        self._pidfd = pidfd
        self._status = status
        self._ended = ended
        self._killed = False

    def descriptor(self) -> int:
        return self._pidfd

    def members(self) -> list[int]:
        first = self._first()
        return processes.descendants(first)[1:] if first else []

    def terminate(self) -> None:
        first = self._first()
        for pid in processes.children(first)[:1] if first else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGTERM)

    async def kill(self) -> None:
        self._killed = True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def finish(self, *, forced: bool) -> Death:
        try:
            death = read_status(self._status) or unreported(Death(), killed=self._killed)
        finally:
            os.close(self._pidfd)
            os.close(self._status)
        self._ended(death)
        return death

    def _first(self) -> int:
        """The pid here, which another process has once this one is gone; 0 then."""
        with open(f"/proc/self/fdinfo/{self._pidfd}") as facts:
            pid = next(int(line.split()[1]) for line in facts if line.startswith("Pid:"))
        return max(pid, 0)


def unreported(death: Death, *, killed: bool) -> Death:
    """The death of a program whose namespace ended without a record."""
    if killed:
        return Death(signal=signal.SIGKILL)
    return Death(
        exit_code=death.exit_code, signal=death.signal, broken="the sandbox ended before its program"
    )


def read_status(descriptor: int) -> Death | None:
    """What `corerun.execution.inside.nanny` wrote, if it came to that. Programs can't reach it."""
    os.set_blocking(descriptor, False)
    try:
        record = json.loads(os.read(descriptor, 65536))
    except (OSError, ValueError):
        return None
    if "broken" in record:
        return Death(broken=record["broken"])
    death = _death(record["status"], resource.struct_rusage(record["usage"]))
    return replace(death, left=record["left"], leftovers=tuple(record["lines"]))


def _death(status: int, usage: resource.struct_rusage) -> Death:
    return Death(
        exit_code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        cpu_s=usage.ru_utime + usage.ru_stime,
        max_rss_mb=usage.ru_maxrss / 1024,
        read_mb=usage.ru_inblock / _BLOCKS_PER_MB,
        written_mb=usage.ru_oublock / _BLOCKS_PER_MB,
    )
