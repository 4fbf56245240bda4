"""Says which plugins may load, and finds components by name while loading as few as possible."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from corerun.errors import PluginError, UsageError
from corerun.plugins import discovery
from corerun.plugins.discovery import PluginEntry, typed
from corerun.plugins.messages import refused, suggest
from corerun.redaction.terminal import one_line

if TYPE_CHECKING:
    from corerun.interfaces import Component
    from corerun.plugins.loading import Loaded
    from corerun.plugins.relay import Relay


@dataclass(frozen=True)
class FoundComponent:
    """A component and the plugin that offers it."""

    component: Component
    plugin: PluginEntry
    kind: str

    @property
    def label(self) -> str:
        """``plugin/component``, which names it in every case."""
        return f"{self.plugin.name}/{self.component.name}"


# Inside the class the word `list` means its method.
_Entries: TypeAlias = list[PluginEntry]
_Components: TypeAlias = list[FoundComponent]


class PluginManager:
    """The installed plugins under one set of switches. Nothing is read or imported until used.

    ``load`` names plugins that were asked for: a block on them is lifted. ``block`` names plugins
    that must not load; the environment variable ``CORERUN_DISABLE_PLUGINS`` and `block` add to it.
    ``CORERUN_LOAD_PLUGINS``: unset, all plugins may load; empty, only corerun's own; ``a,b``, those
    and a and b. ``entries`` replaces what is installed; ``ignore_under`` see `discovery.discover`.
    Raises `UsageError` if ``core`` is to be blocked.
    """

    def __init__(
        self,
        *,
        load: tuple[str, ...] = (),
        block: tuple[str, ...] = (),
        environ: Mapping[str, str] = os.environ,
        entries: Sequence[PluginEntry] | None = None,
        ignore_under: Path | None = None,
    ) -> None:
        self._asked = tuple(typed(name) for name in load)
        only = environ.get("CORERUN_LOAD_PLUGINS")
        self._only = None if only is None else frozenset(_names(only))
        self._strict = environ.get("CORERUN_STRICT_PLUGINS", "") not in ("", "0")
        self._blocked: set[str] = set()
        self._installed = entries
        self._ignore_under = ignore_under
        self._entries: _Entries | None = None
        self._loaded: dict[str, Loaded] = {}
        self._told: set[str] = set()
        self._relay: Relay | None = None
        self.block(block)
        self.block(_names(environ.get("CORERUN_DISABLE_PLUGINS", "")), where="CORERUN_DISABLE_PLUGINS")

    # ------------------------------------------------------------------------ metadata alone

    def list(self) -> _Entries:
        """All entries with their status, sorted by name. Imports no plugin."""
        if self._entries is None:
            if self._installed is None:
                self._installed = discovery.discover(self._ignore_under)
            self._entries = discovery.with_status(
                sorted(self._installed, key=lambda entry: (entry.name, entry.distribution)),
                blocked=frozenset(self._blocked),
                lifted=frozenset(self._asked),
                only=self._only,
            )
        return list(self._entries)

    def block(self, names: Iterable[str], *, where: str = "") -> None:
        """Add blocks, such as the configuration's ``plugins.disable``. Unknown names are fine."""
        names = {typed(name) for name in names}
        if "core" in names:
            raise UsageError(
                "the plugin core can't be blocked", where=where, hint="corerun can't run without it"
            )
        self._blocked |= names
        self._entries = None

    def ask(self, name: str) -> None:
        """Ask for one more plugin, which lifts a block on it."""
        self._asked = (*self._asked, typed(name))
        self._entries = None

    def has(self, name: str) -> bool:
        """Whether a plugin of this name is installed, whatever its status."""
        return any(entry.name == typed(name) for entry in self.list())

    def named(self, name: str) -> _Entries:
        """The entries of this name. Raises `PluginError` if there is none."""
        entries = [entry for entry in self.list() if entry.name == typed(name)]
        if not entries:
            raise self._not_installed(name)
        return entries

    def require(self, specs: Iterable[str]) -> None:
        """Check the configuration's ``plugins.required``: names of distributions, with versions or not.

        Raises `PluginError` that names all that are missing, too old or disabled.
        """
        from corerun.plugins.required import unmet

        missing = [reason for spec in specs if (reason := unmet(spec, self.list()))]
        if missing:
            raise PluginError(
                f"required plugins are missing: {'; '.join(missing)}",
                where="plugins.required",
                hint="install them, or see `corerun plugins list`",
            )

    def worker_environment(self) -> dict[str, str]:
        """The switches under which a worker process sees the same plugins as this one."""
        entries = self.list()
        third = {entry.name for entry in entries if not entry.builtin and entry.status == "available"}
        blocked = {entry.name for entry in entries if entry.builtin and entry.status == "disabled"}
        return {
            "CORERUN_LOAD_PLUGINS": ",".join(sorted(third)),
            "CORERUN_DISABLE_PLUGINS": ",".join(sorted(blocked)),
        }

    # ------------------------------------------------------------------------------- loading

    def load(self, name: str) -> Loaded:
        """Load the plugin of this name. Raises `PluginError` if it is unknown, blocked or broken."""
        loaded = self._attempt(self._available(name))
        if loaded.error is not None:
            raise self._broken(loaded) from loaded.error
        return loaded

    def load_asked(self) -> None:
        """Load what was asked for; a name that is no plugin must be that of a job."""
        for name in self._asked:
            if self.has(name):
                self.load(name)
            elif not self.offers("jobs", name):
                raise self._not_installed(name)

    def attempt(self, entry: PluginEntry) -> Loaded:
        """Load an entry and say what became of it; raises nothing for a broken plugin."""
        if entry.name not in self._loaded:
            from corerun.plugins import loading

            self._loaded[entry.name] = loading.load(entry, self.relay)
        return self._loaded[entry.name]

    def provenance(self) -> dict[str, dict[str, str]]:
        """Whose code was loaded so far; see `corerun.plugins.provenance`."""
        from corerun.plugins.provenance import provenance

        return provenance(self._loaded[name] for name in sorted(self._loaded))

    @property
    def relay(self) -> Relay:
        if self._relay is None:
            from corerun.plugins.relay import Relay

            self._relay = Relay()
        return self._relay

    # ---------------------------------------------------------------------------- components

    def get(self, kind: str, name: str) -> Any:
        """The imported target of a component.

        Raises what `find` raises, and see `corerun.plugins.loading.import_component`.
        """
        from corerun.plugins.loading import import_component

        found = self.find(kind, name)
        return import_component(found.component.target, f"{kind} component {found.label}")

    def find(self, kind: str, name: str) -> FoundComponent:
        """Look a component up: ``plugin/component`` in that plugin alone; a bare name in the plugin of
        that name, then in corerun's own plugins, then in all others. The first hit wins.

        Raises `PluginError` for two hits at once, an unknown name and a broken plugin.
        """
        _check_kind(kind)
        plugin, slash, wanted = typed(name).rpartition("/")
        if slash:
            return self._one(kind, wanted, [self.load(plugin)]) or self._unknown(kind, wanted, plugin)
        available = [entry for entry in self.list() if entry.status == "available"]
        if any(entry.name == wanted for entry in available):
            hit = self._one(kind, wanted, [self.load(wanted)])
            if hit:
                return hit
        for builtin in (True, False):
            hit = self._one(kind, wanted, self._working(e for e in available if e.builtin is builtin))
            if hit:
                return hit
        self._unknown(kind, wanted)

    def components(self, kind: str | None = None, plugin: str | None = None) -> _Components:
        """What the plugins offer, sorted by plugin, kind and name; loads them.

        With ``plugin`` that one alone, which must work; else all, and broken ones are reported and
        skipped.
        """
        if kind is not None:
            _check_kind(kind)
        entries = (entry for entry in self.list() if entry.status == "available")
        sources = list(self._working(entries)) if plugin is None else [self.load(plugin)]
        found = [
            FoundComponent(component, loaded.entry, offered)
            for loaded in sources
            for offered, components in loaded.components.items()
            if kind in (None, offered)
            for component in components
        ]
        return sorted(found, key=lambda item: (item.plugin.name, item.kind, item.component.name))

    def offers(self, kind: str, name: str, plugin: str | None = None) -> bool:
        """Whether `components` has one of this name."""
        return any(item.component.name == typed(name) for item in self.components(kind, plugin))

    # ------------------------------------------------------------------------------- details

    def _available(self, name: str) -> PluginEntry:
        entries = self.named(name)
        for entry in entries:
            if entry.status == "available":
                return entry
        raise refused(entries)

    def _attempt(self, entry: PluginEntry) -> Loaded:
        loaded = self.attempt(entry)
        if loaded.error is not None and self._strict:
            raise loaded.error
        return loaded

    def _working(self, entries: Iterable[PluginEntry]) -> Iterator[Loaded]:
        for entry in entries:
            loaded = self._attempt(entry)
            if loaded.error is None:
                yield loaded
            elif entry.name not in self._told:
                self._told.add(entry.name)
                why = f"corerun: plugin {entry.name} ({entry.origin}) not loaded: {loaded.reason}; "
                sys.stderr.write(one_line(f"{why}corerun plugins check {entry.name} shows why") + "\n")

    def _one(self, kind: str, name: str, sources: Iterable[Loaded]) -> FoundComponent | None:
        hits = [
            FoundComponent(component, loaded.entry, kind)
            for loaded in sources
            for component in loaded.components.get(kind, ())
            if component.name == name
        ]
        if len(hits) > 1:
            owners = " and ".join(f"{hit.label} ({hit.plugin.origin})" for hit in hits)
            raise PluginError(
                f"two components of kind {kind} are named {name}: {owners}", hint=f"say {hits[0].label}"
            )
        return hits[0] if hits else None

    def _broken(self, loaded: Loaded) -> PluginError:
        entry = loaded.entry
        state = loaded.state if loaded.state.startswith("incompatible") else f"broken: {loaded.reason}"
        return PluginError(
            f"plugin {entry.name} ({entry.origin}) is {state}",
            hint=f"corerun plugins check {entry.name} shows why",
        )

    def _not_installed(self, name: str) -> PluginError:
        known = sorted({entry.name for entry in self.list()})
        return PluginError(f"no plugin is named {typed(name)}", hint=suggest(typed(name), known))

    def _unknown(self, kind: str, name: str, plugin: str | None = None) -> NoReturn:
        if plugin is None:
            namesakes = [entry for entry in self.list() if entry.name == name]
            if namesakes and all(entry.status != "available" for entry in namesakes):
                raise refused(namesakes)
        known = sorted({item.component.name for item in self.components(kind, plugin)})
        broken = sorted(name for name, loaded in self._loaded.items() if loaded.error is not None)
        hint = suggest(name, known)
        if broken and plugin is None:
            hint += f"; not loaded: {', '.join(broken)}"
        owner = f" in plugin {plugin}" if plugin else ""
        raise PluginError(f"no component of kind {kind} is named {name}{owner}", hint=hint)


def _names(text: str) -> list[str]:
    return [typed(part) for part in text.split(",") if part.strip()]


def _check_kind(kind: str) -> None:
    from corerun.hookspecs import KINDS

    if kind not in KINDS:
        raise PluginError(f"no kind of component is named {kind}", hint=suggest(kind, KINDS))
