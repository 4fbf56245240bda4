"""The strategy `bfts`: best-first tree search that spreads its expansions over the trees of its drafts.

The rules are those of AI-Scientist-v2 (`ParallelAgent._select_parallel_nodes`), without its batches:
a tree is busy while a node of it runs, where the original counts the trees used in a round.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from corerun.interfaces import Expansion, Json, Node, Tree
from corerun.search.debugging import DebugLeaves, DebugSettings
from corerun.search.tree import rank


class Bfts:
    """Settings: ``max_debug_depth`` (3), ``debug_prob`` (0.5), ``num_drafts`` (3; 0: never draft).

    Raises ConfigError for settings that are unknown or out of range.
    """

    def __init__(self, settings: Mapping[str, Json]) -> None:
        self.settings = DebugSettings.read(settings)
        self._leaves = DebugLeaves(self.settings)
        self._best_open: dict[str, Node] = {}
        """The best open good node of each root's tree."""
        self._ranking: list[Node] = []
        """The same nodes, best first."""
        self._viable: set[str] = set()
        """Roots whose tree has a node that may be expanded: an open good one or a leaf to debug."""
        self._worked: set[str] = set()
        """Roots whose tree has a good node, open or closed."""
        self._given_up: set[str] = set()
        """Roots whose tree neither is viable nor ever worked; another draft takes its place."""

    def tell(self, tree: Tree, node: Node) -> None:
        root = node.root
        self._leaves.tell(node)
        if node.status == "good":
            self._worked.add(root)
            if node.open:
                self._offer(node)
        _put(root, self._viable, root in self._best_open or root in self._leaves.by_root)
        _put(root, self._given_up, root not in self._viable and root not in self._worked)

    def _offer(self, node: Node) -> None:
        present = self._best_open.get(node.root)
        if present is not None:
            if rank(present) < rank(node):
                return
            del self._ranking[bisect_left(self._ranking, rank(present), key=rank)]
        self._best_open[node.root] = node
        insort(self._ranking, node, key=rank)

    def ask(self, tree: Tree, slots: int, rng: random.Random) -> Sequence[Expansion]:
        under_way = _UnderWay(
            busy={node.root for node in tree.running.values()},
            debugging=self._leaves.under_way(tree.running.values()),
            roots=len(tree.roots) - len(self._given_up),
            anything=bool(tree.running),
        )
        wishes: list[Expansion] = []
        while len(wishes) < slots:
            wish = self._next(under_way, rng)
            if wish is None:
                break
            wishes.append(wish)
            under_way.anything = True
            if wish.parent is None:
                under_way.roots += 1
                continue
            under_way.busy.add(tree.nodes[wish.parent].root)
            if wish.parent in self._leaves:
                under_way.debugging.add(wish.parent)
        return wishes

    def _next(self, under_way: _UnderWay, rng: random.Random) -> Expansion | None:
        if under_way.roots < self.settings.num_drafts:
            return Expansion()
        if rng.random() < self.settings.debug_prob:
            leaf = self._leaves.pick(under_way.debugging, rng)
            if leaf is not None and (leaf.root not in under_way.busy or self._all_busy(under_way.busy)):
                return Expansion(leaf.id)
        good = self._best_in_free_tree(under_way.busy)
        if good is not None:
            return Expansion(good.id)
        # With nothing to improve a debug is all that helps, whatever the draw or the tree's other nodes.
        leaf = self._leaves.pick(under_way.debugging, rng)
        if leaf is not None:
            return Expansion(leaf.id)
        may_draft = self.settings.num_drafts > 0 and not under_way.anything
        return Expansion() if may_draft else None

    def _all_busy(self, busy: set[str]) -> bool:
        return len(self._viable & busy) == len(self._viable)

    def _best_in_free_tree(self, busy: set[str]) -> Node | None:
        """The best open good node whose tree isn't busy; with all of them busy, the best one."""
        free = (node for node in self._ranking if node.root not in busy)
        return next(free, self._ranking[0] if self._ranking else None)


@dataclass(slots=True)
class _UnderWay:
    """What runs or was chosen within one ask: busy roots, leaves being debugged, roots that count."""

    busy: set[str]
    debugging: set[str]
    roots: int
    anything: bool


def _put(root: str, roots: set[str], member: bool) -> None:
    if member:
        roots.add(root)
    else:
        roots.discard(root)
