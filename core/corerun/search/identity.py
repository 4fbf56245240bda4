"""Identities and random generators that follow from a run's seed, never from a clock or a counter's state."""

from __future__ import annotations

import hashlib
import json
import random

from corerun.interfaces import Json


def _digest(parts: tuple[Json, ...]) -> bytes:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).digest()


def node_id(seed: int, scope: str, ask_number: int) -> str:
    """16 hex digits. Equal in every run with this seed, so that two runs can have equal trees."""
    return _digest((seed, scope, ask_number)).hex()[:16]


def derived_rng(*parts: Json) -> random.Random:
    """A generator that depends on ``parts`` alone: JSON values, equal parts give equal draws."""
    return random.Random(int.from_bytes(_digest(parts), "big"))
