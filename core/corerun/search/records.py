"""A node's two journal records, written and read: `node_asked` before any effect, `node_done` after all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from corerun.interfaces import Event, Json, Node, Outcome, Run
from corerun.runs.events import NODE_ASKED, NODE_DONE
from corerun.search.identity import node_id


def emit_asked(run: Run, scope: str, node: Node, batch: int | None) -> int:
    """Journal that ``node`` is expanded, as its present attempt. Returns the record's number."""
    return run.emit(
        NODE_ASKED,
        scope=scope,
        node=node.id,
        parent=node.parent,
        seq=node.seq,
        hint=dict(node.hint),
        attempt=node.attempt,
        counted=node.counted,
        batch=batch,
    )


def emit_done(run: Run, scope: str, node: Node, outcome: Outcome) -> int:
    """Journal what became of ``node``. Returns the record's number."""
    return run.emit(
        NODE_DONE,
        scope=scope,
        node=node.id,
        seq=node.seq,
        attempt=node.attempt,
        status=outcome.status,
        score=outcome.score,
        reason=outcome.reason,
        open=outcome.open,
        data=dict(outcome.data),
    )


def asked_node(event: Event) -> Node:
    """The node that a `node_asked` record is about; its place in the tree is left to the tree."""
    data = event.data
    return Node(
        id=data["node"],
        parent=data["parent"],
        root="",
        depth=0,
        seq=data["seq"],
        hint=data["hint"],
        attempt=data["attempt"],
        counted=data["counted"],
        asked_at=event.seq,
    )


def done_outcome(event: Event) -> Outcome:
    """The outcome that a `node_done` record holds."""
    data = event.data
    return Outcome(data["status"], data["score"], data["reason"], data["open"], data["data"])


def open_batch_start(events: Sequence[Event]) -> int:
    """Index of the first record of the last batch if that isn't through, else the number of records.

    ``events`` are the `node_asked` and `node_done` records of one scope.
    """
    asked = [event.data for event in events if event.type == NODE_ASKED]
    last = max((data["batch"] or 0 for data in asked), default=0)
    nodes = {data["node"] for data in asked if data["batch"] == last}
    done = {event.data["node"] for event in events if event.type == NODE_DONE}
    if last == 0 or nodes <= done:
        return len(events)
    return next(index for index, event in enumerate(events) if event.data.get("batch") == last)


def carry_root(run: Run, scope: str, outcome: Outcome, hint: Mapping[str, Json] | None = None) -> str:
    """Put a finished, uncounted node into an empty scope as its first root, once, and return its id.

    To be called before `search`. After a kill between its two records it writes the second one.
    """
    node = Node(
        node_id(run.seed, scope, 0), None, root="", depth=0, seq=0, hint=dict(hint or {}), counted=False
    )
    written = {event.type for event in run.events(scope) if event.data.get("node") == node.id}
    if NODE_ASKED not in written:
        emit_asked(run, scope, node, None)
    if NODE_DONE not in written:
        emit_done(run, scope, node, outcome)
    return node.id
