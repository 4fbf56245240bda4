"""Builds the filter of system calls that a program's process takes on itself before it begins."""

from __future__ import annotations

import errno
import functools
import platform
import socket
import struct
from collections.abc import Iterable

from corerun.errors import InfrastructureError
from corerun_sandboxes import system_calls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_REFUSE = _ERRNO | errno.EPERM
_NO_SUCH_CALL = _ERRNO | errno.ENOSYS
_PRETEND = _ERRNO
"""The call isn't made, and says that it was."""

_NEW_NAMESPACES = 0x7E020000
"""All flags of clone(2) that make a namespace."""

_TYPE_MASK = 0xF
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1

Instruction = tuple[int, int, int, int]


def supported() -> bool:
    """Whether there is a filter for this machine."""
    return platform.machine() in system_calls.MACHINES


@functools.cache
def program(families: frozenset[int] | None = None, *, namespaced: bool = True) -> bytes:
    """The filter as classic BPF, eight bytes an instruction.

    ``families``: the only ones that sockets may be of; None: any. ``namespaced``: files and queues are
    the program's own, so far as it may change them. Without that there are no queues and shared memory
    that outlive it, and owners and attributes of files can't be changed; a change of permissions or
    times succeeds and does nothing, since programs make those in passing (shutil.copy) and would break
    over a refusal.
    """
    machine = platform.machine()
    if machine not in system_calls.MACHINES:
        raise InfrastructureError(f"no system call filter for {machine}")
    return b"".join(struct.pack("=HBBI", *one) for one in _filter(machine, families, namespaced))


def _filter(machine: str, families: frozenset[int] | None, namespaced: bool) -> list[Instruction]:
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, system_calls.MACHINES[machine]),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, system_calls.X32), (_RETURN, 0, 0, _REFUSE)]
    refused = list(system_calls.refused(machine).values())
    if not namespaced:
        refused += system_calls.owner_changes(machine).values()
        refused += system_calls.lasting(machine).values()
        code += _answer(system_calls.mode_changes(machine).values(), _PRETEND)
        code += _own_pace(machine)
    code += _answer(refused, _REFUSE)
    examined = system_calls.examined(machine)
    code += _answer([examined["clone3"]], _NO_SUCH_CALL)
    code += _examine(examined["clone"], 0, [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, _REFUSE)])
    # Only of oneself: the limits of others can be taken from them.
    code += _examine(examined["prlimit64"], 0, _equal(0))
    if families is not None:
        code += _examine(examined["socket"], 0, _only(families))
        # Unconnected ones can be sent from to any address.
        kinds = _only({socket.SOCK_STREAM, socket.SOCK_SEQPACKET})
        code += _examine(examined["socketpair"], 1, [(_AND, 0, 0, _TYPE_MASK), *kinds])
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _own_pace(machine: str) -> list[Instruction]:
    """Without a process namespace there are others to slow down."""
    code: list[Instruction] = []
    for number in system_calls.paces(machine).values():
        code += _examine(number, 0, _equal(0))
    kinds = system_calls.paces_of_kinds(machine)
    for name, kind in (("setpriority", _PRIO_PROCESS), ("ioprio_set", _IOPRIO_WHO_PROCESS)):
        code += _examine(kinds[name], 0, [*_equal(kind), (_LOAD, 0, 0, _ARGUMENTS + 8), *_equal(0)])
    return code


def _equal(value: int) -> list[Instruction]:
    """Refuse what is not this value, else go on behind."""
    return [(_EQUAL, 1, 0, value), (_RETURN, 0, 0, _REFUSE)]


def _answer(numbers: Iterable[int], value: int) -> list[Instruction]:
    """Return ``value`` for each of the calls, else go on behind."""
    sorted_numbers = sorted(numbers)
    last = len(sorted_numbers) - 1
    tests = [(_EQUAL, last - at, int(at == last), number) for at, number in enumerate(sorted_numbers)]
    return [*tests, (_RETURN, 0, 0, value)]


def _examine(number: int, argument: int, tests: list[Instruction]) -> list[Instruction]:
    """For this call: load the lower half of an argument, run ``tests``, allow; else go on behind."""
    load = (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
    block = [load, *tests, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(block), number), *block]


def _only(values: Iterable[int]) -> list[Instruction]:
    """Refuse what is none of the values."""
    sorted_values = sorted(values)
    count = len(sorted_values)
    tests = [(_EQUAL, count - at, 0, value) for at, value in enumerate(sorted_values)]
    return [*tests, (_RETURN, 0, 0, _REFUSE)]
