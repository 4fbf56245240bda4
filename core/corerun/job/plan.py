"""From flags and files to a checked plan, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from corerun import config
from corerun.errors import UsageError
from corerun.inputs.names import safe_name
from corerun.interfaces import Invocation, Job, Prepared, Provider, Role
from corerun.job.models import check_models, make_directory, resolve_role, with_models_file
from corerun.llm.directory import ModelDirectory
from corerun.plugins import PluginManager
from corerun.redaction import remember_arguments, remember_environment
from corerun.runs import directory
from corerun.runs import journal as journals
from corerun.runs.fold import fold, settings_of, started

MODEL_KEYS = frozenset({"model", "models", "models_file", "llm"})
SCALARS = (
    "model",
    "strategy",
    "workers",
    "in_flight",
    "scheduler",
    "seed",
    "executor",
    "sandbox",
    "models_file",
)


@dataclass(slots=True)
class Plan:
    """A job with its typed settings, models and place, ready to start."""

    name: str
    plugin: str
    job: Job
    settings: config.Settings
    invocation: Invocation
    prepared: Prepared
    roles: dict[str, Role]
    default_model: str
    why_model: str
    directory: Path
    resume: bool
    models: ModelDirectory


def make_plan(
    name: str,
    manager: PluginManager,
    *,
    flags: config.Layer,
    cwd: Path,
    config_file: Path | None = None,
    argv: Sequence[str] = (),
    resume: str | None = None,
    environ: Mapping[str, str] | None = None,
    providers: Mapping[str, Provider] | None = None,
) -> Plan:
    """Check everything that can be checked without writing: settings, input, models, place.

    ``resume`` names the run to go on with; '' is the newest one. ``providers`` answer for the provider
    names that they are given under: how a fake is swapped in.
    """
    env = dict(os.environ if environ is None else environ)
    # Before anything is written or shown.
    remember_environment(env)
    remember_arguments(argv)
    found = manager.find("jobs", name)
    job: Job = manager.get("jobs", name)()
    old = None
    if resume is not None:
        root = flags.get(("out_root",))
        old = directory.find_run(resume, cwd / Path(root.value) if root else cwd)
    invocation = Invocation(cwd, config_file, tuple(argv), _plain(flags), old, env)
    settings, invocation, layer = _settings(job, found.component.name, flags, invocation)
    manager.block(settings.plugins.disable)
    manager.require(settings.plugins.required)
    prepared = job.prepare(settings, invocation)
    place = old or prepared.directory or _default_place(settings, found.component.name)
    default, why = _default_model(settings, env)
    roles = {key: resolve_role(role, default) for key, role in prepared.roles.items()}
    models = make_directory(manager, env, settings, layer)
    for provider, made in (providers or {}).items():
        models.use(provider, made)
    rules = check_models(models, [role.model or default for role in roles.values()])
    if rules and not why:
        why = f"answers come from {', '.join(rules)}: built-in rules, not a language model"
    return Plan(
        found.component.name,
        found.plugin.name,
        job,
        settings,
        invocation,
        prepared,
        roles,
        default,
        why,
        place,
        old is not None or (not prepared.fresh and _resumes(place)),
        models,
    )


def read_settings(
    name: str,
    manager: PluginManager,
    *,
    flags: config.Layer,
    cwd: Path,
    config_file: Path | None = None,
) -> tuple[config.Settings, config.Layer]:
    """Typed settings of a job, and the merged layer that says where each set value comes from."""
    found = manager.find("jobs", name)
    job: Job = manager.get("jobs", name)()
    invocation = Invocation(cwd, config_file, (), _plain(flags), None, dict(os.environ))
    settings, _, layer = _settings(job, found.component.name, flags, invocation)
    return settings, layer


def read_models(
    manager: PluginManager,
    environ: Mapping[str, str],
    cwd: Path,
    *,
    config_file: Path | None = None,
    models_file: Path | None = None,
) -> tuple[config.Settings, ModelDirectory]:
    """What the settings say of models, without a job: of a job's file only the keys about models are read."""
    layers: list[config.Layer] = []
    if models_file is not None:
        layers.append({("models_file",): config.Entry(str(cwd / models_file), "--models-file")})
    if config_file is not None:
        read = config.read_yaml(config_file)
        layers.append(config.resolve_paths(read, [("models_file",)], config_file.resolve().parent))
    layers += _ambient(config.Settings, environ, cwd)
    about = [{key: entry for key, entry in layer.items() if key[0] in MODEL_KEYS} for layer in layers]
    layers = with_models_file(about)
    config.check_unset(config.Settings, layers)
    merged = config.merge(layers)
    settings = config.validate(config.Settings, merged)
    return settings, make_directory(manager, environ, settings, merged)


