"""Control groups: the kernel's own limits on memory and processes of one program.

Version 1 needs the superuser; version 2 a subtree that was delegated to this account. Where neither
is there, the watchdog looks after memory and processes alone. Source: cgroup-v1/memory, cgroup-v1/pids
and cgroup-v2 of the kernel's admin guide.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from corerun.errors import InfrastructureError

MOUNT = "/sys/fs/cgroup"
_PREFIX = "corerun-"
_OWNER = "corerun-owner"
_MIB = 1024 * 1024
_CONTROLLERS = ("memory", "pids")
_GUARANTEES = {"memory": "mem_total", "pids": "pids"}
# One more process than the program may have: the one that watches over its namespace.
_WATCHERS = 1
_JOIN = ("/bin/sh", "-c", "echo 0")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a control group saw: the highest memory in MB, and how many processes it killed for memory."""

    peak_mb: float = 0.0
    oom_kills: int = 0


class Group:
    """The control groups of one program, one folder a hierarchy.

    ``descriptors`` are open cgroup.procs files: a process that writes 0 to one joins.
    """

    def __init__(self, folders: tuple[str, ...]) -> None:
        self._folders = folders
        self._outcome: Outcome | None = None
        self._open: list[int] = []
        try:
            for folder in folders:
                self._open.append(os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            self.let_go()
            raise
        self.descriptors = tuple(self._open)

    @property
    def holds_all(self) -> bool:
        """Whether the kernel holds both memory and processes."""
        return bool(self._folders) and len(_home()) == len(_CONTROLLERS)

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed so far because the memory was used up."""
        # A folder without memory files tells nothing.
        return max(map(_oom_kills, self._folders), default=0)

    def let_go(self) -> None:
        """Close the descriptors, once the program holds them."""
        while self._open:
            os.close(self._open.pop())

    def close(self) -> Outcome:
        """Kill what is in the groups, remove them and tell what they saw; again, it tells the same."""
        if self._outcome is None:
            self.let_go()
            peak_mb = max(map(_peak_mb, self._folders), default=0.0)
            self._outcome = Outcome(peak_mb, self.oom_kills())
            for folder in self._folders:
                _remove(folder)
        return self._outcome


def guarantees() -> frozenset[str]:
    """What groups give here: some of mem_total, pids; found by letting a process join one, once."""
    return frozenset(_GUARANTEES[name] for name in _home())


def make(exec_id: str, memory_mb: int, pids: int) -> Group:
    """New groups with limits; without any where this machine lets us make none.

    Raises `InfrastructureError` when groups that could be made before can't be made now: a program
    that was promised limits doesn't run without them.
    """
    home = _home()
    if not home:
        return Group(())
    _bury()
    made: dict[str, None] = {}
    try:
        for controller, parent in home.items():
            folder = f"{parent}/{exec_id}"
            if folder not in made:
                # With the folder above it, should somebody have tidied that away.
                os.makedirs(folder)
                made[folder] = None
            _limit(folder, controller, memory_mb, pids)
        return Group(tuple(made))
    except OSError as error:
        for folder in made:
            _remove(folder)
        raise InfrastructureError(f"no control group for a program: {error}") from error


def _limit(folder: str, controller: str, memory_mb: int, pids: int) -> None:
    if controller == "pids":
        _write(f"{folder}/pids.max", pids + _WATCHERS)
    elif os.path.exists(f"{folder}/memory.limit_in_bytes"):
        _write(f"{folder}/memory.limit_in_bytes", memory_mb * _MIB)
        with contextlib.suppress(OSError):  # The kernel may have no accounting of swap.
            _write(f"{folder}/memory.memsw.limit_in_bytes", memory_mb * _MIB)
    else:
        _write(f"{folder}/memory.max", memory_mb * _MIB)
        with contextlib.suppress(OSError):
            _write(f"{folder}/memory.swap.max", 0)
        with contextlib.suppress(OSError):
            # Else the kernel may leave half of a program alive.
            _write(f"{folder}/memory.oom.group", 1)


# ------------------------------------------------------------------------------ where groups go


@functools.cache
def _home() -> Mapping[str, str]:
    """By controller, the folder for this process's groups; only where a process could join one there."""
    found: dict[str, str] = {}
    for controller in _CONTROLLERS:
        parent = _below_own(controller)
        if parent is None or not os.path.isdir(parent):
            continue
        _remove_stale(parent)
        folder = f"{parent}/{_PREFIX}{_identity(os.getpid())}"
        try:
            os.makedirs(folder, exist_ok=True)
            if os.path.exists(f"{folder}/cgroup.subtree_control"):
                _write(f"{folder}/cgroup.subtree_control", f"+{controller}")
            _try(folder, controller)
        except (OSError, subprocess.SubprocessError):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            continue
        found[controller] = folder
        atexit.register(_leave, folder, os.getpid())
    return found


def _try(parent: str, controller: str) -> None:
    folder = f"{parent}/trial"
    os.mkdir(folder)
    try:
        _limit(folder, controller, 64, 8)
        descriptor = os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            subprocess.run(
                _JOIN,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.DEVNULL,
                check=True,
                timeout=10,
            )
        finally:
            os.close(descriptor)
    finally:
        _remove(folder)


def _below_own(controller: str) -> str | None:
    """The folder of the group that this process is in, of the hierarchy that has a controller."""
    try:
        lines = [line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines()]
    except OSError:
        return None
    for number, names, path in lines:
        if controller in names.split(","):
            return _existing(f"{MOUNT}/{controller}", path)
        if number == "0" and os.path.exists(f"{MOUNT}/cgroup.controllers"):
            # One of our workers is in the group that its parent has put itself into.
            own = _existing(MOUNT, path).removesuffix(f"/{_OWNER}")
            return own if _delegated(own, controller) else None
    return None


def _existing(mount: str, path: str) -> str:
    # In a container the path may be that of the host, and the mount shows our own group at its top.
    folder = mount + path.rstrip("/")
    return folder if os.path.isdir(folder) else mount


def _delegated(folder: str, controller: str) -> bool:
    """Whether groups below may have a controller. It takes a process that is alone in its group."""
    try:
        if controller not in _read(f"{folder}/cgroup.controllers").split():
            return False
        if controller in _read(f"{folder}/cgroup.subtree_control").split():
            return True
        leaf = f"{folder}/{_OWNER}"
        os.makedirs(leaf, exist_ok=True)
        _write(f"{leaf}/cgroup.procs", 0)
        try:
            _write(f"{folder}/cgroup.subtree_control", f"+{controller}")
        except OSError:
            _write(f"{folder}/cgroup.procs", 0)
            return False
        return True
    except OSError:
        return False


def _remove_stale(parent: str) -> None:
    """Remove the groups of processes that were killed before they could do so."""
    namespace = _identity(os.getpid()).partition("-")[0]
    for name in _names(parent):
        words = name.removeprefix(_PREFIX).split("-")
        # Of a process that can't be seen from here nobody knows whether it lives.
        if len(words) != 3 or words[0] != namespace or not words[1].isdigit():
            continue
        if _identity(int(words[1])) != "-".join(words):
            _remove(f"{parent}/{name}")


def _identity(pid: int) -> str:
    """What no other process of this machine is called, whenever it began; nothing once it is gone."""
    with contextlib.suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
        return f"{namespace}-{pid}-{_read(f'/proc/{pid}/stat').rpartition(')')[2].split()[19]}"
    return ""


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


# ---------------------------------------------------------------------------------- their end

_undead: list[str] = []
"""Groups that couldn't be removed yet: something in them was still dying."""
_BURY_S = 1.0
_buried = 0.0


def _bury() -> None:
    global _buried
    now = time.monotonic()
    if _undead and now - _buried > _BURY_S:
        again, _undead[:] = list(_undead), []
        for folder in again:
            _remove(folder)
        _buried = time.monotonic()


def _leave(folder: str, owner: int) -> None:
    # A process that was forked comes here too.
    if os.getpid() == owner:
        _remove(folder)


def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
        return
    except FileNotFoundError:
        return
    except OSError:
        pass
    # A program may have made groups below its own.
    for name in _names(folder):
        _remove(f"{folder}/{name}")
    _kill(folder)
    try:
        os.rmdir(folder)
    except OSError:
        _undead.append(folder)


def _kill(folder: str) -> None:
    if os.path.exists(f"{folder}/cgroup.kill"):
        with contextlib.suppress(OSError):
            _write(f"{folder}/cgroup.kill", 1)
        return
    with contextlib.suppress(OSError):
        # Those of another process namespace have the number 0, which would mean our own group.
        for word in set(_read(f"{folder}/cgroup.procs").split()) - {"0"}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(word), signal.SIGKILL)


def _peak_mb(folder: str) -> float:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        with contextlib.suppress(OSError, ValueError):
            return int(_read(f"{folder}/{name}")) / _MIB
    return 0.0


def _oom_kills(folder: str) -> int:
    for name in ("memory.oom_control", "memory.events"):
        with contextlib.suppress(OSError, ValueError):
            facts = dict(line.split() for line in _read(f"{folder}/{name}").splitlines())
            return int(facts.get("oom_kill", 0))
    return 0


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, value: object) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)
