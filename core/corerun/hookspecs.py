"""Every extension point of corerun, on one page.

A plugin is an installed package with one entry point in the group ``corerun.plugins``. Its module
implements some of these hooks, each marked with ``@corerun.hookimpl``. All hooks have one shape:
no argument, and an iterable of `corerun.interfaces.Component` as the answer. A component names
its target as ``"module:attribute"``, so that listing imports nothing heavy. Which component is
used is decided by its *name* in a flag or in the configuration, never by the order of hooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from corerun.interfaces import Component

hookspec = pluggy.HookspecMarker("corerun")


@hookspec
def corerun_providers() -> Iterable[Component]:
    """Ways to reach models: targets are `corerun.interfaces.Provider` classes.

    A model string ``NAME::model`` chooses the provider NAME. Since 0.1.
    """
    return ()


@hookspec
def corerun_operators() -> Iterable[Component]:
    """Steps of workflows: targets are `corerun.interfaces.Operator` classes. Since 0.1."""
    return ()


@hookspec
def corerun_rewards() -> Iterable[Component]:
    """Parts of a reward: targets are `corerun.interfaces.Reward` classes. Since 0.1."""
    return ()


@hookspec
def corerun_strategies() -> Iterable[Component]:
    """Search strategies: targets are `corerun.interfaces.Strategy` classes.

    The class is called with its settings, a mapping. Since 0.1.
    """
    return ()


@hookspec
def corerun_stages() -> Iterable[Component]:
    """Stages of a repository contract: targets are `corerun.interfaces.Stage` classes. Since 0.1."""
    return ()


@hookspec
def corerun_jobs() -> Iterable[Component]:
    """What ``corerun --plugin NAME run`` runs: targets are `corerun.interfaces.Job` classes.

    Since 0.1.
    """
    return ()


@hookspec
def corerun_sandboxes() -> Iterable[Component]:
    """Inside what programs run: targets are `corerun.interfaces.Sandbox` classes. Since 0.1."""
    return ()


@hookspec
def corerun_executors() -> Iterable[Component]:
    """Where programs run: targets are `corerun.interfaces.Executor` classes.

    The class is called with the number of slots. Since 0.1.
    """
    return ()


@hookspec
def corerun_benchmarks() -> Iterable[Component]:
    """Problems with scores: targets are `corerun.interfaces.Benchmark` classes. Since 0.1."""
    return ()


@hookspec
def corerun_agents() -> Iterable[Component]:
    """Coding agents: targets are `corerun.interfaces.Agent` classes. Since 0.1."""
    return ()


@hookspec
def corerun_observers() -> Iterable[Component]:
    """Listeners on the journal, named in ``observers:``: targets are `Observer` classes. Since 0.1."""
    return ()


@hookspec
def corerun_commands() -> Iterable[Component]:
    """Extra verbs of a plugin (``corerun bfts plots``): targets are click commands. Since 0.1."""
    return ()


KINDS = (
    "providers",
    "operators",
    "rewards",
    "strategies",
    "stages",
    "jobs",
    "sandboxes",
    "executors",
    "benchmarks",
    "agents",
    "observers",
    "commands",
)
