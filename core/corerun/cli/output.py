"""What commands print: a JSON document, or a table for people."""

from __future__ import annotations

from collections.abc import Sequence

import click

from corerun.redaction.terminal import one_line, shown


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    import json

    click.echo(json.dumps(value, indent=2))


def say(text: object, *, err: bool = False) -> None:
    """Print a text that may come from a model, a program or a file: a terminal obeys nothing in it."""
    click.echo(shown(str(text)), err=err)


def print_table(rows: Sequence[Sequence[object]]) -> None:
    """Rows of equal length in columns on stdout, the heads of the columns first; None is shown as a dash."""
    texts = [["-" if cell is None else one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
