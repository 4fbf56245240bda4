"""The sandbox ``local``: a child process with scrubbed environment, limits and tree kill.

It isolates nothing: a program reads and writes what this account can, and reaches the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from corerun.errors import InfrastructureError, UsageError
from corerun.execution import processes, workspace
from corerun.execution.collect import Collection, collect, remove_tree
from corerun.execution.environment import HOME_FOLDER, TEMPORARY_FOLDER, program_environment
from corerun.execution.service import SOCKET_VARIABLE, Service
from corerun.execution.streams import Stream
from corerun.execution.supervisor import Command, Ended, Supervisor
from corerun.execution.watchdog import default_memory_mb
from corerun.interfaces import ExecRequest, ExecResult, Handler, Json, Limits, Policy, Probe

LAUNCHER = str(Path(__file__).with_name("launcher.py"))
RECORD_BYTES = 65536
STRENGTH = 10
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)
_PROBE_S = 20
_MIB = 1024 * 1024
# Not -I: it would make the interpreter ignore PYTHONHASHSEED, and programs repeatable only by luck.
# The environment is all ours, and the launcher removes its own folder from the search path.
_PYTHON_FLAGS = ("-s", "-B", "-X", "faulthandler")


class LocalSandbox:
    """Runs programs as children of this process."""

    name = "local"

    def probe(self) -> Probe:
        """Run a tiny program, once per process."""
        return _probe()

    async def open(self, policy: Policy, workspace: str) -> LocalSession:
        """A session in ``workspace``, which is made when the first program runs."""
        return LocalSession(self.probe(), policy, workspace)


class LocalSession:
    """Runs programs in one workspace, several at a time if asked."""

    def __init__(self, probe: Probe, policy: Policy, workspace: str) -> None:
        self._policy = policy
        self._workspace = workspace
        missing = sorted(policy.require - probe.guarantees)
        self._facts = {
            "name": LocalSandbox.name,
            "guarantees": sorted(probe.guarantees),
            "missing": missing,
        }

    async def run(self, request: ExecRequest, serve: Handler | None = None) -> ExecResult:
        """Run one program to its end; see `ExecResult` for what can become of it.

        Raises `UsageError` for a request that is wrong in itself, nothing for what a program does.
        Cancelling it kills the program and all its descendants.
        """
        if request.workspace not in ("", self._workspace):
            raise UsageError(f"workspace {request.workspace!r} isn't this session's {self._workspace!r}")
        request = replace(request, workspace=self._workspace)
        request = replace(request, limits=_tighter(request.limits, self._policy.limits))
        workspace.check(request)
        environment = program_environment(
            request, workspace=request.workspace, base=os.environ, pass_env=self._policy.pass_env
        )
        begin = time.monotonic()
        try:
            folder = workspace.prepare(request)
            result = await _run(request, folder, environment, serve, begin)
        except (OSError, ValueError, InfrastructureError) as error:
            result = ExecResult(status="infra_error", exit_code=None, infra=f"{error}")
        return replace(result, sandbox=self._facts)

    async def close(self) -> None:
        """Remove the private home and temporary folders."""
        for private in (HOME_FOLDER, TEMPORARY_FOLDER):
            remove_tree(os.path.join(self._workspace, private))


async def _run(
    request: ExecRequest, folder: str, environment: dict[str, str], serve: Handler | None, begin: float
) -> ExecResult:
    exec_id = uuid.uuid4().hex
    environment[processes.MARKER] = exec_id
    memory_mb = request.limits.mem_mb or default_memory_mb(1)
    async with contextlib.AsyncExitStack() as held:
        stdout, stderr = (_stream(request, name, held) for name in ("stdout", "stderr"))
        record_end, program_end = os.pipe()
        held.callback(os.close, record_end)
        with contextlib.ExitStack() as passed:
            passed.callback(os.close, program_end)
            inherited = [program_end]
            if serve is not None:
                service = Service(serve, lambda why: supervisor.stop("protocol", why))
                held.push_async_callback(service.close)
                passed.callback(service.release)
                environment[SOCKET_VARIABLE] = str(service.descriptor)
                inherited.append(service.descriptor)
            command = Command(
                argv=_launch(request, folder, program_end),
                environment=environment,
                exec_id=exec_id,
                workspace=request.workspace,
                limits=request.limits,
                memory_mb=memory_mb,
                stdin=request.stdin,
                inherited=tuple(inherited),
            )
            supervisor = Supervisor(command, stdout, stderr)
            supervisor.start()
        started = time.monotonic()
        ended = await supervisor.wait()
        record = _record(record_end)
    before = time.monotonic()
    found = await _collect(folder, request)
    return replace(
        _result(ended, record, stdout, stderr, memory_mb),
        files=tuple(found.files),
        files_skipped=tuple(found.skipped),
        timing={
            "start_s": round(started - begin, 6),
            "run_s": round(ended.wall_s, 6),
            "collect_s": round(time.monotonic() - before, 6),
        },
    )


def _launch(request: ExecRequest, folder: str, descriptor: int) -> list[str]:
    interpreter = request.python or sys.executable
    if request.kind == "argv":
        command = list(request.argv)
    else:
        command = [workspace.program_path(request, folder)]
        if request.kind == "shell":
            command.insert(0, "/bin/sh")
    spec = {
        "kind": request.kind,
        "parent": os.getpid(),
        "folder": folder,
        "command": command,
        "result": descriptor,
        "limits": _resource_limits(request.limits),
    }
    launcher = interpreter if request.kind == "python" else sys.executable
    return [launcher, *_PYTHON_FLAGS, LAUNCHER, json.dumps(spec)]


def _resource_limits(limits: Limits) -> dict[str, tuple[int, int]]:
    """Soft and hard values, by name."""
    file_bytes, tag = limits.file_mb * _MIB, processes.tag()
    values = {
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_NOFILE": (limits.nofile, limits.nofile),
        "RLIMIT_FSIZE": (file_bytes, file_bytes),
        "RLIMIT_RTTIME": (tag, tag),
    }
    if limits.cpu_s is not None:
        seconds = max(1, math.ceil(limits.cpu_s))
        # With both values equal the kernel kills without SIGXCPU, and nobody would know why.
        values["RLIMIT_CPU"] = (seconds, seconds + 1)
    return values


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


def _record(descriptor: int) -> Mapping[str, Json]:
    """The launcher's record. The program could have written it itself: nothing in it is trusted."""
    os.set_blocking(descriptor, False)
    try:
        record = json.loads(os.read(descriptor, RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _result(
    ended: Ended, record: Mapping[str, Json], stdout: Stream, stderr: Stream, memory_mb: int
) -> ExecResult:
    status, message = _status(ended, record, memory_mb)
    claimed = status == "error" and not message
    trace = record.get("exc_trace", ())
    peak_kb = record.get("peak_kb")
    own_mb = peak_kb / 1024 if isinstance(peak_kb, int) and 0 < peak_kb < 2**40 else 0.0
    oom = {
        "by": "watchdog" if ended.cause else "kernel",
        "limit_mb": memory_mb,
        "peak_mb": round(ended.peak_mb, 3),
    }
    return ExecResult(
        status=status,
        exit_code=ended.exit_code,
        signal=ended.signal,
        exc_type=str(record.get("exc_type", ""))[:200] if claimed else "",
        exc_msg=str(record.get("exc_msg", "")) if claimed else message,
        exc_trace=_frames(trace) if claimed else (),
        stdout=stdout.text,
        stdout_path=stdout.path,
        stdout_bytes=stdout.total,
        stdout_sha256=stdout.sha256,
        stderr=stderr.text,
        stderr_path=stderr.path,
        stderr_bytes=stderr.total,
        truncated=bool(stdout.cut or stderr.cut),
        wall_s=round(ended.wall_s, 6),
        cpu_s=round(ended.cpu_s, 6),
        max_rss_mb=round(max(own_mb, ended.peak_mb) or ended.max_rss_mb, 3),
        oom=oom if status == "oom" else None,
        leftovers=ended.leftovers,
        infra=message if status == "infra_error" else "",
    )


def _frames(trace: Json) -> tuple[Json, ...]:
    """The frames of a traceback that have the launcher's form."""
    frames = trace if isinstance(trace, list) else ()
    return tuple(frame for frame in frames if isinstance(frame, dict) and isinstance(frame.get("file"), str))


def _status(ended: Ended, record: Mapping[str, Json], memory_mb: int) -> tuple[str, str]:
    """Status, and a sentence where the program's own record has nothing to say."""
    if ended.cause in ("timeout", "oom", "disk"):
        return ended.cause, ended.detail
    if ended.cause:
        return "killed", ended.detail
    if ended.signal is not None:
        message = f"ended by signal {ended.signal} ({signal.strsignal(ended.signal) or 'unknown'})"
        if ended.signal == signal.SIGXFSZ:
            return "disk", message
        if ended.signal == signal.SIGXCPU:
            return "timeout", message
        if ended.signal == signal.SIGKILL and ended.peak_mb >= 0.9 * memory_mb:
            return "oom", message
        return ("error" if ended.signal in _CRASHES else "killed"), message
    if "infra" in record:
        return "infra_error", str(record["infra"])
    return ("error" if ended.exit_code else "ok"), ""


def _tighter(wanted: Limits, allowed: Limits) -> Limits:
    values = {}
    for item in fields(Limits):
        ours, theirs = getattr(wanted, item.name), getattr(allowed, item.name)
        values[item.name] = ours if theirs is None else theirs if ours is None else min(ours, theirs)
    return Limits(**values)


@functools.cache
def _probe() -> Probe:
    with tempfile.TemporaryDirectory(prefix="corerun-probe-") as folder:
        request = ExecRequest(workspace=folder, code="import os\nprint(sorted(os.environ))\n")
        environment = program_environment(request, workspace=folder, base=os.environ)
        path = workspace.program_path(request, folder)
        workspace.write_new(path, request.code.encode())
        record_end, program_end = os.pipe()
        try:
            done = subprocess.run(
                _launch(request, folder, program_end),
                env=environment,
                pass_fds=(program_end,),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_S,
            )
            record = _record(record_end)
        except (OSError, subprocess.SubprocessError) as error:
            return Probe(ok=False, reason=str(error))
        finally:
            os.close(record_end)
            os.close(program_end)
    if done.returncode or "infra" in record:
        return Probe(ok=False, reason=str(record.get("infra", f"exit code {done.returncode}")))
    guarantees = set()
    if done.stdout.decode().strip() == str(sorted([*environment, *_added_by_the_interpreter(done.stdout)])):
        guarantees.add("env")
    if processes.become_subreaper() and os.path.exists("/proc/self/stat"):
        guarantees.add("tree_kill")
    if os.geteuid() != 0:
        # The superuser may raise its own hard limits.
        guarantees.add("file_size")
    return Probe(ok=True, reason="no isolation", guarantees=frozenset(guarantees), strength=STRENGTH)


def _added_by_the_interpreter(output: bytes) -> tuple[str, ...]:
    # Python sets LC_CTYPE itself when the locale is C.
    return ("LC_CTYPE",) if b"'LC_CTYPE'" in output else ()
