"""The dataclasses and protocols that hooks carry. Standard library only, so that it loads in no time.

Plugin authors need this file and `corerun.hookspecs`; nothing else is required to write a plugin.
Every protocol is structural: a class that has the members fits, no base class is needed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

Json: TypeAlias = Any
"""What `json` reads back: dict, list, str, int, float, bool or None."""

T = TypeVar("T")
Handler: TypeAlias = Callable[[Json], Awaitable[Json]]
"""Answers one request that a running program sends over its inherited socket."""


@dataclass(frozen=True, slots=True)
class Component:
    """One named thing that a plugin offers to one hook.

    ``target`` is ``"module:attribute"``; it is imported when the component is first used.
    """

    name: str
    target: str
    summary: str = ""


# --------------------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message: ``kind`` is ``text`` or ``image``; images carry bytes and a media type."""

    kind: str
    text: str = ""
    data: bytes = b""
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asked for. ``arguments`` is the raw text; the client parses it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``role`` is ``system``, ``user``, ``assistant`` or ``tool``."""

    role: str
    content: str | tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to one model. ``model`` is the provider's own id, without the provider's name.

    ``schema`` is a JSON Schema for the answer; the provider chooses the channel for it (tool,
    response format, prompt) and the core extracts and validates.
    """

    model: str
    messages: tuple[Message, ...]
    schema: Json | None = None
    schema_name: str = ""
    tools: tuple[Json, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    reasoning_effort: str | None = None
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a provider may know of a call beside the request.

    ``facts`` is the structured form of what the messages say; rule-based providers read it.
    ``deadline`` is on the monotonic clock. ``strict``: a refused feature is an error.
    """

    purpose: str
    facts: Mapping[str, Json] = field(default_factory=dict)
    node: str | None = None
    deadline: float = float("inf")
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens. ``reasoning`` is contained in ``completion``, ``cached`` in ``prompt``."""

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0
    estimated: bool = False
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One answer. ``finish``: stop, length, tool, filter, refusal or unknown.

    ``requests`` counts what went over the wire; ``degradations`` names features that were dropped.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    finish: str = "stop"
    usage: Usage = Usage()
    model: str = ""
    degradations: tuple[str, ...] = ()
    requests: int = 1


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a caller of the client gets. ``seq`` is the number of the journal record that holds it."""

    value: T
    reply: ChatReply
    replayed: bool = False
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float
    cached: float | None = None


@dataclass(frozen=True, slots=True)
class ProviderInfo:
    """Facts about a provider. ``vision``: None means try, degrade, remember.

    ``kind`` is what people are told answers them: ``model`` or ``rules``.
    """

    name: str
    aliases: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    default_base_url: str = ""
    needs_key: bool = True
    is_local: bool = False
    vision: bool | None = None
    kind: str = "model"


class Provider(Protocol):
    """A way to reach models: one answer per call, no retry.

    ``complete`` raises classes of `corerun.errors` below ``ModelError``; only ``Transient`` is
    retried, by the core. Optional members: ``stream``, ``list_models``, ``price``, ``aclose``.
    """

    @property
    def info(self) -> ProviderInfo: ...

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply: ...


@dataclass(frozen=True, slots=True)
class Role:
    """Which model plays a role of a job, and how it is asked."""

    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    reasoning_effort: str | None = None


# ----------------------------------------------------------------------------------- execution


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program. None: the default that the executor derives from the machine."""

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
    nofile: int = 4096
    grace_s: float = 3.0


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """One program to run. ``workspace`` is an absolute folder; ``cwd`` is relative to it.

    ``kind``: ``python`` (``code`` is written to ``file_name`` and run by ``python``), ``shell``
    (``code`` for ``/bin/sh``) or ``argv``. ``files`` maps relative paths in the workspace to
    read-only inputs on the host. ``collect`` are globs, relative to ``cwd``. ``gpus`` are leased ids,
    or ``"any"`` for each one that is wanted. ``fresh``: the workspace is emptied first.
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

    def to_json(self) -> dict[str, Json]:
        return _as_dict(self) | {"limits": _as_dict(self.limits)}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ExecRequest:
        values = dict(data)
        values["limits"] = Limits(**values.get("limits", {}))
        for name in ("argv", "gpus", "collect"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What became of a program. It describes; it never raises for what a program does.

    ``status``: ok, error (exit code or exception), timeout, oom, disk, output_limit, killed
    (external signal), cancelled, infra_error. ``exc_*`` are the program's own claim.
    ``stdout``/``stderr`` are head and tail; the full streams lie at ``stdout_path``/``stderr_path``.
    ``files`` holds ``{path, size, sha256}`` relative to the request's ``cwd``.
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
    oom: Json | None = None
    files: tuple[Json, ...] = ()
    files_skipped: tuple[Json, ...] = ()
    leftovers: tuple[str, ...] = ()
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
    """What a session may do. ``require`` names guarantees that must hold (see `Probe`)."""

    require: frozenset[str] = frozenset()
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    network: str = "none"
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Probe:
    """What a sandbox can do here, found by running a tiny program in it.

    ``guarantees``: subset of fs_read, fs_write, net, env, proc_isolation, tree_kill, mem_total,
    mem_proc, pids, disk_total, file_size, unix_sockets. ``strength``: 0 none .. 50 virtual machine.
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


# -------------------------------------------------------------------------------------- search


@dataclass(frozen=True, slots=True)
class Expansion:
    """A strategy's wish: expand ``parent`` (None: make a new root)."""

    parent: str | None = None
    hint: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an expansion. Higher scores are better.

    ``status``: good; failed; infra (not the candidate's fault, the driver tries once more); void
    (there was nothing to expand, so it counts nowhere).
    """

    status: str
    score: float | None = None
    reason: str = ""
    open: bool = True
    data: Mapping[str, Json] = field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """One candidate. Only the driver writes it.

    ``seq`` is the ask number in its scope, from 0. ``asked_at``/``done_at`` are numbers of journal
    records; what a node may know of the others follows from them, not from the clock.
    """

    id: str
    parent: str | None
    root: str
    depth: int
    seq: int
    status: str = "running"
    score: float | None = None
    open: bool = True
    reason: str = ""
    data: Mapping[str, Json] = field(default_factory=dict)
    hint: Mapping[str, Json] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)
    debug_depth: int = 0
    attempt: int = 0
    counted: bool = True
    asked_at: int = 0
    done_at: int | None = None


class Tree(Protocol):
    """A search tree as strategies and domains see it: read only, every view kept up to date."""

    scope: str
    nodes: dict[str, Node]
    roots: list[str]
    running: dict[str, Node]
    good: dict[str, Node]
    open_failed: dict[str, Node]
    best: Node | None
    asked: int
    done: int


class Strategy(Protocol):
    """Says which node to expand next. ``ask`` changes nothing; ``tell`` rebuilds all state.

    ``ask`` may return fewer than ``slots``; an empty answer means wait or, with nothing running,
    that the search is exhausted.
    """

    def ask(self, tree: Tree, slots: int, rng: random.Random) -> Sequence[Expansion]: ...

    def tell(self, tree: Tree, node: Node) -> None: ...


class Domain(Protocol):
    """Says how a node is expanded and scored, and when the search is finished."""

    async def expand(self, run: Run, tree: Tree, node: Node) -> Outcome: ...

    async def finished(self, run: Run, tree: Tree) -> bool: ...


# --------------------------------------------------------------------------------- runs and jobs


@dataclass(frozen=True, slots=True)
class Event:
    """One immutable journal record. ``t`` is wall time, for display only; ``seq`` orders."""

    seq: int
    t: float
    type: str
    data: Mapping[str, Json]


class Observer(Protocol):
    """Told of every event of a run. Its exceptions are logged, never fatal."""

    def on_event(self, run_id: str, event: Event) -> None: ...

    def close(self) -> None: ...


class Run(Protocol):
    """What jobs, domains and stages hold: identity, journal, models, programs, files."""

    id: str
    dir: Path
    seed: int
    resumed: bool
    workers: int
    stopping: bool
    """True after the first Ctrl-C: no new node is asked for."""
    gpus: tuple[str, ...]
    """Ids of the GPUs that programs may get."""

    def emit(self, type: str, **data: Json) -> int: ...

    def events(self, scope: str | None = None) -> Sequence[Event]: ...

    def warn(self, message: str) -> None: ...

    def note(self, name: str, value: Json, **place: str) -> None: ...

    def noted(self, name: str, default: Json = None) -> Json: ...

    def forget(self, node: str) -> None: ...

    async def ask(
        self,
        role: str,
        purpose: str,
        messages: Sequence[Message],
        *,
        schema: type | None = None,
        parse: Callable[[str], Any] | None = None,
        tools: Sequence[Json] = (),
        node: str | None = None,
        facts: Mapping[str, Json] | None = None,
        **options: Any,
    ) -> Answer[Any]: ...

    def provider_info(self, role: str) -> ProviderInfo: ...

    async def execute(self, request: ExecRequest, serve: Handler | None = None) -> ExecResult: ...

    def component(self, kind: str, name: str) -> Any: ...

    def rng(self, *parts: Json) -> random.Random: ...

    def write(self, path: str, text: str | bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Invocation:
    """How a job was started: where paths resolve, what was typed, which run is to be resumed."""

    cwd: Path
    config_file: Path | None = None
    argv: tuple[str, ...] = ()
    flags: Mapping[tuple[str, ...], Json] = field(default_factory=dict)
    resume: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job's plan, made and checked before a directory exists.

    ``directory`` is the absolute run directory (None: the default place). ``identity`` must be
    equal when the run is resumed; ``inputs`` goes into the manifest. ``roles`` name models; the
    programs that ``code_role`` writes decide which isolation is required. ``notices`` are told to
    the person, ``warnings`` are kept in the run as well. ``fresh``: the name of the directory was
    made up, so if another run has it already, this one gets a number at its end.
    """

    directory: Path | None = None
    fresh: bool = False
    roles: Mapping[str, Role] = field(default_factory=dict)
    code_role: str = "code"
    inputs: Mapping[str, Json] = field(default_factory=dict)
    identity: Mapping[str, Json] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Job(Protocol):
    """What ``corerun --plugin NAME run`` runs. ``config_model`` is the pydantic model of its section.

    ``prepare`` checks all input and raises `UsageError` or `EnvironmentRefused` before anything is
    written. ``run`` does the work; it is called on an empty and on a half-filled journal alike.
    ``derive`` writes every file that follows from the journal and returns the manifest's own part.

    Optional members: ``layers(invocation)`` reads the job's own documents into settings layers,
    strongest first; ``estimate(settings)`` says for ``--dry-run`` what a run would take.
    """

    @property
    def config_model(self) -> type[Any]: ...

    def prepare(self, settings: Any, invocation: Invocation) -> Prepared: ...

    async def run(self, run: Run, settings: Any) -> None: ...

    def derive(self, directory: Path, events: Sequence[Event]) -> Mapping[str, Json]: ...


# ------------------------------------------------------- operators, rewards, stages, benchmarks


class Operator(Protocol):
    """A step of a workflow: declared inputs in, declared keys out."""

    description: str
    interface: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: frozenset[str]

    async def __call__(self, **inputs: Json) -> dict[str, Json]: ...


@dataclass(frozen=True, slots=True)
class Rollout:
    """One workflow run on one problem, as rewards see it."""

    problem: Json
    answer: str | None = None
    text: str = ""
    valid: bool = True
    fallback_level: int = 0
    operators: tuple[str, ...] = ()
    cost_usd: float | None = None
    seconds: float = 0.0
    correct: float | None = None
    group_cost_usd: float | None = None
    error: str = ""


@runtime_checkable
class Reward(Protocol):
    """One part of a reward; None means that it has nothing to say."""

    range: tuple[float, float]
    weight: float

    def score(self, rollout: Rollout) -> float | None: ...


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a contract stage came to."""

    ok: bool
    kind: str = ""
    message: str = ""
    outputs: Mapping[str, Json] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()


class Stage(Protocol):
    """One stage of a repository contract, at a position among the others."""

    name: str
    position: int
    needs: tuple[str, ...]

    async def run(self, ctx: Any) -> StageResult: ...


class Benchmark(Protocol):
    """Problems and how an answer to one is scored, 0 to 1."""

    def load(self, split: str) -> Iterator[Json]: ...

    def score(self, answer: str | None, problem: Json) -> float: ...


class Agent(Protocol):
    """A coding agent: one turn on a task."""

    async def run(self, task: Any) -> Any: ...

    async def close(self) -> None: ...
