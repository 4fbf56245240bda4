"""What models cost: a small dated table that ships with corerun, and the user's own file on top."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from corerun.errors import ConfigError
from corerun.interfaces import Json, Price, Usage

if TYPE_CHECKING:
    from corerun.inputs.yaml_documents import YamlDocument

_DATE_SUFFIX = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{8}|@\d{8})$")
_PER_TOKENS = 1_000_000


def load_prices(user_file: Path | None = None) -> dict[str, Price]:
    """Prices by model id, in USD per million tokens; entries of ``user_file`` win.

    The user's file is YAML of the same shape as the shipped table, ``models: {ID: {in, cached,
    out}}``; it may be missing. Raises `ConfigError` if it can't be read as such.
    """
    shipped = json.loads(Path(__file__).with_name("prices.json").read_text(encoding="utf-8"))
    prices = {model: _price(entry) for model, entry in shipped["models"].items()}
    if user_file is not None and user_file.is_file():
        prices |= _user_prices(user_file)
    return prices


def user_prices_file(environ: Mapping[str, str]) -> Path:
    """Where the user's own prices are looked for: ``~/.config/corerun/prices.yaml``."""
    folder = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".config"
    return Path(folder) / "corerun" / "prices.yaml"


def price_of(
    model: str, prices: Mapping[str, Price], provider: str | None = None
) -> tuple[Price, str] | None:
    """The price of a model and the table's key for it, or None.

    Looked up under its ``provider``, then as it is, then without its provider's name, then without a
    date at its end. A model is never priced by a part of its name: ``gpt-4o-mini-x`` isn't
    ``gpt-4o-mini``.
    """
    if provider is not None and f"{provider}/{model}" in prices:
        return prices[f"{provider}/{model}"], f"{provider}/{model}"
    names = [model]
    for separator in ("::", "/"):
        if separator in names[-1]:
            names.append(names[-1].split(separator, 1)[1])
    dateless = (_DATE_SUFFIX.sub("", name) for name in reversed(names))
    for name in chain(names, dateless):
        if name in prices:
            return prices[name], name
    return None


def cost_usd(usage: Usage, price: Price) -> float:
    """USD of one call; without a cached price, cached prompt tokens cost as much as the others."""
    cached = price.input if price.cached is None else price.cached
    total = (
        (usage.prompt - usage.cached) * price.input + usage.cached * cached + usage.completion * price.output
    )
    return total / _PER_TOKENS


def read_user_file(path: Path) -> dict[str, Json]:
    """The user's file as it is, with a mapping under ``models``. Raises `ConfigError`."""
    return dict(_user_document(path).data)


def _user_document(path: Path) -> YamlDocument:
    from corerun.inputs.yaml_documents import read_yaml_document

    document = read_yaml_document(path)
    data = {} if document.data is None else document.data
    if not isinstance(data, dict) or not isinstance(data.get("models", {}), dict):
        raise _wrong_shape(document.where("models"))
    return replace(document, data={**data, "models": data.get("models", {})})


def _user_prices(path: Path) -> dict[str, Price]:
    document = _user_document(path)
    prices = {}
    for model, entry in document.data["models"].items():
        try:
            prices[model] = _price(entry)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise _wrong_shape(document.where("models", model)) from None
    return prices


def _wrong_shape(where: str) -> ConfigError:
    return ConfigError(
        "the prices have the wrong shape",
        hint="expected models: {ID: {in: USD, out: USD}} per million tokens",
        where=where,
    )


def _price(entry: Json) -> Price:
    cached = entry.get("cached")
    price = Price(float(entry["in"]), float(entry["out"]), None if cached is None else float(cached))
    if not all(0 <= value < math.inf for value in (price.input, price.output, price.cached or 0.0)):
        raise ValueError("a price is negative or not a number")
    return price
