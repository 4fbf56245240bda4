"""Tree search: one driver and one tree for every strategy and every domain."""

from __future__ import annotations

from corerun.search.driver import search
from corerun.search.identity import derived_rng, node_id
from corerun.search.records import carry_root
from corerun.search.tree import SearchTree, finished_before, running_at

__all__ = [
    "SearchTree",
    "carry_root",
    "derived_rng",
    "finished_before",
    "node_id",
    "running_at",
    "search",
]
