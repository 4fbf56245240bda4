"""The filter of system calls: each number is the kernel's, each verdict is what was meant."""

from __future__ import annotations

import errno
import platform
import re
import socket
import struct
from pathlib import Path

import pytest

from corerun.errors import InfrastructureError
from corerun_sandboxes import seccomp, system_calls

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


@pytest.fixture(params=list(system_calls.MACHINES))
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    seccomp.program.cache_clear()
    request.addfinalizer(seccomp.program.cache_clear)
    return str(request.param)


def verdict(program: bytes, machine: str, number: int, *arguments: int, architecture: int = 0) -> int:
    """What the filter answers, by the rules of classic BPF."""
    words = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, architecture or system_calls.MACHINES[machine], 0, *words)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, value = 0, 0
    while True:
        operation, on_true, on_false, constant = code[at]
        at += 1
        if operation == 0x06:
            return int(constant)
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x54:
            value &= constant
        else:
            tests = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}
            at += on_true if tests[operation] else on_false


def test_every_call_is_answered_as_meant(machine: str) -> None:
    free, strict = seccomp.program(), seccomp.program(frozenset(), namespaced=False)
    refused = ERRNO | errno.EPERM
    for number in system_calls.refused(machine).values():
        assert verdict(free, machine, number) == verdict(strict, machine, number) == refused
    alone = {**system_calls.owner_changes(machine), **system_calls.lasting(machine)}
    for number in alone.values():
        assert (verdict(free, machine, number), verdict(strict, machine, number)) == (ALLOW, refused)
    for number in system_calls.mode_changes(machine).values():
        assert (verdict(free, machine, number), verdict(strict, machine, number)) == (ALLOW, ERRNO)
    special = set(system_calls.examined(machine).values())
    named = special | {
        *system_calls.refused(machine).values(),
        *alone.values(),
        *system_calls.mode_changes(machine).values(),
        *system_calls.paces(machine).values(),
        *system_calls.paces_of_kinds(machine).values(),
    }
    for number in set(range(600)) - named:
        assert verdict(strict, machine, number, 99, 99) == ALLOW


def test_calls_are_refused_by_their_arguments(machine: str) -> None:
    numbers = system_calls.examined(machine)
    free, none = seccomp.program(), seccomp.program(frozenset())
    internet = seccomp.program(frozenset({socket.AF_INET, socket.AF_INET6}))
    refused = ERRNO | errno.EPERM
    assert verdict(free, machine, numbers["clone3"]) == ERRNO | errno.ENOSYS
    assert verdict(free, machine, numbers["clone"], 17) == ALLOW
    for bit in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(free, machine, numbers["clone"], bit | 17) == refused
    assert verdict(free, machine, numbers["prlimit64"], 0) == ALLOW
    assert verdict(free, machine, numbers["prlimit64"], 1) == refused
    shared = seccomp.program(namespaced=False)
    for number in system_calls.paces(machine).values():
        assert verdict(free, machine, number, 7) == ALLOW
        assert verdict(shared, machine, number, 0) == ALLOW
        assert verdict(shared, machine, number, 7) == refused
    for number, kind in zip(system_calls.paces_of_kinds(machine).values(), (0, 1), strict=True):
        assert verdict(free, machine, number, 2, 7) == ALLOW
        assert verdict(shared, machine, number, kind, 0) == ALLOW
        assert verdict(shared, machine, number, kind, 7) == refused
        assert verdict(shared, machine, number, 2, 0) == refused
    families = {"free": free, "internet": internet, "none": none}
    answers = {
        name: [
            verdict(program, machine, numbers["socket"], family, 1) == ALLOW
            for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, 43)
        ]
        for name, program in families.items()
    }
    assert answers == {
        "free": [True] * 5,
        "internet": [False, True, True, False, False],
        "none": [False] * 5,
    }
    kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM, socket.SOCK_RAW)
    flags = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    pairs = [verdict(none, machine, numbers["socketpair"], 1, kind | flags) == ALLOW for kind in kinds]
    assert pairs == [True, True, False, False]
    assert verdict(free, machine, numbers["socketpair"], 1, socket.SOCK_DGRAM) == ALLOW


def test_other_calling_conventions_are_refused(machine: str) -> None:
    program = seccomp.program()
    refused = ERRNO | errno.EPERM
    assert verdict(program, machine, 1, architecture=0x40000003) == refused
    if machine == "x86_64":
        assert verdict(program, machine, 39 | system_calls.X32) == refused


def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    header = next((path for path in map(Path, HEADERS[machine]) if path.exists()), None)
    if header is None:
        pytest.skip("needs the kernel's headers")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE)
    known = {name: int(number) for name, number in found}
    ours = {
        **system_calls.refused(machine),
        **system_calls.owner_changes(machine),
        **system_calls.lasting(machine),
        **system_calls.mode_changes(machine),
        **system_calls.examined(machine),
    }
    # Calls that are newer than the headers.
    newer = {name for name, number in ours.items() if number > max(known.values())}
    assert {name: known.get(name) for name in ours.keys() - newer} == {
        name: number for name, number in ours.items() if name not in newer
    }
    assert len(ours) - len(newer) > 60


def test_an_unknown_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    seccomp.program.cache_clear()
    assert not seccomp.supported()
    with pytest.raises(InfrastructureError, match="no system call filter for vax"):
        seccomp.program()
