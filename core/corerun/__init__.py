"""corerun: a small core for automated research, extended by plugins."""

from __future__ import annotations

# Not from `typing`, whose import alone doubles the time of `corerun --version`.
TYPE_CHECKING = False

__version__ = "0.1.0"
API_LEVEL = 1
"""What plugins may rely on; a plugin that needs more sets ``corerun_api`` in its module."""

if TYPE_CHECKING:
    from pluggy import HookimplMarker

    hookimpl: HookimplMarker


def __getattr__(name: str) -> object:
    # pluggy costs more than the interpreter itself: `corerun --version` must not pay for it.
    if name == "hookimpl":
        import pluggy

        return pluggy.HookimplMarker("corerun")
    raise AttributeError(f"module 'corerun' has no attribute {name!r}")
