"""Layered settings: every value knows where it came from, an unknown key is told its nearest name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from yaml.nodes import MappingNode, Node, ScalarNode

from corerun.errors import ConfigError, UsageError

Key: TypeAlias = tuple[str, ...]
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Entry:
    """One value and the place it was written: ``file:line``, a flag, a variable."""

    value: Any
    where: str


Layer: TypeAlias = dict[Key, Entry]
"""Settings of one source, leaf by leaf. Lists are leaves."""


# ------------------------------------------------------------------------------------- reading


def read_yaml(path: Path) -> Layer:
    """The layer of a YAML mapping; duplicate keys and broken syntax are errors with their line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {path}: {error}") from error
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not YAML: {getattr(error, 'problem', None) or error}", where=line) from error
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return {}
    if not isinstance(root, MappingNode):
        raise ConfigError("expected a mapping of keys to values", where=f"{path}:1")
    layer: Layer = {}
    _collect(root, (), path, layer, (root,))
    return layer


def _collect(node: MappingNode, prefix: Key, path: Path, layer: Layer, above: tuple[Node, ...]) -> None:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, ScalarNode) or key_node.value == "<<":
            raise ConfigError("a key must be one word", where=where)
        key = str(key_node.value)
        if key in seen:
            raise ConfigError(f"key {'.'.join((*prefix, key))!r} is given twice", where=where)
        seen.add(key)
        if value_node in above:
            raise ConfigError(f"key {'.'.join((*prefix, key))!r} contains itself", where=where)
        if isinstance(value_node, MappingNode) and value_node.value:
            _collect(value_node, (*prefix, key), path, layer, (*above, value_node))
        else:
            layer[(*prefix, key)] = Entry(_construct(value_node, where), where)


def _construct(node: Node, where: str) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:  # an unknown tag; a date that is none
        raise ConfigError(f"not a value: {getattr(error, 'problem', None) or error}", where=where) from error
    finally:
        loader.dispose()


def layer_of(data: Mapping[str, Any], where: str) -> Layer:
    """A layer from nested dicts, all from one place."""
    layer: Layer = {}

    def walk(value: Mapping[str, Any], prefix: Key) -> None:
        for key, item in value.items():
            if isinstance(item, Mapping) and item:
                walk(item, (*prefix, str(key)))
            else:
                layer[(*prefix, str(key))] = Entry(item, where)

    walk(data, ())
    return layer


def parse_override(text: str) -> Layer:
    """The layer of one ``-o KEY=VALUE``: dotted key, VALUE as YAML; ``KEY!`` sets null."""
    key, sign, value = text.partition("=")
    clears = not sign and text.endswith("!")
    key = key[:-1] if clears else key
    if not (sign or clears) or not all(key.split(".")):
        raise UsageError(f"-o wants KEY=VALUE or KEY!, not {text!r}")
    parsed = None if clears else _loose(value)
    if isinstance(parsed, dict) and parsed:
        return {
            (*key.split("."), *inner): Entry(entry.value, f"-o {text}")
            for inner, entry in layer_of(parsed, "").items()
        }
    return {tuple(key.split(".")): Entry(parsed, f"-o {text}")}


def _loose(text: str) -> Any:
    """The YAML value of a flag or a variable; what isn't YAML is the text itself."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def environment_layer(environ: Mapping[str, str], names: Iterable[str]) -> Layer:
    """Settings from ``CORERUN_<KEY>``, for the scalar keys of the common shape."""
    layer: Layer = {}
    for name in names:
        value = environ.get(f"CORERUN_{name.upper()}")
        if value:
            layer[(name,)] = Entry(_loose(value), f"CORERUN_{name.upper()}")
    return layer


def resolve_paths(layer: Layer, keys: Iterable[Key], base: Path) -> Layer:
    """The layer with the values at ``keys`` made absolute paths below ``base``; ``~`` is expanded."""
    resolved = dict(layer)
    for key in keys:
        entry = layer.get(key)
        if entry is not None and isinstance(entry.value, str | Path):
            try:
                path = Path(entry.value).expanduser()
            except RuntimeError as error:
                raise ConfigError(
                    f"{'.'.join(key)}: {entry.value}: no such home", where=entry.where
                ) from error
            resolved[key] = Entry(str(base / path), entry.where)
    return resolved


def spell_out(layer: Layer) -> Layer:
    """The layer with ``sandbox: NAME`` written as ``sandbox.name``, so that it merges with the other keys."""
    short, full = ("sandbox",), ("sandbox", "name")
    return {full if key == short and isinstance(e.value, str) else key: e for key, e in layer.items()}


def merge(layers: Sequence[Layer]) -> Layer:
    """One layer from many, strongest first. Null means *not set* and never hides a weaker value."""
    merged: Layer = {}
    for layer in reversed(layers):
        for key, entry in layer.items():
            if entry.value is None and not entry.where.startswith("-o "):
                continue
            for taken in [k for k in merged if _overlaps(k, key)]:
                del merged[taken]
            merged[key] = entry
    return merged


def _overlaps(one: Key, other: Key) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def nested(layer: Layer) -> dict[str, Any]:
    """The plain nested mapping of a layer."""
    root: dict[str, Any] = {}
    for key, entry in layer.items():
        place = root
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = entry.value
    return root


# ---------------------------------------------------------------------------------- the one shape


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
