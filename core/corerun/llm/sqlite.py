"""Small SQLite files in the user's cache folder, shared by many processes and never needed to go on."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path

BUSY_MS = 30_000

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "lustre", "glusterfs"})

_log = logging.getLogger("corerun.llm")


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where corerun keeps what it can do without: ``~/.cache/corerun``."""
    home = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache"
    return Path(home) / "corerun"


def open_shared(path: Path, tables: str, *, busy_ms: int = BUSY_MS) -> sqlite3.Connection:
    """The file at ``path`` with ``tables`` in it; readable by its owner alone.

    Readers and writers of many processes don't block each other, except on network file systems,
    which can't share memory. Raises `sqlite3.Error` or OSError if it can't be used.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=busy_ms / 1000, isolation_level=None)
    try:
        if file_system(path.parent) in _NETWORK:
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


def file_system(folder: Path) -> str:
    """The type of the file system that holds ``folder``, such as ``ext4``; empty if unknown."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
        inside = folder.resolve()
    except OSError:
        return ""
    found = (0, "")
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = Path(left.split(" ")[4].encode().decode("unicode_escape"))
        if inside == mounted or mounted in inside.parents:
            found = max(found, (len(mounted.parts), right.split(" ")[0]), key=lambda pair: pair[0])
    return found[1]
