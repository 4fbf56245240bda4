"""Runs and the jobs that they are runs of."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from corerun.interfaces.component import Handler, Json
from corerun.interfaces.execution import ExecRequest, ExecResult
from corerun.interfaces.models import Answer, Message, ProviderInfo, Role


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
