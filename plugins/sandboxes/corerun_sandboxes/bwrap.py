"""The sandbox ``bwrap``: namespaces of its own for each program, made by bubblewrap without privileges."""

from __future__ import annotations

import functools
import os
import shutil
from contextlib import ExitStack

from corerun.errors import InfrastructureError
from corerun.execution.enclosure import Enclosure, Place, scratch_mb
from corerun.execution.session import ProgramSession
from corerun.execution.watchdog import default_memory_mb
from corerun.interfaces import Json, Policy, Probe
from corerun_sandboxes import seccomp
from corerun_sandboxes.trying import Found, try_sandbox
from corerun_sandboxes.view import gpu_devices, readable, system_links, system_paths

STRENGTH = 30
NOBODY = "65534"
_INSTALL = "apt install bubblewrap"
_ADVICE = {
    "RTM_NEWADDR": "no network namespace can be set up here, as in a container without NET_ADMIN",
    "make / slave": "mounts are refused, as in most containers; docker: --security-opt seccomp=unconfined",
    "namespace": "user namespaces are switched off; sysctl user.max_user_namespaces and "
    "kernel.unprivileged_userns_clone",
    "uid map": "user namespaces are refused here, as in most containers",
    "Unknown option": "bubblewrap 0.8 or newer is needed",
}
_SHOW_ALL_BELOW = ("--ro-bind", "--symlink")
_MIB = 1024 * 1024
_SETTINGS = ("acpi", "bus", "fs", "irq", "mtrr", "pressure", "scsi", "sys", "sysrq-trigger")
_FACTS_OF_THE_KERNEL = ("kcore", "keys", "kpagecount", "kpageflags", "slabinfo", "timer_list", "vmallocinfo")
"""What the superuser's account may write or read below /proc without any capability."""
_BASE = ("--unshare-all", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL")
_AS_ROOT = ("--unshare-user", "--uid", NOBODY, "--gid", NOBODY)


class BwrapSandbox:
    """Runs programs in namespaces of their own: other files, processes and networks don't exist there."""

    name = "bwrap"

    def probe(self) -> Probe:
        """Run a tiny program, once per process."""
        return _probe()

    async def open(self, policy: Policy, workspace: str) -> ProgramSession:
        """A session in ``workspace``, which is made when the first program runs."""
        return ProgramSession(self.name, self.probe(), policy, workspace, enclose)


def enclose(place: Place, held: ExitStack) -> Enclosure:
    """Start bubblewrap with its options in a memory file: a command line is public and short."""
    program = _program()
    if program is None:
        raise InfrastructureError(f"bwrap: not installed ({_INSTALL})")
    descriptor = os.memfd_create("bwrap", os.MFD_CLOEXEC)
    held.callback(os.close, descriptor)
    os.write(descriptor, b"".join(os.fsencode(word) + b"\0" for word in _options(place)))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return Enclosure((program, "--args", str(descriptor)), (descriptor,), _rules(place), namespace=True)


def _rules(place: Place) -> dict[str, Json]:
    rules: dict[str, Json] = {}
    if seccomp.supported():
        rules["seccomp"] = seccomp.program().hex()
    if os.geteuid() != 0:
        # Counted for the user namespace alone; its first process isn't the program's.
        most = place.limits.pids + 1
        rules["limits"] = {"RLIMIT_NPROC": (most, most)}
    return rules


def _options(place: Place) -> list[str]:
    words = [*_BASE, *(_AS_ROOT if os.geteuid() == 0 else ())]
    if place.network == "host":
        words.append("--share-net")
    above: list[tuple[str, str]] = []
    # By destination: so what lies below something else is mounted after it.
    for destination, option in sorted(_mounts(place).items(), key=lambda mount: mount[0].split("/")):
        while above and not destination.startswith(above[-1][0].rstrip("/") + "/"):
            above.pop()
        if option[0] == "--ro-bind" and above and above[-1][1] in _SHOW_ALL_BELOW:
            continue
        words.extend((*option, destination))
        above.append((destination, option[0]))
    # What is left to write are the workspace and the sized memory folders.
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/"]


def _mounts(place: Place) -> dict[str, tuple[str, ...]]:
    """Options by the destination that stands behind them."""
    memory_mb = place.limits.mem_mb or default_memory_mb(1)
    size = str(scratch_mb(place.limits, memory_mb) * _MIB)
    scratch = ("--perms", "1777", "--size", size, "--tmpfs")
    mounts: dict[str, tuple[str, ...]] = {
        path: ("--ro-bind", path) for path in (*system_paths(), *readable(place.read))
    }
    mounts |= {path: ("--symlink", target) for path, target in system_links().items()}
    mounts |= {path: ("--dir",) for path in ("/home", "/root", "/run") if path not in mounts}
    mounts |= {"/proc": ("--proc",), "/dev": ("--dev",), "/tmp": scratch, "/dev/shm": scratch}
    if os.geteuid() == 0:
        mounts |= {path: ("--ro-bind", path) for path in _below_proc(_SETTINGS)}
        mounts |= dict.fromkeys(_below_proc(_FACTS_OF_THE_KERNEL), ("--ro-bind", "/dev/null"))
    mounts |= {path: ("--dev-bind", path) for path in gpu_devices(place.gpus)}
    mounts[place.folder] = ("--bind", place.folder)
    return mounts


def _below_proc(names: tuple[str, ...]) -> list[str]:
    return [path for name in names if os.path.exists(path := f"/proc/{name}")]


@functools.cache
def _program() -> str | None:
    return shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin") or shutil.which("bwrap")


@functools.cache
def _probe() -> Probe:
    if _program() is None:
        return Probe(ok=False, reason=f"not installed ({_INSTALL})")
    try:
        found = try_sandbox(enclose)
    except InfrastructureError as error:
        found = Found(failure=str(error))
    if found.failure:
        return Probe(ok=False, reason=_explained(found.failure.removeprefix("bwrap: ")))
    return Probe(ok=True, reason="namespaces", guarantees=found.guarantees, strength=STRENGTH)


def _explained(message: str) -> str:
    """What bubblewrap said, and what there is to do about it."""
    advice = next((advice for words, advice in _ADVICE.items() if words in message), "")
    if _restricted_by_apparmor() and ("RTM_NEWADDR" in message or "map" in message or "namespace" in message):
        advice = "AppArmor refuses user namespaces; sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    return f"{message} ({advice})" if advice else message


def _restricted_by_apparmor() -> bool:
    try:
        with open("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") as file:
            return file.read().strip() == "1"
    except OSError:
        return False
