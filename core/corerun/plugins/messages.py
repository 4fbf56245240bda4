"""What people are told when a name doesn't lead to a plugin or a component."""

from __future__ import annotations

from collections.abc import Sequence

from corerun.errors import PluginError
from corerun.plugins.discovery import PluginEntry


def suggest(name: str, known: Sequence[str]) -> str:
    """The names that are near, else all."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}" if known else "none is installed"


def refused(entries: Sequence[PluginEntry]) -> PluginError:
    """Why none of the entries of one name may load."""
    name, status = entries[0].name, entries[0].status
    if status == "disabled":
        switches = "-p no:, CORERUN_LOAD_PLUGINS, CORERUN_DISABLE_PLUGINS or plugins.disable"
        return PluginError(f"plugin {name} is disabled", hint=f"by {switches}; -p {name} lifts the block")
    if status == "invalid name":
        return PluginError(f"{name} is no valid name of a plugin", hint="names match [a-z][a-z0-9_]{0,31}")
    owners = " and ".join(entry.origin for entry in entries)
    return PluginError(f"two plugins are named {name}, of {owners}", hint="uninstall one of them")
