"""Takes from this process what a program must not have, as a launch says.

A launch is JSON: ``kind``, ``parent`` (pid or null), ``folder``, ``command``, ``result``
(descriptor), ``limits`` ({name: [soft, hard]}), ``groups`` (descriptors of cgroup.procs files),
``status`` (descriptor: this process is the first of a process namespace), ``landlock``
({ruleset: descriptor, own: access}), ``capabilities`` (false: none is kept), ``seccomp`` (a BPF program
in hex).
"""

from __future__ import annotations

import os
import resource

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def join_groups(launch: Any) -> None:
    """Put this process, and so all that it will start, into its control groups."""
    for descriptor in launch["groups"]:
        os.write(descriptor, b"0")
        os.close(descriptor)


def confine(launch: Any) -> None:
    """Limits, working folder, and at last what can't be undone."""
    for name, (soft, hard) in launch["limits"].items():
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(number, (soft, hard))
    os.umask(0o077)
    os.chdir(launch["folder"])
    if launch.get("capabilities") is False:
        kernel.drop_capabilities()
    landlock = launch.get("landlock")
    if landlock:
        ruleset = landlock["ruleset"]
        # The only process whose facts it may read is itself, so the rule can't be made before.
        kernel.allow_path(ruleset, "/proc/self", landlock["own"])
        kernel.restrict_paths(ruleset)
        os.close(ruleset)
    if launch.get("seccomp"):
        kernel.filter_system_calls(bytes.fromhex(launch["seccomp"]))
