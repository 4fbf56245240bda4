"""The only module that writes durable files: appended records, atomic replacements, blobs; no secrets."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from corerun.errors import DiskFull, StateError
from corerun.runs import content, faults

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that free space cures."""
_PIECE = 1 << 20
_TEMPORARY = re.compile(r"\..*\.[0-9]+\.tmp", re.DOTALL)
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM})
"""What a folder says that can't be synced, or not by us."""
_NO_RESERVE = FULL | {errno.EINVAL, errno.ENOTSUP}
_power: set[str] = set()


class reported:
    """Turns an ``OSError`` into the error that names the file and says whether to go on later."""

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in FULL:
            raise DiskFull(
                f"no space left to write {self._path}", hint="free some space, then resume with --resume"
            ) from error
        raise StateError(
            f"can't write {self._path}: {error.strerror or error}",
            hint="check the disk and who may write there, then resume with --resume",
        ) from error


# -------------------------------------------------------------------------------------- power loss


def promise_power(folder: Path) -> None:
    """From now on a file below ``folder`` is on the disk, with its name, when the function that wrote it
    returns; so is ``folder`` itself. Appended records are when `sync` returns."""
    place = os.path.abspath(folder)
    with reported(folder):
        while True:
            _sync_folder(place)
            if place == os.path.dirname(place):
                break
            place = os.path.dirname(place)
    _power.add(os.path.abspath(folder))


def end_power(folder: Path) -> None:
    """Take `promise_power` back."""
    _power.discard(os.path.abspath(folder))


def _promised(path: str | Path) -> bool:
    if not _power:
        return False
    place = os.path.abspath(path)
    return any(place == folder or place.startswith(folder + os.sep) for folder in _power)


def _sync_folder(folder: str | Path) -> None:
    faults.point("folder.sync")
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ records


def open_log(path: Path) -> int:
    """The file at ``path`` for `append`, made with its folder if it isn't there."""
    with reported(path):
        make_folder(path.parent)
        faults.point("log.open")
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def append(descriptor: int, record: bytes) -> None:
    """Write one record with one call, so that a killed process leaves at most one torn tail.

    A part that was written before an ``OSError`` is taken back. Where that fails too the error is
    ``EIO``, since nothing may follow the part.
    """
    written = 0
    try:
        while written < len(record):  # more than once only when the disk is full or a signal came in between
            faults.point("append.write", descriptor, record[written:])
            written += os.write(descriptor, record[written:])
    except OSError:
        if written:
            try:
                _shorten(descriptor, os.fstat(descriptor).st_size - written)
            except OSError as error:
                said = f"a part of a record can't be taken back: {error.strerror}"
                raise OSError(errno.EIO, said) from error
        raise


def sync(descriptor: int) -> None:
    """Wait until the disk has what was appended. An error may not be taken for a passing one: a disk can
    forget what it failed to keep and answer ok to the next call."""
    faults.point("log.sync")
    os.fdatasync(descriptor)


def cut(descriptor: int, size: int) -> None:
    """Shorten a log to its first ``size`` bytes, and wait until the disk has it so."""
    _shorten(descriptor, size)
    os.fsync(descriptor)


def _shorten(descriptor: int, size: int) -> None:
    faults.point("log.cut")
    os.ftruncate(descriptor, size)


def open_lock(path: Path) -> int:
    """The file at ``path`` for `overwrite`, made if it isn't there."""
    with reported(path):
        faults.point("lock.open")
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def overwrite(descriptor: int, body: bytes) -> None:
    """Make ``body`` the content of an open file, in place: for one that says no more than who holds it."""
    faults.point("lock.write", descriptor, body)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, body, 0)


def make_lock(path: Path, body: bytes) -> int:
    """A new file with ``body``, open for `renew_lock`; FileExistsError if there is one already."""
    faults.point("lock.open")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        overwrite(descriptor, body)
    except BaseException:
        os.close(descriptor)
        _remove(path)
        raise
    return descriptor


def renew_lock(descriptor: int) -> None:
    """Give a file the time that its server has now."""
    os.utime(descriptor)


def move_lock(path: Path, target: Path) -> None:
    """Give a file of `make_lock` another name."""
    os.replace(path, target)


