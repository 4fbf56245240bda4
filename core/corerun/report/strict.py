"""Turns whatever a journal holds into strict JSON, and says where a number was not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from corerun.interfaces import Json

_MAX_DEPTH = 40


def strict(value: Any, found: list[str], path: str = "", depth: int = 0) -> Json:
    """``value`` with NaN and infinity as None; the dotted place of each is added to ``found``."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        found.append(path or "value")
        return None
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {
            str(key): strict(item, found, f"{path}.{key}" if path else str(key), depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(item, found, f"{path}.{index}", depth + 1) for index, item in enumerate(value)]
    return str(value)
