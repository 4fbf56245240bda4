"""The honest result of a run: the best node against the first good one, on the same sets and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from corerun.interfaces import GUARANTEES, Json

SETS = ("val", "test")


def number(value: Any) -> float | None:
    """``value`` as a finite float; None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def spread(values: Any) -> dict[str, Json] | None:
    """``{mean, sd, n}`` of seed reruns, or None when there is no mean. ``sd`` is None when unknown."""
    if not isinstance(values, Mapping):
        return None
    mean = number(values.get("mean"))
    if mean is None:
        return None
    count = number(values.get("n"))
    return {"mean": mean, "sd": number(values.get("sd")), "n": int(count) if count is not None else None}


def gain(best: Json, first: Json, maximize: bool) -> dict[str, Json] | None:
    """What the best has over the first, positive when better, and whether that is beyond the seed spread.

    The spread of a difference of two means over seeds is taken as the root of the summed variances
    of single runs: a cautious yardstick for the handful of seeds that a run affords.
    """
    if best is None or first is None:
        return None
    value = (best["mean"] - first["mean"]) * (1 if maximize else -1)
    both = None
    if best["sd"] is not None and first["sd"] is not None:
        both = math.hypot(best["sd"], first["sd"])
    return {"value": value, "spread": both, "beyond": both is not None and value > both}


def outcome(done: Mapping[str, Json], maximize: bool) -> dict[str, Json]:
    """``best`` and ``first_good`` of a ``run_done`` record side by side, per set of rows.

    Seed means are in the metric's own units, not turned for a metric to minimise.
    """
    sides: dict[str, dict[str, Json]] = {}
    for name in ("best", "first_good"):
        given = done.get(name)
        given = given if isinstance(given, Mapping) else {}
        seeds = given.get("seeds")
        seeds = seeds if isinstance(seeds, Mapping) else {}
        identity = given.get("id")
        sides[name] = {
            "id": str(identity) if identity is not None else None,
            "score": number(given.get("score")),
            **{rows: spread(seeds.get(rows)) for rows in SETS},
        }
    gains = {rows: gain(sides["best"][rows], sides["first_good"][rows], maximize) for rows in SETS}
    return sides | {"gain": gains}


def isolation(sandboxes: Mapping[str, frozenset[str]]) -> str:
    """One sentence that says inside what the programs of a run ran, and what that doesn't guarantee."""
    parts = []
    for name, given in sorted(sandboxes.items()):
        missing = ", ".join(sorted(GUARANTEES - given))
        parts.append(f"{name}, without {missing}" if missing else name)
    return f"Programs ran under {'; and under '.join(parts)}." if parts else ""


def disclosure(models: Mapping[str, Json]) -> str:
    """One sentence that says who wrote the programs, plots and summaries of a run."""
    named = {name: _named(name, facts) for name, facts in models.items()}
    rules = [named[name] for name, facts in models.items() if _kind(facts) == "rules"]
    written = [named[name] for name, facts in models.items() if _kind(facts) != "rules"]
    parts = []
    if written:
        parts.append(
            f"Code, plots and summaries of this run are AI-generated, by {', '.join(written)}, "
            "and may be wrong; every number comes from a program that ran."
        )
    if rules:
        parts.append(
            f"{', '.join(rules)} is a book of built-in rules, not a language model: programs come from its "
            "templates, and every number from running them."
        )
    return " ".join(parts)


def model_label(name: str, facts: Json) -> str:
    """A model's name as people must read it: rules are never shown as a language model."""
    if _kind(facts) == "rules":
        return f"{name.partition('::')[0]} (built-in rules, not a language model)"
    return _named(name, facts)


def _named(name: str, facts: Json) -> str:
    """A model's name, and of an alias what it means."""
    means = facts.get("model") if isinstance(facts, Mapping) else None
    return f"{name} ({means})" if means else name


def _kind(facts: Json) -> str:
    return str(facts.get("kind", "model")) if isinstance(facts, Mapping) else "model"
