"""Reads what a journal keeps apart from its records: the file that is called by its content's sha256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from corerun.errors import StateError
from corerun.inputs.documents import read_bytes
from corerun.runs.shape import is_digest

MOST_BYTES = 2**30


def read_blob(directory: Path, name: object) -> bytes:
    """The body of a blob. Raises `StateError` if it isn't there or isn't what it was."""
    if not is_digest(name):
        raise StateError(f"{str(name)[:80]!r} is no name of one", where=str(directory))
    body = read_bytes(directory / str(name), limit=MOST_BYTES, error=StateError)
    if hashlib.sha256(body).hexdigest() != name:
        raise StateError(f"{directory / str(name)} was changed")
    return body
