"""Compares the distributions that a configuration requires with those that are installed."""

from __future__ import annotations

from collections.abc import Iterable

from corerun.errors import ConfigError, EnvironmentRefused
from corerun.plugins.discovery import PluginEntry, distribution_key


def unmet(spec: str, entries: Iterable[PluginEntry]) -> str:
    """Why a requirement such as ``corerun-myreward>=0.3`` isn't met; empty if it is.

    Raises `ConfigError` if it isn't a requirement, `EnvironmentRefused` if comparing versions needs
    the package `packaging` and it is missing.
    """
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError as error:
        raise EnvironmentRefused("plugins.required needs a package", hint="pip install packaging") from error
    try:
        requirement = Requirement(spec)
    except InvalidRequirement as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{spec!r} is no requirement: {reason}", where="plugins.required") from error
    owned = [
        entry
        for entry in entries
        if distribution_key(entry.distribution) == distribution_key(requirement.name)
    ]
    if not owned:
        return f"{spec} (not installed)"
    if not requirement.specifier.contains(owned[0].version, prereleases=True):
        return f"{spec} (installed: {owned[0].version})"
    stopped = [f"{entry.name} is {entry.status}" for entry in owned if entry.status != "available"]
    return f"{spec} ({', '.join(stopped)})" if stopped else ""
