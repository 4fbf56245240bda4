"""The sandbox ``local``: a child process with scrubbed environment, limits and tree kill.

It isolates nothing: a program reads and writes what this account can, and reaches the network.
"""

from __future__ import annotations

import functools
import os

from corerun.execution import cgroups, probing, processes
from corerun.execution.enclosure import no_enclosure
from corerun.execution.session import ProgramSession
from corerun.interfaces import Policy, Probe

STRENGTH = 10


class LocalSandbox:
    """Runs programs as children of this process."""

    name = "local"

    def probe(self) -> Probe:
        """Run a tiny program, once per process."""
        return _probe()

    async def open(self, policy: Policy, workspace: str) -> ProgramSession:
        """A session in ``workspace``, which is made when the first program runs."""
        return ProgramSession(self.name, self.probe(), policy, workspace, no_enclosure)


@functools.cache
def _probe() -> Probe:
    tried = probing.try_program(no_enclosure)
    if tried.failure:
        return Probe(ok=False, reason=tried.failure)
    guarantees = set(cgroups.guarantees())
    if tried.clean_environment:
        guarantees.add("env")
    if processes.become_subreaper() and os.path.exists("/proc/self/stat"):
        guarantees.add("tree_kill")
    if os.geteuid() != 0:
        # The superuser may raise its own hard limits.
        guarantees |= {"file_size", "mem_proc"}
    elif "mem_total" in guarantees:
        guarantees.add("mem_proc")
    return Probe(ok=True, reason="no isolation", guarantees=frozenset(guarantees), strength=STRENGTH)
