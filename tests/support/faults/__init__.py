"""The table that judges the router: every refusal, error and broken answer, with what must come of it."""

from __future__ import annotations

from tests.support.fault_server import Desk
from tests.support.faults import blind, bodies, classes, local, openai_azure, patterns, vendors
from tests.support.faults.rows import Row

TABLES = (patterns, openai_azure, vendors, local, classes, bodies, blind)
ROWS: dict[str, Row] = {row.name: row for table in TABLES for row in table.rows()}


def desks() -> dict[str, Desk]:
    """A fresh desk for every row that reaches a server."""
    return {name: Desk(row.vendor, row.first, row.document, row.reply) for name, row in ROWS.items()}
