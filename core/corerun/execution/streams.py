"""One output stream of a program: stored up to a cap, shown as head and tail, counted in full."""

from __future__ import annotations

import hashlib
import os

from corerun.interfaces import Limits


class Stream:
    """Takes bytes without end in bounded memory.

    The file is made anew, so a link that an earlier program put in its place is never followed.
    What can't be stored (disk full, folder deleted) is counted and shown all the same.
    """

    def __init__(self, path: str, limits: Limits) -> None:
        self.path = path
        self.total = 0
        self.stored = 0
        self._digest = hashlib.sha256()
        self._head = bytearray()
        self._tail = bytearray()
        self._head_cap = limits.stdout_head_kb * 1024
        self._tail_cap = limits.stdout_tail_kb * 1024
        self._store_cap = limits.stdout_store_mb * 1024 * 1024
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file: int | None = os.open(path, flags, 0o600)

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        self._store(data[: self._store_cap - self.stored])
        room = self._head_cap - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data[-self._tail_cap :] if self._tail_cap else b""
        if len(self._tail) > 2 * self._tail_cap:
            del self._tail[: -self._tail_cap]

    def _store(self, data: bytes) -> None:
        if self._file is None or not data:
            return
        try:
            written = os.write(self._file, data)
        except OSError:
            self._shut()
            return
        self._digest.update(data[:written])
        self.stored += written
        if written < len(data):
            self._shut()

    def close(self) -> None:
        """Close the file; ``path`` becomes empty when the program deleted it."""
        if self._file is not None and os.fstat(self._file).st_nlink == 0:
            self.path = ""
        self._shut()

    def _shut(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def sha256(self) -> str:
        """Of what is stored."""
        return self._digest.hexdigest()

    @property
    def cut(self) -> int:
        """Bytes that `text` leaves out."""
        return self.total - len(self._head) - min(len(self._tail), self._tail_cap)

    @property
    def text(self) -> str:
        """Head and tail; bytes that are no UTF-8 appear as backslash escapes."""
        tail = self._tail[-self._tail_cap :] if self._tail_cap else b""
        if not self.cut:
            return bytes(self._head + tail).decode("utf-8", "backslashreplace")
        head, end = (bytes(part).decode("utf-8", "backslashreplace") for part in (self._head, tail))
        return f"{head}\n[... {self.cut} bytes cut ...]\n{end}"
