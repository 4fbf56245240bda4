"""A reward for corerun: short answers score higher."""

from __future__ import annotations

from collections.abc import Iterable

from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_rewards() -> Iterable[Component]:
    return (Component("length", "corerun_myreward.length:Length", "prefers short answers"),)
