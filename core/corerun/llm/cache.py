"""Answers kept across runs: the same question to the same model is not paid twice, if one wishes so."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from corerun.interfaces import ChatReply
from corerun.llm.replay import reply_from_json, reply_to_json
from corerun.llm.sqlite import cache_folder, change, open_shared

_T = TypeVar("_T")
_TABLES = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply BLOB NOT NULL) WITHOUT ROWID"


def cache_file(environ: Mapping[str, str]) -> Path:
    """Where answers are kept across runs: ``~/.cache/corerun/answers.sqlite``."""
    return cache_folder(environ) / "answers.sqlite"


class AnswerCache:
    """Finds and keeps replies by what was asked.

    ``mode``: ``read`` only finds, ``write`` finds and keeps. The n-th equal question of a run has
    an answer of its own, so that samples of one prompt stay different. A file that can't be used is
    told once; the run goes on without it.
    """

    def __init__(self, mode: str, path: Path, warn: Callable[[str], None]) -> None:
        self._writes = mode == "write"
        self._path = path
        self._warn = warn
        self._asked: Counter[str] = Counter()
        self._file: sqlite3.Connection | None = None
        self._broken = mode == "read" and not path.is_file()

    def key(self, address: str, body: bytes) -> str:
        """The name of the next answer to ``body``, the canonical request, at ``address``."""
        question = hashlib.sha256(address.encode() + b"\n" + body).hexdigest()
        self._asked[question] += 1
        return f"{question}:{self._asked[question]}"

    def find(self, key: str) -> ChatReply | None:
        """The kept reply, or None."""
        query = "SELECT reply FROM answers WHERE key = ?"
        rows = self._do(lambda file: file.execute(query, (key,)).fetchall())
        if not rows:
            return None
        try:
            return reply_from_json(json.loads(zlib.decompress(rows[0][0])))
        except (ValueError, KeyError, TypeError, RecursionError, zlib.error):
            return None  # another version's, or damaged: the question is asked again

    def keep(self, key: str, reply: ChatReply) -> None:
        """Keeps ``reply`` for later runs."""
        if self._writes:
            body = zlib.compress(json.dumps(reply_to_json(reply), ensure_ascii=False).encode())
            statement = "INSERT OR REPLACE INTO answers VALUES (?, ?)"
            self._do(lambda file: change(file, statement, [(key, body)]))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _do(self, step: Callable[[sqlite3.Connection], _T]) -> _T | None:
        if self._broken:
            return None
        try:
            if self._file is None:
                self._file = open_shared(self._path, _TABLES)
            return step(self._file)
        except (sqlite3.Error, OSError) as error:
            self._broken = True
            self.close()
            self._warn(f"the cache of answers can't be used: {self._path}: {error}")
            return None
