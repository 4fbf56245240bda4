"""Runs models in this process with the transformers library."""

from __future__ import annotations

from collections.abc import Iterable

from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_providers() -> Iterable[Component]:
    return (
        Component(
            "transformers",
            "corerun_transformers.provider:TransformersProvider",
            "models that run in this process, from a folder or the Hugging Face hub",
        ),
    )
