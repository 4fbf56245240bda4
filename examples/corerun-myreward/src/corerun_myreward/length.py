"""The reward itself."""

from __future__ import annotations

from corerun.interfaces import Rollout


class Length:
    """1 for an empty answer, 0.5 for ``HALF`` characters, towards 0 for long ones."""

    HALF = 200.0

    range = (0.0, 1.0)
    weight = 0.1

    def score(self, rollout: Rollout) -> float | None:
        if rollout.answer is None:
            return None
        return self.HALF / (self.HALF + len(rollout.answer))
