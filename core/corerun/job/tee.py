"""Copies a stream of a program to one of our own while it runs, from the file that keeps it."""

from __future__ import annotations

import codecs
import os
import select
import stat
import threading
from collections.abc import Callable

from corerun.errors import StateError
from corerun.redaction.terminal import shown

_CHUNK = 1 << 18
_LOOK_S = 0.01
_GIVE_UP_S = 1.0
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Copier:
    """A thread, so that a reader who is slow holds up nobody but himself.

    ``path`` appears when the program starts. A terminal gets no control characters: they are the
    program's words, not ours. ``broken`` is called in the thread when nobody takes the copy any more.
    """

    def __init__(self, path: str, target: int, broken: Callable[[], object]) -> None:
        self._path = path
        self._target = target
        self._broken = broken
        self._ended = threading.Event()
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._opened = False
        self.error: Exception | None = None
        self._thread.start()

    def finish(self, text: str) -> None:
        """The program ended: copy what is left, however long that takes.

        ``text`` stands for a file that the program took away before it was opened. Raises
        BrokenPipeError when the reader left, `StateError` when the copy couldn't be written.
        """
        self._ended.set()
        self._thread.join()
        if not self._opened:
            self._write(text.encode("utf-8", "backslashreplace"), last=True)
        if self.error:
            raise self.error

    def abandon(self) -> None:
        """Stop, but for a moment in which what is left is copied to a reader who is there."""
        self._ended.set()
        self._thread.join(_GIVE_UP_S)

    def _write(self, data: bytes, *, last: bool = False) -> None:
        """Write to the target, on a terminal in printable characters."""
        if os.isatty(self._target):
            data = shown(self._decoder.decode(data, last)).encode()
        while data:
            try:
                data = data[os.write(self._target, data) :]
            except BlockingIOError:
                select.select([], [self._target], [])

    def _copy(self) -> None:
        try:
            descriptor = self._open()
            if descriptor is None:
                return
            self._opened = True
            with open(descriptor, "rb", buffering=0) as source:
                while True:
                    ended = self._ended.is_set()
                    if data := source.read(_CHUNK):
                        self._write(data)
                    elif ended:
                        break
                    else:
                        self._ended.wait(_LOOK_S)
            self._write(b"", last=True)
        except BrokenPipeError as error:
            self._fail(error)
        except OSError as error:
            self._fail(StateError(f"can't write the program's output: {error.strerror}"))

    def _fail(self, error: Exception) -> None:
        self.error = error
        if not self._ended.is_set():
            self._broken()

    def _open(self) -> int | None:
        """The file, once it is there; None when the program took it away before it could be opened."""
        while True:
            ended = self._ended.is_set()
            try:
                descriptor = os.open(self._path, _FLAGS)
                facts = os.fstat(descriptor)
                # Anything else is the program's own work.
                if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
                    return descriptor
                os.close(descriptor)
            except OSError:
                pass
            if ended:
                return None
            self._ended.wait(_LOOK_S)
