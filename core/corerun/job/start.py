"""Start a planned run, or go on with it, and bring it to a manifest whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corerun import __version__, config
from corerun.errors import (
    CorerunError,
    DiskFull,
    EnvironmentRefused,
    Interrupted,
    RunFailed,
    StateError,
    Stopped,
)
from corerun.execution import select
from corerun.execution.gpus import GpuLeases, visible_gpus
from corerun.execution.processes import kill_stale
from corerun.interfaces import Event, Executor, Policy
from corerun.job import changes
from corerun.job.isolation import Isolation, isolate
from corerun.job.live import LiveRun
from corerun.job.manifest import build_manifest
from corerun.job.models import model_facts, only_rules
from corerun.job.observers import ObserverRelay
from corerun.job.plan import Plan
from corerun.job.signals import Stopper
from corerun.llm.budget import Budget
from corerun.llm.client import LanguageModels, LlmSettings
from corerun.plugins import PluginManager
from corerun.redaction import redact_value
from corerun.redaction.logs import CleanFormatter
from corerun.runs import directory, io
from corerun.runs import events as kinds
from corerun.runs.fold import RunState, fold
from corerun.runs.journal import Journal
from corerun.runs.lock import RunLock

logger = logging.getLogger("corerun.run")
Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run came to: its manifest and the exit code that says the same in a number."""

    manifest: Mapping[str, Any]
    exit_code: int
    directory: Path


async def run_plan(
    plan: Plan,
    manager: PluginManager,
    *,
    listeners: Sequence[Listener] = (),
    restore: Callable[[Sequence[Event]], None] = lambda events: None,
    accept_weak: bool = False,
    salvage: bool = False,
    force_unlock: bool = False,
) -> Finished:
    """Run a plan to its end. Errors of the run itself, and a place that can't be made, are in the
    manifest; what else prevents a run from starting is raised.

    ``listeners`` are called with each new event; ``restore`` once with those of earlier processes.
    ``force_unlock``: see `RunLock`.
    """
    means = _means(plan, manager, accept_weak)
    try:
        if plan.prepared.fresh and not plan.resume:
            plan.directory = directory.claim(plan.directory)
        directory.make_directory(plan.directory)
    except EnvironmentRefused as error:
        return _no_directory(plan, error)
    lock = RunLock(plan.directory, force=force_unlock)
    try:
        io.remove_temporary_files(plan.directory)
        log = Journal(plan.directory, durability=plan.settings.durability, salvage=salvage)
        lock.when_lost(log.fence)
        try:
            state = fold(log.events)
            changes.check_identity(plan, state)
            if state.status == "success":
                return _finish(plan, log, 0)
            restore(log.events)
            # What a killed process of this run left behind; the lock is ours, so nobody needs it.
            await kill_stale(str(plan.directory / "nodes"))
            with _log_file(plan.directory):
                return await _live(plan, manager, log, state, listeners, means)
        finally:
            log.close()
    finally:
        lock.release()


async def _live(
    plan: Plan,
    manager: PluginManager,
    log: Journal,
    state: RunState,
    listeners: Sequence[Listener],
    means: _Means,
) -> Finished:
    log.listeners += [*listeners, means.relay.put]
    executor = means.executor(plan.settings.workers)
    run = LiveRun(
        plan.directory,
        plan.settings,
        log,
        state,
        manager=manager,
        executor=executor,
        isolation=means.isolation,
        gpus=GpuLeases(visible_gpus(plan.invocation.environ)),
    )
    _open(plan, run, state, means.isolation, manager.provenance())
    budget = Budget(**plan.settings.budget.model_dump())
    run.models = LanguageModels(
        record=_Recorder(log, state),
        directory=plan.models,
        roles=plan.roles,
        default_model=plan.default_model,
        settings=LlmSettings(
            retries=plan.settings.llm.retries,
            repairs=plan.settings.llm.repairs,
            cache=plan.settings.llm.cache,
            strict=plan.settings.llm.strict_params,
        ),
        seed=plan.settings.seed,
        budget=budget,
        environ=plan.invocation.environ,
    )
    run.budget_check = lambda elapsed: budget.check(run.models.ledger, elapsed)
    async with means.relay.running(run.id):
        stopper = Stopper(run)
        with stopper.listening():
            error: BaseException | None = None
            try:
                with stopper.working():
                    await plan.job.run(run, plan.settings)
            except (Exception, asyncio.CancelledError) as caught:
                error = caught
                logger.error("the run ended early", exc_info=caught)
            finally:
                run.models.close()
                await plan.models.aclose()
                await executor.close()
            return _end(plan, log, run, error)


