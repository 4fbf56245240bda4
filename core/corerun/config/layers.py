"""Settings of many sources, leaf by leaf: every value knows where it was written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from corerun.errors import ConfigError, UsageError
from corerun.inputs.yaml_documents import parse_yaml, read_yaml_document

Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One value and the place it was written: ``file:line``, a flag, a variable."""

    value: Any
    where: str


Layer: TypeAlias = dict[Key, Entry]
"""Settings of one source, leaf by leaf. Lists are leaves."""


def read_yaml(path: Path) -> Layer:
    """The layer of a YAML mapping; what isn't one is an error with its line."""
    document = read_yaml_document(path)
    if document.data is None:
        return {}
    if not isinstance(document.data, dict):
        raise ConfigError("expected a mapping of keys to values", where=document.where())
    return {key: Entry(value, document.where(*key)) for key, value in _leaves(document.data, ())}


def _leaves(data: Mapping[str, Any], above: Key) -> Iterator[tuple[Key, Any]]:
    for name, value in data.items():
        key = (*above, str(name))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, key)
        else:
            yield key, value


def layer_of(data: Mapping[str, Any], where: str) -> Layer:
    """A layer from nested dicts, all from one place."""
    return {key: Entry(value, where) for key, value in _leaves(data, ())}


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
        return parse_yaml(text, "").data
    except ConfigError:
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
