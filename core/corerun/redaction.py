"""Keeps secrets out of everything that is written or shown: one registry, one function, every sink."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "[redacted]"
SHORTEST_SECRET = 8
"""Shorter values are placeholders such as ``none``; hiding them would only spoil ordinary words."""

_SECRET_NAME = re.compile(r"(?i)(api_?key|token|secret|password|passwd|credential)")

_known: set[str] = set()


def remember(*secrets: str) -> None:
    """From now on hide these values wherever this process writes; placeholders are passed over."""
    _known.update(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)


def remember_environment(environ: Mapping[str, str]) -> None:
    """Remember the values of all variables whose names say that they are secret."""
    remember(*(value for name, value in environ.items() if _SECRET_NAME.search(name)))


def redact(text: str) -> str:
    """``text`` without remembered secrets and without anything that has the shape of a key."""
    for secret in _known:
        text = text.replace(secret, HIDDEN)
    return text
