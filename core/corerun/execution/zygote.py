"""A process that has imported a profile and forks programs inside a sandbox, as its owner sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import marshal
import os
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from corerun.errors import InfrastructureError
from corerun.execution import processes
from corerun.execution.enclosure import PYTHON_FLAGS, START, Enclose, Place
from corerun.execution.spawn import spawn
from corerun.execution.trees import Death, SpawnedTree
from corerun.interfaces import Json

MOST_FORKS = 2000
MOST_AGE_S = 3600.0
MOST_GROWTH = 1.2
LOOK_S = 10.0
"""How often it is looked whether packages were changed and how much memory a zygote takes."""
START_S = 120.0
ANSWER_S = 20.0
MESSAGE_BYTES = 131072
CRASH_S = 0.005
"""A program that dies of a memory fault with less processor time than this did so by its start."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Unsuitable(Exception):
    """Only what is in a namespace of its own can be forked without being mixed up with others."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What programs have in common that one zygote forks. ``place.folder`` holds their workspaces;
    ``environment`` is what their imports may depend on."""

    profile: str
    more: tuple[str, ...]
    python: str
    place: Place
    environment: tuple[tuple[str, str], ...]
    enclose: Enclose


class Keeper(Protocol):
    """Who is told what becomes of a zygote."""

    def note_trouble(self, zygote: Zygote, reason: str) -> None:
        """It died, or programs die of it."""
        ...

    def end_later(self, zygote: Zygote) -> None:
        """It isn't needed any more."""
        ...


class Zygote:
    """One such process, just started; `ready` waits for its imports."""

    def __init__(self, kind: Kind, keeper: Keeper) -> None:
        self.kind = kind
        self._keeper = keeper
        self.modules: frozenset[str] = frozenset()
        """What it has imported, without their parts."""
        self.lost_guarantees: tuple[str, ...] = ()
        """What the sandbox gives to programs that are started in it, but not to those that are forked."""
        self.lost = ""
        """Why it can't be used any more."""
        self._loop = asyncio.get_running_loop()
        self._answers: deque[asyncio.Future[tuple[dict[str, Json], list[int]]]] = deque()
        self._began = self._looked = time.monotonic()
        self._forks = self._running = 0
        self._folders: tuple[str, ...] = ()
        self._packages: Json = None
        self._resident = 0
        self._control, self._pid = _spawned(kind)
        self._tree = SpawnedTree(self._pid, uuid.uuid4().hex)
        self._loop.add_reader(self._control.fileno(), self._readable)

    async def ready(self) -> None:
        """Wait until it can fork; `InfrastructureError` says why it never will."""
        message, _ = await self._answer(START_S)
        if "failed" in message:
            raise InfrastructureError(str(message["failed"]))
        self.modules = frozenset(message["modules"])
        # In the sandbox's /proc programs see the names of others, if no more.
        self.lost_guarantees = () if message["own_proc"] else ("proc_isolation",)
        self._folders = tuple(message["path"])
        self._packages = _packages(self._folders)
        self._resident = self._memory()

    async def fork(self, request: dict[str, Json], descriptors: Sequence[int]) -> int:
        """A pidfd of the first process of a new program's namespace.

        ``request`` and ``descriptors`` are those of `corerun.execution.inside.zygote`. Whoever calls
        this calls `done` when the program has ended. Raises OSError or `InfrastructureError` when no
        program was begun.
        """
        # Not JSON, whose reader takes each program a quarter of a millisecond; this form every Python reads.
        body = marshal.dumps(request, 2)
        if len(body) > MESSAGE_BYTES:
            raise InfrastructureError("a program's environment is too long for a warm start")
        socket.send_fds(self._control, [body], list(descriptors))
        self._forks += 1
        self._running += 1
        try:
            message, received = await self._answer(ANSWER_S)
            if not received:
                raise InfrastructureError(str(message.get("error")))
        except BaseException:
            if self.lost:
                # It may yet begin the program, which the caller is about to run in another way.
                await self._tree.kill()
            self.done(Death())
            raise
        return received[0]

    def done(self, death: Death) -> None:
        """A program that was forked has ended."""
        self._running -= 1
        if death.signal == signal.SIGSEGV and death.cpu_s < CRASH_S:
            self._keeper.note_trouble(self, "a program crashed as it began")
        if self.lost and not self._running:
            self._keeper.end_later(self)

    def retire(self, reason: str) -> None:
        """Fork no more; it ends with the last program that runs in it."""
        self.lost = self.lost or reason
        if not self._running:
            self._keeper.end_later(self)

    def worn(self) -> str:
        """Why it should be replaced, or nothing."""
        now = time.monotonic()
        if self.lost or self._forks >= MOST_FORKS or now - self._began > MOST_AGE_S:
            return self.lost or "used up"
        if now - self._looked > LOOK_S:
            self._looked = now
            if self._memory() > MOST_GROWTH * self._resident:
                return "it has grown"
            if _packages(self._folders) != self._packages:
                return "packages were changed"
        return ""

    async def end(self) -> None:
        """Kill it and all that it forked."""
        self._hang_up("it was ended")
        await self._tree.kill()
        await self._tree.finish(forced=True)

    async def _answer(self, limit_s: float) -> tuple[dict[str, Json], list[int]]:
        answer: asyncio.Future[tuple[dict[str, Json], list[int]]] = self._loop.create_future()
        self._answers.append(answer)
        timer = self._loop.call_later(limit_s, self._lose, f"no answer in {limit_s:g} s")
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled() and answer.exception() is None:
                _kill(answer.result()[1])
            raise
        finally:
            timer.cancel()

    def _readable(self) -> None:
        try:
            body, received, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            body, received = b"", []
        if not body:
            self._lose("it has died")
            return
        answer = self._answers.popleft()
        if answer.done():
            _kill(received)
        else:
            answer.set_result((json.loads(body), received))

    def _lose(self, reason: str) -> None:
        self._hang_up(reason)
        self._keeper.note_trouble(self, reason)

    def _hang_up(self, reason: str) -> None:
        if self._control.fileno() < 0:
            return
        self.lost = self.lost or reason
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(InfrastructureError(self.lost))
        self._answers.clear()

    def _memory(self) -> int:
        return processes.memory_bytes(processes.children(self._pid)[:1], float("inf"))


