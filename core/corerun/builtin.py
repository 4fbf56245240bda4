"""The essential components: what corerun can't run without, registered like any plugin's."""

from __future__ import annotations

from collections.abc import Iterable

from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_executors() -> Iterable[Component]:
    return (
        Component("inline", "corerun.execution.executors:InlineExecutor", "in this process"),
        Component("process", "corerun.execution.executors:ProcessExecutor", "in local worker processes"),
    )


@hookimpl
def corerun_sandboxes() -> Iterable[Component]:
    return (
        Component(
            "local",
            "corerun.execution.local:LocalSandbox",
            "a subprocess with a scrubbed environment, limits and tree kill; no isolation",
        ),
    )


@hookimpl
def corerun_providers() -> Iterable[Component]:
    return (Component("fake", "corerun.testing.fake:connect", "scripted answers for tests"),)
