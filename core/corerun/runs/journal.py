"""The append-only event journal: the only truth about a run; every other file is derived from it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from corerun.errors import StateError, Stopped
from corerun.interfaces import Event
from corerun.runs import events as kinds
from corerun.runs import io

MAX_BODY = 64 * 1024
"""Bytes of a record's data beyond which it goes to a blob."""

SYNC_EVERY_S = 0.05
_compact = json.JSONEncoder(separators=(",", ":")).encode
POWER_SAFE = frozenset({kinds.NODE_DONE, kinds.CALL_ANSWERED})


def encode(event: Event, body: str | None = None) -> bytes:
    """One line: the record as JSON, closed by the crc32 of everything before ``,"crc":`` plus ``}``.

    ``body`` is the data as compact JSON in ASCII, where that is known already.
    """
    if body is None:
        body = _compact(event.data)
    record = f'{{"seq":{event.seq},"t":{event.t},"type":{_compact(event.type)},"data":{body}}}'.encode()
    return b'%s,"crc":"%08x"}\n' % (record[:-1], zlib.crc32(record))


def decode(line: bytes) -> Event:
    """The record of one line; `ValueError` says why a line is none."""
    head, mark, tail = line.rstrip(b"\n").rpartition(b',"crc":"')
    if not mark or not line.endswith(b'"}\n') or len(tail) != 10:
        raise ValueError("not a complete record")
    if b"%08x" % zlib.crc32(head + b"}") != tail[:8]:
        raise ValueError("checksum doesn't match")
    record = json.loads(head + b"}")
    try:
        return Event(record["seq"], record["t"], record["type"], record["data"])
    except (KeyError, TypeError) as error:
        raise ValueError("not a record") from error


