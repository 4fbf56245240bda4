"""The search tree: nodes and the views that strategies and domains read, kept up to date per update."""

from __future__ import annotations

from bisect import bisect_left

from corerun.errors import StateError
from corerun.interfaces import Node, Outcome, Tree


def rank(node: Node) -> tuple[float, int]:
    """Sorts better nodes first: by score, a missing one last, ties to the earlier node."""
    return (float("inf") if node.score is None else -node.score, node.seq)


class SearchTree:
    """Fits `corerun.interfaces.Tree`. Updates cost O(1) or O(nodes running), whatever the tree's size.

    ``good`` holds closed nodes too; ``open_failed`` holds failed nodes that are open and have no
    child, running children included. ``asked`` and ``done`` leave uncounted nodes out.
    """

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.nodes: dict[str, Node] = {}
        self.roots: list[str] = []
        self.running: dict[str, Node] = {}
        self.good: dict[str, Node] = {}
        self.open_failed: dict[str, Node] = {}
        self.best: Node | None = None
        self.asked = 0
        self.done = 0
        self._order: list[Node] = []
        self._beside: list[tuple[Node, ...]] = []

    def ask(self, node: Node) -> Node:
        """Add a running node. Its root, depth and debug depth follow from its parent and are set here.

        Raises StateError when the parent is unknown or still running, or the id is taken.
        """
        if node.id in self.nodes:
            raise StateError(f"node {node.id} was asked twice", where=self.scope)
        if node.parent is None:
            node.root, node.depth, node.debug_depth = node.id, 0, 0
            self.roots.append(node.id)
        else:
            self._attach(node, node.parent)
        self._beside.append(tuple(self.running.values()))
        self._order.append(node)
        self.nodes[node.id] = node
        self.running[node.id] = node
        self.asked += node.counted
        return node

    def _attach(self, node: Node, parent_id: str) -> None:
        parent = self.nodes.get(parent_id)
        if parent is None or parent_id in self.running:
            state = "unknown" if parent is None else "still running"
            raise StateError(f"node {node.id} has a parent that is {state}: {parent_id}", where=self.scope)
        node.root, node.depth = parent.root, parent.depth + 1
        node.debug_depth = 0 if parent.status == "good" else parent.debug_depth + 1
        parent.children.append(node.id)
        self.open_failed.pop(parent_id, None)

    def readmit(self, node_id: str, attempt: int) -> Node:
        """Note that a running node is tried once more, as ``attempt``."""
        node = self._running(node_id)
        node.attempt = attempt
        return node

    def finish(self, node_id: str, outcome: Outcome, seq: int) -> Node:
        """Give a running node its outcome; ``seq`` is the number of the record that says so."""
        node = self._running(node_id)
        del self.running[node_id]
        node.status, node.score, node.reason = outcome.status, outcome.score, outcome.reason
        node.open, node.data, node.done_at = outcome.open, outcome.data, seq
        if node.status == "void":
            # It turned out that there was nothing to expand: no candidate, and no place in the limit.
            self.asked -= node.counted
            node.counted = node.open = False
            return node
        self.done += node.counted
        if node.status == "good":
            self.good[node_id] = node
            if self.best is None or rank(node) < rank(self.best):
                self.best = node
        elif node.open:
            self.open_failed[node_id] = node
        return node

    def _running(self, node_id: str) -> Node:
        node = self.running.get(node_id)
        if node is None:
            raise StateError(f"node {node_id} isn't running", where=self.scope)
        return node

    def asked_before(self, seq: int) -> list[Node]:
        """Nodes asked before record ``seq`` of the journal, by ask number."""
        return self._order[: bisect_left(self._order, seq, key=_asked_at)]

    def perhaps_running_at(self, seq: int) -> tuple[Node, ...]:
        """The last node asked before record ``seq`` and what ran beside it: no other ran at ``seq``."""
        count = bisect_left(self._order, seq, key=_asked_at)
        return (*self._beside[count - 1], self._order[count - 1]) if count else ()


def _asked_at(node: Node) -> int:
    return node.asked_at


def finished_before(tree: Tree, seq: int) -> list[Node]:
    """Nodes whose outcome stands in the journal before record ``seq``, by ask number.

    With ``seq`` a node's ``asked_at`` this is what the node may know, live and resumed alike.
    """
    asked = tree.asked_before(seq) if isinstance(tree, SearchTree) else tree.nodes.values()
    return [node for node in asked if node.done_at is not None and node.done_at < seq]


def running_at(tree: Tree, seq: int) -> list[Node]:
    """Nodes asked before record ``seq`` of the journal and not done before it, by ask number."""
    asked = tree.perhaps_running_at(seq) if isinstance(tree, SearchTree) else tree.nodes.values()
    return [node for node in asked if node.asked_at < seq and (node.done_at is None or node.done_at >= seq)]
