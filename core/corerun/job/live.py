"""The run that jobs, domains and stages hold while it lives."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from corerun.config import Settings
from corerun.errors import DiskFull, InfrastructureError, StateError
from corerun.execution.gpus import GpuLeases
from corerun.execution.worker import RUN_PROGRAM, program_spec
from corerun.inputs.names import safe_join
from corerun.interfaces import (
    Answer,
    Event,
    ExecRequest,
    ExecResult,
    Executor,
    Handler,
    Json,
    Limits,
    Message,
    ProviderInfo,
)
from corerun.job.fonts import FontCache
from corerun.job.isolation import Isolation
from corerun.job.slots import Slots
from corerun.llm.client import LanguageModels
from corerun.plugins import PluginManager
from corerun.redaction import redact
from corerun.runs import events as kinds
from corerun.runs import io, journal
from corerun.runs.blobs import read_blob
from corerun.runs.fold import RunState
from corerun.runs.journal import Journal

GUARD_EVERY_S = 1.0
_USUAL = asdict(Limits())
SHORT_CHARS = 4000
"""Output of a program up to which it stands in its record."""


class LiveRun:
    """Identity, journal, models, programs and files of one run. Fits `corerun.interfaces.Run`."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        log: Journal,
        state: RunState,
        *,
        manager: PluginManager,
        executor: Executor,
        isolation: Isolation,
        gpus: GpuLeases,
    ) -> None:
        self.id = directory.name
        self.dir = directory
        self.seed = settings.seed
        self.resumed = bool(state.resumed)
        self.workers = settings.workers
        self.stopping = False
        self.models: LanguageModels
        self._settings = settings
        self._journal = log
        self._state = state
        self._manager = manager
        self._executor = executor
        self._isolation = isolation
        self._slots = Slots(settings.workers)
        self._fonts = FontCache(directory / "nodes" / ".matplotlib")
        self._order: dict[str, int] = {}
        self.gpus = gpus.ids
        self._gpus = gpus
        self._counts: dict[str, dict[tuple[str, int, str], int]] = {}
        self._started = time.monotonic()
        self._guarded = 0.0
        self.budget_check: Callable[[float], None] = lambda elapsed: None
        log.listeners.append(state.add)

    # ------------------------------------------------------------------------------- journal

    def emit(self, type: str, **data: Any) -> int:
        """Write one record; returns its number."""
        return self._journal.emit(type, data).seq

    def events(self, scope: str | None = None) -> Sequence[Event]:
        """All records, or those of one scope."""
        return self._journal.events if scope is None else self._journal.scoped(scope)

    def warn(self, message: str) -> None:
        """Tell the person once; the message is kept in the journal and in the manifest."""
        if message not in self._state.warnings:
            self.emit(kinds.WARNING, message=message)

    def note(self, name: str, value: Any, **place: str) -> None:
        """Keep a value of the job's own under a name; `noted` reads it back, after a resume too."""
        self.emit(kinds.NOTED, name=name, value=value, **place)

    def noted(self, name: str, default: Any = None) -> Any:
        """The newest value noted under ``name``."""
        return self._state.notes.get(name, default)

    # -------------------------------------------------------------------------------- models

    async def ask(
        self,
        role: str,
        purpose: str,
        messages: Sequence[Message],
        *,
        schema: type | None = None,
        parse: Callable[[str], Any] | None = None,
        tools: Sequence[Any] = (),
        node: str | None = None,
        facts: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Answer[Any]:
        """Ask the model that plays ``role``; a recorded answer is replayed, not paid again."""
        self._guard()
        return await self.models.ask(
            role,
            purpose,
            messages,
            schema=schema,
            parse=parse,
            tools=tools,
            node=node,
            facts=facts,
            **options,
        )

    def provider_info(self, role: str) -> ProviderInfo:
        """Facts about the provider behind a role."""
        return self.models.provider_info(role)

    # ------------------------------------------------------------------------------ programs

    async def execute(self, request: ExecRequest, serve: Handler | None = None) -> ExecResult:
        """Run a program when a worker slot is free; one that is recorded and whose files are still
        there isn't run again."""
        self._guard()
        key = self._execution_key(request)
        recorded = self._state.executed.get(key)
        if recorded is not None:
            known = self._recall(request, recorded)
            if known is not None:
                return known
        queued = time.monotonic()
        async with self._slots.place(self._order.setdefault(request.node, len(self._order))):
            queue_s = time.monotonic() - queued
            async with self._gpus.lease(len(request.gpus)) as gpus:
                await self._fonts.fill(request, self._submit)
                ready = replace(
                    request,
                    gpus=gpus,
                    env={**self._environment(gpus), **request.env},
                    files={**self._fonts.files(request), **request.files},
                )
                result = ExecResult.from_json(await self._submit(ready, serve))
        if result.infra:
            raise InfrastructureError(result.infra)
        self._isolation.check(result)
        self._check_room(result)
        result = _without_secrets(result, Path(request.workspace))
        result = replace(result, timing={**result.timing, "queue_s": round(queue_s, 4)})
        # Without the variables that all programs of the run get.
        self._record_execution(key, replace(ready, env=request.env), result)
        return result

    async def _submit(self, request: ExecRequest, serve: Handler | None = None) -> Json:
        policy = replace(self._isolation.policy, limits=request.limits)
        return await self._executor.submit(
            RUN_PROGRAM, program_spec(request, self._isolation.target, policy), serve
        )

    def _execution_key(self, request: ExecRequest) -> str:
        place = (request.node, request.attempt, request.label)
        counts = self._counts.setdefault(request.node, {})
        count = counts[place] = counts.get(place, 0) + 1
        body = {
            "place": place,
            "n": count,
            "what": [request.kind, request.code, list(request.argv), dict(request.env), request.stdin],
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def forget(self, node: str) -> None:
        """Let a node's next attempt find the recorded answers and programs of its last one."""
        self.models.forget(node)
        self._counts.pop(node, None)

    def _recall(self, request: ExecRequest, event: Event) -> ExecResult | None:
        result = ExecResult.from_json(event.data["result"])
        folder = Path(request.workspace) / request.cwd
        # A later program of the same attempt may have replaced a file.
        newest = self._state.made[request.node, request.attempt]
        for item in result.files:
            path = safe_join(folder, item["path"], error=StateError)
            if not path.is_file() or _sha256(path) != newest[item["path"]]:
                return None
        try:
            stdout, stderr = (self._kept_text(event.data[name]) for name in ("stdout", "stderr"))
        except StateError:
            return None
        return replace(
            result,
            stdout=stdout,
            stderr=stderr,
            stdout_path=_inside(request.workspace, result.stdout_path),
            stderr_path=_inside(request.workspace, result.stderr_path),
        )

    def _keep_text(self, text: str) -> Any:
        """What a program printed, as a record holds it: long texts apart, so that none fills the memory."""
        if len(text) <= SHORT_CHARS:
            return text
        return {"$text": io.store_blob(self._journal.blobs, text.encode("utf-8", "surrogatepass"))}

    def _kept_text(self, kept: Any) -> str:
        if isinstance(kept, str):
            return kept
        return read_blob(self._journal.blobs, kept["$text"]).decode("utf-8", "surrogatepass")

    def _record_execution(self, key: str, request: ExecRequest, result: ExecResult) -> None:
        last = self._state.audited
        # A run may be moved: its journal names files by their place in the program's workspace.
        places = [os.path.basename(path) for path in (result.stdout_path, result.stderr_path)]
        short = replace(result, stdout="", stderr="", stdout_path=places[0], stderr_path=places[1])
        # What is empty is left out: `ExecResult.from_json` puts it back.
        kept = {k: v for k, v in short.to_json().items() if k == "files" or v not in ("", ())}
        self.emit(
            kinds.EXECUTION_DONE,
            key=key,
            node=request.node,
            attempt=request.attempt,
            label=request.label,
            result=kept,
            stdout=self._keep_text(result.stdout),
            stderr=self._keep_text(result.stderr),
            code_sha256=hashlib.sha256(request.code.encode()).hexdigest(),
            env=sorted(request.env),
            # Those that aren't the usual ones.
            limits={key: value for key, value in asdict(request.limits).items() if value != _USUAL[key]},
            read=list(request.read),
            network=request.network,
            gpus=list(request.gpus),
            prev=journal.digest(last) if last else "",
        )

    def _environment(self, gpus: tuple[str, ...]) -> dict[str, str]:
        # Unset, every program would start one BLAS thread per core and they would fight.
        threads = str(max(1, (os.cpu_count() or 1) // self.workers))
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        return {
            **dict.fromkeys(names, threads),
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        }

    # --------------------------------------------------------------------------------- rest

    def component(self, kind: str, name: str) -> Any:
        """A plugin's component by kind and name."""
        return self._manager.get(kind, name)

    def rng(self, *parts: Any) -> random.Random:
        """A generator that depends on the run's seed and ``parts`` alone."""
        body = json.dumps([self.seed, *parts], sort_keys=True)
        return random.Random(hashlib.sha256(body.encode()).hexdigest())

    def write(self, path: str, text: str | bytes) -> None:
        """Write a file of the run, atomically; ``path`` is relative to the run directory."""
        body = io.replace(safe_join(self.dir, path), text)
        self.emit(kinds.FILE_MADE, path=path, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())

    def _guard(self) -> None:
        now = time.monotonic()
        if now - self._guarded < GUARD_EVERY_S:
            return
        self._guarded = now
        self.budget_check(now - self._started)
        free = shutil.disk_usage(self.dir).free // 2**20
        if free < self._settings.min_free_mb:
            raise DiskFull(
                f"only {free} MB are free, {self._settings.min_free_mb} are wanted (min_free_mb)",
                hint="free some space, then resume with --resume",
            )

    def _check_room(self, result: ExecResult) -> None:
        """A program that ran on a full disk shows nothing about its code: a resumed run runs it again."""
        wanted_mb = 1 if result.status == "ok" else max(1, self._settings.min_free_mb)
        if shutil.disk_usage(self.dir).free < wanted_mb * 2**20:
            raise DiskFull(
                "no space left when a program had ended, so what it did doesn't count",
                hint="free some space, then resume with --resume",
            )


def _without_secrets(result: ExecResult, workspace: Path) -> ExecResult:
    """What a program printed as it may be kept and shown; the files that hold all of it likewise."""
    stdout, stderr = redact(result.stdout), redact(result.stderr)
    if stdout is not result.stdout or stderr is not result.stderr or result.truncated:
        for path in (result.stdout_path, result.stderr_path):
            # The program may have put a link in its place.
            if path and Path(path).resolve().is_relative_to(workspace.resolve()):
                io.clean_file(Path(path))
    return replace(result, stdout=stdout, stderr=stderr)


def _inside(workspace: str, name: str) -> str:
    return os.path.join(workspace, name) if name else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
