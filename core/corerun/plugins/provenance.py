"""Says whose code a run's plugins were: distribution, version, and a hash of what was installed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from corerun.plugins.loading import Loaded


def provenance(plugins: Iterable[Loaded]) -> dict[str, dict[str, str]]:
    """By name of each plugin that works: ``distribution``, ``version``, ``target`` and ``sha256``.

    The hash is one of all Python files of its package, or of its module's one file; empty where its
    code lies in no file.
    """
    return {
        loaded.entry.name: {
            "distribution": loaded.entry.distribution,
            "version": loaded.entry.version,
            "target": loaded.entry.target,
            "sha256": _hash(loaded.entry.target.partition(":")[0]),
        }
        for loaded in plugins
        if loaded.error is None
    }


def _hash(module: str) -> str:
    source = getattr(sys.modules.get(module), "__file__", None)
    if source is None:
        return ""
    file = Path(source)
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    whole = hashlib.sha256()
    for path in files:
        try:
            body = path.read_bytes()
        except OSError:
            return ""
        whole.update(f"{path.relative_to(file.parent)}\0{hashlib.sha256(body).hexdigest()}\n".encode())
    return whole.hexdigest()
