"""What a hook is answered with, and the words that all other interfaces use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""What `json` reads back: dict, list, str, int, float, bool or None."""

Handler: TypeAlias = Callable[[Json], Awaitable[Json]]
"""Answers one request that a running program sends over its inherited socket."""


@dataclass(frozen=True, slots=True)
class Component:
    """One named thing that a plugin offers to one hook.

    ``target`` is ``"module:attribute"``; it is imported when the component is first used.
    """

    name: str
    target: str
    summary: str = ""
