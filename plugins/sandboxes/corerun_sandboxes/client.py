"""A program in a container, as its supervisor sees it: a client process that waits for it."""

from __future__ import annotations

import contextlib
import os
import signal

from corerun.execution import processes
from corerun.execution.collect import remove_tree
from corerun.execution.inside.program import BEGUN, RECORD_BYTES
from corerun.execution.trees import Death
from corerun_sandboxes.container import Container

_TIMED_OUT = 124
_OVER_A_SIGNAL = 128
_LAST_SIGNAL = 64
_NOT_STARTED = (125, 126, 127)


class ClientTree:
    """The client of one program in a container. Fits `corerun.execution.trees.Tree`.

    ``record`` is the file in which the program's process reports; its content is passed on to the
    pipe ``told``, which is closed here. ``lost``: the container ended before its program.
    """

    def __init__(self, pid: int, container: Container, record: str, told: int) -> None:
        self._pidfd: int | None = None
        self.container = container
        self.lost = False
        self.out_of_memory = False
        self._pid = pid
        self._record = record
        self._told = told
        processes.started.add(pid)

    def descriptor(self) -> int:
        if self._pidfd is None:
            self._pidfd = os.pidfd_open(self._pid)
        return self._pidfd

    def members(self) -> list[int]:
        """None: the engine counts memory and processes."""
        return []

    def terminate(self) -> None:
        """Nothing: the time limit inside the container does that."""

    async def kill(self) -> None:
        await self.container.remove()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    async def finish(self, *, forced: bool) -> Death:
        try:
            _, status = os.waitpid(self._pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status)
            body = self._body()
            with contextlib.suppress(OSError):
                os.set_blocking(self._told, False)
                os.write(self._told, body)
            if forced:
                await self.container.remove()
                return Death(signal=signal.SIGTERM if code == _TIMED_OUT else signal.SIGKILL)
            return await self._death(code, body)
        finally:
            os.close(self._told)
            if self._pidfd is not None:
                os.close(self._pidfd)
            processes.started.discard(self._pid)

    async def _death(self, code: int, body: bytes) -> Death:
        left = await self.container.leftovers()
        if left is None:
            self.lost = True
            await self.container.remove()
            return Death(broken="the container ended before its program")
        if code in _NOT_STARTED and not body:
            return Death(exit_code=code, broken="the container can't start programs")
        if code == _OVER_A_SIGNAL + signal.SIGKILL and await self.container.ran_out_of_memory():
            self.out_of_memory = True
        if left or self.out_of_memory:
            # Only with the container is it sure that nothing goes on.
            await self.container.remove()
        shown = tuple(left[: processes.LEFTOVERS_SHOWN])
        # Who reported how it ended wasn't killed, whatever its exit code.
        number = code - _OVER_A_SIGNAL if body in (b"", BEGUN) else 0
        if 0 < number <= _LAST_SIGNAL:
            return Death(signal=number, left=len(left), leftovers=shown)
        return Death(exit_code=code, left=len(left), leftovers=shown)

    def _body(self) -> bytes:
        """What the program's process reported; the file lies where the program can change it."""
        try:
            file = os.open(self._record, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.read(file, RECORD_BYTES + len(BEGUN))
        except OSError:
            return b""
        finally:
            os.close(file)
            remove_tree(self._record)
