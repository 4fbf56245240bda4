"""What draft-debug-improve strategies share: their settings, and the failed leaves worth a debug."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields

from corerun.errors import ConfigError
from corerun.interfaces import Json, Node


@dataclass(frozen=True, slots=True)
class DebugSettings:
    """``num_drafts`` roots are wanted (0: no drafts at all); a failed leaf is debugged with probability
    ``debug_prob`` (0: never), in a chain of at most ``max_debug_depth`` debugs.
    """

    max_debug_depth: int = 3
    debug_prob: float = 0.5
    num_drafts: int = 3

    @classmethod
    def read(cls, settings: Mapping[str, Json], **defaults: Json) -> DebugSettings:
        """Raises ConfigError for a key that is unknown or a value that is out of range."""
        names = [item.name for item in fields(cls)]
        for name, value in settings.items():
            if name not in names:
                raise ConfigError(f"unknown setting {name!r}", hint=f"known: {', '.join(names)}")
            kind = (int, float) if name == "debug_prob" else int
            if isinstance(value, bool) or not isinstance(value, kind) or not value >= 0:
                raise ConfigError(f"{value!r} is no number from 0 on", where=name)
        read = cls(**{**defaults, **settings})
        if read.debug_prob > 1:
            raise ConfigError(f"{read.debug_prob!r} is no probability", where="debug_prob")
        return read


class DebugLeaves:
    """Open failed leaves that may be debugged, by ask number; those given up are left out.

    Built by `tell`. A leaf whose debug is under way stays in until that debug is told: a caller
    passes the ids of such leaves as ``taken``. No update or pick walks over all leaves.
    """

    def __init__(self, settings: DebugSettings) -> None:
        self._limit = settings.max_debug_depth if settings.debug_prob > 0 else 0
        self._leaves: list[Node] = []
        self._by_id: dict[str, Node] = {}
        self.by_root: dict[str, int] = {}
        """How many leaves each root's tree has; a root without one isn't in it."""

    def __contains__(self, node_id: str | None) -> bool:
        return node_id in self._by_id

    def tell(self, node: Node) -> None:
        """Take in a finished node: its parent is no leaf any more, itself it may be one."""
        if node.parent in self._by_id:
            parent = self._by_id.pop(node.parent)
            del self._leaves[bisect_left(self._leaves, parent.seq, key=_seq)]
            self._count(node.root, -1)
        if node.status == "failed" and node.open and node.debug_depth < self._limit:
            insort(self._leaves, node, key=_seq)
            self._by_id[node.id] = node
            self._count(node.root, +1)

    def _count(self, root: str, change: int) -> None:
        count = self.by_root.pop(root, 0) + change
        if count:
            self.by_root[root] = count

    def under_way(self, running: Iterable[Node]) -> set[str]:
        """The leaves whose debug is among ``running``."""
        return {node.parent for node in running if node.parent in self._by_id and node.parent is not None}

    def pick(self, taken: Collection[str], rng: random.Random) -> Node | None:
        """One leaf, each equally likely, that isn't among ``taken``; None if there is none."""
        free = len(self._leaves) - len(taken)
        if free < 1:
            return None
        index = rng.randrange(free)
        # The drawn number counts free leaves only: step over each taken one that comes before.
        for seq in sorted(self._by_id[node_id].seq for node_id in taken):
            if bisect_left(self._leaves, seq, key=_seq) <= index:
                index += 1
        return self._leaves[index]


def _seq(node: Node) -> int:
    return node.seq
