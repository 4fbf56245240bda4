"""What a power cut may leave of the files that `corerun.runs.io` wrote: every state that a disk allows."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOLE = -1.0
"""The size of a write reached the disk and its bytes didn't."""
MOST = 6
"""Pending operations up to which every subset of them is tried."""


@dataclass(frozen=True)
class Operation:
    """One operation, on the file ``file`` or on the entry ``path``. ``upto``: how many operations were
    done when a sync began, which is what it holds."""

    kind: str
    path: str = ""
    file: int = -1
    offset: int = 0
    body: bytes = b""
    source: str = ""
    upto: int = 0


class Recorder:
    """Stands for the module `os` where files are written below ``root``; lists what is done there.

    A file's content is there for sure once the file was synced, its name once its folder was.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.operations: list[Operation] = []
        self._files: dict[str, int] = {}
        self._open: dict[int, int] = {}
        self._folders: dict[int, str] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def note(self, kind: str, body: bytes = b"") -> None:
        """Put a mark among the operations."""
        with self._lock:
            self.operations.append(Operation(kind, body=body))

    def _ours(self, path: Any) -> bool:
        return str(path).startswith(self.root)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        place = os.fspath(path)
        new = not os.path.lexists(place)
        descriptor = os.open(path, flags, mode)
        with self._lock:
            self._open.pop(descriptor, None)
            self._folders.pop(descriptor, None)
            if flags & os.O_DIRECTORY:
                self._folders[descriptor] = place
            elif self._ours(place) and flags & (os.O_WRONLY | os.O_RDWR):
                if new:
                    self._files[place] = next(self._numbers)
                    self.operations.append(Operation("make", place, self._files[place]))
                self._open[descriptor] = self._files[place]
        return descriptor

    def write(self, descriptor: int, body: bytes) -> int:
        with self._lock:
            if descriptor not in self._open:
                return os.write(descriptor, body)
            at = os.fstat(descriptor).st_size
            written = os.write(descriptor, body)
            self.operations.append(
                Operation("write", file=self._open[descriptor], offset=at, body=bytes(body[:written]))
            )
            return written

    def pwrite(self, descriptor: int, body: bytes, offset: int) -> int:
        written = os.pwrite(descriptor, body, offset)
        file = self._open[descriptor]
        self.operations.append(Operation("write", file=file, offset=offset, body=body))
        return written

    def ftruncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        self.operations.append(Operation("cut", file=self._open[descriptor], offset=size))

    def posix_fallocate(self, descriptor: int, offset: int, size: int) -> None:
        pass  # What is kept back has no content.

    def fsync(self, descriptor: int) -> None:
        began = len(self.operations)
        with self._lock:
            if descriptor in self._folders:
                self.operations.append(Operation("sync folder", self._folders[descriptor], upto=began))
            else:
                self.operations.append(Operation("sync", file=self._open[descriptor], upto=began))

    fdatasync = fsync

    def replace(self, source: Any, target: Any) -> None:
        os.replace(source, target)
        file = self._files[os.fspath(target)] = self._files.pop(os.fspath(source))
        self.operations.append(Operation("name", os.fspath(target), file, source=os.fspath(source)))

    def unlink(self, path: Any) -> None:
        os.unlink(path)
        self._files.pop(os.fspath(path), None)
        self.operations.append(Operation("forget", os.fspath(path)))

    def mkdir(self, path: Any, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        if self._ours(path):
            self.operations.append(Operation("folder", os.fspath(path)))


@dataclass(frozen=True)
class Moment:
    """The power goes after the first ``size`` operations. `pending` may be lost, torn or out of order."""

    operations: Sequence[Operation]
    size: int

    @property
    def pending(self) -> list[int]:
        """Numbers of the operations that no sync holds."""
        files: dict[int, int] = {}
        folders: dict[str, int] = {}
        for operation in self.operations[: self.size]:
            if operation.kind == "sync":
                files[operation.file] = operation.upto
            elif operation.kind == "sync folder":
                folders[operation.path] = operation.upto
        found = []
        for number, operation in enumerate(self.operations[: self.size]):
            if operation.kind in ("write", "cut"):
                held = files.get(operation.file, 0)
            elif operation.kind in ("make", "name", "forget", "folder"):
                held = folders.get(os.path.dirname(operation.path), 0)
            else:
                continue
            if number >= held:
                found.append(number)
        return found

    def left(self, fate: Callable[[int], float]) -> dict[str, bytes]:
        """The files that are found afterwards. ``fate`` gives the part of each pending operation that
        reached the disk, or `HOLE`."""
        pending = set(self.pending)
        content: dict[int, bytearray] = {}
        names: dict[str, int] = {}
        made: set[str] = set()
        lost: set[str] = set()
        for number, operation in enumerate(self.operations[: self.size]):
            part = fate(number) if number in pending else 1.0
            match operation.kind:
                case "write" if part:
                    body = content.setdefault(operation.file, bytearray())
                    piece = operation.body
                    piece = bytes(len(piece)) if part == HOLE else piece[: round(len(piece) * part)]
                    body.extend(bytes(max(0, operation.offset + len(piece) - len(body))))
                    body[operation.offset : operation.offset + len(piece)] = piece
                case "cut" if part == 1.0:
                    del content.setdefault(operation.file, bytearray())[operation.offset :]
                case "make" if part == 1.0:
                    names[operation.path] = operation.file
                case "name" if part == 1.0:
                    names.pop(operation.source, None)
                    names[operation.path] = operation.file
                case "forget" if part == 1.0:
                    names.pop(operation.path, None)
                case "folder":
                    (made if part == 1.0 else lost).add(operation.path)
        gone = tuple(f"{folder}/" for folder in lost - made)
        return {
            path: bytes(content.get(file, b"")) for path, file in names.items() if not path.startswith(gone)
        }

    def fates(self) -> Iterator[Callable[[int], float]]:
        """Nothing lost, everything lost, each operation alone lost, kept, torn or empty; every subset if
        there are few."""
        pending = self.pending
        yield _fate({}, 1.0)
        yield _fate({}, 0.0)
        for one in pending:
            yield _fate({one: 1.0}, 0.0)
            for part in (0.0, 0.5, HOLE):
                yield _fate({one: part}, 1.0)
        if len(pending) <= MOST:
            for kept in itertools.product((0.0, 1.0), repeat=len(pending)):
                yield _fate(dict(zip(pending, kept, strict=True)), 1.0)


def _fate(parts: Mapping[int, float], others: float) -> Callable[[int], float]:
    return lambda number: parts.get(number, others)
