"""What a sandbox of this machine adds to the start of a program."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from corerun.execution.inside import launch
from corerun.interfaces import Json, Limits

# Imported, though it is run by other interpreters only: those write no bytecode, and would compile it
# at every start.
INSIDE = os.path.dirname(launch.__file__)
"""The folder of what runs in a program's interpreter before the program."""
START = os.path.join(INSIDE, "start.py")
# Not -I: it would make the interpreter ignore PYTHONHASHSEED, and programs repeatable only by luck.
# The environment is all ours, and our start removes its own folder from the search path.
PYTHON_FLAGS = ("-s", "-B", "-X", "faulthandler")
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Place:
    """What a program may reach: ``folder`` to write in, ``read`` to read, all at their own paths.

    ``network`` and ``gpus`` are those of the request.
    """

    folder: str
    read: tuple[str, ...]
    limits: Limits
    network: str = "none"
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Enclosure:
    """How to start a program so that it is enclosed.

    ``prefix`` are the words before its own command; ``inherited`` the descriptors that they need.
    ``rules`` are what the program's process does to itself: ``landlock``, ``capabilities``, ``seccomp``
    (see `corerun.execution.inside.confine`), and ``limits`` beside those of the request. ``namespace``:
    the prefix makes a process namespace of which the program's first process is the first, so that
    nothing in it outlives that one.
    """

    prefix: tuple[str, ...] = ()
    inherited: tuple[int, ...] = ()
    rules: Mapping[str, Json] = field(default_factory=dict)
    namespace: bool = False


class Enclose(Protocol):
    """Prepares one start. What it opens is closed by ``held`` once the program runs.

    Raises `InfrastructureError` when the sandbox can't be used any more.
    """

    def __call__(self, place: Place, held: ExitStack) -> Enclosure: ...


def scratch_mb(limits: Limits, memory_mb: int) -> int:
    """The size of a program's own /tmp and of its /dev/shm, which are memory."""
    return max(1, min(limits.disk_mb, memory_mb // 2))


def no_enclosure(place: Place, held: ExitStack) -> Enclosure:
    """A plain child process."""
    return Enclosure()


@functools.cache
def interpreter_paths(python: str) -> tuple[str, ...]:
    """Folders that a Python needs to run: its environment, its installation, environments that it borrows
    from, and our start.

    What else its .pth files name, as for packages under development, isn't among them: such a folder
    may hold anything.
    """
    if not python or python == sys.executable:
        found = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
        program = sys.executable
    else:
        program = python
        found = {str(Path(python).parent.parent)} | _base_of(Path(python).parent.parent)
    found.add(str(Path(os.path.realpath(program)).parent.parent))
    found |= {folder for prefix in tuple(found) for folder in _borrowed(Path(prefix))}
    return (INSIDE, *sorted(found))


def _borrowed(prefix: Path) -> set[str]:
    """The package folders of other environments that this one's .pth files name."""
    found = set()
    for file in prefix.glob("lib*/python*/site-packages/*.pth"):
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        found |= {line for line in lines if os.path.isabs(line) and Path(line).name in _PACKAGE_FOLDERS}
    return found


def _base_of(prefix: Path) -> set[str]:
    try:
        lines = (prefix / "pyvenv.cfg").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    pairs = (line.partition("=") for line in lines)
    homes = [value.strip() for key, _, value in pairs if key.strip() == "home"]
    return {str(Path(os.path.realpath(home)).parent) for home in homes}
