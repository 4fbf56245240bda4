"""Where a stage stands: its best node, the data sets it has reached, how long that has held."""

from __future__ import annotations

from itertools import islice

from corerun.interfaces import Node, Tree


class Standing:
    """Follows a tree. `update` costs what happened since its last call, not the size of the tree."""

    def __init__(self, sets: int) -> None:
        self.reached = sets
        """Data sets that the stage's programs are expected to cover by now."""
        self.leader: Node | None = None
        self.exhausted = False
        """A node found that nothing is left to try."""
        self.lower_is_better: dict[bool, int] = {True: 0, False: 0}
        """Votes on the metric's direction, one per good node that has one."""
        self._leads_since = 0
        self._told: dict[str, int] = {}
        """How many counted nodes were finished up to and with each node, in the order of the search. The
        order of the journal would not do: within a batch it is that of arrival."""
        self._counted = 0
        self._seen = 0
        self._open: list[Node] = []

    def update(self, tree: Tree) -> list[Node]:
        """Take in what was told since the last call; returns those nodes, by ask number."""
        fresh = islice(reversed(tree.nodes.values()), len(tree.nodes) - self._seen)
        self._open += reversed(list(fresh))
        self._seen = len(tree.nodes)
        told = [node for node in self._open if node.done_at is not None]
        self._open = [node for node in self._open if node.done_at is None]
        for node in sorted(told, key=lambda node: node.done_at or 0):
            self._counted += node.counted
            self._told[node.id] = self._counted
        good = [node for node in told if node.status == "good"]
        for node in good:
            vote = node.data["metric"].get("lower_is_better")
            if vote is not None and node.counted:
                self.lower_is_better[bool(vote)] += 1
        self.exhausted = self.exhausted or any(node.status == "void" for node in told)
        widest = max((set_count(node) for node in good if node.data.get("widens")), default=0)
        if widest > self.reached:
            self.reached = widest
            good = list(tree.good.values())
        self._lead(good)
        return told

    def _lead(self, candidates: list[Node]) -> None:
        best = max([*candidates, *([self.leader] if self.leader else [])], key=self.rank, default=None)
        if best is None or best is self.leader:
            return
        self.leader = best
        self._leads_since = self._told[best.id]

    def stood(self, tree: Tree) -> int:
        """Nodes that were finished since the leader was."""
        return tree.done - self._leads_since

    def covers(self, node: Node) -> bool:
        """Whether a good node was measured on all data sets that the stage has reached."""
        return set_count(node) >= self.reached

    def rank(self, node: Node) -> tuple[bool, float, int]:
        """Orders good nodes, best last: data sets covered, score, then who was asked earlier."""
        return (self.covers(node), float("-inf") if node.score is None else node.score, -node.seq)


def set_count(node: Node) -> int:
    """On how many data sets a good node was measured."""
    return len(node.data["metric"]["sets"])
