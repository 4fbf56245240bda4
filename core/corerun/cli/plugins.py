"""``corerun plugins``: what is installed, what a plugin offers and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from corerun.cli.app import State, output_format
from corerun.cli.output import print_json, print_table, say
from corerun.plugins import PluginEntry, PluginManager

FIELDS = ("name", "status", "distribution", "version", "target")


@click.group()
def group() -> None:
    """List, show and check the installed plugins."""


@group.command("list")
@output_format
@click.pass_obj
def list_plugins(state: State, as_json: bool) -> None:
    """List the installed plugins without importing any."""
    entries = state.manager.list()
    if as_json:
        print_json([_facts(entry) for entry in entries])
        return
    rows = [tuple(str(getattr(entry, name)) for name in FIELDS) for entry in entries]
    print_table([tuple(name.upper() for name in FIELDS), *rows])


@group.command("show")
@click.argument("name")
@output_format
@click.pass_obj
def show(state: State, name: str, as_json: bool) -> None:
    """Load one plugin and show what it offers."""
    from corerun.plugins.loading import docstring

    loaded = state.manager.load(name)
    found = state.manager.components(plugin=name)
    description = docstring(loaded.plugin)
    if as_json:
        components = [
            {
                "kind": item.kind,
                "name": item.component.name,
                "target": item.component.target,
                "summary": item.component.summary,
            }
            for item in found
        ]
        print_json({**_facts(loaded.entry), "description": description, "components": components})
        return
    entry = loaded.entry
    say(f"{entry.name}  {entry.target}  ({entry.origin}, in {entry.location})")
    if description:
        say(description)
    if found:
        rows = [
            (item.kind, item.component.name, item.component.target, item.component.summary) for item in found
        ]
        print_table([("KIND", "NAME", "TARGET", "SUMMARY"), *rows])


@group.command("check")
@click.argument("name", required=False)
@output_format
@click.pass_obj
def check(state: State, name: str | None, as_json: bool) -> int:
    """Load each plugin, or only NAME, and say what is wrong. Exit code 1 if anything is."""
    from corerun.plugins.checks import findings

    manager = state.manager
    entries = manager.list() if name is None else manager.named(name)
    results = [(entry, findings(entry, manager)) for entry in entries]
    if state.debug:
        _print_tracebacks(manager, entries)
    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "state": _status(manager, entry),
                    "origin": entry.origin,
                    "findings": found,
                }
                for entry, found in results
            ]
        )
    else:
        for entry, found in results:
            for line in found or [_status(manager, entry)]:
                say(f"{entry.name}: {line}")
    return 1 if any(found for _, found in results) else 0


def _status(manager: PluginManager, entry: PluginEntry) -> str:
    return manager.attempt(entry).state if entry.status == "available" else entry.status


def _print_tracebacks(manager: PluginManager, entries: Sequence[PluginEntry]) -> None:
    from corerun.redaction.logs import clean_traceback

    for entry in entries:
        error = manager.attempt(entry).error if entry.status == "available" else None
        if error is not None:
            say(clean_traceback(error), err=True)


def _facts(entry: PluginEntry) -> dict[str, object]:
    return {
        **{name: getattr(entry, name) for name in FIELDS},
        "location": entry.location,
        "builtin": entry.builtin,
    }
