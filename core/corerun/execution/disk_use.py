"""How much of the disk a program's files take, whatever it does so that they aren't found."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512


def measure(folder: str, pids: Iterable[int] = (), most: int = sys.maxsize) -> tuple[int, int]:
    """Bytes on disk below a folder, and the number of files; links are not followed.

    Files without a name that one of ``pids`` holds open count too. It ends where more than ``most``
    files have been found.
    """
    try:
        here = os.open(folder, _FOLDER)
    except OSError:
        return 0, 0  # Deleted while we looked.
    disk = os.fstat(here).st_dev
    size = count = 0
    for blocks in _walk(here):
        size, count = size + blocks * _BLOCK, count + 1
        if count > most:
            return size, count
    for blocks in _nameless(pids, disk, most):
        size, count = size + blocks * _BLOCK, count + 1
    return size, count


def _walk(here: int) -> Iterator[int]:
    """The blocks of each file and folder below; closes ``here``.

    It goes down by descriptor and up by ``..``: a path could be made too long to be opened.
    """
    levels: list[tuple[tuple[int, int], list[str]]] = []
    entered = True
    try:
        while entered or levels:
            if entered:
                folders: list[str] = []
                levels.append((_identity(here), folders))
                with os.scandir(here) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.name)
                            yield 0
                        else:
                            yield _blocks(entry)
            _, folders = levels[-1]
            entered = bool(folders)
            if folders:
                there = _opened(folders.pop(), here)
                entered = there is not None
            else:
                levels.pop()
                there = _opened("..", here) if levels else None
                if levels and (there is None or _identity(there) != levels[-1][0]):
                    levels.clear()  # It was moved while we looked: the next walk will see it.
            if there is not None:
                os.close(here)
                here = there
    finally:
        os.close(here)


def _blocks(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks
    except OSError:
        return 0


def _opened(name: str, folder: int) -> int | None:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except OSError:
        return None


def _identity(descriptor: int) -> tuple[int, int]:
    facts = os.fstat(descriptor)
    return facts.st_dev, facts.st_ino


def _nameless(pids: Iterable[int], disk: int, most: int) -> Iterator[int]:
    """The blocks of each file on a disk that is deleted and still held open, once; ``most`` descriptors
    are looked at."""
    seen: set[int] = set()
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            descriptors = os.listdir(folder)[:most]
        except OSError:
            continue  # It has ended.
        most -= len(descriptors)
        for descriptor in descriptors:
            try:
                facts = os.stat(f"{folder}/{descriptor}")
            except OSError:
                continue
            is_nameless = not facts.st_nlink and facts.st_dev == disk and stat.S_ISREG(facts.st_mode)
            if is_nameless and facts.st_ino not in seen:
                seen.add(facts.st_ino)
                yield facts.st_blocks
