"""Requests and tokens per minute: budgets that refill all the time and may go into debt."""

from __future__ import annotations

from collections.abc import Callable

BURST_MINUTES = 1 / 6
"""How much of a minute's budget may be spent at once."""


class Bucket:
    """A budget of ``per_minute``. It starts full and holds a sixth of a minute, at least 1."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._per_second = per_minute / 60
        self._capacity = max(per_minute * BURST_MINUTES, 1.0)
        self._level = self._capacity
        self._clock = clock
        self._filled_at = clock()

    def seconds_until(self, amount: float) -> float:
        """Seconds until ``amount`` can be taken; more than the bucket holds waits until it is full."""
        self._fill()
        return max(0.0, (min(amount, self._capacity) - self._level) / self._per_second)

    def take(self, amount: float) -> None:
        """Takes ``amount``, into debt if need be; a negative amount is given back."""
        self._fill()
        self._level = min(self._capacity, self._level - amount)

    def seen(self, remaining: float) -> None:
        """The server says that only so much is left: others may be spending from the same account."""
        self._fill()
        self._level = min(self._level, remaining)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._per_second)
        self._filled_at = now
