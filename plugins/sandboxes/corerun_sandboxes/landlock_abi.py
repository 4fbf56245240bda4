"""The kernel's Landlock interface: rights on files, and rulesets made of them."""

from __future__ import annotations

import ctypes
import functools
import os
import stat

from corerun.execution.inside import kernel

# Rights on files and folders, in the order of their bits.
EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = (1 << bit for bit in range(4))
REMOVE_FOLDER, REMOVE_FILE, MAKE_CHARACTER_DEVICE, MAKE_FOLDER = (1 << bit for bit in range(4, 8))
MAKE_FILE, MAKE_SOCKET, MAKE_FIFO, MAKE_BLOCK_DEVICE = (1 << bit for bit in range(8, 12))
MAKE_LINK, MOVE, TRUNCATE, DEVICE_CONTROL = (1 << bit for bit in range(12, 16))

READ = EXECUTE | READ_FILE | READ_FOLDER
WRITE = (
    WRITE_FILE | TRUNCATE | MOVE | REMOVE_FOLDER | REMOVE_FILE
    | MAKE_FOLDER | MAKE_FILE | MAKE_SOCKET | MAKE_FIFO | MAKE_LINK
)  # fmt: skip
"""Without devices: the superuser could make one that is the whole disk."""
USE_DEVICE = READ_FILE | WRITE_FILE | DEVICE_CONTROL
_ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | DEVICE_CONTROL

ABI_TRUNCATE, ABI_TCP, ABI_SCOPES = 3, 4, 6
"""From these versions of the interface on it covers truncation, TCP, and signals."""

_FILE_RIGHTS = {1: MOVE, 2: TRUNCATE, 3: DEVICE_CONTROL, 4: DEVICE_CONTROL}
"""By version: the first right that it doesn't know yet."""
_BIND_AND_CONNECT_TCP = 3
_ABSTRACT_SOCKETS_AND_SIGNALS = 3
_CREATE_RULESET = 444
_QUERY_VERSION = 1

_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def version() -> int:
    """The version of the interface; 0 where the kernel has none or it is switched off."""
    found: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _QUERY_VERSION)
    return max(0, found)


def known_rights() -> int:
    """All rights on files that this kernel can withhold."""
    return _FILE_RIGHTS.get(version(), DEVICE_CONTROL << 1) - 1


def new_ruleset(*, network: bool) -> int:
    """A descriptor of a ruleset that withholds everything this kernel can, but TCP with ``network``."""
    words = [known_rights()]
    if version() >= ABI_TCP:
        words.append(0 if network else _BIND_AND_CONNECT_TCP)
    if version() >= ABI_SCOPES:
        words.append(_ABSTRACT_SOCKETS_AND_SIGNALS)
    record = (ctypes.c_uint64 * len(words))(*words)
    size = ctypes.c_size_t(ctypes.sizeof(record))
    descriptor: int = _libc.syscall(_CREATE_RULESET, ctypes.byref(record), size, 0)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    os.set_inheritable(descriptor, False)
    return descriptor


def allow(ruleset: int, path: str, rights: int) -> None:
    """Allow as much of ``rights`` as the kernel knows and the kind of the file takes, if it exists."""
    try:
        on_files = not stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return
    kernel.allow_path(ruleset, path, rights & known_rights() & (_ON_FILES if on_files else ~0))
