"""Settings of many sources, leaf by leaf: every value knows where it was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml
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
