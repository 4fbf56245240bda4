"""Takes prices over from litellm's public map of models into the user's own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from corerun.errors import UsageError
from corerun.inputs.documents import read_json
from corerun.interfaces import Json
from corerun.llm.prices import load_prices, read_user_file
from corerun.runs import io

_PER_TOKENS = 1_000_000
_MOST = 1.0
"""USD per token; more is a mistake in the map."""

_FIELDS = {
    "in": "input_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "out": "output_cost_per_token",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: models taken over, entries that had other prices before, models left out for
    want of a price per token, and the copy of the file as it was."""

    taken: int
    changed: int
    left_out: int
    kept: Path | None


def import_prices(source: Path, target: Path) -> Imported:
    """Write the prices of the map ``source`` into the user's file ``target``, whose other entries stay.

    The map is a JSON object of models with ``input_cost_per_token`` and ``output_cost_per_token`` in
    USD. What was in ``target`` is kept beside it. Raises `UsageError` and `ConfigError` if one of the
    files can't be read as such.
    """
    import yaml

    document = _read_map(source)
    found = {model: price for model, entry in document.items() if (price := _price(entry)) is not None}
    if not found:
        raise UsageError(
            "no model in it has a price per token",
            where=str(source),
            hint="expected litellm's model_prices_and_context_window.json",
        )
    own: dict[str, Json] = {"models": {}}
    kept = None
    if target.is_file():
        load_prices(target)
        own = read_user_file(target)
        kept = target.with_name(f"{target.name}.before-import")
        io.replace(kept, target.read_bytes())
    before = own["models"]
    changed = sum(1 for model, price in found.items() if model in before and before[model] != price)
    own["models"] = {**before, **found}
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(own, Dumper=dumper, default_flow_style=None, sort_keys=False, allow_unicode=True)
    io.replace(target, text)
    return Imported(len(found), changed, len(document) - len(found), kept)


def _read_map(path: Path) -> dict[str, Json]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UsageError("expected a JSON object of models", where=str(path))
    document.pop("sample_spec", None)
    return document


def _price(entry: Json) -> dict[str, float] | None:
    if not isinstance(entry, Mapping):
        return None
    price = {name: entry[field] for name, field in _FIELDS.items() if _is_price(entry.get(field))}
    if not {"in", "out"} <= price.keys():
        return None
    return {name: round(value * _PER_TOKENS, 6) for name, value in price.items()}


def _is_price(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST
