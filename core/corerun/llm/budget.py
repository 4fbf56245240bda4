"""The limits of a run on money, tokens and time, checked before each call."""

from __future__ import annotations

from dataclasses import dataclass

from corerun.errors import BudgetExceeded
from corerun.llm.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Reserve:
    """What calls that are under way, or about to start, may cost: ``usd`` and ``tokens``."""

    usd: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one run: US dollars, tokens (prompt and completion), seconds. None: no limit."""

    usd: float | None = None
    tokens: int | None = None
    seconds: float | None = None

    def check(self, ledger: Ledger, elapsed: float, reserve: Reserve = Reserve()) -> None:
        """Raises `BudgetExceeded` if what is spent plus ``reserve`` is more than a limit.

        ``elapsed``: seconds that the run has taken so far.
        """
        spent = ledger.totals
        if self.usd is not None and spent.usd + reserve.usd > self.usd:
            raise _exceeded("usd", f"{self.usd:g} USD", f"{spent.usd:.4f} USD are spent")
        if self.tokens is not None and spent.tokens + reserve.tokens > self.tokens:
            raise _exceeded("tokens", f"{self.tokens} tokens", f"{spent.tokens} tokens are spent")
        if self.seconds is not None and elapsed >= self.seconds:
            raise _exceeded("seconds", f"{self.seconds:g} s", f"{elapsed:.0f} s have passed")


def _exceeded(limit: str, allowed: str, so_far: str) -> BudgetExceeded:
    return BudgetExceeded(
        f"the next model call would pass budget.{limit} ({allowed}): {so_far}",
        hint=f"raise budget.{limit} and resume the run",
    )
