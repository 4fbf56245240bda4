"""The sandbox ``docker``: a container of an engine for each workspace; only taken when it is named."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from corerun.errors import InfrastructureError, SandboxBroken, UsageError
from corerun.execution.enclosure import INSIDE, interpreter_paths, no_enclosure, scratch_mb
from corerun.execution.environment import SEARCH_PATH, TEMPORARY_FOLDER
from corerun.execution.session import ProgramSession
from corerun.execution.spawn import spawn
from corerun.execution.starting import Program, pipe
from corerun.execution.trees import Tree
from corerun.interfaces import ExecRequest, ExecResult, Handler, Json, Policy, Probe
from corerun_sandboxes import container
from corerun_sandboxes.client import ClientTree
from corerun_sandboxes.container import RECORD_DESCRIPTOR, Container, Form
from corerun_sandboxes.view import readable

STRENGTH = 40
IMAGE = "python:3.11-slim"
_PROBE_S = 20
_GUARANTEES = frozenset(
    {
        *("env", "tree_kill", "fs_read", "fs_write", "net", "unix_sockets", "proc_isolation"),
        *("mem_total", "pids", "file_size", "disk_total"),
    }
)


class DockerSandbox:
    """Runs programs in a container for each workspace. The image needs a shell, ``timeout`` and Python."""

    name = "docker"
    only_by_name = True

    def probe(self) -> Probe:
        """Ask the engine for its version, once per process.

        What the container's options give is not tried: an image may have to be loaded first.
        """
        return _probe()

    async def open(self, policy: Policy, workspace: str) -> ProgramSession:
        """A session in ``workspace``; its container is made when the first program runs."""
        return DockerSession(self.probe(), policy, workspace)


class DockerSession(ProgramSession):
    """Runs programs in one container, one after the other: what one leaves behind ends with the container."""

    def __init__(self, probe: Probe, policy: Policy, workspace: str) -> None:
        super().__init__(DockerSandbox.name, probe, policy, workspace, no_enclosure)
        self._image = policy.image or IMAGE
        self._one_at_a_time = asyncio.Lock()
        self._container: Container | None = None
        self._tree: ClientTree | None = None

    async def run(self, request: ExecRequest, serve: Handler | None = None) -> ExecResult:
        """Like `ProgramSession.run`. Raises `SandboxBroken` when the container ended on its own."""
        if serve is not None:
            raise UsageError("programs in a container can't ask back", hint="choose another sandbox")
        async with self._one_at_a_time:
            self._tree = None
            result = await super().run(request)
            if self._tree is not None and self._tree.lost:
                raise SandboxBroken(f"docker: {result.infra}")
            if self._tree is not None and self._tree.out_of_memory:
                limit = self._tree.container.form.memory_mb
                message = f"used more than {limit} MB of memory"
                oom: Json = {"by": "cgroup", "limit_mb": limit, "peak_mb": float(limit)}
                result = replace(result, status="oom", oom=oom, exc_type="", exc_msg=message, exc_trace=())
            return result

    async def close(self) -> None:
        """Remove the container and the private folders."""
        await self._let_go()
        await super().close()

    def _prepared(self, request: ExecRequest) -> Program:
        # A Python that is named is one of the image's.
        program = super()._prepared(replace(request, python=""))
        program.environment["PATH"] = SEARCH_PATH
        return replace(program, request=request)

    async def _start(
        self, program: Program, launch: Mapping[str, Json], inherited: Sequence[int], passed: ExitStack
    ) -> tuple[Tree, tuple[int, int]]:
        box = await self._ready(program)
        record = os.path.join(program.place.folder, TEMPORARY_FOLDER, f"{program.exec_id}.record")
        own = {**launch, "parent": None, "groups": [], "result": RECORD_DESCRIPTOR}
        request = program.request
        python = request.python if request.kind == "python" else ""
        command = box.command(
            [python or "python3", json.dumps(own, ensure_ascii=False)],
            folder=program.folder,
            record=record,
            limits=request.limits,
            environment=program.environment,
            stdin=request.stdin is not None,
        )
        with contextlib.ExitStack() as kept:
            stdout, stderr = pipe(kept, passed), pipe(kept, passed)
            told = os.dup(launch["result"])
            kept.callback(os.close, told)
            # The client needs this process's own variables to find its engine.
            pid = spawn(command, os.environ, (stdout[1], stderr[1]), (), stdin=request.stdin)
            self._tree = ClientTree(pid, box, record, told)
            kept.pop_all()
        return self._tree, (stdout[0], stderr[0])

    async def _ready(self, program: Program) -> Container:
        """The container of this session, if it is still there and of the form that the program needs."""
        form = _form(self._image, program)
        if self._container is not None and (self._container.removed or self._container.form != form):
            await self._let_go()
        if self._container is None:
            await _clean_once()
            box = Container(form)
            await box.start()
            self._container = box
        return self._container

    async def _let_go(self) -> None:
        if self._container is not None and not self._container.removed:
            await self._container.remove()
        self._container = None


def _form(image: str, program: Program) -> Form:
    place = program.place
    of_this_machine = set(interpreter_paths(""))
    read = (INSIDE, *readable(path for path in place.read if path not in of_this_machine))
    return Form(
        image=image,
        folder=place.folder,
        read=read,
        memory_mb=program.memory_mb,
        pids=place.limits.pids,
        scratch_mb=scratch_mb(place.limits, program.memory_mb),
        network=place.network,
        gpus=place.gpus,
    )


_cleaned = False


async def _clean_once() -> None:
    global _cleaned
    if not _cleaned:
        await container.remove_abandoned()
        _cleaned = True


@functools.cache
def _probe() -> Probe:
    try:
        version = container.ask("version", "--format", "{{.Server.Version}}", timeout_s=_PROBE_S).strip()
    except InfrastructureError as error:
        return Probe(ok=False, reason=f"{error} (needs a docker engine that this account may use)")
    return Probe(
        ok=True,
        reason=f"engine {version}; what its containers isolate isn't tried",
        guarantees=_GUARANTEES,
        strength=STRENGTH,
    )
