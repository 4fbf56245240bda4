"""Reads which plugins are installed, from metadata alone: nothing of a plugin is imported here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

GROUP = "corerun.plugins"
OWN_DISTRIBUTION = "corerun"
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class PluginEntry:
    """One entry point of the group ``corerun.plugins``.

    ``target`` is the module; ``location`` the folder that holds the distribution's metadata;
    ``builtin``: it came with corerun itself. ``status``: ``available``, ``disabled``,
    ``invalid name`` or ``shadowed by <distribution>``.
    """

    name: str
    target: str
    distribution: str
    version: str
    location: str
    builtin: bool
    status: str = "available"

    @property
    def origin(self) -> str:
        """Distribution and version, as messages name them."""
        return f"{self.distribution} {self.version}".strip()


def valid_name(name: str) -> bool:
    """Whether a plugin or component may have this name."""
    return NAME_PATTERN.fullmatch(name) is not None


def typed(name: str) -> str:
    """The name that someone meant who may have typed ``-`` for ``_``."""
    return name.strip().replace("-", "_")


def distribution_key(name: str) -> str:
    """A distribution's name in the one spelling in which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def discover(ignore_under: Path | None = None) -> list[PluginEntry]:
    """All entries that are installed, sorted by name, each with the status ``available``.

    ``ignore_under`` is a folder that isn't trusted, such as a target repository: what is installed
    below it is left out, unless it belongs to the environment that corerun itself runs in.
    A distribution that is found twice on the path counts once, as for an import.
    """
    from importlib_metadata import distributions

    found: list[PluginEntry] = []
    seen: set[str] = set()
    for distribution in distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            if not text or GROUP not in text:
                continue
            targets = list(_entries(text))
            if not targets:
                continue
            headers = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        except (OSError, ValueError):
            continue  # unreadable metadata of somebody's package must not stop every command
        name, version = _identity(headers)
        location = str(distribution.locate_file(""))
        key = distribution_key(name)
        if key in seen or _untrusted(location, ignore_under):
            continue
        if name:
            seen.add(key)
        builtin = key == OWN_DISTRIBUTION
        for plugin, target in targets:
            found.append(PluginEntry(plugin, target, name or "unknown", version, location, builtin))
    return sorted(found, key=lambda entry: (entry.name, entry.distribution))


def with_status(
    entries: Iterable[PluginEntry],
    *,
    blocked: frozenset[str],
    lifted: frozenset[str],
    only: frozenset[str] | None,
) -> list[PluginEntry]:
    """The entries with their status; ``only`` names the third-party plugins that may load, None all."""
    from dataclasses import replace

    entries = list(entries)
    rivals: dict[str, list[PluginEntry]] = {}
    for entry in entries:
        rivals.setdefault(entry.name, []).append(entry)

    def status(entry: PluginEntry) -> str:
        if not valid_name(entry.name):
            return "invalid name"
        others = [other for other in rivals[entry.name] if other is not entry]
        if others and not entry.builtin:
            winner = next((other for other in others if other.builtin), others[0])
            return f"shadowed by {winner.distribution}"
        if entry.name in lifted:
            return "available"
        excluded = only is not None and not entry.builtin and entry.name not in only
        return "disabled" if excluded or entry.name in blocked else "available"

    return [replace(entry, status=status(entry)) for entry in entries]


def _entries(text: str) -> Iterator[tuple[str, str]]:
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, target = line.split("=", 1)
            yield name.strip(), target.split("[", 1)[0].strip()


def _identity(metadata: str) -> tuple[str, str]:
    headers: dict[str, str] = {}
    for line in metadata.splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        headers.setdefault(key.lower(), value.strip())
    return headers.get("name", ""), headers.get("version", "")


def _untrusted(location: str, folder: Path | None) -> bool:
    if folder is None:
        return False
    root, place = os.path.realpath(folder), os.path.realpath(location)
    # The environment that runs corerun may itself lie in the repository (its .venv).
    own = os.path.realpath(sys.prefix)
    return _below(place, root) and not (_below(own, root) and _below(place, own))


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
