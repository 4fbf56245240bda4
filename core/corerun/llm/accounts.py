"""The money side of a call: what it may cost before it is sent, and what it did cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from corerun.interfaces import ChatReply, ChatRequest, Price, Provider, Usage
from corerun.llm import prices as price_table
from corerun.llm.budget import Budget, Reserve
from corerun.llm.directory import ModelTarget
from corerun.llm.ledger import CHARACTERS_PER_TOKEN, Ledger, settled

_FREE = (Price(0.0, 0.0), "local")


@dataclass(frozen=True, slots=True)
class Bill:
    """What one reply cost. ``usage.cost_usd`` is None when no price is known.

    ``source``: ``server`` (the reply said it), ``config`` (an alias says it), ``local``
    (free), ``provider`` (its plugin's price), ``table:KEY``, ``cache`` (an answer of an earlier run,
    free) or empty. ``booked``: the model's name in the token files.
    """

    usage: Usage
    source: str
    booked: str


class Accounts:
    """Ledger, budget and prices of one run; ``elapsed`` gives the seconds it has taken."""

    def __init__(
        self,
        ledger: Ledger,
        budget: Budget,
        *,
        prices: Callable[[], Mapping[str, Price]],
        elapsed: Callable[[], float],
        unpriced: Callable[[str], None],
    ) -> None:
        self.ledger = ledger
        self._budget = None if budget == Budget() else budget
        self._load_prices = prices
        self._prices: Mapping[str, Price] | None = None
        self._elapsed = elapsed
        self._unpriced = unpriced
        self._reserved: dict[str, Reserve] = {}
        self._waiting = Reserve()

    def reserve(
        self, key: str, target: ModelTarget, provider: Provider, request: ChatRequest, characters: int
    ) -> None:
        """Sets aside what call ``key`` may cost, or raises `BudgetExceeded`.

        The prompt is reckoned at four characters per token, the answer at ``max_tokens``. A limit
        on money can't count a model without a price; ``unpriced`` is told of it.
        """
        budget = self._budget
        if budget is None:
            return
        prompt, completion = characters // CHARACTERS_PER_TOKEN, request.max_tokens or 0
        found = self.price(target, provider, target.model)
        usd = 0.0
        if found is not None:
            usd = price_table.cost_usd(Usage(prompt=prompt, completion=completion), found[0])
        elif budget.usd is not None:
            self._unpriced(target.name)
        mine = Reserve(usd, prompt + completion)
        together = Reserve(self._waiting.usd + mine.usd, self._waiting.tokens + mine.tokens)
        budget.check(self.ledger, self._elapsed(), together)
        self._reserved[key] = mine
        self._waiting = together

    def release(self, key: str) -> None:
        """Call ``key`` is over: what was set aside for it is free again."""
        mine = self._reserved.pop(key, None)
        if mine is None:
            return
        left = Reserve(self._waiting.usd - mine.usd, self._waiting.tokens - mine.tokens)
        # Rounding adds up, but not beyond the moment when nothing waits.
        self._waiting = left if self._reserved else Reserve()

    def bill(self, target: ModelTarget, provider: Provider, reply: ChatReply, characters: int) -> Bill:
        """The cost of ``reply`` to a prompt of so many ``characters``."""
        answered = reply.model or target.model
        written = (
            len(reply.text) + len(reply.reasoning) + sum(len(call.arguments) for call in reply.tool_calls)
        )
        usage = settled(reply.usage, characters, written)
        if usage.cost_usd is not None:
            return Bill(usage, "server", answered)
        for name, booked in ((answered, answered), (target.model, target.name)):
            found = self.price(target, provider, name)
            if found is not None:
                return Bill(replace(usage, cost_usd=price_table.cost_usd(usage, found[0])), found[1], booked)
        return Bill(usage, "", target.name)

    def price(self, target: ModelTarget, provider: Provider, model: str) -> tuple[Price, str] | None:
        """What ``model``, asked for as ``target``, costs and who says so (`Bill.source`); None: unknown."""
        if target.price is not None:
            return target.price, "config"
        if provider.info.is_local:
            return _FREE
        own = getattr(provider, "price", None)
        price = None if own is None else own(model)
        if price is not None:
            return price, "provider"
        if self._prices is None:
            self._prices = self._load_prices()
        found = price_table.price_of(model, self._prices, target.provider)
        return None if found is None else (found[0], f"table:{found[1]}")
