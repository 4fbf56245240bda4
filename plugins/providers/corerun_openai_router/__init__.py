"""Reaches every server that speaks OpenAI's chat completions: OpenAI, Ollama and any ``OAIC_*`` provider."""

from __future__ import annotations

from collections.abc import Iterable

from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_providers() -> Iterable[Component]:
    return (
        Component(
            "openai_router",
            "corerun_openai_router.provider:OpenAIRouter",
            "servers that speak OpenAI's chat completions, read from OPENAI_* and OAIC_*",
        ),
    )
