"""One run, one owner: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from corerun import __version__
from corerun.errors import EnvironmentRefused
from corerun.runs import io


class RunLock:
    """Holds ``run.lock`` of a run directory until `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "run.lock"
        with io.reported(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._holder()
            os.close(self._descriptor)
            raise EnvironmentRefused(
                f"run directory is in use by {holder}",
                where=str(directory),
                hint="wait for it, or end that process",
            ) from None
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "corerun": __version__,
        }
        try:
            with io.reported(self.path):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(content).encode(), 0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _holder(self) -> str:
        try:
            content = json.loads(os.pread(self._descriptor, 4096, 0))
            return f"pid {content['pid']} on host {content['host']} since {content['since']}"
        except (ValueError, KeyError, TypeError, OSError):
            return "another process"

    def release(self) -> None:
        """Let another process own the run."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
