"""Runs one program to its end in the event loop's thread: output, deadline, kill, what was left behind."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from corerun.execution.streams import Stream
from corerun.execution.trees import Death, Tree
from corerun.execution.watchdog import Watch, watchdog

DRAIN_S = 0.5
_READ_BYTES = 262144
_MIB = 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. ``cause`` names what stopped it: timeout, oom, pids, disk, output_limit,
    protocol or nothing, and ``detail`` says it in a sentence. Seconds and MB.
    """

    death: Death
    cause: str
    detail: str
    wall_s: float
    peak_mb: float


class Supervisor:
    """One run of a program that has just been started; `wait` returns when nothing of it is left.

    ``pipes`` are the ends of its outputs that are read and closed here. Making one raises OSError, and
    does nothing, where the program can't be watched.
    """

    def __init__(self, tree: Tree, pipes: Mapping[int, Stream], watch: Watch) -> None:
        self._tree = tree
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._open = dict(pipes)
        self._outputs = tuple(pipes.values())
        self._ended = self._loop.create_future()
        self._drained = self._loop.create_future()
        self._began = time.monotonic()
        self._cause = ""
        self._detail = ""
        self._timers: list[asyncio.TimerHandle] = []
        self._stopping: asyncio.Task[None] | None = None
        descriptor = tree.descriptor()
        for read_end in self._open:
            os.set_blocking(read_end, False)
            self._loop.add_reader(read_end, self._readable, read_end)
        self._loop.add_reader(descriptor, self._exited)
        self._timers.append(self._loop.call_later(watch.limits.wall_s, self._expire))
        watchdog().add(watch)

    async def wait(self) -> Ended:
        """Wait for the end. Cancelling it kills every process of the run first."""
        try:
            await asyncio.shield(self._ended)
        except BaseException:
            await _to_the_end(self._abandon())
            raise
        wall = time.monotonic() - self._began
        try:
            death = await _to_the_end(self._finish())
        finally:
            self._let_go()
        return Ended(death, self._cause, self._detail, wall, self._watch.peak_mb)

    def stop(self, cause: str, detail: str) -> None:
        """Kill the whole tree now; the first cause stands."""
        if not self._cause and not self._ended.done():
            self._cause, self._detail = cause, detail
            self._kill()

    # ------------------------------------------------------------------------------- the end

    def _expire(self) -> None:
        if self._cause or self._ended.done():
            return
        limits = self._watch.limits
        self._cause, self._detail = "timeout", f"ran longer than {limits.wall_s:g} s"
        self._tree.terminate()
        self._timers.append(self._loop.call_later(limits.grace_s, self._kill))

    def _kill(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._tree.kill())
            self._stopping.add_done_callback(self._killed)

    def _killed(self, sweep: asyncio.Task[None]) -> None:
        failure = None if sweep.cancelled() else sweep.exception()
        if failure is not None and not self._ended.done():
            self._ended.set_exception(failure)

    async def _finish(self) -> Death:
        """After the main process: let the pipes run dry, then end what it left behind."""
        self._cancel_timers()
        try:
            if self._stopping is not None:
                await self._stopping
            if not self._drained.done():
                await asyncio.wait([self._drained], timeout=DRAIN_S)
        finally:
            death = await self._tree.finish(forced=bool(self._cause))
        # The last words of what was left behind came before it was killed, and lie in the pipe.
        for descriptor in tuple(self._open):
            while self._readable(descriptor):
                pass
        if not self._cause and (too_much := self._watch.look_back()):
            self._cause, self._detail = "disk", too_much
        return death

    async def _abandon(self) -> None:
        self._cancel_timers()
        if self._stopping is not None:
            self._stopping.cancel()
        try:
            if not self._ended.done():
                await self._tree.kill()
                await self._ended
        finally:
            self._loop.remove_reader(self._tree.descriptor())
            try:
                await self._tree.finish(forced=True)
            finally:
                self._let_go()

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def _let_go(self) -> None:
        watchdog().remove(self._watch)
        for descriptor in tuple(self._open):
            self._close_pipe(descriptor)
        for stream in self._outputs:
            stream.close()

    # --------------------------------------------------------------------------- descriptors

    def _exited(self) -> None:
        self._loop.remove_reader(self._tree.descriptor())
        if not self._ended.done():
            self._ended.set_result(None)

    def _readable(self, descriptor: int) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close_pipe(descriptor)
            return False
        stream = self._open[descriptor]
        stream.feed(data)
        most_mb = self._watch.limits.flood_mb
        if most_mb is not None and stream.total > most_mb * _MIB:
            self.stop("output_limit", f"wrote more than {most_mb} MB of output")
        return True

    def _close_pipe(self, descriptor: int) -> None:
        del self._open[descriptor]
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        if not self._open and not self._drained.done():
            self._drained.set_result(None)


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
