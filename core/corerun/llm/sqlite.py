"""Small SQLite files in the user's cache folder, shared by many processes and never needed to go on."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from corerun.runs import faults
from corerun.runs.filesystem import file_system, is_network

BUSY_MS = 30_000

_log = logging.getLogger("corerun.llm")


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where corerun keeps what it can do without: ``~/.cache/corerun``."""
    home = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache"
    return Path(home) / "corerun"


def open_shared(
    path: Path, tables: str, *, busy_ms: int = BUSY_MS, kind: str | None = None
) -> sqlite3.Connection:
    """The file at ``path`` with ``tables`` in it; readable by its owner alone.

    Readers and writers of many processes don't block each other, except on network file systems,
    which can't share memory; ``kind`` is the type of the one that holds ``path``, by default found out.
    Raises `sqlite3.Error` or OSError if it can't be used.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=busy_ms / 1000, isolation_level=None)
    try:
        if is_network(file_system(path.parent) if kind is None else kind):
            _log.warning("%s lies on a network file system: access to it is slower", path)
            connection.execute("PRAGMA journal_mode=DELETE")
        else:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(tables)
    except BaseException:
        connection.close()
        raise
    return connection


def change(file: sqlite3.Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Run ``statement`` with each row: all of them or, with an error or a kill, none."""
    file.execute("BEGIN IMMEDIATE")
    try:
        file.executemany(statement, rows)
        faults.point("sqlite.commit")
        file.execute("COMMIT")
    except BaseException:
        file.execute("ROLLBACK")
        raise
