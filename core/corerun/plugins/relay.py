"""The typed face of pluggy: the only code that registers plugins and calls their hooks."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import pluggy

from corerun import hookspecs
from corerun.errors import PluginError
from corerun.hookspecs import KINDS
from corerun.interfaces import Component

HOOKS = {f"corerun_{kind}": kind for kind in KINDS}


class Relay:
    """Registers one plugin at a time and collects what it offers."""

    def __init__(self) -> None:
        self._pluggy = pluggy.PluginManager("corerun")
        self._pluggy.add_hookspecs(hookspecs)

    def register(self, name: str, plugin: Any) -> dict[str, tuple[Component, ...]]:
        """The plugin's components by kind. On any error nothing of the plugin stays registered.

        Raises `PluginError` for an unknown hook, a hook with parameters and a wrapper, TypeError for
        an answer that isn't made of components, and whatever the plugin's own hooks raise.
        """
        for hook, function, options in self.implementations(plugin):
            self._validate(hook, function, options)
        try:
            self._pluggy.register(plugin, name=name)
            return self._collect(name, plugin)
        except BaseException:
            # pluggy before 1.7 leaves a plugin whose registration failed half registered.
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            raise

    def implementations(self, plugin: Any) -> Iterator[tuple[str, Any, Any]]:
        """(hook, function, options) of everything in the plugin that is marked with hookimpl."""
        for attribute in dir(plugin):
            options = self._pluggy.parse_hookimpl_opts(plugin, attribute)
            if options is not None:
                yield options.get("specname") or attribute, getattr(plugin, attribute), options

    def findings(self, plugin: Any) -> list[str]:
        """What a plugin's author should change although the plugin loads."""
        found = []
        marked = set()
        for hook, _, options in self.implementations(plugin):
            marked.add(hook)
            for option in ("tryfirst", "trylast"):
                if options.get(option):
                    found.append(f"{hook}: {option} has no effect, components are chosen by name")
        for hook in HOOKS:
            if hook not in marked and callable(getattr(plugin, hook, None)):
                found.append(f"{hook}: not marked with @corerun.hookimpl, so it is never called")
        return found

    def _validate(self, hook: str, function: Any, options: Any) -> None:
        if hook not in HOOKS:
            if options.get("optionalhook"):
                return
            near = difflib.get_close_matches(hook, HOOKS, n=1, cutoff=0.0)
            raise PluginError(f"unknown hook {hook}, did you mean {near[0]}?")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(f"hook {hook} is a wrapper, corerun's hooks have none")
        signature = inspect.signature(function)
        if signature.parameters:
            raise PluginError(f"hook {hook} takes no parameters, this one is {hook}{signature}")

    def _collect(self, name: str, plugin: Any) -> dict[str, tuple[Component, ...]]:
        collected: dict[str, tuple[Component, ...]] = {}
        for caller in self._pluggy.get_hookcallers(plugin) or ():
            kind = HOOKS.get(caller.name)
            if kind is None:
                continue
            items: list[Component] = []
            for implementation in caller.get_hookimpls():
                if implementation.plugin_name == name:
                    answer: Any = implementation.function()
                    items.extend(answer or ())
            for item in items:
                if not isinstance(item, Component):
                    raise TypeError(f"{caller.name} returned {item!r}, not a corerun.interfaces.Component")
            collected[kind] = tuple(items)
        return collected
