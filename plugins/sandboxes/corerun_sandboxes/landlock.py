"""The sandbox ``landlock``: rules of the kernel that a program's process takes on itself."""

from __future__ import annotations

import functools
import os
import socket
from contextlib import ExitStack

from corerun.errors import InfrastructureError
from corerun.execution.enclosure import Enclosure, Place
from corerun.execution.session import ProgramSession
from corerun.interfaces import Policy, Probe
from corerun_sandboxes import landlock_abi as abi
from corerun_sandboxes import seccomp
from corerun_sandboxes.trying import Found, try_sandbox
from corerun_sandboxes.view import gpu_devices, readable, system_paths

STRENGTH = 20

_FACTS = (
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc/loadavg", "/proc/version"),
    *("/proc/filesystems", "/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu"),
)
"""What libraries want to know of the machine."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK})


class LandlockSandbox:
    """Runs programs as children of this process that can't open, connect to or signal what is outside."""

    name = "landlock"

    def probe(self) -> Probe:
        """Run a tiny program, once per process."""
        return _probe()

    async def open(self, policy: Policy, workspace: str) -> ProgramSession:
        """A session in ``workspace``, which is made when the first program runs."""
        return ProgramSession(self.name, self.probe(), policy, workspace, enclose)


def enclose(place: Place, held: ExitStack) -> Enclosure:
    """Make the rules here, since the paths may be out of the program's reach; it puts them on itself."""
    network = place.network == "host"
    ruleset = abi.new_ruleset(network=network)
    held.callback(os.close, ruleset)
    for path in (*system_paths(), *readable(place.read), *_FACTS):
        abi.allow(ruleset, path, abi.READ)
    for path in (*_DEVICES, *gpu_devices(place.gpus)):
        abi.allow(ruleset, path, abi.USE_DEVICE)
    abi.allow(ruleset, place.folder, abi.READ | abi.WRITE)
    # No socket at all: the kernel's rules cover neither UDP nor sockets that are files.
    families = _INTERNET if network else frozenset[int]()
    return Enclosure(
        inherited=(ruleset,),
        rules={
            "landlock": {"ruleset": ruleset, "own": abi.READ_FILE | abi.READ_FOLDER},
            "capabilities": False,
            "seccomp": seccomp.program(families, namespaced=False).hex(),
        },
    )


@functools.cache
def _probe() -> Probe:
    version = abi.version()
    if not version:
        return Probe(ok=False, reason="kernel ABI 0 (needs Linux 5.13 with landlock among the lsm= modules)")
    if not seccomp.supported():
        return Probe(ok=False, reason="no system call filter for this machine's processor")
    try:
        found = try_sandbox(enclose)
    except InfrastructureError as error:
        found = Found(failure=str(error))
    if found.failure:
        return Probe(ok=False, reason=f"kernel ABI {version}: {found.failure}")
    guarantees = found.guarantees
    if version < abi.ABI_TRUNCATE:
        guarantees -= {"fs_write", "disk_total"}
    return Probe(ok=True, reason=f"kernel ABI {version}", guarantees=guarantees, strength=STRENGTH)
