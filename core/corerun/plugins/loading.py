"""Loads one plugin in isolation and remembers what became of it."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import corerun
from corerun.errors import CorerunError, EnvironmentRefused, PluginError
from corerun.plugins.discovery import PluginEntry

if TYPE_CHECKING:
    from corerun.interfaces import Component
    from corerun.plugins.relay import Relay


@dataclass(frozen=True)
class Loaded:
    """What loading one plugin came to.

    ``state``: ``active``, ``broken: <Type>: <first line>`` or ``incompatible: needs API <n>``.
    ``error`` is None for an active plugin.
    """

    entry: PluginEntry
    state: str = "active"
    plugin: Any = None
    components: Mapping[str, tuple[Component, ...]] = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def reason(self) -> str:
        """The state without the word ``broken``."""
        return self.state.removeprefix("broken: ")


def load(entry: PluginEntry, relay: Relay) -> Loaded:
    """Import, register and collect one plugin. Never raises for what the plugin does."""
    try:
        # A plugin that prints must not spoil the one document that stdout is.
        with contextlib.redirect_stdout(sys.stderr):
            plugin = import_target(entry.target)
            needed = getattr(plugin, "corerun_api", 1)
            if needed > corerun.API_LEVEL:
                error = PluginError(f"needs API {needed}, this corerun has {corerun.API_LEVEL}")
                return Loaded(entry, f"incompatible: needs API {needed}", error=error)
            return Loaded(entry, "active", plugin, relay.register(entry.name, plugin))
    except (Exception, SystemExit) as error:
        return Loaded(entry, f"broken: {first_line(error)}", error=error)


def import_target(target: str) -> Any:
    """The module ``"module"`` or the attribute ``"module:attribute"``; raises what the import raises."""
    module_name, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part)
    return found


def import_component(target: str, label: str) -> Any:
    """A component's target.

    Raises `EnvironmentRefused` if it needs a package that isn't installed, `PluginError` if it
    doesn't import for another reason; an error that corerun knows passes unchanged.
    """
    try:
        return import_target(target)
    except CorerunError:
        raise
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and missing.partition(".")[0] != target.partition(":")[0].partition(".")[0]:
            raise EnvironmentRefused(
                f"{label} needs the package {missing}, which isn't installed",
                hint="install the extra of its distribution that brings it",
            ) from error
        raise PluginError(f"{label}: {target} doesn't import: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """``Type: first line of the message``."""
    text = str(error).strip().partition("\n")[0]
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def place(error: BaseException) -> str:
    """``file:line`` where an error came up, or nothing if it has no traceback."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""


def docstring(plugin: ModuleType | Any) -> str:
    """A plugin's own description, without indentation."""
    import inspect

    return inspect.getdoc(plugin) or ""
