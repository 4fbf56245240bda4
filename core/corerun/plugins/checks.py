"""Finds what is wrong with one installed plugin, for its author and its user."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from corerun.errors import CorerunError
from corerun.plugins.discovery import PluginEntry, valid_name
from corerun.plugins.loading import import_component, place

if TYPE_CHECKING:
    from corerun.interfaces import Component
    from corerun.plugins.manager import PluginManager

METHODS = {
    "providers": ("complete",),
    "operators": ("__call__",),
    "rewards": ("score",),
    "strategies": ("ask", "tell"),
    "stages": ("run",),
    "jobs": ("prepare", "run", "derive"),
    "sandboxes": ("probe", "open"),
    "executors": ("submit", "close"),
    "benchmarks": ("load", "score"),
    "agents": ("run", "close"),
    "observers": ("on_event", "close"),
}
"""The methods that a class must have which a component of the kind names."""


def check(name: str, manager: PluginManager) -> list[str]:
    """What is wrong with a plugin, one line each; imports all its targets.

    Raises `PluginError` if no plugin of this name is installed.
    """
    return [line for entry in manager.named(name) for line in findings(entry, manager)]


def findings(entry: PluginEntry, manager: PluginManager) -> list[str]:
    """One line for each thing that is wrong. A disabled plugin isn't loaded and has none."""
    if entry.status == "disabled":
        return []
    if entry.status != "available":
        return [f"{entry.status} ({entry.origin}), not loaded"]
    loaded = manager.attempt(entry)
    if loaded.error is not None:
        where = place(loaded.error)
        return [f"{loaded.state}, {where}" if where else loaded.state]
    found = manager.relay.findings(loaded.plugin)
    for kind, components in sorted(loaded.components.items()):
        names = [component.name for component in components]
        for component in components:
            found += _component(kind, component)
        for name in sorted({name for name in names if names.count(name) > 1}):
            found.append(f"{kind}: {name} is offered {names.count(name)} times")
    return found


def _component(kind: str, component: Component) -> list[str]:
    label = f"{kind}: {component.name}"
    found = []
    if not valid_name(component.name):
        found.append(f"{label}: invalid name, names match [a-z][a-z0-9_]{{0,31}}")
    if component.target.count(":") != 1:
        return [*found, f"{label}: target {component.target!r} isn't of the form module:attribute"]
    try:
        target = import_component(component.target, label)
    except CorerunError as error:
        return [*found, str(error)]
    return found + [f"{label}: {reason}" for reason in _misfit(kind, target)]


def _misfit(kind: str, target: Any) -> list[str]:
    if kind == "commands":
        import click

        return [] if isinstance(target, click.Command) else ["the target isn't a click command"]
    if not callable(target):
        return ["the target isn't a class"]
    # A factory's answer is only known when it is called, which may need what isn't here.
    if not inspect.isclass(target):
        return []
    # Looked up in the classes themselves, since every class has the `__call__` of its metaclass.
    return [
        f"{target.__name__} has no method {name}"
        for name in METHODS[kind]
        if not any(name in vars(base) for base in target.__mro__)
    ]
