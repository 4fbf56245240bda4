"""What a record of each type must hold, so that whoever reads a journal may rely on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from corerun.inputs.names import is_plain
from corerun.interfaces import Event
from corerun.runs import events as kinds

_LONGEST_NAME = 200
_DIGEST = re.compile(r"[0-9a-f]{64}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    # Folders are called by it.
    return isinstance(value, str) and is_plain(value, _LONGEST_NAME)


def _parent(value: Any) -> bool:
    return value is None or _name(value)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _object(value: Any) -> bool:
    return isinstance(value, Mapping)


def is_digest(value: Any) -> bool:
    """Whether ``value`` is a sha256 in hex, the name of a blob."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _usage(value: Any) -> bool:
    return _object(value) and _count(value.get("prompt")) and _count(value.get("completion"))


def _result(value: Any) -> bool:
    files = value.get("files", ()) if _object(value) else None
    return isinstance(files, list | tuple) and all(
        _object(item) and _text(item.get("path")) and _text(item.get("sha256")) for item in files
    )


FIELDS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    kinds.STAGE_STARTED: {"scope": _name},
    kinds.STAGE_DONE: {"scope": _name},
    kinds.NODE_ASKED: {
        "scope": _name,
        "node": _name,
        "parent": _parent,
        "seq": _count,
        "hint": _object,
        "attempt": _count,
        "counted": _flag,
    },
    kinds.NODE_DONE: {
        "scope": _name,
        "node": _name,
        "status": _text,
        "score": _number_or_none,
        "reason": _text,
        "open": _flag,
        "data": _object,
    },
    kinds.CALL_ASKED: {"key": _text, "prompt": is_digest},
    kinds.CALL_ANSWERED: {"key": _text, "text": _text, "usage": _usage, "cost_usd": _number_or_none},
    kinds.CALL_FAILED: {"key": _text},
    kinds.EXECUTION_DONE: {"key": _text, "node": _text, "attempt": _count, "result": _result},
    kinds.FILE_MADE: {"path": _text},
    kinds.NOTED: {"name": _text, "value": lambda value: True},
    kinds.WARNING: {"message": _text},
    kinds.RUN_DONE: {"status": _text},
}
"""Fields that the core reads, with what they may be. A record may hold more."""


def is_record(event: Event) -> bool:
    """Whether number, time, type and data of a record are what they are in every record."""
    return type(event.seq) is int and _number(event.t) and _text(event.type) and _object(event.data)


def fault(event: Event) -> str:
    """What a record lacks to be one of its type, in a few words; empty if it is one."""
    for field, fits in FIELDS.get(event.type, {}).items():
        if field not in event.data:
            return f"{event.type} lacks {field!r}"
        if not fits(event.data[field]):
            return f"{event.type} can't have this {field!r}: {event.data[field]!r:.60}"
    return ""
