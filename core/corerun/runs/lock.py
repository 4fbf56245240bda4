"""One run, one owner: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from corerun.errors import EnvironmentRefused
from corerun.runs import io
from corerun.runs.filesystem import file_system, is_network
from corerun.runs.lease import Lease
from corerun.runs.owner import Owner, Refusal, read_owner, this_process

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL})


class RunLock:
    """Holds ``run.lock`` of a run directory until `release` or the end of the process.

    On a network file system there is a `Lease` as well. ``kind`` is the type of the file system, by
    default that of the directory; ``force`` takes over a lease whose holder ended on this machine.
    Raises `EnvironmentRefused`, which names the holder, if another process owns the run.
    """

    def __init__(
        self,
        directory: Path,
        *,
        force: bool = False,
        kind: str | None = None,
        lease: Callable[..., Lease] = Lease,
    ) -> None:
        self.path = directory / "run.lock"
        shared = is_network(file_system(directory) if kind is None else kind)
        self._lease: Lease | None = None
        self._descriptor = io.open_lock(self.path)
        try:
            self._lock(shared)
            if shared:
                self._lease = lease(directory / "run.lease", force=force)
            with io.reported(self.path):
                io.overwrite(self._descriptor, this_process().to_json())
        except BaseException as error:
            self._let_go()
            if isinstance(error, Refusal):
                raise _in_use(directory, error, force) from None
            raise

    def _lock(self, shared: bool) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(read_owner(os.pread(self._descriptor, 4096, 0))) from None
        except OSError as error:
            if not (shared and error.errno in _NO_LOCKS):
                with io.reported(self.path):
                    raise

    def _let_go(self) -> None:
        try:
            if self._lease is not None:
                self._lease.release()
        finally:
            os.close(self._descriptor)

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Call ``tell``, in another thread, if another machine takes the run over."""
        if self._lease is not None:
            self._lease.on_lost = tell

    def release(self) -> None:
        """Let another process own the run."""
        with contextlib.suppress(OSError):  # What it says is for people only.
            io.overwrite(self._descriptor, b"")
        self._let_go()


def _in_use(directory: Path, refusal: Refusal, force: bool) -> EnvironmentRefused:
    holder = refusal.holder
    message = f"run directory is in use by {holder or 'another process'}"
    hint = refusal.hint or "wait for it, or end that process"
    if force and not refusal.hint:
        hint = f"--force-unlock needs a holder that has ended: {_state(holder)}"
    return EnvironmentRefused(message, where=str(directory), hint=hint)


def _state(holder: Owner | None) -> str:
    if holder is None:
        return "nobody knows who holds it"
    if holder.runs_here:
        return f"pid {holder.pid} runs"
    if holder.is_local:
        return f"pid {holder.pid} has ended, but a process that it left behind still holds the lock"
    return f"it is on host {holder.host}"
