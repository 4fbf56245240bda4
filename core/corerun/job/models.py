"""The models of a run as its settings describe them: the models file, places of aliases, roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from corerun import config
from corerun.errors import ConfigError
from corerun.interfaces import Role
from corerun.llm.directory import ModelDirectory, Pace
from corerun.plugins import PluginManager
from corerun.redaction import HIDDEN

FILE: config.Key = ("models_file",)


def with_models_file(layers: Sequence[config.Layer]) -> list[config.Layer]:
    """``layers``, strongest first, and below them the models of the file that they name.

    Keys that a run left out of its files come last, so that any other source of a key wins.
    """
    named = config.merge(layers).get(FILE)
    kept = [{key: entry for key, entry in layer.items() if not _left_out(entry)} for layer in layers]
    hidden = {key: entry for layer in reversed(layers) for key, entry in layer.items() if _left_out(entry)}
    file = read_models_file(named) if named is not None and named.value else {}
    return [*kept, file, hidden]


def _left_out(entry: config.Entry) -> bool:
    return HIDDEN in str(entry.value)


def read_models_file(named: config.Entry) -> config.Layer:
    """The ``models:`` of a YAML file; its other keys are for other programs.

    Raises `ConfigError` if there is none, and what `corerun.config.read_yaml` raises.
    """
    path = Path(str(named.value))
    if not path.is_file():
        raise ConfigError(f"models_file: no such file: {path}", where=named.where)
    layer = {key: entry for key, entry in config.read_yaml(path).items() if key[0] == "models"}
    if not layer:
        raise ConfigError(
            "no models: at the top level", where=str(path), hint="expected models: {ALIAS: {model: ...}}"
        )
    return layer


def make_directory(
    manager: PluginManager, environ: Mapping[str, str], settings: config.Settings, layer: config.Layer
) -> ModelDirectory:
    """The directory of ``settings``, which were read from ``layer``."""
    pace = Pace(settings.llm.concurrency or 2 * settings.workers, settings.llm.rpm, settings.llm.tpm)
    places = {
        (key[1], key[2] if len(key) > 2 else ""): entry.where
        for key, entry in layer.items()
        if key[0] == "models" and len(key) > 1
    }
    return ModelDirectory(manager, environ, settings.models, pace, places)


def resolve_role(role: Role, default: str) -> Role:
    """The role with its model's name filled in; an alias stays one, and lends its options when asked."""
    return Role(role.model or default, role.temperature, role.max_tokens, role.top_p, role.reasoning_effort)


def check_models(directory: ModelDirectory, names: Iterable[str]) -> list[str]:
    """Check every model that a run may ask, and return those that are rules and no language model.

    Raises `UsageError` for a bad name, a missing key or address, and providers that share variables.
    """
    names = sorted(set(names))
    directory.check_variables(names)
    kinds = {name: directory.check(name).kind for name in directory.reachable(names)}
    return [name for name in names if kinds[name] == "rules"]


def only_rules(directory: ModelDirectory, name: str) -> bool:
    """Whether no language model can answer for ``name``, not even as its fallback."""
    return all(directory.check(reached).kind == "rules" for reached in directory.reachable([name]))


def model_facts(directory: ModelDirectory, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of every model that may answer for ``names``: its ``kind``, and of an alias what it means."""
    facts: dict[str, dict[str, str]] = {}
    for name in directory.reachable(names):
        facts[name] = {"kind": directory.check(name).kind}
        if name in directory.aliases:
            facts[name]["model"] = directory.meaning(name)
    return facts
