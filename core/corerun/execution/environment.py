"""The environment of a program: built from an allow list, so that no key can get in by accident."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Iterable, Mapping

from corerun.errors import UsageError
from corerun.interfaces import ExecRequest

_CREDENTIALS = (
    "*_API_KEY",
    "*_TOKEN",
    "*_SECRET*",
    "*PASSW*",
    "AWS_*",
    "AZURE_*",
    "GOOGLE_*",
    "OAIC_*",
    "OPENAI_*",
    "ANTHROPIC_*",
    "WANDB_*",
    "DATABASE_URL",
    "SSH_AUTH_SOCK",
    "KUBECONFIG",
    "DOCKER_HOST",
)
_INTERFERING = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "GIT_*")
_OURS = "CORERUN_EXEC_ID"
_INHERITED = ("LANG", "LC_ALL", "TZ")
_IS_CREDENTIAL, _IS_INTERFERING = (
    re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match
    for patterns in (_CREDENTIALS, _INTERFERING)
)

SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
HOME_FOLDER = ".home"
TEMPORARY_FOLDER = ".tmp"


def is_credential(name: str) -> bool:
    """Whether a variable of this name may hold a key, a password or a way to one."""
    return _IS_CREDENTIAL(name.upper()) is not None


def check_names(names: Iterable[str], unsafe: Iterable[str] = ()) -> None:
    """Raise `UsageError` for a variable that programs never get, unless it is one of ``unsafe``."""
    allowed = frozenset(unsafe)
    for name in (*names, *allowed):
        if is_credential(name) and name not in allowed:
            raise UsageError(
                f"refused: {name} is a provider credential",
                hint="give programs their data as files; sandbox.pass_env_unsafe passes it all the same",
            )
        if name.upper() == _OURS or (_IS_INTERFERING(name.upper()) and name not in allowed):
            raise UsageError(f"refused: {name} would change how the program is run")
        if not name or "=" in name or "\0" in name:
            raise UsageError(f"{name!r} is no name of an environment variable")


def program_environment(
    request: ExecRequest,
    *,
    workspace: str,
    base: Mapping[str, str],
    pass_env: Iterable[str] = (),
    pass_env_unsafe: Iterable[str] = (),
) -> dict[str, str]:
    """All variables that a program gets.

    ``base`` is the environment of this process: only language, time zone and the names in
    ``pass_env`` and ``pass_env_unsafe`` are taken from it. Raises `UsageError` for a credential in
    the request or in ``pass_env``, whatever its value, unless ``pass_env_unsafe`` names it.
    """
    unsafe = tuple(pass_env_unsafe)
    passed = (*pass_env, *unsafe)
    check_names((*request.env, *passed), unsafe)
    folder = os.path.dirname(request.python or sys.executable)
    environment = {
        # An empty part would mean the current folder.
        "PATH": ":".join(filter(None, (folder, SEARCH_PATH))),
        "TERM": "dumb",
        "HOME": os.path.join(workspace, HOME_FOLDER),
        "TMPDIR": os.path.join(workspace, TEMPORARY_FOLDER),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "Agg",
        # An unset variable would mean all cards.
        "CUDA_VISIBLE_DEVICES": ",".join(request.gpus),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    environment.update({name: base[name] for name in (*_INHERITED, *passed) if name in base})
    environment.update(request.env)
    for name, value in environment.items():
        if "\0" in value:
            raise UsageError(f"the value of {name} holds a NUL byte")
    return environment
