"""Texts, bytes and JSON without secrets."""

from __future__ import annotations

from typing import Any

from corerun.redaction.known import hide_known
from corerun.redaction.shapes import hide_shapes


def redact(text: str) -> str:
    """``text`` without remembered secrets and without anything that has the shape of a key.

    Other text comes back as it is, the same object. A secret that is spread over two texts isn't seen:
    sinks hand over whole records, files and lines.
    """
    return hide_shapes(hide_known(text))


def redact_bytes(body: bytes) -> bytes:
    """`redact` for text in UTF-8, or in anything that has ASCII in it."""
    text = body.decode("latin-1")
    clean = redact(text)
    return body if clean is text else clean.encode("latin-1")


def redact_value(value: Any) -> Any:
    """What JSON holds, with `redact` on every string in it, keys too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_value(key): redact_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(item) for item in value]
    return value
