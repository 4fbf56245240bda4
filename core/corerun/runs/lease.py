"""A lease beside a run's lock, for file systems on which a lock may hold for one machine only."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from corerun.runs import io
from corerun.runs.clock import Clock, since_boot
from corerun.runs.owner import Owner, Refusal, read_owner, this_process

RENEW_S = 10.0
STALE_S = 60.0
LOOK_EVERY_S = 1.0

_log = logging.getLogger("corerun.runs")


class _Sign(NamedTuple):
    """What shows whether a lease is the same and alive. A number of a file may be that of an earlier one."""

    file: tuple[int, int]
    renewed: int


class Lease:
    """A file that is made by one process alone, and whose time a thread of that process renews.

    Whoever finds another's lease watches it: one that isn't renewed for `STALE_S` seconds, and whose
    holder isn't a living process of this machine, is taken over. No clock of another machine is asked.
    ``force`` doesn't wait for a holder of this machine that has ended. ``passed`` and ``sleep`` stand
    for the time that passes. Raises `Refusal` if the lease is another's.
    """

    def __init__(
        self,
        path: Path,
        *,
        force: bool = False,
        renew_s: float = RENEW_S,
        passed: Clock = since_boot,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._passed = passed
        self._sleep = sleep
        self._renew_s = renew_s
        self.on_lost: Callable[[], None] = lambda: None
        self._descriptor = self._take(force)
        self._file = _sign(os.fstat(self._descriptor)).file
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="corerun-lease", daemon=True)
        self._renewer.start()

    def release(self) -> None:
        """Let another process have it at once."""
        self._over.set()
        self._renewer.join()
        try:
            if self._is_ours():
                with io.reported(self._path):
                    io.remove_lock(self._path)
        finally:
            os.close(self._descriptor)

    # ------------------------------------------------------------------------------- taking

    def _take(self, force: bool) -> int:
        descriptor = self._make()
        if descriptor is None:
            self._clear(force)
            descriptor = self._make()
        if descriptor is None:  # Somebody else was quicker.
            raise Refusal(self._holder())
        return descriptor

    def _make(self) -> int | None:
        with io.reported(self._path):
            try:
                return io.make_lock(self._path, this_process().to_json())
            except FileExistsError:
                return None

    def _clear(self, force: bool) -> None:
        """Take away what a process left that is gone."""
        seen, holder = self._look(), self._holder()
        if holder is not None and holder.runs_here:
            raise Refusal(holder)
        if force and (holder is None or not holder.is_local):
            raise Refusal(holder, "only a lock of this host can be forced; wait until it has run out")
        if not force and not self._runs_out(seen, holder):
            raise Refusal(self._holder())
        aside = self._path.with_name(f".{self._path.name}.{secrets.randbits(48)}.tmp")
        with io.reported(self._path):
            try:
                io.move_lock(self._path, aside)
            except FileNotFoundError:
                return
            if seen is not None and _sign(os.stat(aside)) != seen:
                io.move_lock(aside, self._path)  # Another process took it over in this moment.
                raise Refusal(self._holder())
            io.remove_lock(aside)

    def _runs_out(self, seen: _Sign | None, holder: Owner | None) -> bool:
        _log.warning(
            "%s is held by %s; watching it for up to %g s", self._path, holder or "another process", STALE_S
        )
        end = self._passed() + STALE_S
        while self._passed() < end:
            self._sleep(LOOK_EVERY_S)
            now = self._look()
            if now != seen:
                return now is None
        return True

    def _holder(self) -> Owner | None:
        try:
            return read_owner(self._path.read_bytes())
        except OSError:
            return None

    # ------------------------------------------------------------------------------ holding

    def _renew(self) -> None:
        while not self._over.wait(self._renew_s):
            try:
                io.renew_lock(self._descriptor)
            except OSError:
                _log.warning("%s could not be renewed; it is tried again", self._path)
                continue
            # Another process may have moved it by mistake, and then moves it back.
            if not self._is_ours() and not self._over.wait(LOOK_EVERY_S) and not self._is_ours():
                _log.error("%s was taken over by another process", self._path)
                self.on_lost()
                return

    def _is_ours(self) -> bool:
        now = self._look()
        return now is not None and now.file == self._file

    def _look(self) -> _Sign | None:
        # Opened, because a network file system asks its server only then.
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        return _sign(status)


def _sign(status: os.stat_result) -> _Sign:
    return _Sign((status.st_dev, status.st_ino), status.st_mtime_ns)
