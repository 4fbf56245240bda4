"""The clocks of a run: one that nobody can set, and a watch over the one that a person reads."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_S = 5.0
"""Seconds by which the wall clock may differ from the time that passed."""

Clock = Callable[[], float]


def since_boot() -> float:
    """Seconds that go on while the machine sleeps and that no setting of the clock changes."""
    kind = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if kind is None else time.clock_gettime(kind)


class StepWatch:
    """Tells each step of the wall clock once. ``last``: when the last record was written, if there is one."""

    def __init__(self, wall: Clock, passed: Clock = since_boot, last: float | None = None) -> None:
        self._wall = wall
        self._passed = passed
        now = wall()
        # Between two processes only a clock that was set back shows: what was written last lies ahead.
        ahead = last is not None and last - now > STEP_S
        self._offset = (last if ahead and last is not None else now) - passed()

    def step(self) -> float:
        """Seconds by which the clock was set since the last look, negative if back; 0.0 if it wasn't."""
        moved = self._wall() - self._passed() - self._offset
        if abs(moved) <= STEP_S:
            return 0.0
        self._offset += moved
        return moved


def step_message(step: float) -> str:
    """A step in words."""
    way = "forward" if step > 0 else "back"
    return f"the clock of this machine was set {way} by {abs(step):.0f} s; times in this run jump there"
