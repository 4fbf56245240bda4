"""Keeps keys out of every message: servers echo them, and so do URLs."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "[redacted]"

_SHORTEST_SECRET = 8
_KEY_SHAPES = re.compile(
    r"sk-[A-Za-z0-9_*-]{8,}|gsk_[A-Za-z0-9]{8,}|xai-[A-Za-z0-9_-]{8,}"
    r"|AIza[0-9A-Za-z_-]{20,}|hf_[A-Za-z0-9]{20,}"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)\S+")
_QUERY_KEY = re.compile(r"(?i)\b((?:api[-_]?)?key=)[^&\s\"']+")
_URL_LOGIN = re.compile(r"(?i)(\bhttps?://)[^/\s@]+@")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without the given secrets and without anything that looks like a key.

    Secrets shorter than 8 characters are placeholders such as ``none``; replacing them would
    only spoil ordinary words.
    """
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    text = _KEY_SHAPES.sub(HIDDEN, text)
    text = _BEARER.sub(rf"\g<1>{HIDDEN}", text)
    text = _QUERY_KEY.sub(rf"\g<1>{HIDDEN}", text)
    return _URL_LOGIN.sub(rf"\g<1>{HIDDEN}@", text)
