"""Runs one program file as jobs run theirs, in a folder of the person's that stays as it was."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import corerun
from corerun.errors import InfrastructureError, Interrupted, UsageError
from corerun.execution.collect import remove_tree
from corerun.execution.environment import HOME_FOLDER, TEMPORARY_FOLDER
from corerun.execution.inside.profiles import PROFILES
from corerun.execution.worker import program_spec, run_program
from corerun.execution.workspace import NAME
from corerun.interfaces import ExecRequest, ExecResult, Limits
from corerun.job.isolation import Isolation
from corerun.job.tee import Copier

KINDS = {".py": "python", ".sh": "shell"}
TIMEOUT_CODE = 124
MEMORY_CODE = 128 + signal.SIGKILL
STORE_MB = 1024 * 1024
"""So much of each stream is kept while the program runs: all there is."""
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LARGEST_FILE = 16 * 1024 * 1024
_SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/run", "/sbin"),
    *("/srv", "/sys", "/usr", "/var", "/var/tmp"),
)


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """A program that is ready to run in ``folder``; ``litter`` is what running it leaves there."""

    request: ExecRequest
    litter: tuple[str, ...]


def read_program(file: Path, folder: Path, limits: Limits, preload: str | None = None) -> ProgramFile:
    """The request that runs ``file`` in ``folder``.

    Raises `UsageError` for a file that is no program, and for a folder that holds more than one's files.
    """
    kind = KINDS.get(file.suffix)
    if kind is None:
        raise UsageError(f"{file} is neither .py nor .sh", hint="rename it, or start it from a .sh file")
    if preload is not None and preload not in PROFILES:
        raise UsageError(f"no profile is named {preload}", hint=f"one of {', '.join(PROFILES)}")
    code = _text(file)
    folder = _checked(folder)
    label = f"exec-{secrets.token_hex(4)}"
    name = f"{label}{file.suffix}"
    # A shell's program is always named after its label.
    if kind == "python" and NAME.fullmatch(file.name):
        own = file.resolve() == folder / file.name
        if own or not os.path.lexists(folder / file.name):
            name = file.name
    litter = [HOME_FOLDER, TEMPORARY_FOLDER, f"{label}.stdout.log", f"{label}.stderr.log"]
    if not os.path.lexists(folder / name):
        litter.append(name)
    request = ExecRequest(
        kind=kind,
        code=code,
        limits=limits,
        preload=preload,
        label=label,
        file_name=name,
        workspace=str(folder),
    )
    return ProgramFile(request, tuple(litter))


async def run_file(program: ProgramFile, isolation: Isolation) -> ExecResult:
    """Run it with its output copied to ours as it comes.

    Raises `InfrastructureError` if nothing can be said of the program, `Interrupted` for Ctrl-C and
    SIGTERM, BrokenPipeError or `StateError` if our own output can't be written. Cancelling it kills
    the program and all its descendants.
    """
    request = program.request
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stopped: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        stopped.append(number)
        task.cancel()

    for number in _STOPPING:
        # Whoever started us with a signal ignored, as nohup does, wants it so.
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    place = os.path.join(request.workspace, request.label)
    copies = [
        Copier(f"{place}.{name}.log", target.fileno(), lambda: loop.call_soon_threadsafe(task.cancel))
        for name, target in (("stdout", sys.stdout), ("stderr", sys.stderr))
    ]
    spec = program_spec(request, isolation.target, replace(isolation.policy, limits=request.limits))
    try:
        result = ExecResult.from_json(await run_program(spec))
        for copy, text in zip(copies, (result.stdout, result.stderr), strict=True):
            copy.finish(text)
    except asyncio.CancelledError:
        if stopped:
            raise Interrupted(f"interrupted by {stopped[0].name}") from None
        if broken := next((copy.error for copy in copies if copy.error), None):
            raise broken from None
        raise
    finally:
        for copy in copies:
            copy.abandon()
        for name in program.litter:
            remove_tree(os.path.join(request.workspace, name))
    if result.infra:
        raise InfrastructureError(result.infra, hint="corerun doctor says what this machine can isolate")
    isolation.check(result)
    return result


def exit_code(result: ExecResult) -> int:
    """What a shell would say of the program: its code, 128 + n for a signal, 124 at the time limit."""
    if result.status == "timeout":
        return TIMEOUT_CODE
    if result.status == "oom" or (result.exit_code is None and result.signal is None):
        return MEMORY_CODE
    return 128 + result.signal if result.signal is not None else result.exit_code or 0


def why_stopped(result: ExecResult) -> str:
    """Which limit or signal ended the program; empty if it came to its own end."""
    if result.status in ("ok", "error") and result.signal is None:
        return ""
    said = result.exc_msg or (f"ended by signal {result.signal}" if result.signal else "stopped")
    return f"{result.status}: {said}"


def _text(file: Path) -> str:
    try:
        if not file.is_file():
            raise UsageError(f"no such file: {file}" if not file.exists() else f"{file} is no regular file")
        if file.stat().st_size > _LARGEST_FILE:
            raise UsageError(f"{file} is larger than {_LARGEST_FILE // 2**20} MB")
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no text in UTF-8") from error
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error


def _checked(folder: Path) -> Path:
    """The real path of a folder that a program may write in."""
    folder = Path(os.path.realpath(folder))
    hint = "name a folder of its own with --cwd DIR"
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}", hint=hint)
    # What a program may change must not be what runs or guards the next one.
    guarded = [
        ("your home folder", Path.home()),
        ("the folder for temporary files", Path(tempfile.gettempdir())),
        ("the Python that runs it", Path(sys.prefix)),
        ("the Python that runs it", Path(sys.base_prefix)),
        ("corerun itself", Path(corerun.__file__).parent),
    ]
    for what, path in guarded:
        if path.resolve().is_relative_to(folder):
            raise UsageError(f"{folder} is or holds {what}: a program may change all in it", hint=hint)
    if str(folder) in _SYSTEM or folder.parts[1] in ("proc", "sys"):
        raise UsageError(f"{folder} belongs to the system: a program may change all in it", hint=hint)
    if (folder / ".ssh").exists():
        raise UsageError(f"{folder} holds .ssh: a program may change all in it", hint=hint)
    for private in (HOME_FOLDER, TEMPORARY_FOLDER):
        if os.path.lexists(folder / private):
            raise UsageError(f"{folder} has a {private}, a name that programs' own folders have", hint=hint)
    return folder