def _end(plan: Plan, log: Journal, run: LiveRun, error: BaseException | None) -> Finished:
    status, code = _verdict(error, run)
    noted = run.noted("result")
    result = dict(noted) if isinstance(noted, Mapping) else {}
    end = {"status": status, "exit_code": code, "error": _describe(error)}
    try:
        if isinstance(error, DiskFull):
            run.emit(kinds.PAUSED, reason="disk_full")
        run.emit(kinds.RUN_DONE, **(result | end))
    except DiskFull as full:
        code = full.exit_code
    return _finish(plan, log, code)


def _open(
    plan: Plan, run: LiveRun, state: RunState, isolation: Isolation, plugins: Mapping[str, Any]
) -> None:
    python = platform.python_version()
    versions = {"corerun": __version__, "python": python, "plugin": plan.plugin, "plugins": plugins}
    models = model_facts(plan.models, [role.model or plan.default_model for role in plan.roles.values()])
    settings = plan.settings.model_dump(mode="json")
    if state.started is None:
        io.replace(plan.directory / "config.resolved.yaml", config.to_yaml(plan.settings))
        run.emit(
            kinds.RUN_STARTED,
            schema=kinds.SCHEMA,
            run=run.id,
            job=plan.name,
            plugin=plan.plugin,
            seed=plan.settings.seed,
            argv=list(plan.invocation.argv),
            versions=versions,
            settings=settings,
            inputs=dict(plan.prepared.inputs),
            identity=changes.identity(plan),
            models=models,
            sandbox=isolation.facts,
        )
    else:
        differing = list(changes.warnings(state, settings, models))
        run.emit(
            kinds.RUN_RESUMED,
            argv=list(plan.invocation.argv),
            versions=versions,
            models=models,
            settings=settings,
            sandbox=isolation.facts,
        )
        io.replace(plan.directory / "config.resolved.yaml", config.to_yaml(plan.settings))
        run.resumed = True
        for message in differing:
            run.emit(kinds.WARNING, message=message)
    for message in plan.prepared.warnings:
        run.warn(message)
    if isolation.warning:
        # Not `warn`, which is silent about what was told before a resume.
        run.emit(kinds.WARNING, message=isolation.warning)


def _finish(plan: Plan, log: Journal, code: int, full: DiskFull | None = None) -> Finished:
    """Write the files that follow from the journal.

    Those that a full disk has no room for are written when the run is resumed, so a run that went well
    ends as stopped then. ``full``: there was no room for its last records either.
    """
    part: Mapping[str, Any] = {}
    try:
        part = plan.job.derive(plan.directory, log.events)
    except DiskFull as error:
        full = error
    except CorerunError:
        raise
    except Exception as error:
        logger.exception("derived files could not be written")
        message = f"derived files are incomplete: {type(error).__name__}: {error}"
        with contextlib.suppress(DiskFull):
            log.emit(kinds.WARNING, {"message": message})
    manifest = build_manifest(plan.directory, log.events, part)
    try:
        io.replace_json(plan.directory / "run_manifest.json", manifest, sort_keys=True)
    except DiskFull as error:
        full = error
    if full is not None and not manifest.get("error"):
        # What whoever started the run gets to see; the journal may hold that all of it is done.
        code = full.exit_code
        manifest = {**manifest, "status": "stopped", "exit_code": code, "error": _describe(full)}
    return Finished(manifest, code, plan.directory)


