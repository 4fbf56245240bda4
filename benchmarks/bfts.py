"""`python -m benchmarks.bfts`: what the experiment search itself costs, beside models and programs."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.aide_peer import Aide, measure_aide
from benchmarks.figures import Figure, Peer, report, tell, tell_machine
from benchmarks.imports import import_cpu
from benchmarks.search_runs import (
    SearchRun,
    busy_share,
    calls_per_good_node,
    derived_bytes_per_node,
    journal_bytes_per_node,
    search,
)
from benchmarks.stand_in import FakeModel

# AI-Scientist-v2 isn't a package; these are its figures on a machine of this kind (commit defddb8).
SCIENTIST = ("AI-Scientist-v2", "defddb8")
BLOCK = 100
# A thousand nodes in half a minute make and remove files a hundred times as fast as a real search, and
# ext4 walks over every inode that was freed in the last minute before it gives out another one.
MEMORY = "/dev/shm"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.bfts", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works")
    parser.add_argument("--peer-python", help="interpreter that has aideml, to run AIDE beside it")
    parser.add_argument("--repeats", type=int, default=3, help="long runs for the engine's CPU (default 3)")
    parser.add_argument(
        "--place", help=f"where runs lie while they are measured (default {MEMORY}, if there)"
    )
    options = parser.parse_args(arguments)
    tell_machine()
    scratch = options.place or (MEMORY if os.path.isdir(MEMORY) else None)
    with tempfile.TemporaryDirectory(prefix="corerun-bench-", dir=scratch) as place:
        report("bfts", measure(Path(place), options))


def measure(place: Path, options: argparse.Namespace) -> list[Figure]:
    """All figures, in the order of the table of goals."""
    nodes = 30 if options.quick else 1000
    repeats = 1 if options.quick else options.repeats
    aide = measure_aide(options.peer_python, 20 if options.quick else 200)
    runs = [run_long(place / f"long{number}", nodes) for number in range(repeats)]
    return [
        *engine_figures(runs, nodes, aide),
        *bytes_figures(runs[0], place, aide),
        calls_figure(place / "stages", 3 if options.quick else 12, aide),
        busy_figure(place / "busy", quick=options.quick),
        import_figure(repeats, aide),
    ]


def run_long(place: Path, nodes: int) -> SearchRun:
    """One stage of ``nodes`` nodes; every program is a real process that ends at once."""
    run = asyncio.run(search(place, FakeModel(), {"stage1_max_iters": nodes, "order": [1]}))
    return run


def engine_figures(runs: Sequence[SearchRun], nodes: int, aide: Aide) -> list[Figure]:
    """CPU of the process that owns the run, per node, at several sizes; and how it grows."""
    figures = []
    for point in (n for n in (10, 100, 1000) if n <= nodes):
        value = statistics.median(run.cpu_around(point) for run in runs)
        figures.append(
            Figure(f"engine CPU per node around node {point}", value, "s", 0.015, peer=aide.peer(aide.cpu_s))
        )
    start = min(50, nodes // 3)
    size = min(BLOCK, nodes // 3)
    blocks = [
        statistics.median(run.cpu_between(first, first + size) for run in runs)
        for first in range(start, nodes - size + 1, size)
    ]
    middle = statistics.median(blocks)
    spread = max(abs(block / middle - 1) for block in blocks)
    tell(f"CPU s per node in blocks of {size} from node {start}: {_row(blocks)}")
    what = f"engine CPU from node {start} on, farthest block of {size} nodes from the middle one"
    figures.append(Figure(what, spread, "share", 0.2))
    whole = statistics.median(run.cpu_whole / nodes for run in runs)
    figures.append(Figure(f"CPU of a whole run of {nodes} nodes, derived files too", whole, "s/node", 0.015))
    return figures


def bytes_figures(run: SearchRun, place: Path, aide: Aide) -> list[Figure]:
    """Bytes per node beside code, outputs and texts of model calls, and how they grow."""
    nodes = len(run.done)
    point = min(200, nodes - 5)
    journal = journal_bytes_per_node(run, point)
    derived = derived_bytes_per_node(run, place / "derived", point)
    tell(f"bytes per node around node {point}: journal {journal:.0f}, derived files {derived:.0f}")
    first = min(50, nodes // 2)
    early, late = (journal_bytes_per_node(run, number) for number in (first, nodes))
    what = f"bytes written per node at node {point}, beside code, outputs and texts of model calls"
    growth = f"journal bytes per node at node {nodes} against node {first}"
    return [
        Figure(what, journal + derived, "B", 20_000, peer=aide.peer(aide.bytes_per_node)),
        Figure(growth, late / early, "ratio", 1.2),
    ]


def calls_figure(place: Path, limit: int, aide: Aide) -> Figure:
    """Model calls that a good node takes, over all four stages."""
    limits = {f"stage{number}_max_iters": limit for number in (1, 2, 3, 4)}
    run = asyncio.run(search(place, FakeModel(), limits))
    per_node, altogether = calls_per_good_node(run)
    tell(f"model calls per good node: {per_node:.2f}; with ideas, judgements and summaries {altogether:.2f}")
    return Figure("model calls per good node", per_node, "calls", 5, peer=Peer(*SCIENTIST, 10.3))


def busy_figure(place: Path, *, quick: bool) -> Figure:
    """Share of the worker slots in which a program runs, from the first program to the last ask."""
    nodes, mean_s = (10, 0.2) if quick else (80, 3.0)
    model = FakeModel(program_s=mean_s, sigma=0.8, latency_s=0.05 * mean_s)
    run = asyncio.run(search(place, model, {"stage1_max_iters": nodes, "order": [1]}, workers=4))
    to_last_ask, whole = busy_share(run, 4)
    tell(f"busy share of 4 workers, {nodes} nodes: {to_last_ask:.3f}, with the drain {whole:.3f}")
    what = "busy share of 4 workers, first program to last ask"
    return Figure(what, to_last_ask, "share", 0.97, "higher", Peer(*SCIENTIST, 0.55))


def import_figure(repeats: int, aide: Aide) -> Figure:
    """CPU from the start of the search command to its first event, less a bare interpreter."""
    return Figure(
        "import CPU of the search command", import_cpu(repeats + 2), "s", 0.6, peer=aide.peer(aide.import_s)
    )


def _row(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    main()
