"""Containers, as the command ``docker`` makes, uses and removes them."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from corerun.errors import InfrastructureError
from corerun.execution.enclosure import PYTHON_FLAGS, START
from corerun.interfaces import Limits
from corerun.runs.owner import read_owner, this_process

LABEL = "corerun.owner"
PROGRAM = "docker"
_CALL_S = 120
_PULL_S = 1800
_OWN_PROCESSES = 4
"""What runs in a container beside a program: its first process, the one that keeps it alive, and the
program's time limit with the shell that starts it."""
RECORD_DESCRIPTOR = 3
# The record of the end can't be a pipe into a container: it is a file, opened before the program begins.
_OPEN_RECORD = f'exec {RECORD_DESCRIPTOR}>"$0" && exec "$@"'


@dataclass(frozen=True, slots=True)
class Form:
    """What a container is made of. ``read`` are host paths; all paths are the same inside. Sizes in MB."""

    image: str
    folder: str
    read: tuple[str, ...]
    memory_mb: int
    pids: int
    scratch_mb: int
    network: str
    gpus: tuple[str, ...]

    def options(self) -> list[str]:
        """Options of ``docker run``."""
        words = [
            *("--init", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--user", f"{os.geteuid()}:{os.getegid()}", "--ipc", "private", "--ulimit", "core=0"),
            *("--network", "host" if self.network == "host" else "none"),
            *("--pids-limit", str(self.pids + _OWN_PROCESSES)),
            *("--memory", f"{self.memory_mb}m", "--memory-swap", f"{self.memory_mb}m"),
            *("--tmpfs", f"/tmp:rw,exec,mode=1777,size={self.scratch_mb}m"),
            *("--shm-size", f"{self.scratch_mb}m"),
        ]
        for path in self.read:
            words += ["--mount", _row("type=bind", f"source={path}", f"target={path}", "readonly")]
        words += ["--mount", _row("type=bind", f"source={self.folder}", f"target={self.folder}")]
        if self.gpus:
            words += ["--gpus", _row(f"device={','.join(self.gpus)}")]
        return words


class Container:
    """A container that waits for programs; made by `start`."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.name = f"corerun-{uuid.uuid4().hex}"
        self.removed = False
        self._own: frozenset[str] = frozenset()

    async def start(self) -> None:
        """Make it; when this is cancelled none is left. Raises `InfrastructureError`."""
        words = ["run", "--detach", "--name", self.name, "--label", f"{LABEL}={owner()}"]
        words += [*self.form.options(), "--entrypoint", "sleep", self.form.image, "infinity"]
        task = asyncio.ensure_future(call(*words, timeout_s=_PULL_S))
        try:
            await asyncio.shield(task)
            self._own = frozenset(await self._processes())
        except BaseException:
            await asyncio.gather(task, return_exceptions=True)
            await self.remove()
            raise

    def command(
        self,
        python: Sequence[str],
        *,
        folder: str,
        record: str,
        limits: Limits,
        environment: Mapping[str, str],
        stdin: bool,
    ) -> list[str]:
        """The words that run a program in it; ``python`` is an interpreter and the launch for it.

        Its time limit is kept inside: this command is only a client, whose end wouldn't be the program's.
        """
        interpreter, launch = python
        return [
            *(PROGRAM, "exec", *(["--interactive"] if stdin else []), "--workdir", folder),
            *(word for pair in environment.items() for word in ("--env", _variable(*pair))),
            *(self.name, "/bin/sh", "-c", _OPEN_RECORD, record),
            *("timeout", "-k", f"{limits.grace_s:g}", f"{limits.wall_s:g}"),
            *(interpreter, *PYTHON_FLAGS, START, launch),
        ]

    async def leftovers(self) -> list[str] | None:
        """Command lines of what a program left behind; None when the container has ended."""
        try:
            rows = await self._processes()
        except InfrastructureError:
            return None
        return [line for pid, line in rows.items() if pid not in self._own]

    async def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed one of its processes for memory."""
        try:
            return (await call("inspect", "--format", "{{.State.OOMKilled}}", self.name)).strip() == "true"
        except InfrastructureError:
            return False

    async def remove(self) -> None:
        """End all its processes and remove it."""
        self.removed = True
        await remove(self.name)

    async def _processes(self) -> dict[str, str]:
        rows = (await call("top", self.name, "-eo", "pid,args")).splitlines()[1:]
        parts = (row.split(None, 1) for row in rows)
        return {part[0]: part[1] for part in parts if len(part) == 2}


def owner() -> str:
    """This process, in a form that a later one can tell to be dead."""
    return this_process().to_json().decode()


async def remove(*names: str) -> None:
    """Remove containers and all that runs in them; that one is gone already is no error."""
    await call("rm", "--force", "--volumes", *names, check=False)


async def remove_abandoned() -> None:
    """Remove the containers of processes of this machine that died without doing it."""
    form = f'{{{{.ID}}}} {{{{.Label "{LABEL}"}}}}'
    listed = await call("ps", "--all", "--filter", f"label={LABEL}", "--format", form)
    names = []
    for line in listed.splitlines():
        name, _, text = line.partition(" ")
        found = read_owner(text.encode())
        if found is not None and found.host == this_process().host and not found.runs_here:
            names.append(name)
    if names:
        await remove(*names)


async def call(*words: str, timeout_s: float = _CALL_S, check: bool = True) -> str:
    """Run one docker command and return what it printed; `InfrastructureError` when it fails."""
    return await asyncio.to_thread(ask, *words, timeout_s=timeout_s, check=check)


def ask(*words: str, timeout_s: float = _CALL_S, check: bool = True) -> str:
    """Like `call`, in this thread."""
    try:
        done = subprocess.run(
            [PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InfrastructureError(f"docker {words[0]}: {error}") from None
    if check and done.returncode:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise InfrastructureError(f"docker {words[0]}: {last or f'exit code {done.returncode}'}")
    return done.stdout


def _variable(name: str, value: str) -> str:
    # Its value is taken from the client's own environment: a command line is public.
    return name if os.environ.get(name) == value else f"{name}={value}"


def _row(*fields: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()
