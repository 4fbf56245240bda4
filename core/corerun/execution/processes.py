"""Process trees as /proc shows them: which processes are ours, and how all of them are ended.

Every program's main process is a child subreaper, so its descendants stay below it however often
they fork or start sessions. When it ends, what it left behind becomes a child of this process,
which is a subreaper too. Such orphans are told from other children by two marks that they inherit:
the variable ``CORERUN_EXEC_ID``, and a hard RLIMIT_RTTIME in a range that nobody uses. The second
one survives an emptied environment and is readable on zombies; it limits nothing in practice.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import signal
from collections.abc import Iterable
from typing import NamedTuple

from corerun.errors import InfrastructureError
from corerun.execution.inside import kernel, nanny

MARKER = "CORERUN_EXEC_ID"
LEFTOVERS_SHOWN = nanny.COMMAND_LINES

_TAG_TOP = 1 << 60
_TAG_SPAN = 64
_SWEEP_ROUNDS = 100
_PAGE = os.sysconf("SC_PAGE_SIZE")

started: set[int] = set()
"""Pids that this process started itself and hasn't reaped; never taken for orphans."""

active: set[str] = set()
"""Ids of the executions under way in this process."""


class Row(NamedTuple):
    """What one line of /proc/PID/stat says of a process."""

    parent: int
    state: str


@functools.cache
def become_subreaper() -> bool:
    """Make this process the parent of orphaned descendants, once; False where that can't be."""
    try:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    except (OSError, AttributeError):
        return False
    return True


def tag() -> int:
    """The hard RLIMIT_RTTIME for programs of this process; one below our own when we are a program."""
    own = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
    return own - 1 if _TAG_TOP - _TAG_SPAN < own <= _TAG_TOP else _TAG_TOP


