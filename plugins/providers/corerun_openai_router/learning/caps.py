"""Keeps what was learned about servers in one small SQLite file that all processes share."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from corerun.llm.sqlite import cache_folder, change, open_shared
from corerun_openai_router.facts import joined, split

REFUSED, GUESSED, IGNORED, HONOURED, DOUBTED = "no", "guessed", "ignored", "yes", "doubted"
"""``guessed``: leaving it out helped against an error of the server itself, perhaps by chance. ``doubted``:
another version of the server answers now, so the next request asks again."""
PIN_NO, PIN_YES = "pin-no", "pin-yes"

EVIDENCE_CHARACTERS = 200

_BUSY_MS = 5000
_TABLE = """
CREATE TABLE IF NOT EXISTS caps (
    key TEXT PRIMARY KEY, base_url TEXT, model TEXT, feature TEXT, value TEXT, state TEXT,
    evidence TEXT, status INTEGER, first_seen REAL, last_seen REAL, hits INTEGER, version TEXT
) WITHOUT ROWID
"""
_SAVE = """
INSERT INTO caps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    state = excluded.state, evidence = excluded.evidence, status = excluded.status,
    last_seen = excluded.last_seen, hits = hits + excluded.hits, version = excluded.version
"""
_COLUMNS = "feature, value, state, evidence, status, first_seen, last_seen, hits, version"
# Anybody may write to the file; a row that can't be read is one that isn't there.
_SOUND = " AND ".join(
    f"typeof({name}) = '{kind}'"
    for kind, names in {
        "text": ("feature", "value", "state", "evidence", "version"),
        "real": ("first_seen", "last_seen"),
        "integer": ("status", "hits"),
    }.items()
    for name in names
)

_T = TypeVar("_T")

_log = logging.getLogger("corerun.openai_router")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is known about a model of a server.

    ``evidence`` is what the server said, redacted; ``first_seen`` and ``last_seen`` are the Unix times
    of its saying so, ``hits`` how often it did. ``version`` names the server that said it: what of its
    answers identifies it, one a line; empty while none came.
    """

    fact: str
    state: str
    evidence: str
    status: int
    first_seen: float
    last_seen: float
    hits: int = 1
    version: str = ""


class CapsStore:
    """The file. If it can't be used there is one warning, and nothing is remembered beyond the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_broken = False

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> CapsStore:
        """The file that ``CORERUN_CAPS_PATH`` names, or the one in the user's cache folder."""
        named = environ.get("CORERUN_CAPS_PATH")
        return cls(Path(named).expanduser() if named else cache_folder(environ) / "caps.sqlite")

    def load(self, base_url: str, model: str) -> list[Row]:
        """Everything that is known of one model."""
        query = f"SELECT {_COLUMNS} FROM caps WHERE base_url = ? AND model = ? AND {_SOUND}"
        found = self._do(lambda file: file.execute(query, (base_url, model)).fetchall())
        return [Row(joined(feature, value), *rest) for feature, value, *rest in found or ()]

    def models(self, base_url: str) -> list[str]:
        """The models of which something is known."""
        query = "SELECT DISTINCT model FROM caps WHERE base_url = ? ORDER BY model"
        found = self._do(lambda file: file.execute(query, (base_url,)).fetchall())
        return [name for (name,) in found or ()]

    def servers(self) -> list[str]:
        """The addresses of which something is known."""
        query = "SELECT DISTINCT base_url FROM caps ORDER BY base_url"
        found = self._do(lambda file: file.execute(query).fetchall())
        return [base_url for (base_url,) in found or ()]

    def save(self, base_url: str, model: str, rows: Iterable[Row]) -> None:
        """Write rows over what is known of the same facts; the first time stays, hits are added up."""
        values = [
            (
                *(_key(base_url, model, row.fact), base_url, model, *split(row.fact)),
                *(row.state, row.evidence[:EVIDENCE_CHARACTERS], row.status),
                *(row.first_seen, row.last_seen, row.hits, row.version),
            )
            for row in rows
        ]
        self._do(lambda file: change(file, _SAVE, values))

    def drop(self, base_url: str, model: str, rows: Iterable[Row]) -> None:
        """Delete rows, unless another process has seen the same again meanwhile."""
        values = [(_key(base_url, model, row.fact), row.last_seen) for row in rows]
        statement = "DELETE FROM caps WHERE key = ? AND last_seen <= ?"
        self._do(lambda file: change(file, statement, values))

    def _do(self, step: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """One step on the file, which is opened for it: steps are rare, threads and forks are not."""
        if self._is_broken:
            return None
        try:
            with closing(open_shared(self._path, _TABLE, busy_ms=_BUSY_MS)) as file:
                return step(file)
        except (sqlite3.Error, OSError) as error:
            self._is_broken = True
            _log.warning(
                "%s can't be used, so what is learned about servers is lost at the end: %s", self._path, error
            )
            return None


def _key(base_url: str, model: str, fact: str) -> str:
    return hashlib.sha256("\0".join((base_url, model, fact)).encode("utf-8", "replace")).hexdigest()
