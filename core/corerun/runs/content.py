"""What may stand in a file of a run: JSON that every reader takes, and nothing secret."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from corerun.redaction import redact, redact_bytes, redact_value

_encode_compact = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_HEAD = 8192
"""Bytes in which a file that isn't text shows itself by a zero."""


def clean(body: bytes) -> bytes:
    """``body`` without its secrets, the same object if it has none; what isn't text stays as it is."""
    return body if b"\0" in body[:_HEAD] else redact_bytes(body)


def json_text(value: Any, **options: Any) -> str:
    """``value`` as JSON that every reader takes: NaN and infinity, which JSON lacks, become null, and
    strings are without secrets."""
    return _clean_json(value, json.JSONEncoder(allow_nan=False, **options).encode)


def compact_json(value: Any) -> str:
    """`json_text` without blanks."""
    return _clean_json(value, _encode_compact)


def _clean_json(value: Any, encode: Callable[[Any], str]) -> str:
    text = _json(value, encode)
    # One look at the whole text; string by string only when there is something to hide.
    return text if redact(text) is text else _json(redact_value(value), encode)


def _json(value: Any, encode: Callable[[Any], str]) -> str:
    try:
        return encode(value)
    except ValueError:
        return encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
