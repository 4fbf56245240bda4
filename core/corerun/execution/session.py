"""One workspace of a sandbox of this machine: prepares, starts, watches and collects programs in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace

from corerun.errors import InfrastructureError, UsageError
from corerun.execution import cgroups, processes, results, warm, workspace
from corerun.execution.collect import Collection, collect, remove_tree
from corerun.execution.enclosure import Enclose, Place, interpreter_paths
from corerun.execution.environment import HOME_FOLDER, SEARCH_PATH, TEMPORARY_FOLDER, program_environment
from corerun.execution.service import SOCKET_VARIABLE, Service
from corerun.execution.starting import Program, launch_of, start_cold
from corerun.execution.streams import Stream
from corerun.execution.supervisor import Supervisor
from corerun.execution.trees import ForkedTree, Tree
from corerun.execution.watchdog import Watch, default_memory_mb
from corerun.interfaces import ExecRequest, ExecResult, Handler, Json, Limits, Policy, Probe

Start = Callable[
    [Program, Mapping[str, Json], Sequence[int], ExitStack], Awaitable[tuple[Tree, tuple[int, int]]]
]


class ProgramSession:
    """Runs programs in one workspace, several at a time if asked. Fits `corerun.interfaces.Session`.

    ``enclose`` is what the sandbox does to each start.
    """

    def __init__(self, name: str, probe: Probe, policy: Policy, workspace: str, enclose: Enclose) -> None:
        self._policy = policy
        self._workspace = workspace
        self._enclose = enclose
        missing = sorted(policy.require - probe.guarantees)
        self._facts = {"name": name, "guarantees": sorted(probe.guarantees), "missing": missing}

    async def run(self, request: ExecRequest, serve: Handler | None = None) -> ExecResult:
        """Run one program to its end; see `ExecResult` for what can become of it.

        Raises `UsageError` for a request that is wrong in itself, nothing for what a program does.
        Cancelling it kills the program and all its descendants.
        """
        if request.workspace not in ("", self._workspace):
            raise UsageError(f"workspace {request.workspace!r} isn't this session's {self._workspace!r}")
        limits = _tighter(request.limits, self._policy.limits)
        request = replace(request, workspace=self._workspace, limits=limits)
        workspace.check(request)
        begin = time.monotonic()
        try:
            program = self._prepared(request)
            result = await _run(program, self._start, serve, begin)
        except (OSError, ValueError, InfrastructureError) as error:
            result = ExecResult(status="infra_error", exit_code=None, infra=f"{error}")
        if not result.sandbox:
            return replace(result, sandbox=self._facts)
        lost = result.sandbox["lost"]
        kept = [name for name in self._facts["guarantees"] if name not in lost]
        return replace(result, sandbox={**self._facts, "guarantees": kept, "warm": True})

    def _prepared(self, request: ExecRequest) -> Program:
        request = replace(request, python=_interpreter(request))
        environment = program_environment(
            request,
            workspace=request.workspace,
            base=os.environ,
            pass_env=self._policy.pass_env,
            pass_env_unsafe=self._policy.pass_env_unsafe,
        )
        exec_id = uuid.uuid4().hex
        environment[processes.MARKER] = exec_id
        return Program(
            request,
            workspace.prepare(request),
            environment,
            request.limits.mem_mb or default_memory_mb(1),
            exec_id,
            Place(
                request.workspace,
                (
                    *_interpreters(request),
                    *self._policy.read,
                    *workspace.input_folders(request),
                    *request.read,
                ),
                request.limits,
                request.network,
                request.gpus,
            ),
        )

    async def _start(
        self, program: Program, launch: Mapping[str, Json], inherited: Sequence[int], passed: ExitStack
    ) -> tuple[Tree, tuple[int, int]]:
        """Start it; ``passed`` closes what only the program needs. Other kinds of sandboxes override it."""
        zygote = await warm.find(program, self._policy, self._enclose)
        started = await warm.start(zygote, program, launch, inherited) if zygote else None
        return started or start_cold(program, launch, self._enclose(program.place, passed), inherited)

    async def close(self) -> None:
        """Remove the private home and temporary folders."""
        for private in (HOME_FOLDER, TEMPORARY_FOLDER):
            remove_tree(os.path.join(self._workspace, private))


async def _run(program: Program, start: Start, serve: Handler | None, begin: float) -> ExecResult:
    request = program.request
    group = cgroups.make(program.exec_id, program.memory_mb, request.limits.pids)
    async with contextlib.AsyncExitStack() as held:
        held.callback(group.close)
        streams = [_stream(request, name, held) for name in ("stdout", "stderr")]
        # Not a pipe: whoever has one end of that can open the other one, and take back what was told.
        record_end, program_end = (end.detach() for end in socket.socketpair())
        held.callback(os.close, record_end)
        supervisor: Supervisor | None = None
        breaches: list[tuple[str, str]] = []

        def stop(cause: str, detail: str) -> None:
            # A program that was forked may speak before it is known here.
            if supervisor is None:
                breaches.append((cause, detail))
            else:
                supervisor.stop(cause, detail)

        with ExitStack() as passed:
            passed.callback(os.close, program_end)
            passed.callback(group.let_go)
            inherited = [program_end, *group.descriptors]
            if serve is not None:
                service = Service(serve, lambda why: stop("protocol", why))
                held.push_async_callback(service.close)
                passed.callback(service.release)
                program.environment[SOCKET_VARIABLE] = str(service.descriptor)
                inherited.append(service.descriptor)
            launch = launch_of(program, program_end, group)
            tree, pipes = await start(program, launch, inherited, passed)
            watch = Watch(
                tree.members,
                request.limits,
                program.memory_mb,
                request.workspace,
                breach=stop,
                group=group,
            )
            try:
                supervisor = Supervisor(tree, dict(zip(pipes, streams, strict=True)), watch)
            except OSError:
                for read_end in pipes:
                    os.close(read_end)
                await tree.kill()
                await tree.finish(forced=True)
                raise
            for breach in breaches:
                supervisor.stop(*breach)
        begun = time.monotonic()
        ended = await supervisor.wait()
        outcome = group.close()
        record = results.read_record(record_end)
    before = time.monotonic()
    found = await _collect(program.folder, request)
    return replace(
        results.result_of(ended, record, streams[0], streams[1], outcome, program.memory_mb),
        sandbox={"lost": tree.lost} if isinstance(tree, ForkedTree) else {},
        files=tuple(found.files),
        files_skipped=tuple(found.skipped),
        timing={
            "start_s": round(begun - begin, 6),
            "run_s": round(ended.wall_s, 6),
            "collect_s": round(time.monotonic() - before, 6),
        },
    )


def _stream(request: ExecRequest, name: str, held: contextlib.AsyncExitStack) -> Stream:
    path = os.path.join(request.workspace, f"{request.label}.{name}.log")
    remove_tree(path)
    stream = Stream(path, request.limits)
    held.callback(stream.close)
    return stream


async def _collect(folder: str, request: ExecRequest) -> Collection:
    if not request.collect:
        return Collection()
    return await asyncio.to_thread(collect, folder, request.collect, request.limits)


def _interpreter(request: ExecRequest) -> str:
    """The path of the Python that was asked for, found now: inside a sandbox nobody would look for it."""
    found = shutil.which(request.python, path=SEARCH_PATH) if request.python else ""
    if found is None:
        raise FileNotFoundError(f"no Python at {request.python}")
    return os.path.abspath(found) if found else ""


def _interpreters(request: ExecRequest) -> tuple[str, ...]:
    """What the request's Python needs, and what ours does where that one starts the program."""
    own = () if request.kind == "python" else interpreter_paths("")
    return (*interpreter_paths(request.python), *own)


def _tighter(wanted: Limits, allowed: Limits) -> Limits:
    values = {}
    for item in fields(Limits):
        ours, theirs = getattr(wanted, item.name), getattr(allowed, item.name)
        values[item.name] = ours if theirs is None else theirs if ours is None else min(ours, theirs)
    return Limits(**values)
