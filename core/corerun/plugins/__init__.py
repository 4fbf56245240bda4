"""Find, list, block, load and isolate plugins: the one place that reads entry points."""

from __future__ import annotations

from corerun.plugins.discovery import PluginEntry
from corerun.plugins.manager import FoundComponent, PluginManager

__all__ = ["FoundComponent", "PluginEntry", "PluginManager"]
