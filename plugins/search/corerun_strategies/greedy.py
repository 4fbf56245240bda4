"""The strategy `greedy`: some drafts, now and then a debug, else improve the best node.

The rule is that of AIDE (WecoAI/aideml, `Agent.search_policy`), for one or more slots.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from corerun.interfaces import Expansion, Json, Node, Tree
from corerun.search.debugging import DebugLeaves, DebugSettings
from corerun.search.tree import rank


class Greedy:
    """Settings: ``max_debug_depth`` (3), ``debug_prob`` (0.5), ``num_drafts`` (5; 0: never draft).

    Raises ConfigError for settings that are unknown or out of range.
    """

    def __init__(self, settings: Mapping[str, Json]) -> None:
        self.settings = DebugSettings.read(settings, num_drafts=5)
        self._leaves = DebugLeaves(self.settings)
        self._best: Node | None = None

    def tell(self, tree: Tree, node: Node) -> None:
        self._leaves.tell(node)
        better = self._best is None or rank(node) < rank(self._best)
        if node.status == "good" and node.open and better:
            self._best = node

    def ask(self, tree: Tree, slots: int, rng: random.Random) -> Sequence[Expansion]:
        roots = len(tree.roots)
        debugging = self._leaves.under_way(tree.running.values())
        wishes: list[Expansion] = []
        while len(wishes) < slots:
            wish = self._next(roots, debugging, rng)
            if wish is None:
                break
            wishes.append(wish)
            roots += wish.parent is None
            if wish.parent is not None and wish.parent in self._leaves:
                debugging.add(wish.parent)
        return wishes

    def _next(self, roots: int, debugging: set[str], rng: random.Random) -> Expansion | None:
        if roots < self.settings.num_drafts:
            return Expansion()
        if rng.random() < self.settings.debug_prob:
            leaf = self._leaves.pick(debugging, rng)
            if leaf is not None:
                return Expansion(leaf.id)
        if self._best is not None:
            return Expansion(self._best.id)
        if self.settings.num_drafts > 0:
            return Expansion()
        leaf = self._leaves.pick(debugging, rng)
        return None if leaf is None else Expansion(leaf.id)
