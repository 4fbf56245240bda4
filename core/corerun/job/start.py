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
    EnvironmentRefused,
    Interrupted,
    RunFailed,
    StateError,
    Stopped,
    UsageError,
)
from corerun.execution import select
from corerun.execution.processes import kill_stale
from corerun.interfaces import Event, Executor, Policy
from corerun.job.live import LiveRun
from corerun.job.manifest import build_manifest
from corerun.job.models import model_facts, only_rules
from corerun.job.observers import ObserverRelay
from corerun.job.plan import Plan
from corerun.job.signals import stop_on_signals
from corerun.llm.budget import Budget
from corerun.llm.client import LanguageModels, LlmSettings
from corerun.plugins import PluginManager
from corerun.redaction import redact_value
from corerun.redaction.logs import CleanFormatter
from corerun.runs import directory, io
from corerun.runs import events as kinds
from corerun.runs.fold import RunState, fold, started
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
) -> Finished:
    """Run a plan to its end. Errors of the run itself, and a place that can't be made, are in the
    manifest; what else prevents a run from starting is raised.

    ``listeners`` are called with each new event; ``restore`` once with those of earlier processes.
    """
    means = _means(plan, manager, accept_weak)
    try:
        if plan.prepared.fresh and not plan.resume:
            plan.directory = directory.claim(plan.directory)
        directory.make_directory(plan.directory)
    except EnvironmentRefused as error:
        return _no_directory(plan, error)
    lock = RunLock(plan.directory)
    try:
        io.remove_temporary_files(plan.directory)
        log = Journal(plan.directory, durability=plan.settings.durability, salvage=salvage)
        try:
            state = fold(log.events)
            _check_identity(plan, state)
            if state.status == "success":
                return Finished(_finish(plan, log), 0, plan.directory)
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
        sandbox=means.sandbox,
        policy=means.policy,
        gpus=visible_gpus(plan.invocation.environ),
    )
    _open(plan, run, state, means.sandbox)
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
        error: BaseException | None = None
        try:
            async with stop_on_signals(run):
                await plan.job.run(run, plan.settings)
        except (Exception, asyncio.CancelledError) as caught:
            error = caught
            logger.error("the run ended early", exc_info=caught)
        finally:
            run.models.close()
            await plan.models.aclose()
            await executor.close()
        status, code = _verdict(error, run)
        noted = run.noted("result")
        result = dict(noted) if isinstance(noted, Mapping) else {}
        end = {"status": status, "exit_code": code, "error": _describe(error)}
        try:
            run.emit(kinds.RUN_DONE, **(result | end))
        except Stopped as full:
            code = full.exit_code
        return Finished(_finish(plan, log), code, plan.directory)


def _check_identity(plan: Plan, state: RunState) -> None:
    before = started(state).get("identity", {})
    identity = _identity(plan)
    changed = [key for key in identity if key in before and before[key] != identity[key]]
    if changed:
        raise UsageError(
            f"a resumed run can't change its {', '.join(changed)}",
            where=str(plan.directory),
            hint="start a new run, with another --run_id",
        )


def _identity(plan: Plan) -> dict[str, Any]:
    return dict(plan.prepared.identity) | {"job": plan.name, "seed": plan.settings.seed}


def _open(plan: Plan, run: LiveRun, state: RunState, sandbox: Mapping[str, Any]) -> None:
    versions = {"corerun": __version__, "python": platform.python_version(), "plugin": plan.plugin}
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
            identity=_identity(plan),
            models=models,
            sandbox={key: value for key, value in sandbox.items() if key != "target"},
        )
    else:
        run.emit(
            kinds.RUN_RESUMED,
            argv=list(plan.invocation.argv),
            versions=versions,
            models=models,
            settings=settings,
        )
        io.replace(plan.directory / "config.resolved.yaml", config.to_yaml(plan.settings))
        run.resumed = True
    for message in plan.prepared.warnings:
        run.warn(message)
    if sandbox["missing"] and sandbox["needed"]:
        run.warn(
            f"weak isolation: programs run under {sandbox['name']!r}, without {', '.join(sandbox['missing'])}"
        )


def _finish(plan: Plan, log: Journal) -> Mapping[str, Any]:
    part: Mapping[str, Any] = {}
    # On a full disk the manifest still goes to whoever started the run.
    with contextlib.suppress(Stopped):
        try:
            part = plan.job.derive(plan.directory, log.events)
        except CorerunError:
            raise
        except Exception as error:
            logger.exception("derived files could not be written")
            message = f"derived files are incomplete: {type(error).__name__}: {error}"
            log.emit(kinds.WARNING, {"message": message})
    manifest = build_manifest(plan.directory, log.events, part)
    with contextlib.suppress(Stopped):
        io.replace_json(plan.directory / "run_manifest.json", manifest, sort_keys=True)
    return manifest


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

    sandbox: Mapping[str, Any]
    policy: Policy
    relay: ObserverRelay
    executor: Callable[[int], Executor]


def _means(plan: Plan, manager: PluginManager, accept_weak: bool) -> _Means:
    executor = manager.get("executors", plan.settings.executor)
    sandbox, policy = _sandbox(plan, manager, accept_weak)
    return _Means(sandbox, policy, ObserverRelay(plan.settings.observers, manager), executor)


def _sandbox(plan: Plan, manager: PluginManager, accept_weak: bool) -> tuple[dict[str, Any], Policy]:
    wanted = plan.settings.sandbox
    offered = {item.component.name: item.component.target for item in manager.components("sandboxes")}
    candidates = {name: manager.get("sandboxes", name)() for name in offered}
    code = plan.roles.get(plan.prepared.code_role)
    by_rules = code is not None and only_rules(plan.models, code.model or plan.default_model)
    guarantees = select.RULES_CODE_GUARANTEES if by_rules else select.MODEL_CODE_GUARANTEES
    require = frozenset(wanted.require) if wanted.require is not None else guarantees
    sandbox, probe, missing = select.choose_sandbox(
        candidates, wanted.name, require, accept_weak=accept_weak or wanted.allow_weak
    )
    ideal = select.MODEL_CODE_GUARANTEES - probe.guarantees
    chosen = {
        "name": sandbox.name,
        "target": offered[sandbox.name],
        "guarantees": sorted(probe.guarantees),
        "missing": sorted(ideal),
        "needed": sorted(missing),
    }
    return chosen, Policy(require=require, pass_env=tuple(wanted.pass_env))


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
        handler = logging.FileHandler(place / "run.log", encoding="utf-8", errors="backslashreplace")
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
        handler.close()


def visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Ids of the GPUs that programs may get: CUDA_VISIBLE_DEVICES, else what the driver lists."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part.strip() for part in named.split(",") if part.strip() not in ("", "-1"))
    listed = Path("/proc/driver/nvidia/gpus")
    return tuple(str(number) for number, _ in enumerate(sorted(listed.iterdir()))) if listed.is_dir() else ()


class _Recorder:
    """What the model client may do with the journal."""

    def __init__(self, log: Journal, state: RunState) -> None:
        self._log = log
        self.answered = state.answered

    def emit(self, type: str, **data: Any) -> int:
        return self._log.emit(type, data).seq

    def blob(self, data: bytes) -> str:
        return io.store_blob(self._log.blobs, data)
