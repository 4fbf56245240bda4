"""Adds up what model calls cost, and derives the two token files, all from journal records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from corerun.interfaces import Event, Json, Usage
from corerun.runs import events as records

CHARACTERS_PER_TOKEN = 4


@dataclass(slots=True)
class Spending:
    """A sum over calls. ``usd`` leaves out calls without a known price; ``unpriced`` counts them.

    ``reasoning`` is contained in ``completion``, ``cached`` in ``prompt``.
    """

    calls: int = 0
    usd: float = 0.0
    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0
    unpriced: int = 0
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt + self.completion

    def add(self, usage: Mapping[str, Json], usd: float | None) -> None:
        self.calls += 1
        self.prompt += usage["prompt"]
        self.completion += usage["completion"]
        self.reasoning += usage.get("reasoning", 0)
        self.cached += usage.get("cached", 0)
        self.estimated = self.estimated or bool(usage.get("estimated"))
        if usd is None:
            self.unpriced += 1
        else:
            self.usd += usd

    def to_json(self) -> Json:
        """``{usd, tokens, calls}``; ``usd`` is null when no call of the sum has a known price."""
        unknown = self.calls > 0 and self.unpriced == self.calls
        return {"usd": None if unknown else self.usd, "tokens": self.tokens, "calls": self.calls}


@dataclass(slots=True)
class Ledger:
    """The sums of a run, in all and per model, role, node and scope.

    Scopes are known from ``node_asked`` records; calls of no node are booked under scope ``""``.
    """

    totals: Spending = field(default_factory=Spending)
    models: dict[str, Spending] = field(default_factory=dict)
    roles: dict[str, Spending] = field(default_factory=dict)
    nodes: dict[str, Spending] = field(default_factory=dict)
    scopes: dict[str, Spending] = field(default_factory=dict)
    _scope_of: dict[str, str] = field(default_factory=dict)

    @classmethod
    def fold(cls, events: Iterable[Event]) -> Ledger:
        """The ledger of a journal."""
        ledger = cls()
        for event in events:
            ledger.observe(event)
        return ledger

    def observe(self, event: Event) -> None:
        """Takes one record; all but ``node_asked`` and ``call_answered`` are passed over."""
        if event.type == records.NODE_ASKED:
            self._scope_of[event.data["node"]] = event.data["scope"]
        elif event.type == records.CALL_ANSWERED:
            data = event.data
            node = data["node"] or ""
            sums = (
                self.totals,
                _sum_of(self.models, booked_under(data)),
                _sum_of(self.roles, data["role"]),
                _sum_of(self.nodes, node),
                _sum_of(self.scopes, self._scope_of.get(node, "")),
            )
            for spending in sums:
                spending.add(data["usage"], data["cost_usd"])

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Models of which at least one call has no known price."""
        return tuple(model for model, spending in self.models.items() if spending.unpriced)

    def to_json(self) -> Json:
        """All sums as one document."""
        views = {"models": self.models, "roles": self.roles, "nodes": self.nodes, "scopes": self.scopes}
        return {
            "totals": self.totals.to_json(),
            **{view: {key: sums.to_json() for key, sums in found.items()} for view, found in views.items()},
            "unpriced": list(self.unpriced),
        }


def _sum_of(sums: dict[str, Spending], key: str) -> Spending:
    found = sums.get(key)
    if found is None:
        found = sums[key] = Spending()
    return found


def booked_under(data: Mapping[str, Json]) -> str:
    """The model's name in the token files: the answering model if that was priced, else the one asked."""
    return str(data.get("booked") or data["model_requested"])


def settled(usage: Usage, prompt_characters: int, answer_characters: int) -> Usage:
    """``usage`` with what a server left out or garbled estimated, at four characters per token."""
    prompt, completion = _count(usage.prompt), _count(usage.completion)
    estimated = usage.estimated
    if not prompt:
        prompt, estimated = -(-prompt_characters // CHARACTERS_PER_TOKEN), True
    if not completion and answer_characters:
        completion, estimated = -(-answer_characters // CHARACTERS_PER_TOKEN), True
    cost = usage.cost_usd
    return Usage(
        prompt=prompt,
        completion=completion,
        reasoning=min(_count(usage.reasoning), completion),
        cached=min(_count(usage.cached), prompt),
        estimated=estimated,
        cost_usd=cost if cost is not None and math.isfinite(cost) and cost >= 0 else None,
    )


def token_tracker(events: Iterable[Event]) -> Json:
    """The content of ``token_tracker.json``: tokens and cost per model, every answered call counted."""
    found: dict[str, Json] = {}
    for model, sums in Ledger.fold(events).models.items():
        found[model] = {
            "tokens": {
                "prompt": sums.prompt,
                "completion": sums.completion,
                "reasoning": sums.reasoning,
                "cached": sums.cached,
            },
            "cost (USD)": None if sums.unpriced else sums.usd,
            "calls": sums.calls,
            "estimated_tokens": sums.estimated,
            "unpriced": bool(sums.unpriced),
        }
    return found


def interactions(events: Iterable[Event], read_blob: Callable[[str], bytes]) -> Json:
    """The content of ``token_tracker_interactions.json``: what was asked and answered, per model.

    ``read_blob`` gives the bytes of a prompt by its sha256. ``timestamp`` is in unix seconds: when the
    server says that it answered, else when the answer was written down.
    """
    prompts: dict[str, str] = {}
    found: dict[str, list[Json]] = {}
    for event in events:
        if event.type == records.CALL_ASKED:
            prompts[event.data["key"]] = event.data["prompt"]
        elif event.type == records.CALL_ANSWERED:
            row = _asked(json.loads(read_blob(prompts[event.data["key"]])))
            row |= {"response": event.data["text"], "timestamp": event.data.get("created") or int(event.t)}
            found.setdefault(booked_under(event.data), []).append(row)
    return found


def _asked(request: Json) -> dict[str, Json]:
    turns = [message for message in request["messages"] if message["role"] != "system"]
    system = [_text(message["content"]) for message in request["messages"] if message["role"] == "system"]
    alone = len(turns) == 1 and isinstance(turns[0]["content"], str)
    return {
        "system_message": "\n\n".join(system) if system else None,
        "prompt": turns[0]["content"] if alone else turns,
    }


def _text(content: Json) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["kind"] == "text")


def _count(value: Json) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return max(int(value), 0)
