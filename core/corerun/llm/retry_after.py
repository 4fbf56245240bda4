"""What HTTP says about trying again: which statuses pass, and how long a wait the server wants."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, *range(520, 525), 529})
"""Statuses after which the same request may be answered."""
TOO_MANY = frozenset({429, 529})
"""Those by which a server asks to be left alone for a while."""

_TOO_MANY_REQUESTS = 429
_EPOCH_SECONDS = 1e9
_EPOCH_MILLISECONDS = 1e11

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT = r"(milliseconds?|ms|seconds?|secs?|minutes?|mins?|hours?|days?|[smhd])(?![a-z])"
_STEP = re.compile(rf"(\d+(?:\.\d+)?)\s*{_UNIT}", re.IGNORECASE)
_STEPS = rf"(?:\d+(?:\.\d+)?\s*{_UNIT}\s*)+"
_WHOLE = re.compile(rf"\s*{_STEPS}", re.IGNORECASE)
_SAID = re.compile(rf"(?:try again in|retry after|retry in)\s+(?P<wait>{_STEPS})", re.IGNORECASE)
_RETRY_DELAY = re.compile(r"retryDelay\\?[\"']\s*:\s*\\?[\"'](?P<wait>[0-9.smh]+)")


def wished_wait(status: int, headers: Mapping[str, str], text: str, now: float) -> float | None:
    """The server's wish in seconds, from the first source that can be read; None: it has none.

    ``headers`` have lower-case names, ``now`` is Unix time. A moment that is past gives 0.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    for name in ("retry-after", "llm_provider-retry-after"):
        seconds = _retry_after(headers.get(name), now)
        if seconds is not None:
            return seconds
    if status == _TOO_MANY_REQUESTS:
        seconds = _rate_limit_reset(headers, now)
        if seconds is not None:
            return seconds
    said = _SAID.search(text) or _RETRY_DELAY.search(text)
    return _duration(said["wait"]) if said else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _duration(text: str | None) -> float | None:
    if not text or not _WHOLE.fullmatch(text):
        return None
    return sum(float(number) * _unit_seconds(unit.lower()) for number, unit in _STEP.findall(text))


def _unit_seconds(unit: str) -> float:
    return 0.001 if unit.startswith(("ms", "milli")) else _SECONDS[unit[0]]


def _retry_after(text: str | None, now: float) -> float | None:
    seconds = _number(text)
    if seconds is not None or not text:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return _duration(text)


def _rate_limit_reset(headers: Mapping[str, str], now: float) -> float | None:
    for suffix in ("-requests", "-tokens", ""):
        remaining = _number(headers.get(f"x-ratelimit-remaining{suffix}"))
        if remaining:
            continue  # this limit isn't the one that was hit
        text = headers.get(f"x-ratelimit-reset{suffix}")
        number = _number(text)
        if number is None:
            number = _duration(text)
        elif number > _EPOCH_MILLISECONDS:
            number = max(0.0, number / 1000 - now)
        elif number > _EPOCH_SECONDS:
            number = max(0.0, number - now)
        if number is not None:
            return number
    return None
