"""Unpacks zip and tar archives that nobody vouches for: all of one, within limits, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from corerun.errors import CorerunError, StateError, UsageError
from corerun.inputs.members import FOLDER, HARD_LINK, LINK, Member, Names
from corerun.inputs.packed import tar_members, zip_members

MOST_FILES = 50_000
MOST_BYTES = 5_000_000_000
HIGHEST_RATIO = 200
"""Bytes written for each byte of the archive."""
ALWAYS_ALLOWED = 1_048_576
"""Bytes that may be written whatever the ratio is: small archives of empty tables are no bombs."""

_CHUNK = 256 * 1024


def extract(archive: Path, target: Path) -> list[str]:
    """Unpack ``archive`` (zip, tar, tar.gz, tar.bz2 or tar.xz, told by its content) as the folder ``target``.

    Returns the paths of its files and links, sorted, relative to ``target``, which must not be there yet or
    be empty. What is made is private to this account; of the modes in the archive only the right to
    execute is kept. Sizes are counted as bytes are unpacked, whatever the archive says of itself.

    Raises `UsageError` that names the member for one that would leave ``target``, that is no file, folder
    or link within it, that is there twice, also in other case, or that passes a limit; for a damaged
    archive as well. `StateError`: it couldn't be written. After an error nothing of it is there.
    """
    if not archive.is_file():
        raise UsageError("there is no such archive", where=str(archive))
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UsageError("is there already", where=str(target), hint="name a folder that isn't there yet")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from None
    try:
        made = _unpack(archive, private)
        try:
            private.rename(target)
        except OSError as error:
            raise _unwritable(target, error) from None
    except BaseException:
        shutil.rmtree(private, ignore_errors=True)
        raise
    return made


def _unpack(archive: Path, folder: Path) -> list[str]:
    written = _Counter(archive.stat().st_size)
    read = _Counter(archive.stat().st_size)
    names = Names(MOST_FILES)
    links: dict[str, str] = {}
    made: list[str] = []
    place = str(archive)
    try:
        with archive.open("rb") as file:
            for member in _members(file, read):
                place = f"{archive}: {member.name!r}"
                path = names.take(member)
                if member.kind == FOLDER:
                    _make_folder(folder / path)
                elif member.kind == LINK:
                    links[path] = member.target
                else:
                    is_copy = member.kind == HARD_LINK
                    with (
                        (folder / names.file(member.target)).open("rb")
                        if is_copy
                        else member.open() as source
                    ):
                        _write(folder / path, source, written, executable=member.executable)
                    made.append(path)
                place = str(archive)
        # After all files, so that none was written through a link.
        for path, to in links.items():
            place = f"{archive}: {path!r}"
            _make_folder((folder / path).parent)
            os.symlink(to, folder / path)
        root = os.path.realpath(folder)
        for path in links:
            place = f"{archive}: {path!r}"
            if not f"{os.path.realpath(folder / path)}/".startswith(f"{root}/"):
                raise UsageError("is a link that leads out of the archive")
    except CorerunError as error:
        error.where = error.where or place
        raise
    except MemoryError:
        raise UsageError("needs too much memory to unpack", where=place) from None
    except Exception as error:
        # The readers of archives raise whatever a damaged byte leads them to.
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"can't be unpacked: {type(error).__name__}: {said}", where=place) from None
    return sorted([*made, *links])


def _members(file: BinaryIO, read: _Counter) -> Iterator[Member]:
    head = file.read(4)
    file.seek(0)
    if head in (b"PK\x03\x04", b"PK\x05\x06"):
        return zip_members(file)
    return tar_members(file, head, read.add)


class _Counter:
    """Adds up bytes that came out of an archive of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._total = 0

    def add(self, count: int) -> None:
        """Raises `UsageError` when it is too much."""
        self._total += count
        if self._total > MOST_BYTES:
            raise UsageError(f"unpacks to more than {MOST_BYTES:,} bytes")
        if self._total > max(ALWAYS_ALLOWED, self._size * HIGHEST_RATIO):
            raise UsageError(f"unpacks to more than {HIGHEST_RATIO} times its size, as bombs do")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def _write(path: Path, source: BinaryIO, counter: _Counter, *, executable: bool) -> None:
    _make_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700 if executable else 0o600)
    except OSError as error:
        raise _unwritable(path, error) from None
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        while chunk := source.read(_CHUNK):
            counter.add(len(chunk))
            try:
                while chunk:
                    chunk = chunk[file.write(chunk) :]
            except OSError as error:
                raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(f"can't be written: {error.strerror or error}", where=str(path))