def _verdict(error: BaseException | None, run: LiveRun) -> tuple[str, int]:
    if isinstance(error, asyncio.CancelledError) or (error is not None and run.stopping):
        return "interrupted", Interrupted.exit_code
    if error is None:
        return "success", 0
    if isinstance(error, Interrupted):
        return "interrupted", error.exit_code
    if isinstance(error, Stopped):
        return "stopped", error.exit_code
    code = error.exit_code if isinstance(error, CorerunError) else 1
    return ("stopped" if code == Stopped.exit_code else "failed"), code


def _describe(error: BaseException | None) -> Mapping[str, Any] | None:
    if error is None:
        return None
    trace = "".join(traceback.format_exception(error))[-8000:]
    return {
        "type": error.kind if isinstance(error, RunFailed) else type(error).__name__,
        "message": str(error) or type(error).__name__,
        "hint": getattr(error, "hint", ""),
        "traceback": trace,
    }


@dataclass(frozen=True, slots=True)
class _Means:
    """What a run works with: chosen before anything is written, since each part may be refused."""

    isolation: Isolation
    relay: ObserverRelay
    executor: Callable[[int], Executor]


def _means(plan: Plan, manager: PluginManager, accept_weak: bool) -> _Means:
    if plan.settings.strategy:
        manager.find("strategies", plan.settings.strategy)
    executor = manager.get("executors", plan.settings.executor)
    isolation = _isolation(plan, manager, accept_weak)
    return _Means(isolation, ObserverRelay(plan.settings.observers, manager), executor)


def _isolation(plan: Plan, manager: PluginManager, accept_weak: bool) -> Isolation:
    wanted = plan.settings.sandbox
    code = plan.roles.get(plan.prepared.code_role)
    by_rules = code is not None and only_rules(plan.models, code.model or plan.default_model)
    guarantees = select.RULES_CODE_GUARANTEES if by_rules else select.MODEL_CODE_GUARANTEES
    policy = Policy(
        require=guarantees if wanted.require is None else frozenset(wanted.require),
        pass_env=tuple(wanted.pass_env),
        pass_env_unsafe=tuple(wanted.pass_env_unsafe),
        zygote=wanted.zygote == "auto",
        image=wanted.image,
    )
    return isolate(manager, wanted.name, policy, accept_weak=accept_weak or wanted.allow_weak)


def _no_directory(plan: Plan, error: EnvironmentRefused) -> Finished:
    """The manifest of a run that has no place; it is left in ``out_root`` if that can be written."""
    manifest = {
        "status": "failed",
        "exit_code": error.exit_code,
        "inputs": dict(plan.prepared.inputs),
        "paths": {"run_dir": None},
        "warnings": [str(error)],
        "error": _describe(error),
    }
    manifest = redact_value(manifest)
    with contextlib.suppress(StateError, Stopped):
        io.replace_json(plan.settings.out_root / "run_manifest.json", manifest, sort_keys=True)
    return Finished(manifest, error.exit_code, plan.directory)


@contextlib.contextmanager
def _log_file(place: Path) -> Iterator[None]:
    with io.reported(place / "run.log"):
        handler = _LogFile(place / "run.log", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(CleanFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger("corerun")
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        with contextlib.suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """What a full disk has no room for is left out: the journal says what happened."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Recorder:
    """What the model client may do with the journal."""

    def __init__(self, log: Journal, state: RunState) -> None:
        self._log = log
        self.answered = state.answered

    def emit(self, type: str, **data: Any) -> int:
        return self._log.emit(type, data).seq

    def blob(self, data: bytes) -> str:
        return io.store_blob(self._log.blobs, data)
