"""Reaches Claude models through Anthropic's own Messages API."""

from __future__ import annotations

from collections.abc import Iterable

from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_providers() -> Iterable[Component]:
    return (
        Component(
            "anthropic",
            "corerun_anthropic.provider:AnthropicProvider",
            "Claude models through Anthropic's own API",
        ),
    )
