"""What ``corerun models`` shows of aliases, providers, their offers and what was learned of them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from corerun.errors import CorerunError, EnvironmentRefused, UsageError
from corerun.llm.directory import ROUTER, ModelDirectory
from corerun.llm.models import DEFAULT_PROVIDER, true_value
from corerun.plugins import PluginManager

_VARIABLE = re.compile(r"OAIC_(\w+)_(?:API_KEY|BASE_URL)")
_TIMES = ("first_seen", "last_seen", "expires")


def aliases(directory: ModelDirectory) -> list[dict[str, Any]]:
    """The configuration's aliases: what each means and whether it can be used."""
    rows = []
    for name in directory.aliases:
        try:
            target = directory.target(name)
        except CorerunError as error:
            rows.append({"name": name, "provider": None, "model": None, "status": str(error)})
            continue
        status = _status(directory, name)
        rows.append({"name": name, "provider": target.provider, "model": target.model, "status": status})
    return rows


def providers(
    directory: ModelDirectory, manager: PluginManager, environ: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Providers that a model string can name: those of plugins, and servers that the environment names."""
    plugins = {item.component.name: item.plugin.name for item in manager.components("providers")}
    named = {match[1].lower() for name in environ if (match := _VARIABLE.fullmatch(name))}
    servers = [DEFAULT_PROVIDER, *sorted({"ollama", *named} - plugins.keys())]
    rows = []
    for name in [*servers, *sorted(plugins.keys() - {ROUTER})]:
        try:
            info = directory.named(name).info
            address, variables = info.address or info.default_base_url, list(info.env)
        except CorerunError:
            address, variables = "", []
        rows.append(
            {
                "name": name,
                "plugin": plugins.get(name, ROUTER),
                "address": address,
                "variables": variables,
                "status": _status(directory, f"{name}::any"),
            }
        )
    return rows


async def offered(directory: ModelDirectory, name: str, environ: Mapping[str, str]) -> list[str]:
    """The ids that a provider, or the server of an alias, offers. Raises what the provider raises."""
    model = name if name in directory.aliases else f"{name}::any"
    provider: Any = directory.provider(model)
    ask = getattr(provider, "list_models", None)
    if ask is None:
        raise UsageError(f"the provider {provider.info.name!r} keeps no list of its models")
    if true_value(environ.get("CORERUN_OFFLINE")) and not provider.info.is_local:
        raise EnvironmentRefused(f"CORERUN_OFFLINE is set and {name!r} isn't local")
    directory.check(model)
    return sorted(await ask())


async def all_offered(
    directory: ModelDirectory, names: Iterable[str], environ: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """For each provider that keeps a list: its ``models``, or the ``problem`` with asking for it."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            found[name] = {"models": await offered(directory, name, environ)}
        except UsageError:
            continue
        except CorerunError as error:
            found[name] = {"problem": str(error)}
    return found


def learners(
    directory: ModelDirectory, manager: PluginManager, model: str | None
) -> list[tuple[Any, str | None]]:
    """The providers that learn about servers, each with the model to ask them for; None: all models."""
    if model is not None:
        found: list[tuple[Any, str | None]] = [(directory.provider(model), directory.target(model).model)]
    else:
        names = {item.component.name for item in manager.components("providers")} - {ROUTER}
        found = [(directory.named(name), None) for name in (DEFAULT_PROVIDER, *sorted(names))]
    able = [(provider, name) for provider, name in found if hasattr(provider, "learned")]
    if model is not None and not able:
        raise UsageError(f"the provider of {model!r} learns nothing about servers")
    return able


def learned(known: Sequence[tuple[Any, str | None]]) -> list[dict[str, Any]]:
    """What these providers found out, each fact once, with dates for people."""
    rows: list[dict[str, Any]] = []
    for provider, name in known:
        for fact in provider.learned(name):
            row = {key: _date(value) if key in _TIMES else value for key, value in fact.items()}
            if row not in rows:
                rows.append(row)
    return rows


def _status(directory: ModelDirectory, name: str) -> str:
    try:
        directory.check(name)
    except CorerunError as error:
        return error.message
    return "ready"


def _date(value: Any) -> Any:
    if not isinstance(value, int | float):
        return value
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(value))
