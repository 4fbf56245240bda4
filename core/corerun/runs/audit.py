"""Checks the audit chain of a journal: every program that ran names the record before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corerun.interfaces import Event
from corerun.runs import events as kinds
from corerun.runs.journal import digest

ISOLATION = frozenset({"fs_read", "fs_write", "net"})
"""What a sandbox guarantees that keeps a program from the rest of the machine."""


def audit(events: Sequence[Event]) -> dict[str, Any]:
    """``{executions, weak, findings}``; ``weak`` counts programs that were not isolated.

    A finding is a link of the chain that doesn't fit.

    It shows edits and cuts. It can't hold against somebody who rewrites the whole journal.
    """
    findings: list[str] = []
    executions = weak = 0
    before = ""
    for event in events:
        if event.type not in (kinds.EXECUTION_DONE, kinds.REFUSED):
            continue
        if event.data.get("prev", "") != before:
            findings.append(
                f"record {event.seq}: the record of a program before it was changed or is missing"
            )
        before = digest(event)
        if event.type == kinds.EXECUTION_DONE:
            executions += 1
            given = event.data["result"].get("sandbox", {}).get("guarantees", ())
            weak += not set(given) >= ISOLATION
    return {"executions": executions, "weak": weak, "findings": findings}
