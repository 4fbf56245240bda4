"""Starts of programs: what every start shares, and the cold one, with an interpreter of the program's own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from corerun.execution import cgroups, processes, workspace
from corerun.execution.enclosure import PYTHON_FLAGS, START, Enclosure, Place
from corerun.execution.spawn import spawn
from corerun.execution.trees import NamespaceTree, SpawnedTree, Tree
from corerun.interfaces import ExecRequest, Json, Limits

_MIB = 1024 * 1024
_STACK_MB = 8


@dataclass(frozen=True, slots=True)
class Program:
    """A request that is ready to start: its folder, its environment and its memory limit."""

    request: ExecRequest
    folder: str
    environment: dict[str, str]
    memory_mb: int
    exec_id: str
    place: Place


def launch_of(program: Program, record: int, group: cgroups.Group) -> dict[str, Json]:
    """What `corerun.execution.inside.confine` calls a launch, as far as every start shares it."""
    request = program.request
    if request.kind == "argv":
        command = list(request.argv)
    else:
        command = [workspace.program_path(request, program.folder)]
        if request.kind == "shell":
            command.insert(0, "/bin/sh")
    return {
        "kind": request.kind,
        "parent": os.getpid(),
        "folder": program.folder,
        "command": command,
        "result": record,
        "status": None,
        "limits": _resource_limits(request.limits, data_mb=_data_mb(program, group)),
        "groups": list(group.descriptors),
    }


def start_cold(
    program: Program, launch: Mapping[str, Json], enclosure: Enclosure, inherited: Sequence[int]
) -> tuple[Tree, tuple[int, int]]:
    """Start an interpreter of the program's own; returns its processes and the ends of its outputs."""
    request = program.request
    with contextlib.ExitStack() as kept, contextlib.ExitStack() as passed:
        stdout, stderr, status = (pipe(kept, passed) for _ in range(3))
        own = {**launch, **enclosure.rules, "status": status[1] if enclosure.namespace else None}
        own["limits"] = {**launch["limits"], **enclosure.rules.get("limits", {})}
        python = request.python if request.kind == "python" else ""
        argv = [
            *enclosure.prefix,
            python or sys.executable,
            *PYTHON_FLAGS,
            START,
            json.dumps(own, ensure_ascii=False),
        ]
        descriptors = [*inherited, *enclosure.inherited]
        if enclosure.namespace:
            descriptors.append(status[1])
        pid = spawn(argv, program.environment, (stdout[1], stderr[1]), descriptors, stdin=request.stdin)
        tree: Tree
        if enclosure.namespace:
            tree = NamespaceTree(pid, program.exec_id, status[0])
        else:
            tree = SpawnedTree(pid, program.exec_id)
            passed.callback(os.close, status[0])
        kept.pop_all()
    return tree, (stdout[0], stderr[0])


def pipe(kept: contextlib.ExitStack, passed: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends to read and to write are closed by one stack each."""
    read_end, write_end = os.pipe()
    kept.callback(os.close, read_end)
    passed.callback(os.close, write_end)
    return read_end, write_end


def _data_mb(program: Program, group: cgroups.Group) -> int | None:
    """How much memory a process may ask for, where nobody else counts what it gets. Drivers of cards ask
    for far more than they use, and numeric libraries for stacks of threads on all cores.
    """
    if group.holds_all or program.request.gpus:
        return None
    return program.memory_mb + _STACK_MB * (os.cpu_count() or 1)


def _resource_limits(limits: Limits, *, data_mb: int | None) -> dict[str, tuple[int, int]]:
    """Soft and hard values, by name."""
    file_bytes, tag = limits.file_mb * _MIB, processes.tag()
    values = {
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_NOFILE": (limits.nofile, limits.nofile),
        "RLIMIT_FSIZE": (file_bytes, file_bytes),
        "RLIMIT_RTTIME": (tag, tag),
    }
    if data_mb is not None:
        values["RLIMIT_DATA"] = (data_mb * _MIB, data_mb * _MIB)
    if limits.cpu_s is not None:
        seconds = max(1, math.ceil(limits.cpu_s))
        # With both values equal the kernel kills without SIGXCPU, and nobody would know why.
        values["RLIMIT_CPU"] = (seconds, seconds + 1)
    return values
