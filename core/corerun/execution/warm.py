"""The warm start: which programs a zygote may fork, and how it is told to."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from corerun.errors import InfrastructureError
from corerun.execution import zygotes
from corerun.execution.enclosure import Enclose, scratch_mb
from corerun.execution.inside.profiles import MENTIONED
from corerun.execution.service import SOCKET_VARIABLE
from corerun.execution.spawn import stdin_of
from corerun.execution.starting import Program, pipe
from corerun.execution.trees import ForkedTree, Tree
from corerun.execution.zygote import Kind, Zygote
from corerun.interfaces import Json, Limits, Policy

_MIB = 1024 * 1024
# Zygotes have these too, where programs do, with values of their own.
_PRIVATE = {"HOME": "/tmp/home", "TMPDIR": "/tmp"}
# What is imported may depend on these, so programs of one zygote share them.
_EARLY = re.compile(
    r"PATH|TERM|TZ|LANG|LC_\w+|PYTHON\w*|MPL(?!CONFIGDIR)\w*|CUDA_\w+"
    r"|(OMP|GOMP|KMP|MKL|OPENBLAS|NUMEXPR)_\w+"
    r"|(NPY|NUMPY|TORCH|PYTORCH|ATEN|SCIPY|SKLEARN|JOBLIB|XDG)_\w+"
)
# These are read before anything can be imported.
_LOADER = re.compile(r"LD_\w+|MALLOC_\w+|GLIBC_\w+")


async def find(program: Program, policy: Policy, enclose: Enclose) -> Zygote | None:
    """The zygote that can fork a program, with its imports done; None: only a cold start will do."""
    request = program.request
    if not policy.zygote or request.preload is None or request.kind != "python":
        return None
    if request.read or request.gpus or os.path.realpath(request.workspace) != request.workspace:
        return None
    if any(_LOADER.fullmatch(name) for name in program.environment):
        return None
    environment = {
        name: _PRIVATE.get(name, value)
        for name, value in program.environment.items()
        if name in _PRIVATE or _EARLY.fullmatch(name)
    }
    place = replace(
        program.place,
        folder=_folder_of_workspaces(request.workspace),
        read=tuple(path for path in program.place.read if os.path.exists(path)),
        limits=Limits(pids=request.limits.pids),
    )
    kind = Kind(
        request.preload,
        tuple(module for word, module in MENTIONED.get(request.preload, ()) if word in request.code),
        request.python or sys.executable,
        place,
        tuple(environment.items()),
        enclose,
    )
    zygote = await zygotes.find(kind, at_once=place.folder != request.workspace)
    if zygote is None or policy.require & set(zygote.lost_guarantees):
        return None
    return None if _shadows(zygote.modules, program.folder) else zygote


def _folder_of_workspaces(workspace: str) -> str:
    """The folder that holds it, or itself where more than workspaces may lie in that."""
    folder = os.path.dirname(workspace)
    home = os.path.realpath(os.path.expanduser("~"))
    busy = folder.count("/") < 2 or os.path.commonpath([folder, home]) == folder
    if busy or any(os.path.lexists(os.path.join(folder, name)) for name in (".ssh", ".git")):
        return workspace
    return folder


def _shadows(modules: frozenset[str], folder: str) -> bool:
    """Whether a file of the working folder would be imported, or read, in place of what has been."""
    for entry in os.listdir(folder):
        if entry.removesuffix(".py") in modules:
            path = os.path.join(folder, entry)
            if entry.endswith(".py") or os.path.lexists(os.path.join(path, "__init__.py")):
                return True
    return os.path.lexists(os.path.join(folder, "matplotlibrc"))


async def start(
    zygote: Zygote, program: Program, launch: Mapping[str, Json], inherited: Sequence[int]
) -> tuple[Tree, tuple[int, int]] | None:
    """Let a zygote fork a program; None when it couldn't, and nothing has begun.

    ``inherited`` are the result's pipe, the control groups, and the service's socket if there is one.
    """
    request = program.request
    known, wanted = dict(zygote.kind.environment), program.environment
    # Programs can see the order of their variables.
    anew = list({**known, **wanted}) != list(wanted)
    folder = zygote.kind.place.folder
    hidden = ("/tmp", "/dev/shm", folder)
    own_folder = folder == request.workspace
    covered = [path for path in (request.workspace, *zygote.kind.place.read) if _lies_below(path, hidden)]
    size = scratch_mb(request.limits, program.memory_mb) * _MIB
    groups = len(launch["groups"])
    result, held_groups, service = inherited[0], inherited[1 : 1 + groups], inherited[1 + groups :]
    message = {
        "launch": {**launch, "groups": groups},
        "environment": wanted if anew else {k: v for k, v in wanted.items() if known.get(k) != v},
        "anew": anew,
        "keep": covered,
        "cover": "" if own_folder else folder,
        "size": size,
        "service": SOCKET_VARIABLE if service else "",
    }
    with contextlib.ExitStack() as kept, contextlib.ExitStack() as passed:
        stdout, stderr, status = (pipe(kept, passed) for _ in range(3))
        standard_input = passed.enter_context(stdin_of(request.stdin))
        ends = [standard_input, stdout[1], stderr[1], result, status[1], *service, *held_groups]
        try:
            pidfd = await zygote.fork(message, ends)
        except (OSError, InfrastructureError):
            return None
        kept.pop_all()
    return ForkedTree(pidfd, status[0], zygote.done, zygote.lost_guarantees), (stdout[0], stderr[0])


def _lies_below(path: str, folders: Sequence[str]) -> bool:
    return any(path.startswith(folder + "/") for folder in folders)
