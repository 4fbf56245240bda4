"""A disk that fills: stands for `os.write`, so that no test needs a real one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from corerun.runs.journal import BALLAST


class Disk:
    """``room`` bytes are left; the space that a journal in ``folder`` keeps back adds to it once freed."""

    def __init__(self, folder: Path, room: int, kept_back: int = BALLAST) -> None:
        self.ballast = folder / ".ballast"
        self.room, self.kept_back = room, kept_back
        self._write = os.write

    def write(self, descriptor: int, body: bytes) -> int:
        left = self.room + (0 if self.ballast.exists() else self.kept_back)
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(descriptor, body[:left])
        self.room -= written
        return written
