"""The append-only event journal: the only truth about a run; every other file is derived from it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from corerun.errors import DiskFull, StateError
from corerun.inputs.documents import parse_json
from corerun.interfaces import Event
from corerun.runs import content, io
from corerun.runs import events as kinds
from corerun.runs.blobs import read_blob
from corerun.runs.clock import Clock, StepWatch, step_message
from corerun.runs.shape import fault, is_record

MAX_BODY = 64 * 1024
"""Bytes of a record's data beyond which it goes to a blob."""

DEPTH = 200
"""Lists and objects inside each other in a record: what was read from outside, and what is put around it."""

SYNC_EVERY_S = 0.05
BALLAST = 16 * 1024 * 1024
"""Bytes of the disk that a run keeps back for its last records."""
_compact = json.JSONEncoder(separators=(",", ":")).encode
POWER_SAFE = frozenset({kinds.NODE_DONE, kinds.CALL_ANSWERED})
LAST_WORDS = frozenset({kinds.PAUSED, kinds.RUN_DONE})


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
    record = parse_json(head + b"}", depth=DEPTH)
    try:
        event = Event(record["seq"], record["t"], record["type"], record["data"])
    except (KeyError, TypeError) as error:
        raise ValueError("not a record") from error
    if not is_record(event):
        raise ValueError("not a record")
    return event


def digest(event: Event) -> str:
    """sha256 of a record, by which the next record of the audit chain names it. Its number isn't part of
    that: it changes when bad lines are left out, and the chain holds the order by itself."""
    body = json.dumps([event.type, event.data], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()


class _Damaged(ValueError):
    """A whole line that doesn't belong where it stands: never a torn tail."""


def _restore(event: Event, blobs: Path) -> Event:
    name = event.data.get("$blob")
    if name is None:
        return event
    try:
        body = read_blob(blobs, name)
    except StateError as error:
        raise _Damaged(f"it needs a blob, and {error.message}") from error
    return Event(event.seq, event.t, event.type, parse_json(body, depth=DEPTH))


def _sound(event: Event) -> Event:
    problem = fault(event)
    if problem:
        raise _Damaged(problem)
    return event


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
            found.append(_sound(_restore(event, path.parent / "blobs")))
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

    ``durability``: ``kill`` survives a killed process; ``power`` also waits for the disk: on records
    that were paid for, and on every other file of the run. Listeners are called after a record was
    written. ``clock`` says what time it is, in unix seconds; the order of records never depends on it,
    and each step of it is a warning.
    """

    def __init__(
        self,
        directory: Path,
        *,
        durability: str = "kill",
        salvage: bool = False,
        clock: Clock = time.time,
    ) -> None:
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
        self._descriptor = io.open_log(self.path)
        self._ballast = directory / ".ballast"
        self._closed = threading.Event()
        self._lost: OSError | None = None
        self._clock = clock
        self._steps = StepWatch(clock, last=self.events[-1].t if self.events else None)
        self._flushing = threading.Lock()
        self._dirty = threading.Event()
        try:
            if self._power:
                io.promise_power(directory)
            if damaged:
                self._rewrite()
            elif good < os.fstat(self._descriptor).st_size:
                self._repair(good)
            io.reserve(self._ballast, BALLAST)
        except BaseException:
            io.end_power(directory)
            os.close(self._descriptor)
            raise
        self._syncer = threading.Thread(target=self._sync, name="corerun-journal", daemon=True)
        self._syncer.start()

    def _rewrite(self) -> None:
        renumbered = [Event(n, e.t, e.type, e.data) for n, e in enumerate(self.events, 1)]
        kept = f"events.salvaged-{int(time.time())}"
        io.copy_file(self.path, self.path.with_name(kept), sync=True)
        io.replace(self.path, b"".join(self._line(event) for event in renumbered), as_is=True)
        os.close(self._descriptor)
        self._descriptor = io.open_log(self.path)
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
            io.cut(self._descriptor, good)
        self.emit(kinds.REPAIRED, {"line": len(self.events) + 1, "kept": kept})

    def _index(self, event: Event) -> None:
        scope = event.data.get("scope")
        if scope is not None:
            self._scopes.setdefault(scope, []).append(event)

    def emit(self, type: str, data: Mapping[str, Any]) -> Event:
        """Write one record; when this returns, a killed process no longer loses it.

        The event that listeners get is what a reader of the file gets: JSON data, a copy, with null
        where a number isn't finite, and without secrets.
        """
        step = self._steps.step()
        if step:
            self.emit(kinds.WARNING, {"message": step_message(step), "clock_step_s": round(step, 3)})
        body = content.compact_json(data)
        event = Event(len(self.events) + 1, round(self._clock(), 3), type, json.loads(body))
        full = not self._append(self._line(event, body))
        self.events.append(event)
        self._index(event)
        if self._power and type in POWER_SAFE:
            with io.reported(self.path):
                self._flush()
        elif not self._dirty.is_set():
            self._dirty.set()
        for listener in self.listeners:
            listener(event)
        if full and type not in LAST_WORDS:
            raise DiskFull("the disk is full", hint="free some space, then resume with --resume")
        return event

    def _line(self, event: Event, body: str | None = None) -> bytes:
        line = encode(event, body)
        if len(line) <= MAX_BODY and "$blob" not in event.data:
            return line
        name = io.store_blob(self.blobs, _compact(event.data).encode())
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
                    if error.errno not in io.FULL:
                        self._lost = error
                        raise
                    if freed or not io.release(self._ballast):
                        raise
                freed = True

    def fence(self) -> None:
        """Let no further record be written: another process owns the run."""
        self._lost = OSError(errno.ESTALE, "another process has taken over the run")

    def scoped(self, scope: str) -> Sequence[Event]:
        """The records of one scope, in order."""
        return self._scopes.get(scope, ())

    def _flush(self) -> None:
        # Of two that wait at once only one is told that the disk failed, so they take turns.
        with self._flushing:
            if self._lost is not None:
                raise self._lost
            try:
                io.sync(self._descriptor)
            except OSError as error:
                # Another try may answer ok although the data is gone, so every later record fails.
                self._lost = error
                raise

    def _sync(self) -> None:
        while True:
            self._dirty.wait()
            self._dirty.clear()
            if self._closed.is_set():
                return
            try:
                self._flush()
            except OSError:
                return
            self._closed.wait(SYNC_EVERY_S)

    def close(self) -> None:
        """Flush to the disk and let go of the file; an error if a record may not be there."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._dirty.set()
        self._syncer.join()
        try:
            with io.reported(self.path):
                self._flush()
                io.release(self._ballast)
        finally:
            io.end_power(self.path.parent)
            os.close(self._descriptor)
