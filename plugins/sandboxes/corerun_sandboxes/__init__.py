"""Sandboxes that isolate: bubblewrap, Landlock, and containers of a docker engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from corerun import hookimpl
from corerun.interfaces import Component

_CLASSES = {"BwrapSandbox": "bwrap", "DockerSandbox": "docker", "LandlockSandbox": "landlock"}


@hookimpl
def corerun_sandboxes() -> Iterable[Component]:
    return (
        Component(
            "bwrap",
            "corerun_sandboxes.bwrap:BwrapSandbox",
            "namespaces by bubblewrap: sees its workspace and the system read-only, no network",
        ),
        Component(
            "landlock",
            "corerun_sandboxes.landlock:LandlockSandbox",
            "kernel rules on files, sockets and system calls; needs nothing installed",
        ),
        Component(
            "docker",
            "corerun_sandboxes.docker:DockerSandbox",
            "a container for each workspace; only taken when named",
        ),
    )


def __getattr__(name: str) -> Any:
    """The sandboxes' classes, each loaded when it is first asked for."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_CLASSES[name]}"), name)
