"""Tries a sandbox with a tiny program: a thing that is installed may still not work here."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from corerun.errors import InfrastructureError
from corerun.execution.enclosure import PYTHON_FLAGS, START, Enclose, Place, interpreter_paths
from corerun.execution.environment import program_environment
from corerun.execution.results import read_record
from corerun.execution.trees import read_status
from corerun.interfaces import ExecRequest, Json, Limits

_LIMIT_S = 20
_LIMITS = Limits()
_REPORT = "import json, os\n"
_PRINT = "print(json.dumps({'environ': sorted(os.environ), **found}))\n"


@dataclass(frozen=True, slots=True)
class Tried:
    """What the tiny program saw. ``failure`` says why it couldn't; ``found`` is what the caller's
    lines put into the dict of that name."""

    failure: str = ""
    clean_environment: bool = False
    found: Mapping[str, Json] | None = None


def try_program(enclose: Enclose, code: str = "found = {}\n", limits: Limits = _LIMITS) -> Tried:
    """Run ``code``, which sets ``found``, inside a sandbox, without an event loop."""
    with tempfile.TemporaryDirectory(prefix="corerun-probe-") as folder, contextlib.ExitStack() as held:
        request = ExecRequest(workspace=folder)
        environment = program_environment(request, workspace=folder, base=os.environ)
        path = os.path.join(folder, "probe.py")
        with open(path, "w") as file:
            file.write(_REPORT + code + _PRINT)
        record, status = _pipe(held), _pipe(held)
        launch = {
            "kind": "python",
            "parent": os.getpid(),
            "folder": folder,
            "command": [path],
            "result": record[1],
            "limits": {},
            "groups": [],
        }
        try:
            enclosure = enclose(Place(folder, interpreter_paths(""), limits), held)
            launch |= {**enclosure.rules, "status": status[1] if enclosure.namespace else None}
            done = subprocess.run(
                [
                    *enclosure.prefix,
                    sys.executable,
                    *PYTHON_FLAGS,
                    START,
                    json.dumps(launch, ensure_ascii=False),
                ],
                env=environment,
                pass_fds=(record[1], status[1], *enclosure.inherited),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_LIMIT_S,
            )
        except (OSError, subprocess.SubprocessError, InfrastructureError) as error:
            return Tried(failure=str(error))
        death = read_status(status[0]) if enclosure.namespace else None
        code_ = death.exit_code if death else done.returncode
        said = read_record(record[0])
        if "infra" in said or code_ or (enclosure.namespace and death is None):
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            return Tried(failure=str(said.get("infra") or "".join(last) or f"exit code {code_}"))
        found = json.loads(done.stdout)
        # Python sets LC_CTYPE itself when the locale is C.
        names = set(found.pop("environ")) - {"LC_CTYPE"}
        return Tried(clean_environment=names <= set(environment), found=found)


def _pipe(held: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        held.callback(os.close, end)
    return ends
