"""System calls that Python lacks: prctl, landlock, seccomp, namespaces, mounts."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn
else:
    # What the module signal is made of; itself it imports enum, which takes milliseconds.
    import _signal as signal

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

CLONE_PIDFD = 0x00001000
CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096

# The calls that are newer than 2019 have one number on all machines; clone has not.
_CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine, -1)
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 445, 446
_LANDLOCK_RULE_PATH_BENEATH = 1
_CAPABILITY_VERSION_3 = 0x20080522
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _fail(what: str) -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


def _call(what: str, *arguments: object) -> int:
    result: int = _syscall(*arguments)
    if result < 0:
        _fail(what)
    return result


def prctl(option: int, value: object) -> None:
    """prctl(2) with one argument; OSError when the kernel refuses."""
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        _fail(f"prctl {option}")


def die_with(parent: int | None) -> None:
    """End this process when the thread that started it ends; None: no look whether that has happened."""
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if parent is not None and os.getppid() != parent:
        os._exit(125)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_system_calls(program: bytes) -> None:
    """Hand a classic BPF program (8 bytes an instruction) to seccomp(2); it can't be taken back."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    record = _Program(len(program) // 8, program)
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(record), 0, 0) != 0:
        _fail("seccomp")


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def allow_path(ruleset: int, path: str, access: int) -> None:
    """Add a path and all below it to a landlock ruleset."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(access, descriptor)
        _call(
            f"landlock {path}",
            _LANDLOCK_ADD_RULE,
            ruleset,
            _LANDLOCK_RULE_PATH_BENEATH,
            ctypes.byref(rule),
            0,
        )
    finally:
        os.close(descriptor)


def restrict_paths(ruleset: int) -> None:
    """Confine this process and all it starts to a landlock ruleset."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    _call("landlock", _LANDLOCK_RESTRICT_SELF, ruleset, 0)


def clone(flags: int) -> tuple[int, int]:
    """Fork into new namespaces; returns the child's pid and a pidfd of it, or (0, -1) in the child.

    It is the bare system call: no at-fork handler runs, so this process must have one thread only
    and the child should fork once more before it does anything of weight.
    """
    if _CLONE < 0:
        raise OSError(38, f"no fast start on {os.uname().machine}")
    pidfd = ctypes.c_int(-1)
    pid = _call("clone", _CLONE, flags | CLONE_PIDFD | int(signal.SIGCHLD), 0, ctypes.byref(pidfd), 0, 0)
    return pid, pidfd.value if pid else -1


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


# Made here, since each program would have to make the type anew.
_THIS_PROCESS = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
_NO_CAPABILITIES = (ctypes.c_uint32 * 6)()


def drop_capabilities() -> None:
    """Give up all power over this process's user namespace; what it starts can't get it back."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if _libc.capset(ctypes.byref(_THIS_PROCESS), _NO_CAPABILITIES) != 0:
        _fail("capset")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        _fail(f"mount {target}")


def take_tree(path: str) -> int:
    """A copy of what is mounted at ``path`` and below, not attached anywhere: a descriptor for `put_tree`."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return _call(f"open_tree {path}", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def put_tree(tree: int, path: str) -> None:
    """Attach what `take_tree` took at ``path`` and close it."""
    _call(
        f"move_mount {path}",
        _MOVE_MOUNT,
        tree,
        b"",
        _AT_FDCWD,
        os.fsencode(path),
        _MOVE_MOUNT_F_EMPTY_PATH,
    )
    os.close(tree)
