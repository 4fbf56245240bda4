"""Running programs: requests, results, sandboxes, executors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from corerun.interfaces.component import Handler, Json

GUARANTEES = frozenset(
    {
        *("fs_read", "fs_write", "net", "unix_sockets", "env", "proc_isolation", "tree_kill"),
        *("mem_total", "mem_proc", "pids", "disk_total", "file_size"),
    }
)
"""Everything that a sandbox can guarantee."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program. None: the default that the executor derives from the machine.

    What is written to a stream beyond ``stdout_store_mb`` is counted and dropped; ``flood_mb`` ends the
    program there instead (None: never).
    """

    wall_s: float = 3600.0
    cpu_s: float | None = None
    mem_mb: int | None = None
    pids: int = 512
    file_mb: int = 4096
    disk_mb: int = 10240
    files: int = 20000
    stdout_head_kb: int = 64
    stdout_tail_kb: int = 192
    stdout_store_mb: int = 64
    flood_mb: int | None = None
    nofile: int = 4096
    grace_s: float = 3.0


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """One program to run. ``workspace`` is an absolute folder; ``cwd`` is relative to it.

    ``kind``: ``python`` (``code`` is written to ``file_name`` and run by ``python``), ``shell``
    (``code`` for ``/bin/sh``) or ``argv``. ``files`` maps relative paths in the workspace to
    read-only inputs on the host: a file is copied, a folder linked. ``collect`` are globs, relative
    to ``cwd``. ``gpus`` are leased ids, or ``"any"`` for each one that is wanted. ``fresh``: the
    workspace is emptied first. ``read`` are absolute paths on the host that the program may read
    where they lie. ``preload`` names a profile (see `corerun.execution.inside.profiles`) of modules
    that a warm start has imported already.
    """

    kind: str = "python"
    code: str = ""
    argv: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "."
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: str | None = None
    limits: Limits = Limits()
    network: str = "none"
    gpus: tuple[str, ...] = ()
    python: str = ""
    preload: str | None = None
    collect: tuple[str, ...] = ()
    label: str = "program"
    node: str = ""
    attempt: int = 0
    workspace: str = ""
    file_name: str = "runfile.py"
    fresh: bool = False
    read: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        return _as_dict(self) | {"limits": _as_dict(self.limits)}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ExecRequest:
        values = dict(data)
        values["limits"] = Limits(**values.get("limits", {}))
        for name in ("argv", "gpus", "collect", "read"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What became of a program. It describes; it never raises for what a program does.

    ``status``: ok, error (exit code or exception), timeout, oom, disk, output_limit, killed
    (external signal), cancelled, infra_error. ``exc_*`` are the program's own claim.
    ``stdout``/``stderr`` are head and tail; the full streams lie at ``stdout_path``/``stderr_path``.
    ``files`` holds ``{path, size, sha256}`` relative to the request's ``cwd``, and the old ``name`` of
    one that had to be renamed. ``left`` is how many processes had to be killed after the main one,
    ``leftovers`` the first command lines of these.
    ``peak_tree_mb`` is the most memory that all its processes used together, ``read_mb`` and
    ``written_mb`` went from and to disks.
    """

    status: str = "ok"
    exit_code: int | None = 0
    signal: int | None = None
    exc_type: str = ""
    exc_msg: str = ""
    exc_trace: tuple[Json, ...] = ()
    stdout: str = ""
    stderr: str = ""
    stdout_path: str = ""
    stdout_bytes: int = 0
    stdout_sha256: str = ""
    stderr_path: str = ""
    stderr_bytes: int = 0
    truncated: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    peak_tree_mb: float = 0.0
    read_mb: float = 0.0
    written_mb: float = 0.0
    oom: Json | None = None
    files: tuple[Json, ...] = ()
    files_skipped: tuple[Json, ...] = ()
    leftovers: tuple[str, ...] = ()
    left: int = 0
    sandbox: Mapping[str, Json] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    infra: str = ""

    def to_json(self) -> dict[str, Json]:
        return _as_dict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ExecResult:
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        for name in ("exc_trace", "files", "files_skipped", "leftovers"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a session may do. ``require`` names guarantees that must hold (see `GUARANTEES`).

    ``read`` and ``write`` are paths on the host beside the workspace. ``pass_env`` are variables that
    programs see; credentials are refused there, and passed if ``pass_env_unsafe`` names them.
    ``zygote``: programs may be forked from a process that has imported their profile. ``image`` is
    for sandboxes that are containers.
    """

    require: frozenset[str] = frozenset()
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    pass_env_unsafe: tuple[str, ...] = ()
    zygote: bool = True
    image: str = ""
    network: str = "none"
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Probe:
    """What a sandbox can do here, found by running a tiny program in it.

    ``guarantees``: subset of `GUARANTEES`. ``strength``: 0 none, 10 local, 20 landlock, 30 bwrap, 40
    container, 50 virtual machine.
    """

    ok: bool
    reason: str = ""
    guarantees: frozenset[str] = frozenset()
    strength: int = 0


def _as_dict(record: Any) -> dict[str, Json]:
    # Not `dataclasses.asdict`: its deep copy of what is JSON already costs more than the rest of a call.
    return {item.name: getattr(record, item.name) for item in fields(record)}


class Session(Protocol):
    """One workspace under one policy."""

    async def run(self, request: ExecRequest, serve: Handler | None = None) -> ExecResult: ...

    async def close(self) -> None: ...


class Sandbox(Protocol):
    """Inside what a program runs."""

    name: str

    def probe(self) -> Probe: ...

    async def open(self, policy: Policy, workspace: str) -> Session: ...


class Executor(Protocol):
    """Where work runs: this process, local processes, a cluster. ``slots``: how much at once."""

    slots: int

    async def submit(self, target: str, spec: Json, serve: Handler | None = None) -> Json: ...

    async def close(self) -> None: ...
