"""The one shape of settings, typed; an unknown key is told its nearest name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from corerun.config.layers import Key, Layer, nested
from corerun.errors import ConfigError


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_split, json_schema_input_type=list[str] | str)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, numeric strings are numbers."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class BudgetSettings(Section):
    """Where a run stops in order: USD and tokens of the whole run, seconds of one process. None: no limit."""

    usd: float | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=0)
    seconds: float | None = Field(None, ge=0)


class ModelCallSettings(Section):
    """How models are called: calls at once per model, retries, re-asks after a bad answer."""

    concurrency: int | None = Field(None, ge=1)
    retries: int = Field(5, ge=0)
    repairs: int = Field(2, ge=0)


class SandboxSettings(Section):
    """Inside what programs run, what it must guarantee, and what the environment may hand on."""

    name: str = "auto"
    require: Names | None = None
    pass_env: Names = []
    allow_weak: bool = False


class PluginSettings(Section):
    """Plugins that must be there or must not be loaded."""

    disable: Names = []
    required: Names = []


class ModelAlias(Section):
    """A name for a model with its own options."""

    model: str
    temperature: float | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    reasoning_effort: str | None = None


def _named_sandbox(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Settings(Section):
    """What every job understands. One more section, named after the job, holds the job's own."""

    model: str | None = None
    models: dict[str, ModelAlias] = {}
    strategy: str | None = None
    workers: int = Field(2, ge=1, le=1024)
    in_flight: int | None = Field(None, ge=1)
    scheduler: Literal["async", "batch"] = "async"
    seed: int = 0
    executor: str = "inline"
    sandbox: Annotated[
        SandboxSettings, BeforeValidator(_named_sandbox, json_schema_input_type=SandboxSettings | str)
    ] = SandboxSettings()
    budget: BudgetSettings = BudgetSettings()
    llm: ModelCallSettings = ModelCallSettings()
    observers: Names = []
    plugins: PluginSettings = PluginSettings()
    durability: Literal["kill", "power"] = "kill"
    infra_retries: int = Field(1, ge=0)
    min_free_mb: int = Field(1024, ge=0)
    out_root: Path = Path()
    run_id: str | None = None

    def section(self, job: str) -> Any:
        """The job's own settings."""
        return getattr(self, job)

    @property
    def expansions(self) -> int:
        """Expansions under way: a few more than worker slots, one in the deterministic mode."""
        if self.in_flight is not None:
            return self.in_flight
        if self.workers == 1 or self.scheduler == "batch":
            return self.workers
        return self.workers + self.workers // 2 + 1


def settings_model(job: str, section: type[BaseModel]) -> type[Settings]:
    """The whole shape of one job: the common keys and the section named after the job."""
    fields: dict[str, Any] = {job: (section, Field(default_factory=section))}
    return create_model(f"{job.title()}Settings", __base__=Settings, **fields)


def validate(model: type[Settings], layer: Layer) -> Settings:
    """Typed settings, or a `ConfigError` that names the place, the key and the nearest known name."""
    try:
        return model.model_validate(nested(layer))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = problems[0]
        location = tuple(str(part) for part in first["loc"])
        where = _place(layer, location)
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        key = ".".join(location)
        if first["type"] == "extra_forbidden":
            raise _unknown(model, location, where, more) from error
        message = f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]} (got {first['input']!r:.60})"
        raise ConfigError(message + more, where=where) from error


def check_unset(model: type[Settings], layers: Iterable[Layer]) -> None:
    """Raise `ConfigError` for an unknown key with the value null, which a merge leaves out."""
    for layer in layers:
        for key, entry in layer.items():
            for length in range(1, len(key) + 1 if entry.value is None else 0):
                known = known_keys(model, key[: length - 1])
                if known and key[length - 1] not in known:
                    raise _unknown(model, key[:length], entry.where, "")


def _unknown(model: type[Settings], key: Key, where: str, more: str) -> ConfigError:
    near = difflib.get_close_matches(key[-1], known_keys(model, key[:-1]), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown key {'.'.join(key)!r}{more}", where=where, hint=hint)


def _place(layer: Layer, location: Key) -> str:
    for length in range(len(location), 0, -1):
        for key, entry in layer.items():
            if key[:length] == location[:length]:
                return entry.where
    return ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return [model for item in typing.get_args(annotation) for model in _models_in(item)]
    return []


def known_keys(model: type[BaseModel], path: Key) -> list[str]:
    """Names that are allowed at ``path``; none where any name is."""
    for part in path:
        field = model.model_fields.get(part)
        inner = _models_in(field.annotation) if field else []
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def path_keys(model: type[BaseModel], prefix: Key = ()) -> list[Key]:
    """Keys whose values are paths, so that each layer can resolve them against its own folder."""
    found: list[Key] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        inner = _models_in(annotation)
        if inner:
            found += path_keys(inner[0], (*prefix, name))
        elif annotation is Path or Path in typing.get_args(annotation):
            found.append((*prefix, name))
    return found


def to_yaml(settings: BaseModel) -> str:
    """The settings as YAML, keys in the order of the model."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
