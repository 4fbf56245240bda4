"""What a node may know of the others: rows about finished and running programs, for prompts."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from corerun.interfaces import Node
from corerun_bfts.programs import head

PLAN_CHARS = 240


def tried_row(node: Node) -> dict[str, Any]:
    """A finished node as prompts show it; its score is higher-is-better."""
    data = node.data
    row = {
        "node": node.id,
        "parent": node.parent,
        "op": data.get("op", ""),
        "status": node.status,
        "reason": node.reason,
        "score": node.score,
        "head": head(data.get("code", "")),
    }
    if not row["head"]:
        row["plan"] = str(data.get("plan", ""))[:PLAN_CHARS]
        row["review"] = str(data.get("analysis", ""))[:PLAN_CHARS]
    if data.get("name"):
        row |= {"name": data["name"], "setting": data.get("setting", {})}
    return row


def running_row(node: Node, op: str, code: str, idea: Mapping[str, Any] | None) -> dict[str, Any]:
    """A node that was running when another was asked; ``code`` only if it was written by then."""
    row: dict[str, Any] = {
        "node": node.id,
        "parent": node.parent,
        "op": op,
        "status": "running",
        "reason": "",
        "head": head(code),
    }
    if idea and idea.get("name"):
        row |= {"name": idea["name"], "setting": idea.get("setting", {})}
    return row


def remembered(nodes: Iterable[Node], limit: int) -> list[dict[str, Any]]:
    """Rows of ``nodes`` that fit into ``limit`` characters: newest and best first, shown in ask order."""
    every = sorted(nodes, key=lambda node: node.seq)
    # A row takes at least 100 characters, so no more of them can be wanted.
    count = limit // 100 + 1
    newest = every[: -count - 1 : -1]
    best = heapq.nsmallest(
        count, every, key=lambda node: (node.score is None, -(node.score or 0.0), node.seq)
    )
    chosen: dict[str, tuple[int, dict[str, Any]]] = {}
    size = 0
    for node in _alternating(newest, best):
        if node.id in chosen:
            continue
        row = tried_row(node)
        size += len(json.dumps(row)) + 3
        if size > limit and chosen:
            break
        chosen[node.id] = (node.seq, row)
    return [row for _, row in sorted(chosen.values(), key=lambda pair: pair[0])]


def _alternating(one: Sequence[Node], other: Sequence[Node]) -> Iterable[Node]:
    for left, right in zip(one, other, strict=True):
        yield left
        yield right
