"""bfts: a tree search in which a model writes experiment programs, runs them and learns from scores."""

from __future__ import annotations

from collections.abc import Iterable

from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_jobs() -> Iterable[Component]:
    return (
        Component("bfts", "corerun_bfts.job:ExperimentSearch", "experiment search in four stages"),
        Component("plots", "corerun_bfts.plots_job:PlotAggregation", "a finished run's figures, drawn again"),
    )


@hookimpl
def corerun_strategies() -> Iterable[Component]:
    return (Component("bfts", "corerun_bfts.strategy:Bfts", "best-first tree search over several roots"),)


@hookimpl
def corerun_commands() -> Iterable[Component]:
    return (
        Component("plots", "corerun_bfts.plots_command:command", "aggregate a finished run's plots again"),
    )
