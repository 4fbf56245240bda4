"""What commands print: a JSON document, or a table for people."""

from __future__ import annotations

from collections.abc import Sequence

import click


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    import json

    click.echo(json.dumps(value, indent=2))


def print_table(rows: Sequence[Sequence[object]]) -> None:
    """Rows of equal length in columns on stdout, the heads of the columns first; None is shown as a dash."""
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
