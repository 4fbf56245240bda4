"""Keeps secrets out of everything that is written or shown: one registry, one function, every sink."""

from __future__ import annotations

from corerun.redaction.known import (
    HIDDEN,
    SHORTEST_SECRET,
    remember,
    remember_address,
    remember_arguments,
    remember_environment,
)
from corerun.redaction.texts import redact, redact_bytes, redact_value

__all__ = [
    "HIDDEN",
    "SHORTEST_SECRET",
    "redact",
    "redact_bytes",
    "redact_value",
    "remember",
    "remember_address",
    "remember_arguments",
    "remember_environment",
]
