"""Keys and addresses of configured models: read from where they are kept, refused if made up or left out."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from corerun.config import is_secret, variable_of
from corerun.errors import UsageError
from corerun.llm.models import environment_key
from corerun.redaction import HIDDEN, redact, remember

GIT_S = 5.0
"""Seconds that git gets to say whether it knows a file."""

_OWN_KEYS = {
    "default": "OPENAI_API_KEY",
    "openai": "OPENAI_API_KEY",
    "ollama": "OLLAMA_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
}
_PLACEHOLDER = re.compile(r"<[^<>]*>|\.\.\.|…")

_log = logging.getLogger("corerun.models")


def check_no_placeholder(field: str, text: str, where: str) -> None:
    """Raise `UsageError` if ``text`` is what an example says in place of a value: ``<model_name>``,
    ``sk-...``."""
    if _PLACEHOLDER.search(text):
        what = "is" if field.endswith("api_key") else f"({text!r}) is"
        raise UsageError(
            f"{field} {what} a placeholder, not a value",
            where=redact(where),
            hint="put your own in its place",
        )


def resolve(field: str, text: str, where: str, environ: Mapping[str, str]) -> str:
    """``text``, or the value of the variable that it refers to.

    Raises `UsageError` for a variable that isn't set, for a placeholder, and for a login that a run
    left out of its files.
    """
    variable = variable_of(text)
    if variable is None:
        check_no_placeholder(field, text, where)
        if HIDDEN in text:
            raise UsageError(
                f"{field} is incomplete: a run keeps no login", where=where, hint="give --config again"
            )
        return text.strip()
    value = environ.get(variable, "").strip()
    if not value:
        raise UsageError(
            f"{field} is read from the variable {variable}, which isn't set",
            where=redact(where),
            hint=f"set {variable}",
        )
    return value


def resolve_key(field: str, text: str, where: str, provider: str, environ: Mapping[str, str]) -> str:
    """The key that the configuration gives for a model of ``provider``; ``where`` is its ``file:line``.

    A key in the environment beats one that stands in a file under version control. Raises `UsageError`
    for a variable that isn't set, for a placeholder, and for a key that a run left out of its files.
    """
    if not text.strip():
        return ""
    names = key_variables(provider)
    ambient = next((environ[name] for name in names if environ.get(name)), "")
    if text.strip() == HIDDEN:
        if not ambient:
            raise UsageError(
                f"{field} is missing: a run keeps no key",
                where=redact(where),
                hint=f"give --config again, or set {' or '.join(names)}",
            )
        key = ambient
    else:
        key = resolve(field, text, where, environ)
        if is_secret(text):
            key = _literal(field, key, where, ambient)
    remember(key)
    return key


def key_variables(provider: str) -> tuple[str, ...]:
    """The variables that may hold the provider's key, the most special one first."""
    own = _OWN_KEYS.get(provider)
    names = (f"OAIC_{environment_key(provider)}_API_KEY",) if provider != "default" else ()
    return (*names, own) if own else names


def is_tracked(path: Path) -> bool:
    """Whether git has the file under version control; without git it has not."""
    # The repository may be anybody's: nothing that its settings name may run.
    off = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never"]
    command = ["git", "--literal-pathspecs", *off, "ls-files", "--error-unmatch", "--", path.name]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    try:
        done = subprocess.run(
            command,
            cwd=path.parent,
            env={**kept, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _literal(field: str, key: str, where: str, ambient: str) -> str:
    file = Path(where.rpartition(":")[0])
    if ambient and file.is_file() and is_tracked(file.resolve()):
        _log.warning("%s: %s stands in a file under git: the environment's key is used", where, field)
        return ambient
    _log.warning(
        "%s: %s is written out: better name a variable, as env:NAME", redact(where) or "settings", field
    )
    return key