def _plain(flags: config.Layer) -> dict[config.Key, Any]:
    return {key: entry.value for key, entry in flags.items()}


def _settings(
    job: Job, name: str, flags: config.Layer, invocation: Invocation
) -> tuple[config.Settings, Invocation, config.Layer]:
    model = config.settings_model(name, job.config_model)
    flags = config.resolve_paths(flags, config.path_keys(model), invocation.cwd)
    invocation = replace(invocation, flags=_plain(flags))
    sources = [
        flags,
        *_documents(job, model, invocation),
        *_ambient(model, invocation.environ, invocation.cwd),
    ]
    layers = with_models_file([config.spell_out(layer) for layer in sources])
    config.check_unset(model, layers)
    merged = config.merge(layers)
    settings = config.validate(model, merged)
    if not settings.out_root.is_absolute():
        settings = settings.model_copy(update={"out_root": invocation.cwd / settings.out_root})
    return settings, invocation, merged


def _documents(job: Job, model: type[config.Settings], invocation: Invocation) -> list[config.Layer]:
    saved: list[config.Layer] = []
    if invocation.resume is not None:
        events, _ = journals.read(invocation.resume / "events.jsonl")
        state = fold(events)
        if not started(state):
            raise UsageError(f"the journal of {invocation.resume} has no beginning", hint="start a new run")
        settings = dict(settings_of(state))
        # The place is the run's own; a resumed run never moves.
        settings.pop("run_id", None)
        saved = [config.layer_of(settings, f"{invocation.resume.name}/events.jsonl")]
        if invocation.config_file is None:
            return saved
    reader = getattr(job, "layers", None)
    if reader is not None:
        return [*reader(invocation), *saved]
    if invocation.config_file is None:
        return saved
    layer = config.read_yaml(invocation.config_file)
    base = invocation.config_file.resolve().parent
    return [config.resolve_paths(layer, config.path_keys(model), base), *saved]


def _ambient(model: type[config.Settings], environ: Mapping[str, str], cwd: Path) -> list[config.Layer]:
    home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".config")
    user = Path(home) / "corerun" / "config.yaml"
    paths = config.path_keys(model)
    layers = [config.resolve_paths(config.environment_layer(environ, SCALARS), paths, cwd)]
    if user.is_file():
        layers.insert(0, config.resolve_paths(config.read_yaml(user), paths, user.parent))
    return layers


def _default_model(settings: config.Settings, environ: Mapping[str, str]) -> tuple[str, str]:
    from corerun.llm import models

    if settings.model:
        return settings.model, ""
    return models.default_model(environ)


def _default_place(settings: config.Settings, job: str) -> Path:
    if settings.run_id:
        return settings.out_root / "runs" / job / safe_name(settings.run_id)
    return directory.new_directory(settings.out_root, job)


def _resumes(place: Path) -> bool:
    # A process that was killed at its very start may have left these and no journal.
    if not place.is_dir() or {path.name for path in place.iterdir()} <= {"blobs", "nodes", "run.lock"}:
        return False
    if (place / "events.jsonl").is_file():
        return True
    raise UsageError(
        f"{place} is not empty and holds no journal", hint="choose another --run_id or --out_root"
    )


def describe(plan: Plan) -> dict[str, Any]:
    """What a run of this plan would take: models per role, place, and the job's own estimate."""
    estimate = getattr(plan.job, "estimate", None)
    asked = sorted({role.model or plan.default_model for role in plan.roles.values()})
    return {
        "job": plan.name,
        "run_dir": str(plan.directory),
        "resumes": plan.resume,
        "roles": {name: role.model for name, role in plan.roles.items()},
        "models": {name: plan.models.meaning(name) for name in plan.models.reachable(asked)},
        "workers": plan.settings.workers,
        "in_flight": plan.settings.expansions,
        "inputs": dict(plan.prepared.inputs),
        "estimate": estimate(plan.settings) if estimate else {},
    }