def remove_lock(path: Path) -> None:
    """Remove a file of `make_lock`, if it is still there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def reserve(path: Path, size: int) -> None:
    """Keep ``size`` bytes of the disk in a file until `release`, if there are so many."""
    with reported(path):
        try:
            faults.point("ballast.reserve")
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            _remove(path)
            if error.errno not in _NO_RESERVE:
                raise


def release(path: Path) -> bool:
    """Give back what `reserve` keeps; False if nothing is kept. Raises OSError."""
    faults.point("ballast.drop")
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


# -------------------------------------------------------------------------------------- whole files


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, as far as they aren't there. Raises OSError."""
    if os.path.isdir(path):
        return
    make_folder(path.parent, mode)
    try:
        new_folder(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def new_folder(path: Path, mode: int = 0o777) -> None:
    """Make one folder that nobody has made. Raises OSError."""
    faults.point("folder.make")
    os.mkdir(path, mode)
    if _promised(path):
        _sync_folder(path.parent)


def replace(path: Path, text: str | bytes, *, sync: bool = True, as_is: bool = False) -> bytes:
    """Put ``text`` at ``path`` so that a reader sees the old file or the new one, never a part.

    Returns what was written: text without its secrets, anything else unchanged. ``as_is``: there are
    none in it, whoever calls this has seen to that. ``sync`` False: after a power cut the file may be
    empty, unless more was promised.
    """
    body = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not as_is:
        body = content.clean(body)
    power = _promised(path)
    with reported(path):
        temporary, descriptor = _temporary(path)
        try:
            try:
                faults.point("replace.write", descriptor, body)
                _write(descriptor, body)
                if sync or power:
                    faults.point("replace.sync")
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            faults.point("replace.rename")
            os.replace(temporary, path)
        except OSError:
            _remove(temporary)  # a full disk needs the space
            raise
        if power:
            _sync_folder(path.parent)
    return body


def _temporary(path: Path) -> tuple[str, int]:
    """A new file beside ``path``, open for writing: its name is what `remove_temporary_files` looks for."""
    name = os.path.join(path.parent, f".{path.name[:80]}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    faults.point("temporary.open")
    try:
        return name, os.open(name, flags, 0o644)
    except FileNotFoundError:  # rare, so asked only now
        make_folder(path.parent)
    except FileExistsError:  # left by a process that was killed and had our number
        os.unlink(name)
    return name, os.open(name, flags, 0o644)


def _write(descriptor: int, body: bytes) -> None:
    written = os.write(descriptor, body)
    while written < len(body):
        written += os.write(descriptor, body[written:])


def _remove(path: str | Path) -> None:
    with suppress(OSError):
        os.unlink(path)


def clean_file(path: Path) -> None:
    """Take the secrets out of a regular file that somebody else wrote, if it is there and has any."""
    if path.is_file():
        with reported(path):
            body = path.read_bytes()
        clean = content.clean(body)
        if clean is not body:
            replace(path, clean, sync=False, as_is=True)


def replace_json(path: Path, value: Any, *, indent: int | None = 2, sort_keys: bool = False) -> None:
    """`replace` with a JSON document in UTF-8."""
    text = content.json_text(value, indent=indent, sort_keys=sort_keys, ensure_ascii=False)
    # A lone surrogate has no UTF-8 form; its escape is also how JSON writes it.
    replace(path, (text + "\n").encode("utf-8", "backslashreplace"), as_is=True)


# ------------------------------------------------------------------------------------ blobs, copies


def store_blob(directory: Path, body: bytes) -> str:
    """Keep ``body`` without its secrets under its sha256, and return that name; the same body is stored
    once. JSON stays JSON.

    The file is whole when its name is returned, so nothing refers to one that a kill cut off.
    """
    clean = content.clean(body)
    if clean is not body:
        # JSON is read first: a number may look like a secret, too.
        with suppress(ValueError):
            clean = content.json_text(json.loads(body), separators=(",", ":"), sort_keys=True).encode()
    name = hashlib.sha256(clean).hexdigest()
    path = os.path.join(directory, name)
    power = _promised(path)
    with reported(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        faults.point("blob.open")
        try:
            descriptor = os.open(path, flags, 0o644)
        except FileNotFoundError:
            make_folder(directory)
            descriptor = os.open(path, flags, 0o644)
        except FileExistsError:
            # A killed process may have left a part, a power cut a file without its content.
            if Path(path).read_bytes() != clean:
                replace(Path(path), clean, sync=False, as_is=True)
            return name
        try:
            faults.point("blob.write", descriptor, clean)
            _write(descriptor, clean)
            if power:
                faults.point("blob.sync")
                os.fsync(descriptor)
        except OSError:
            _remove(path)  # a full disk needs the space
            raise
        finally:
            os.close(descriptor)
        if power:
            _sync_folder(directory)
    return name


def copy_file(source: Path, target: Path, *, sync: bool = False) -> None:
    """Copy a regular file into place so that a reader sees the old file or the new one, never a part."""
    power = _promised(target)
    with reported(target):
        temporary, descriptor = _temporary(target)
        try:
            try:
                _copy(source, descriptor)
                if sync or power:
                    faults.point("copy.sync")
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            faults.point("copy.rename")
            os.replace(temporary, target)
        except OSError:
            _remove(temporary)
            raise
        if power:
            _sync_folder(target.parent)


def _copy(source: str | Path, descriptor: int) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(reader).st_mode):
            raise OSError(errno.EINVAL, f"{source} is no regular file")
        while piece := os.read(reader, _PIECE):
            faults.point("copy.write", descriptor, piece)
            _write(descriptor, piece)
    finally:
        os.close(reader)


def move(source: Path, target: Path) -> None:
    """Give a file or folder of ours another name, in place of what may bear it."""
    with reported(target):
        faults.point("move.rename")
        os.replace(source, target)
        if _promised(target):
            _sync_folder(target.parent)
            _sync_folder(source.parent)


def link(path: Path, aim: str | Path) -> None:
    """Make a symbolic link at ``path``. Raises OSError."""
    faults.point("link.make")
    os.symlink(aim, path)
    if _promised(path):
        _sync_folder(path.parent)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder of ours; symbolic links stay links."""
    with reported(target):
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, copy_function=_copy_as_it_is)


def _copy_as_it_is(source: str, target: str) -> None:
    copy_file(Path(source), Path(target))
    shutil.copystat(source, target)


def remove_temporary_files(directory: Path) -> None:
    """Remove what a killed process left half written below ``directory``, but where programs ran.

    Whoever calls this owns the run, so nobody else is writing.
    """
    for folder, folders, files in os.walk(directory):
        if folder == os.fspath(directory):
            folders[:] = [name for name in folders if name != "nodes"]
        for name in files:
            if _TEMPORARY.fullmatch(name):
                with reported(os.path.join(folder, name)):
                    faults.point("temporary.remove")
                    os.unlink(os.path.join(folder, name))
