"""The one shape of settings, typed; an unknown key is told its nearest name."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_serializer,
    field_validator,
)

from corerun.config.layers import Key, Layer, nested
from corerun.errors import ConfigError
from corerun.inputs.patterns import check_pattern
from corerun.redaction import HIDDEN, SHORTEST_SECRET, remember, remember_address

_REFERENCE = re.compile(r"env:([A-Za-z_]\w*)|\$\{([A-Za-z_]\w*)\}")


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
    """How models are called: the pace of each model, retries, re-asks after a bad answer, the cache.

    ``rpm`` and ``tpm`` are requests and tokens per minute of one model; None: no limit.
    """

    concurrency: int | None = Field(None, ge=1)
    rpm: float | None = Field(None, gt=0)
    tpm: float | None = Field(None, gt=0)
    retries: int = Field(5, ge=0)
    repairs: int = Field(2, ge=0)
    cache: Literal["off", "read", "write"] = "off"
    strict_params: bool = False


class SandboxSettings(Section):
    """Inside what programs run, what it must guarantee, and what the environment may hand on.

    ``pass_env_unsafe`` are credentials that programs get all the same; ``allow_weak`` runs them without
    the guarantees; ``image`` is for containers.
    """

    name: str = "auto"
    require: Names | None = None
    pass_env: Names = []
    pass_env_unsafe: Names = []
    allow_weak: bool = False
    zygote: Literal["auto", "off"] = "auto"
    image: str = ""


class PluginSettings(Section):
    """Plugins that must be there or must not be loaded."""

    disable: Names = []
    required: Names = []


def variable_of(text: str) -> str | None:
    """The variable that ``env:NAME`` or ``${NAME}`` refers to; None for any other text."""
    found = _REFERENCE.fullmatch(text.strip())
    return found and (found[1] or found[2])


def is_secret(key: str | None) -> bool:
    """Whether ``api_key`` holds a key itself: neither a reference nor a short word such as ``none``."""
    return key is not None and variable_of(key) is None and len(key.strip()) >= SHORTEST_SECRET


def _patterns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Patterns = Annotated[list[str], BeforeValidator(_patterns, json_schema_input_type=list[str] | str)]


class ModelPrices(Section):
    """USD per million tokens; without ``cached``, cached prompt tokens cost as much as the others."""

    input: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)
    output: float = Field(ge=0)


class ModelAlias(Section):
    """A name for a model with its own server, options, pace and prices; what is unset comes from elsewhere.

    ``model`` is a model string, or with ``api_type`` the id that the server knows; None: the alias
    itself. ``api_type`` is the provider. ``api_key`` is best a reference, ``env:NAME`` or ``${NAME}``;
    a literal key is never dumped. ``rpm`` and ``tpm`` are requests and tokens per minute, ``timeout``
    is in seconds for one call with its retries. ``caps`` pins what the server takes and ``wording``
    adds regular expressions for its refusals, both by feature. ``extra_body`` is sent as it is.
    ``fallbacks`` are asked in order when this model can't answer.
    """

    model: str | None = Field(None, min_length=1)
    api_type: str | None = Field(None, min_length=1)
    base_url: str | None = None
    api_key: str | None = Field(None, repr=False)
    api_version: str | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    reasoning_effort: str | None = None
    rpm: float | None = Field(None, gt=0)
    tpm: float | None = Field(None, gt=0)
    concurrency: int | None = Field(None, ge=1)
    timeout: float | None = Field(None, gt=0)
    prices: ModelPrices | None = None
    caps: dict[str, bool] = {}
    wording: dict[str, Patterns] = {}
    extra_body: dict[str, Any] = {}
    fallbacks: list[str] = []

    @field_validator("api_key")
    @classmethod
    def _remember_literal(cls, key: str | None) -> str | None:
        # As early as can be: what is written from here on doesn't hold it.
        if key is not None and variable_of(key) is None and key.strip() != HIDDEN:
            remember(key.strip())
        return key

    @field_validator("base_url")
    @classmethod
    def _remember_login(cls, url: str | None) -> str | None:
        remember_address(url or "")
        return url

    @field_validator("wording")
    @classmethod
    def _compiles(cls, wording: dict[str, list[str]]) -> dict[str, list[str]]:
        for feature, patterns in wording.items():
            for pattern in patterns:
                try:
                    check_pattern(pattern)
                except ValueError as error:
                    raise ValueError(f"{feature}: {pattern!r} {error}") from None
        return wording

    @field_serializer("api_key")
    def _hide_literal(self, key: str | None) -> str | None:
        return HIDDEN if is_secret(key) else key


def _named_sandbox(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Settings(Section):
    """What every job understands. One more section, named after the job, holds the job's own."""

    model: str | None = None
    models: dict[str, ModelAlias] = {}
    models_file: Path | None = None
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
        message = f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        if "api_key" not in location:
            message += f" (got {first['input']!r:.60})"
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
    annotation: Any = model
    for part in path:
        annotation = _inside(annotation, part)
    inner = _models_in(annotation)
    return list(inner[0].model_fields) if inner else []


def _inside(annotation: Any, name: str) -> Any:
    if typing.get_origin(annotation) is dict:
        return typing.get_args(annotation)[1]
    inner = _models_in(annotation)
    field = inner[0].model_fields.get(name) if inner else None
    return field.annotation if field else None


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