def read_table() -> dict[int, Row]:
    """All processes of the machine, by pid."""
    table: dict[int, Row] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            data = _read(f"/proc/{name}/stat")
            if data:
                fields = data[data.rindex(b")") + 2 :].split(None, 2)
                table[int(name)] = Row(int(fields[1]), fields[0].decode())
    return table


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        found.extend(int(word) for word in _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


@functools.cache
def _children_listed() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def descendants(pid: int) -> list[int]:
    """A process and all below it, without a look at the rest of the machine where that is possible."""
    if not _children_listed():
        return sorted(_below(read_table(), [pid]))
    found = [pid]
    for member in found:
        found.extend(children(member))
    return found


def _below(table: dict[int, Row], roots: Iterable[int]) -> set[int]:
    offspring: dict[int, list[int]] = {}
    for pid, row in table.items():
        offspring.setdefault(row.parent, []).append(pid)
    found = [root for root in roots if root in table]
    for member in found:
        found.extend(offspring.get(member, ()))
    return set(found)


def orphans(exec_id: str, leader: int) -> list[int]:
    """Children of this process that the execution left behind, zombies included.

    ``leader`` is its main process, which leads a session. An orphan whose execution can't be told
    belongs to whoever asks: its main process has ended.
    """
    me = os.getpid()
    if _children_listed():
        candidates = children(me)
    else:
        candidates = [pid for pid, row in read_table().items() if row.parent == me]
    return [pid for pid in candidates if pid not in started and _belongs(pid, exec_id, leader)]


def _belongs(pid: int, exec_id: str, leader: int) -> bool:
    mark = variable(pid, MARKER)
    if mark == exec_id or (mark not in active and _is_tagged(pid)):
        return True
    # What makes a sandbox isn't tagged yet, and the dead have no variables.
    try:
        return os.getsid(pid) == leader
    except ProcessLookupError:
        return False


def variable(pid: int, name: str) -> str:
    """A variable of the environment that a process was started with, or nothing."""
    prefix = f"{name}=".encode()
    for entry in _read(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return ""


def _is_tagged(pid: int) -> bool:
    for line in _read(f"/proc/{pid}/limits").splitlines():
        if line.startswith(b"Max realtime timeout"):
            hard = line.split()[-2]
            return hard.isdigit() and _TAG_TOP - _TAG_SPAN < int(hard) <= tag()
    return False


def command_line(pid: int) -> str:
    """The command line of a process on one printable line, at most 200 characters."""
    return nanny.one_line(_read(f"/proc/{pid}/cmdline")) or f"[pid {pid}]"


def _is_ending(pid: int) -> bool:
    """Whether a process has given back its memory, and with it its environment."""
    return _read(f"/proc/{pid}/statm").startswith(b"0 ")


def memory_bytes(pids: list[int], precise_above: float) -> int:
    """Resident memory of a tree.

    Forked copies share pages, so a sum above ``precise_above`` is taken again from the kernel's
    proportional figure, which is dear to read.
    """
    total = 0
    for pid in pids:
        words = _read(f"/proc/{pid}/statm").split()
        total += int(words[1]) * _PAGE if len(words) > 1 else 0
    if total <= precise_above or len(pids) == 1:
        return total
    return sum(_proportional_bytes(pid) for pid in pids)


def _proportional_bytes(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


async def kill_execution(exec_id: str, leader: int = 0, *, with_leader: bool = False) -> list[str]:
    """End every process that an execution left behind, and ``with_leader`` its main one and all below.

    Returns the command lines of what was killed, except the main one's. All are stopped before any is
    killed, so that none forks away between two looks; two looks that find nothing end the sweep.
    """
    killed: dict[int, str] = {}
    quiet = 0
    for turn in range(_SWEEP_ROUNDS):
        living = _living(exec_id, leader, with_leader)
        if not living:
            quiet += 1
            if quiet == 2:
                killed.pop(leader, None)
                return list(killed.values())
            continue
        quiet = 0
        for pid in living:
            if pid not in killed:
                line = command_line(pid)
                # What is ending already can be another execution's, whose sweep has killed it.
                if not _is_ending(pid):
                    killed[pid] = line
            _send(pid, signal.SIGSTOP)
        for pid in living | _living(exec_id, leader, with_leader):
            _send(pid, signal.SIGKILL)
        # Freeing a large memory takes the kernel a while; until then the dying are still listed.
        await asyncio.sleep(min(0.001 * 2**turn, 0.05))
    raise InfrastructureError(f"processes of a program survive SIGKILL: {', '.join(killed.values())[:300]}")


async def kill_stale(folder: str) -> list[str]:
    """End what a killed corerun left running in workspaces below ``folder``; returns command lines.

    Programs die with their parent by themselves, but not what they had started. Call it only
    while the lock of the run is held: then nobody else runs programs there.
    """
    killed: dict[int, str] = {}
    for turn in range(_SWEEP_ROUNDS):
        stale = [pid for pid, row in read_table().items() if row.state not in "ZX" and _works_in(pid, folder)]
        if not stale:
            return list(killed.values())
        for pid in stale:
            killed.setdefault(pid, command_line(pid))
            _send(pid, signal.SIGKILL)
        await asyncio.sleep(min(0.001 * 2**turn, 0.05))
    raise InfrastructureError(f"processes in {folder} survive SIGKILL: {', '.join(killed.values())[:300]}")


def _works_in(pid: int, folder: str) -> bool:
    mark = variable(pid, MARKER)
    if not mark or mark in active or pid == os.getpid():
        return False
    return os.path.realpath(variable(pid, "HOME")).startswith(os.path.realpath(folder) + os.sep)


def _living(exec_id: str, leader: int, with_leader: bool) -> set[int]:
    table = read_table()
    me = os.getpid()
    left = [
        pid
        for pid, row in table.items()
        if row.parent == me and pid not in started and _belongs(pid, exec_id, leader)
    ]
    for pid in left:
        if table[pid].state == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    roots = [*left, leader] if with_leader else left
    return {pid for pid in _below(table, roots) if table[pid].state not in "ZX"}


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        pieces = []
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
        return b"".join(pieces)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
