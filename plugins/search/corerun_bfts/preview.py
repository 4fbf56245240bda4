"""A short text about a data folder, for prompts: its tree, and what its small files hold."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from corerun.inputs.documents import NotJson, parse_json

MAX_CHARS = 8000
SIMPLE_ABOVE = 6000
MAX_BYTES = 1_000_000
TEXTS = (".txt", ".md", ".py", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".sh")


def preview_of(folder: Path) -> str:
    """File tree and previews below ``folder``, at most 8,000 characters."""
    text = "\n\n".join(_parts(folder, simple=False))
    if len(text) > SIMPLE_ABOVE:
        text = "\n\n".join(_parts(folder, simple=True))
    return text[:MAX_CHARS]


def _parts(folder: Path, *, simple: bool) -> Iterator[str]:
    yield "\n".join(_tree(folder, folder))
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        name = path.relative_to(folder)
        with path.open("rb") as handle:
            body = handle.read(MAX_BYTES)
        text = body.decode("utf-8", "replace")
        if path.suffix == ".csv":
            yield f"-> {name}: {_table(text, simple=simple)}"
        elif path.suffix == ".json":
            yield f"-> {name}: {_schema_text(text, cut=len(body) == MAX_BYTES)}"
        elif path.suffix in TEXTS and not simple and text.count("\n") < 30:
            yield f"-> {name}:\n{text}"


def _tree(folder: Path, root: Path) -> Iterator[str]:
    items = sorted(folder.iterdir())
    depth = "  " * len(folder.relative_to(root).parts)
    files = [item for item in items if item.is_file()]
    shown = 4 if len(files) > 30 else 8
    for item in files[:shown]:
        yield f"{depth}{item.name} ({_size(item)})"
    if len(files) > shown:
        yield f"{depth}... and {len(files) - shown} more files"
    for item in items:
        if item.is_dir() and not item.is_symlink():
            yield f"{depth}{item.name}/"
            yield from _tree(item, root)


def _size(path: Path) -> str:
    if path.suffix in (*TEXTS, ".csv", ".json", ".jsonl") and path.stat().st_size <= MAX_BYTES:
        with path.open("rb") as handle:
            return f"{sum(1 for _ in handle)} lines"
    return f"{path.stat().st_size} bytes"


def _table(text: str, *, simple: bool) -> str:
    rows = list(islice(csv.reader(text.splitlines()), 10_000))
    if not rows:
        return "empty"
    names, body = rows[0], rows[1:]
    head = f"{len(body)} rows, {len(names)} columns: {', '.join(names[:15])}"
    if simple:
        return head
    lines = [_column(name, [row[i] for row in body if i < len(row)]) for i, name in enumerate(names)]
    return "\n".join([head, *lines])


def _column(name: str, values: list[str]) -> str:
    given = [value for value in values if value != ""]
    empty = f", {len(values) - len(given)} empty" if len(given) < len(values) else ""
    unique = list(dict.fromkeys(given))
    try:
        numbers = [float(value) for value in given]
    except ValueError:
        numbers = []
    if numbers and len(unique) >= 10:
        return f"{name}: numbers from {min(numbers):g} to {max(numbers):g}{empty}"
    if len(unique) < 10:
        return f"{name}: one of {unique}{empty}"
    return f"{name}: text, such as {unique[:4]}{empty}"


def _schema_text(text: str, *, cut: bool) -> str:
    if cut:
        return "JSON, too large to be read whole"
    try:
        return json.dumps(_schema(parse_json(text)))
    except NotJson:
        return "not valid JSON"


def _schema(value: Any, depth: int = 0) -> Any:
    if isinstance(value, dict) and depth < 5:
        return {key: _schema(item, depth + 1) for key, item in list(value.items())[:30]}
    if isinstance(value, list):
        return [_schema(value[0], depth + 1), f"... {len(value)} items"] if value else []
    return type(value).__name__
