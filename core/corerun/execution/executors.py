"""Where work runs: in this process, or in local worker processes that stay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable

from corerun import errors
from corerun.errors import CorerunError, InfrastructureError
from corerun.execution import processes, zygotes
from corerun.execution.environment import is_credential
from corerun.execution.lines import Channel
from corerun.execution.watchdog import default_memory_mb
from corerun.execution.worker import LINE_BYTES, describe, load, with_memory
from corerun.interfaces import Handler, Json

_CANCEL_S = 10.0


class InlineExecutor:
    """Runs work in this process, at most ``slots`` at once."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._places = asyncio.Semaphore(slots)
        self._memory_mb = default_memory_mb(slots)

    async def submit(self, target: str, spec: Json, serve: Handler | None = None) -> Json:
        """Wait for a place, then await ``target(spec, serve)`` here."""
        work: Callable[..., Awaitable[Json]] = load(target)
        async with self._places:
            return await work(with_memory(spec, self._memory_mb), serve)

    async def close(self) -> None:
        """End the zygotes of the programs that ran here."""
        await zygotes.close()


class ProcessExecutor:
    """Runs work in up to ``slots`` worker processes, started on demand, one task at a time each.

    A worker that dies costs its task an `InfrastructureError` and is replaced for the next one.
    Workers end with this process, however it ends.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._places = asyncio.Semaphore(slots)
        self._memory_mb = default_memory_mb(slots)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    async def submit(self, target: str, spec: Json, serve: Handler | None = None) -> Json:
        """Wait for a place, then let a worker await ``target(spec, serve)``.

        Raises what the work raised if it is one of corerun's own errors, else `InfrastructureError`.
        """
        async with self._places:
            worker = await self._worker()
            try:
                return await worker.work(target, with_memory(spec, self._memory_mb), serve)
            finally:
                if worker.alive:
                    self._idle.append(worker)
                else:
                    await self._drop(worker)

    async def close(self) -> None:
        """End all workers and whatever they ran."""
        workers, self._all = self._all, set()
        self._idle.clear()
        await asyncio.gather(*(worker.end() for worker in workers))

    async def _worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            await self._drop(worker)
        worker = _Worker()
        self._all.add(worker)
        return worker

    async def _drop(self, worker: _Worker) -> None:
        self._all.discard(worker)
        await worker.end()


class _Worker:
    """This side of one worker process."""

    def __init__(self) -> None:
        processes.become_subreaper()
        ours, theirs = socket.socketpair()
        self._exec_id = uuid.uuid4().hex
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "corerun.execution.worker", str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                # A program of this account can read the environment of its parent.
                env={name: value for name, value in os.environ.items() if not is_credential(name)},
                start_new_session=True,
            )
        processes.started.add(self._process.pid)
        self.alive = True
        self._number = 0
        self._result: asyncio.Future[Json] | None = None
        self._serve: Handler | None = None
        self._calls: set[asyncio.Task[None]] = set()
        descriptor = ours.detach()
        self._channel = Channel(descriptor, descriptor, self._receive, self._lost, line_bytes=LINE_BYTES)

    async def work(self, target: str, spec: Json, serve: Handler | None) -> Json:
        self._number += 1
        self._serve = serve
        self._result = asyncio.get_running_loop().create_future()
        task = {"id": self._number, "target": target, "spec": spec, "serve": serve is not None}
        self._channel.send(task)
        try:
            return await asyncio.shield(self._result)
        except asyncio.CancelledError:
            self._channel.send({"id": self._number, "cancel": True})
            try:
                await asyncio.wait([self._result], timeout=_CANCEL_S)
            finally:
                if self._result.done():
                    self._result.exception()
                else:
                    self.alive = False
            raise
        finally:
            for call in self._calls:
                call.cancel()

    async def end(self) -> None:
        """Close the pipe, so that the worker cancels its work and ends; kill what doesn't."""
        self.alive = False
        self._channel.close()
        await asyncio.to_thread(self._wait)
        # A worker that was killed couldn't end its programs; they are our orphans now.
        await processes.kill_execution(self._exec_id)
        processes.started.discard(self._process.pid)

    def _wait(self) -> None:
        try:
            self._process.wait(_CANCEL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self, message: dict[str, Json]) -> None:
        if message.get("id") != self._number or self._result is None or self._result.done():
            return
        if "serve" in message:
            call = asyncio.ensure_future(self._answer(message))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        elif "error" in message:
            self._result.set_exception(_revived(message["error"]))
        else:
            self._result.set_result(message.get("result"))

    async def _answer(self, message: dict[str, Json]) -> None:
        reply: dict[str, Json] = {"id": message["id"], "call": message["call"]}
        assert self._serve is not None
        try:
            reply["answer"] = await self._serve(message["serve"])
        except Exception as error:
            reply["refusal"] = describe(error)["message"]
        self._channel.send(reply)

    def _lost(self, reason: str) -> None:
        self.alive = False
        if self._result is not None and not self._result.done():
            self._result.set_exception(InfrastructureError(f"a worker process was lost {reason}".strip()))


def _revived(data: Json) -> Exception:
    kind = getattr(errors, str(data.get("type")), None)
    message, hint = str(data.get("message")), str(data.get("hint", ""))
    if isinstance(kind, type) and issubclass(kind, CorerunError):
        with contextlib.suppress(TypeError):
            return kind(message, hint=hint)
    return InfrastructureError(f"work failed in a worker process: {data.get('type')}: {message}")