def _spawned(kind: Kind) -> tuple[socket.socket, int]:
    """Start the process; returns our end of its control socket, and its pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as held:
        held.callback(theirs.close)
        failed = contextlib.ExitStack()
        failed.callback(ours.close)
        with failed:
            # Python looks at its outputs once, at its start: a program's are pipes.
            output = os.pipe()
            for end in output:
                held.callback(os.close, end)
            enclosure = kind.enclose(kind.place, held)
            if not enclosure.namespace:
                raise Unsuitable
            environment = dict(kind.environment)
            after: dict[str, Json] = {name: environment.get(name) for name in _THREADS}
            setting = {
                "control": theirs.fileno(),
                "profile": kind.profile,
                "more": kind.more,
                "rules": dict(enclosure.rules),
                "folder": kind.place.folder,
                "network": kind.place.network == "host",
                "environment": {**after, processes.MARKER: None, "PWD": None},
            }
            pid = spawn(
                [*enclosure.prefix, kind.python, *PYTHON_FLAGS, START, "zygote", json.dumps(setting)],
                # One thread while packages are imported: a pool of them wouldn't survive a fork.
                environment | dict.fromkeys(_THREADS, "1"),
                (output[1], output[1]),
                [theirs.fileno(), *enclosure.inherited],
            )
            failed.pop_all()
    ours.setblocking(False)
    return ours, pid


def _kill(pidfds: Sequence[int]) -> None:
    """End programs that nobody waits for any more."""
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def _packages(folders: Sequence[str]) -> Json:
    """What changes when a package is installed, removed or replaced in one of the folders."""
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            found.append([folder, os.stat(folder).st_mtime_ns])
            for entry in os.scandir(folder):
                path = os.path.join(entry.path, "RECORD") if entry.name.endswith(".dist-info") else entry.path
                if path.endswith((".pth", "RECORD")):
                    with contextlib.suppress(OSError):
                        found.append([path, os.stat(path).st_mtime_ns])
    return sorted(found)