def digest(event: Event) -> str:
    """sha256 of a record, by which the next record of the audit chain names it."""
    body = json.dumps([event.seq, event.type, event.data], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()


class _Damaged(ValueError):
    """A whole line that doesn't belong where it stands: never a torn tail."""


def _restore(event: Event, blobs: Path) -> Event:
    name = event.data.get("$blob") if isinstance(event.data, Mapping) else None
    if name is None:
        return event
    try:
        body = (blobs / str(name)).read_bytes()
    except OSError as error:
        raise _Damaged(f"blobs/{name}, which it needs, can't be read: {error.strerror}") from error
    if hashlib.sha256(body).hexdigest() != name:
        raise _Damaged(f"blobs/{name}, which it needs, was changed")
    return Event(event.seq, event.t, event.type, json.loads(body))


def read(path: Path, *, salvage: bool = False) -> tuple[list[Event], int]:
    """All records of a journal, and the number of good bytes.

    A bad last line is a torn tail and is left out; a bad line in the middle, a record out of order
    and a lost blob are corruption (`StateError`), unless ``salvage`` asks to go on without it.
    """
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StateError(f"can't read {path}: {error.strerror}") from error
    found: list[Event] = []
    good = last = 0
    # Not splitlines: a changed byte may be a carriage return.
    lines = [line + b"\n" for line in body.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            event = decode(line)
            # With ``salvage`` a gap is what a bad line leaves, but a number that was there is a copy.
            if event.seq <= last if salvage else event.seq != last + 1:
                raise _Damaged(f"record {event.seq} where {last + 1} belongs")
            found.append(_restore(event, path.parent / "blobs"))
            last = event.seq
        except ValueError as error:
            if number == len(lines) and not isinstance(error, _Damaged):
                return found, good
            if not salvage:
                raise StateError(
                    f"corrupt journal: {error}",
                    where=f"{path}:{number}",
                    hint="--salvage goes on without the bad lines",
                ) from error
        good += len(line)
    return found, good


class Journal:
    """An open journal of which this process is the one writer.

    ``durability``: ``kill`` survives a killed process; ``power`` also waits for the disk on
    records that were paid for. Listeners are called after a record was written.
    """

    def __init__(self, directory: Path, *, durability: str = "kill", salvage: bool = False) -> None:
        self.path = directory / "events.jsonl"
        self.blobs = directory / "blobs"
        self._power = durability == "power"
        self.listeners: list[Callable[[Event], None]] = []
        damaged = False
        try:
            self.events, good = read(self.path)
        except StateError:
            if not salvage:
                raise
            damaged = True
            self.events, good = read(self.path, salvage=True)
        self._scopes: dict[str, list[Event]] = {}
        for event in self.events:
            self._index(event)
        with io.reported(self.path):
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._ballast = directory / ".ballast"
        self._closed = threading.Event()
        self._lost: OSError | None = None
        self._dirty = threading.Event()
        self._syncer = threading.Thread(target=self._sync, name="corerun-journal", daemon=True)
        self._syncer.start()
        if damaged:
            self._rewrite()
        elif good < os.fstat(self._descriptor).st_size:
            self._repair(good)
        self._reserve()

    def _rewrite(self) -> None:
        renumbered = [Event(n, e.t, e.type, e.data) for n, e in enumerate(self.events, 1)]
        kept = f"events.salvaged-{int(time.time())}"
        io.copy_file(self.path, self.path.with_name(kept))
        io.replace(self.path, b"".join(self._line(event) for event in renumbered), as_is=True)
        os.close(self._descriptor)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self.events[:] = renumbered
        self._scopes.clear()
        for event in renumbered:
            self._index(event)
        self.emit(kinds.REPAIRED, {"line": len(renumbered), "kept": kept})

    def _repair(self, good: int) -> None:
        torn = self.path.read_bytes()[good:]
        kept = f"events.torn-{len(self.events)}"
        io.replace(self.path.with_name(kept), torn, as_is=True)
        with io.reported(self.path):
            os.truncate(self.path, good)
        self.emit(kinds.REPAIRED, {"line": len(self.events) + 1, "kept": kept})

    def _reserve(self) -> None:
        # Room for the last records of a run that fills the disk.
        try:
            with self._ballast.open("wb") as handle:
                os.posix_fallocate(handle.fileno(), 0, 1 << 20)
        except OSError:
            self._ballast.unlink(missing_ok=True)

    def _index(self, event: Event) -> None:
        scope = event.data.get("scope")
        if scope is not None:
            self._scopes.setdefault(scope, []).append(event)

    def emit(self, type: str, data: Mapping[str, Any]) -> Event:
        """Write one record; when this returns, a killed process no longer loses it.

        The event that listeners get is what a reader of the file gets: JSON data, a copy, with null
        where a number isn't finite, and without secrets.
        """
        body = io.compact_json(data)
        event = Event(len(self.events) + 1, round(time.time(), 3), type, json.loads(body))
        full = not self._append(self._line(event, body))
        self.events.append(event)
        self._index(event)
        if self._power and type in POWER_SAFE:
            with io.reported(self.path):
                os.fdatasync(self._descriptor)
        elif not self._dirty.is_set():
            self._dirty.set()
        for listener in self.listeners:
            listener(event)
        if full and type != kinds.RUN_DONE:
            self.emit(kinds.PAUSED, {"reason": "disk_full"})
            raise Stopped("the disk is full", hint="free some space, then resume with --resume")
        return event

    def _line(self, event: Event, body: str | None = None) -> bytes:
        line = encode(event, body)
        if len(line) <= MAX_BODY and "$blob" not in event.data:
            return line
        try:
            name = io.store_blob(self.blobs, _compact(event.data).encode())
        except Stopped:
            self._ballast.unlink(missing_ok=True)
            raise
        return encode(Event(event.seq, event.t, event.type, {"$blob": name}))

    def _append(self, line: bytes) -> bool:
        """Write a line; False if that took the space kept for last words."""
        with io.reported(self.path):
            if self._lost is not None:
                raise self._lost
            freed = False
            while True:
                try:
                    io.append(self._descriptor, line)
                    return not freed
                except OSError as error:
                    if error.errno not in io.FULL or not self._ballast.exists():
                        raise
                self._ballast.unlink()
                freed = True

    def scoped(self, scope: str) -> Sequence[Event]:
        """The records of one scope, in order."""
        return self._scopes.get(scope, ())

    def _sync(self) -> None:
        while True:
            self._dirty.wait()
            self._dirty.clear()
            if self._closed.is_set():
                return
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                # Another try may answer ok although the data is gone, so the next record fails.
                self._lost = error
                return
            self._closed.wait(SYNC_EVERY_S)

    def close(self) -> None:
        """Flush to the disk and let go of the file."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._dirty.set()
        self._syncer.join()
        self._ballast.unlink(missing_ok=True)
        try:
            with io.reported(self.path):
                os.fdatasync(self._descriptor)
        finally:
            os.close(self._descriptor)
