"""Search strategies that fit any domain."""

from __future__ import annotations

from collections.abc import Iterable

from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_strategies() -> Iterable[Component]:
    return (
        Component(
            "greedy",
            "corerun_strategies.greedy:Greedy",
            "improve the best node; draft first, now and then debug a failed one",
        ),
    )
