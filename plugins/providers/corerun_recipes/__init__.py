"""The embedded default provider: experiment programs from a book of recipes, without a language model."""

from __future__ import annotations

from collections.abc import Iterable

from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_providers() -> Iterable[Component]:
    return (
        Component(
            "recipes",
            "corerun_recipes.provider:connect",
            "built-in rules, not a language model",
        ),
    )
