"""The primary metric of a run: what was read, what the model reports of it, and the node's score."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corerun_bfts.answers import NamedMetric, parse_metrics

VALIDATION = ("val", "validation", "valid", "dev")


@dataclass(frozen=True, slots=True)
class PrimaryMetric:
    """Name and direction by which nodes are compared; fixed once per run."""

    name: str
    maximize: bool
    description: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "maximize": self.maximize, "description": self.description}

    def means(self, name: str, aliases: Sequence[str] = ()) -> bool:
        """Whether ``name`` is a name of this metric, or one of its known aliases."""
        return normal(name) in (normal(self.name), *map(normal, aliases))

    def score(self, values: Mapping[str, float]) -> float:
        """Mean over data sets, turned so that higher is better."""
        mean = math.fsum(values.values()) / len(values)
        return mean if self.maximize else -mean

    def best(self, series: Sequence[float]) -> float:
        """The best value of a series in this metric's direction."""
        return max(series) if self.maximize else min(series)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the fixed reader found in a program's data.

    ``series``: data set -> ``metrics.val`` and the like -> values, None where not finite.
    """

    sets: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)
    structure: Any = None
    finite: bool = True

    def final(self, name: str, key: str) -> float | None:
        """Last value of a series."""
        values = self.sets[name].get(key) or [None]
        return values[-1]

    def primary_key(self, name: str, metric: PrimaryMetric) -> str | None:
        """The series of a data set that holds the primary metric on validation rows."""
        series = self.sets[name]
        wanted = normal(metric.name)
        for key in series:
            if key.startswith("metrics.") and normal(key.removeprefix("metrics.")) == wanted:
                return key
        for short in VALIDATION:
            if f"metrics.{short}" in series:
                return f"metrics.{short}"
        return None

    def rows(self, metric: PrimaryMetric) -> list[dict[str, Any]]:
        """The primary metric per data set, as a model is shown it; test values are never among them."""
        found = []
        for name in self.sets:
            key = self.primary_key(name, metric)
            values = [value for value in self.sets[name].get(key or "", ()) if value is not None]
            final = self.final(name, key) if key else None
            if final is not None:
                row = {"set": name, "metric": metric.name, "final": final, "best": metric.best(values)}
                found.append(row)
        return found

    def test(self) -> dict[str, float]:
        """Values on rows that the search never used, where a program saved them."""
        values = {name: self.final(name, "metrics.test") for name in self.sets}
        return {name: value for name, value in values.items() if value is not None}


def normal(name: str) -> str:
    """A metric's name without case, blanks and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def chosen_metric(answer: parse_metrics, metric: PrimaryMetric, aliases: Sequence[str]) -> NamedMetric | None:
    """The answer's entry for the primary metric: same name, a known alias, or the only one there."""
    for entry in answer.metric_names:
        if metric.means(entry.metric_name, aliases):
            return entry
    return answer.metric_names[0] if len(answer.metric_names) == 1 else None


def values_of(entry: NamedMetric, rows: Sequence[Mapping[str, Any]], *, best_value: bool) -> dict[str, float]:
    """Finite values per data set. A value that was read wins over what a model says of it."""
    column = "best" if best_value else "final"
    if rows:
        return {row["set"]: float(row[column]) for row in rows}
    said = {item.dataset_name: item.best_value if best_value else item.final_value for item in entry.data}
    return {name: value for name, value in said.items() if math.isfinite(value)}
