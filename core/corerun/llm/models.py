"""Model strings: which provider a string names, its environment variables, and the default model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from corerun.errors import UsageError

DEFAULT_PROVIDER = "default"
EMBEDDED_MODEL = "recipes::default"

_OLLAMA = "ollama"
_PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BROKEN_TEXT = re.compile("[\ud800-\udfff]")
"""What is left of bytes that aren't UTF-8: no file and no request can hold it."""
_NOT_ALPHANUMERIC = re.compile(r"[^A-Za-z0-9]+")
_TRUE_WORDS = frozenset({"1", "true", "yes", "y", "on"})


@dataclass(frozen=True, slots=True)
class ModelString:
    """A parsed model string. ``provider`` is in lower case, ``model`` is the provider's own id, verbatim."""

    provider: str
    model: str
    text: str


def parse_model(text: str) -> ModelString:
    """Read ``ollama/<model>``, ``<provider>::<model>`` or a bare ``<model>`` of the default provider.

    The first form that matches wins; a slash or a single colon elsewhere belongs to the model id.
    Raises `UsageError` for an empty provider or model, a bad provider name, and text that isn't UTF-8.
    """
    stripped = text.strip()
    head, slash, rest = stripped.partition("/")
    if slash and head.lower() == _OLLAMA:
        provider, model = _OLLAMA, rest
    elif "::" in stripped:
        provider, _, model = stripped.partition("::")
    else:
        provider, model = DEFAULT_PROVIDER, stripped
    if not model or not _PROVIDER_NAME.fullmatch(provider) or _BROKEN_TEXT.search(model):
        raise UsageError(
            f"bad model string {text!r}: expected <model>, <provider>::<model> or ollama/<model>",
            hint="a provider's name has letters, digits, '.', '_' and '-', and starts with a letter or digit",
        )
    return ModelString(provider.lower(), model, stripped)


def environment_key(provider: str) -> str:
    """The provider's part of its variables' names: ``x.ai`` becomes ``X_AI`` (``OAIC_X_AI_API_KEY``)."""
    return _NOT_ALPHANUMERIC.sub("_", provider).upper()


def true_value(text: str | None) -> bool:
    """Whether a switch in the environment is on: ``1 true yes y on`` in any case."""
    return text is not None and text.strip().lower() in _TRUE_WORDS


def default_model(environ: Mapping[str, str]) -> tuple[str, str]:
    """The model of a run that names none, and a sentence for people that says why."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        if environ.get(name):
            model = str(
                json.loads(Path(__file__).with_name("default_model.json").read_text("utf-8"))["model"]
            )
            return model, f"no model is named and {name} is set: using {model}"
    return (
        EMBEDDED_MODEL,
        f"no model is named and neither OPENAI_API_KEY nor OPENAI_BASE_URL is set: using {EMBEDDED_MODEL}, "
        "which is a book of rules, not a language model",
    )
