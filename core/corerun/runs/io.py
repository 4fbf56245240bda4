"""The only module that writes durable files: appended records, atomic replacements, blobs; no secrets."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from corerun.errors import StateError, Stopped
from corerun.redaction import redact, redact_bytes, redact_value

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that free space cures."""
_encode_compact = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_HEAD = 8192
"""Bytes in which a file that isn't text shows itself by a zero."""


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
            raise Stopped(
                f"no space left to write {self._path}", hint="free some space, then resume with --resume"
            ) from error
        raise StateError(f"can't write {self._path}: {error.strerror or error}") from error


def append(descriptor: int, record: bytes) -> None:
    """Write one record with one call, so that a killed process leaves at most one torn tail.

    A part that was written before an ``OSError`` is taken back.
    """
    written = os.write(descriptor, record)
    try:
        while written < len(record):  # only when the disk is full or a signal came in between
            written += os.write(descriptor, record[written:])
    except OSError:
        os.truncate(descriptor, os.fstat(descriptor).st_size - written)
        raise


def replace(path: Path, content: str | bytes, *, sync: bool = True, as_is: bool = False) -> bytes:
    """Put ``content`` at ``path`` so that a reader sees the old file or the new one, never a part.

    Returns what was written: text without its secrets, anything else unchanged. ``as_is``: there are
    none in it, whoever calls this has seen to that.
    """
    body = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if not as_is:
        body = _clean(body)
    with reported(path):
        temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            descriptor = os.open(temporary, flags, 0o644)
        except FileNotFoundError:  # rare, so asked only now
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, flags, 0o644)
        try:
            append(descriptor, body)
            if sync:
                os.fsync(descriptor)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)  # a full disk needs the space
            raise
        finally:
            os.close(descriptor)
    return body


def _clean(body: bytes) -> bytes:
    return body if b"\0" in body[:_HEAD] else redact_bytes(body)


def clean_file(path: Path) -> None:
    """Take the secrets out of a regular file that somebody else wrote, if it is there and has any."""
    if path.is_file():
        with reported(path):
            body = path.read_bytes()
        clean = _clean(body)
        if clean is not body:
            replace(path, clean, sync=False, as_is=True)


def json_text(value: Any, **options: Any) -> str:
    """``value`` as JSON that every reader takes: NaN and infinity, which JSON lacks, become null, and
    strings are without secrets."""
    return _clean_json(value, json.JSONEncoder(allow_nan=False, **options).encode)


def compact_json(value: Any) -> str:
    """`json_text` without blanks."""
    return _clean_json(value, _encode_compact)


def _clean_json(value: Any, encode: Callable[[Any], str]) -> str:
    text = _json(value, encode)
    # One look at the whole text; string by string only when there is something to hide.
    return text if redact(text) is text else _json(redact_value(value), encode)


def _json(value: Any, encode: Callable[[Any], str]) -> str:
    try:
        return encode(value)
    except ValueError:
        return encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def replace_json(path: Path, value: Any, *, indent: int | None = 2, sort_keys: bool = False) -> None:
    """`replace` with a JSON document in UTF-8."""
    text = json_text(value, indent=indent, sort_keys=sort_keys, ensure_ascii=False)
    # A lone surrogate has no UTF-8 form; its escape is also how JSON writes it.
    replace(path, (text + "\n").encode("utf-8", "backslashreplace"), as_is=True)


def store_blob(directory: Path, body: bytes) -> str:
    """Keep ``body`` without its secrets under its sha256, and return that name; the same body is stored
    once. JSON stays JSON.

    The file is whole when its name is returned, so nothing refers to one that a kill cut off.
    """
    clean = _clean(body)
    if clean is not body:
        # JSON is read first: a number may look like a secret, too.
        with suppress(ValueError):
            clean = json_text(json.loads(body), separators=(",", ":"), sort_keys=True).encode()
    name = hashlib.sha256(clean).hexdigest()
    path = os.path.join(directory, name)
    with reported(path):
        try:
            descriptor = os.open(path, _NEW, 0o644)
        except FileNotFoundError:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, _NEW, 0o644)
        except FileExistsError:
            # A process that was killed may have left a part.
            if os.stat(path).st_size != len(clean):
                replace(Path(path), clean, sync=False, as_is=True)
            return name
        try:
            append(descriptor, clean)
        except OSError:
            os.unlink(path)  # a full disk needs the space
            raise
        finally:
            os.close(descriptor)
    return name


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file into place atomically, by a hard link where the file system allows it."""
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name[:80]}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        shutil.copyfile(source, temporary, follow_symlinks=False)
        os.replace(temporary, target)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder of ours; symbolic links stay links."""
    with reported(target):
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def remove_temporary_files(directory: Path) -> None:
    """Remove what a killed process left half written in ``directory`` and its blobs."""
    for folder in (directory, directory / "blobs"):
        if folder.is_dir():
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
