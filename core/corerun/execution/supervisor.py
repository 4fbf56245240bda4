"""Runs one child process to its end in the event loop's thread: output, deadline, kill, reaping."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from corerun.errors import InfrastructureError
from corerun.execution import processes
from corerun.execution.streams import Stream
from corerun.execution.watchdog import Watch, watchdog
from corerun.interfaces import Limits

DRAIN_S = 0.5
_READ_BYTES = 262144

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start. ``argv`` gets the number of ``result`` as an inherited descriptor."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    exec_id: str
    workspace: str
    limits: Limits
    memory_mb: int
    stdin: str | None = None
    inherited: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended. ``cause`` names what stopped it: timeout, oom, pids, disk, protocol or
    nothing, and ``detail`` says it in a sentence. Seconds and MB.
    """

    exit_code: int | None
    signal: int | None
    cause: str
    detail: str
    wall_s: float
    cpu_s: float
    max_rss_mb: float
    peak_mb: float
    leftovers: tuple[str, ...]


class Supervisor:
    """One run of one process. `start` returns when it runs, `wait` when nothing of it is left."""

    def __init__(self, command: Command, stdout: Stream, stderr: Stream) -> None:
        self._command = command
        self._outputs = (stdout, stderr)
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Stream] = {}
        self._ended = self._loop.create_future()
        self._drained = self._loop.create_future()
        self._pid = 0
        self._began = 0.0
        self._cause = ""
        self._detail = ""
        self._timers: list[asyncio.TimerHandle] = []
        self._stopping: asyncio.Task[list[str]] | None = None

    def start(self) -> None:
        """Start the process. Raises OSError when the interpreter can't be started."""
        if not processes.become_subreaper():
            raise InfrastructureError("this process can't become the parent of orphans (prctl refused)")
        command = self._command
        with contextlib.ExitStack() as ours:
            pipes = [os.pipe() for _ in self._outputs]
            for _, write_end in pipes:
                ours.callback(os.close, write_end)
            kept = contextlib.ExitStack()
            for read_end, _ in pipes:
                kept.callback(os.close, read_end)
            try:
                # No preexec_fn and no cwd: so the child is made by vfork, at the same price
                # however large this process is. The launcher does the rest.
                process = subprocess.Popen(
                    command.argv,
                    stdin=ours.enter_context(_stdin(command.stdin)),
                    stdout=pipes[0][1],
                    stderr=pipes[1][1],
                    env=command.environment,
                    pass_fds=command.inherited,
                    start_new_session=True,
                )
            except BaseException:
                kept.close()
                raise
        self._pid = process.pid
        # From here on the process is waited for here, never by the module subprocess.
        process.returncode = 0
        self._began = time.monotonic()
        processes.started.add(self._pid)
        processes.active.add(command.exec_id)
        for (read_end, _), stream in zip(pipes, self._outputs, strict=True):
            os.set_blocking(read_end, False)
            self._open[read_end] = stream
            self._loop.add_reader(read_end, self._readable, read_end)
        self._watch_exit()
        self._timers.append(self._loop.call_later(command.limits.wall_s, self._expire))
        self._watch = Watch(self._pid, command.limits, command.memory_mb, command.workspace, breach=self.stop)
        watchdog().add(self._watch)

    async def wait(self) -> Ended:
        """Wait for the end. Cancelling it kills every process of the run first."""
        try:
            await asyncio.shield(self._ended)
            wall = time.monotonic() - self._began
            leftovers = await _to_the_end(self._finish())
        except asyncio.CancelledError:
            self._cause = self._cause or "cancelled"
            await _to_the_end(self._abandon())
            raise
        except BaseException:
            await _to_the_end(self._abandon())
            raise
        return self._reap(wall, leftovers)

    def stop(self, cause: str, detail: str) -> None:
        """Kill the whole tree now; the first cause stands."""
        if not self._cause and not self._ended.done():
            self._cause, self._detail = cause, detail
            self._kill()

    # ------------------------------------------------------------------------------- the end

    def _expire(self) -> None:
        if self._cause or self._ended.done():
            return
        limits = self._command.limits
        self._cause, self._detail = "timeout", f"ran longer than {limits.wall_s:g} s"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGTERM)
        self._timers.append(self._loop.call_later(limits.grace_s, self._kill))

    def _kill(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(processes.kill_execution(self._command.exec_id, self._pid))
            self._stopping.add_done_callback(self._killed)

    def _killed(self, sweep: asyncio.Task[list[str]]) -> None:
        failure = None if sweep.cancelled() else sweep.exception()
        if failure is not None and not self._ended.done():
            self._ended.set_exception(failure)

    async def _finish(self) -> list[str]:
        """After the main process: let the pipes run dry, then end what it left behind."""
        self._cancel_timers()
        if self._stopping is not None:
            await self._stopping
        if not self._drained.done():
            await asyncio.wait([self._drained], timeout=DRAIN_S)
        left: list[str] = []
        if self._cause or processes.orphans(self._command.exec_id):
            left = await processes.kill_execution(self._command.exec_id)
            # Their last words came before they were killed and lie in the pipe.
            for descriptor in tuple(self._open):
                self._readable(descriptor)
        return left

    async def _abandon(self) -> None:
        self._cancel_timers()
        if self._stopping is not None:
            self._stopping.cancel()
        try:
            await processes.kill_execution(self._command.exec_id, self._pid)
            await self._ended
            await processes.kill_execution(self._command.exec_id)
        finally:
            self._reap(0.0, [])

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def _reap(self, wall: float, leftovers: list[str]) -> Ended:
        watchdog().remove(self._watch)
        for descriptor in tuple(self._open):
            self._close_pipe(descriptor)
        for stream in self._outputs:
            stream.close()
        # Not blocking: after a failed kill the process may still be there.
        _, status, usage = os.wait4(self._pid, os.WNOHANG)
        processes.started.discard(self._pid)
        processes.active.discard(self._command.exec_id)
        return Ended(
            exit_code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            cause=self._cause,
            detail=self._detail,
            wall_s=wall,
            cpu_s=usage.ru_utime + usage.ru_stime,
            max_rss_mb=usage.ru_maxrss / 1024,
            peak_mb=self._watch.peak_mb,
            leftovers=tuple(leftovers[: processes.LEFTOVERS_SHOWN]),
        )

    # --------------------------------------------------------------------------- descriptors

    def _watch_exit(self) -> None:
        try:
            descriptor = os.pidfd_open(self._pid)
        except (AttributeError, OSError):
            waiting = self._loop.run_in_executor(
                None, os.waitid, os.P_PID, self._pid, os.WEXITED | os.WNOWAIT
            )
            waiting.add_done_callback(lambda _: self._exited())
        else:
            self._loop.add_reader(descriptor, self._pidfd_ready, descriptor)

    def _pidfd_ready(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._exited()

    def _exited(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _readable(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._open[descriptor].feed(data)
        else:
            self._close_pipe(descriptor)

    def _close_pipe(self, descriptor: int) -> None:
        del self._open[descriptor]
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        if not self._open and not self._drained.done():
            self._drained.set_result(None)


@contextlib.contextmanager
def _stdin(text: str | None) -> Iterator[int]:
    """A descriptor to read the text from; a memory file, so nobody has to feed a pipe."""
    if text is None:
        yield subprocess.DEVNULL
        return
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await something that must not be cut off; a cancellation that comes meanwhile is raised after."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()
