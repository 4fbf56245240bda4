"""`python -m benchmarks.durability`: what it costs a run that nothing of it is lost."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, report, tell, tell_machine
from benchmarks.search_runs import SearchRun, own_cpu_s, search
from benchmarks.stand_in import FakeModel
from corerun.runs import events as kinds
from corerun.runs import io
from corerun.runs.audit import audit
from corerun.runs.journal import Journal, digest
from corerun.runs.lock import RunLock

# Where files cost least: what other work a disk has is no part of the figures.
MEMORY = "/dev/shm"
PROGRAM_S = 1.0
"""Seconds that the program of a fast, but real node takes."""
WORKERS = 4


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.durability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works")
    parser.add_argument(
        "--repeats", type=int, default=5, help="times that the records are written (default 5)"
    )
    parser.add_argument("--disk", help="a folder on a disk, for what is told of `durability: power`")
    options = parser.parse_args(arguments)
    tell_machine()
    nodes, slow, repeats = (30, 8, 2) if options.quick else (1000, 80, options.repeats)
    with ExitStack() as opened:
        memory, disk = (
            Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="corerun-bench-", dir=place)))
            for place in (MEMORY if os.path.isdir(MEMORY) else None, options.disk)
        )
        fast = asyncio.run(
            search(memory / "fast", FakeModel(), {"stage1_max_iters": nodes, "order": [1]}, workers=WORKERS)
        )
        began = time.perf_counter()
        model = FakeModel(program_s=PROGRAM_S)
        asyncio.run(search(memory / "slow", model, {"stage1_max_iters": slow, "order": [1]}, workers=WORKERS))
        report("durability", measure(fast, (time.perf_counter() - began) / slow, memory, disk, repeats))


def measure(run: SearchRun, node_s: float, memory: Path, disk: Path, repeats: int) -> list[Figure]:
    """Write the records of a finished run once more, and nothing else, and hold that against a node."""
    nodes = len(run.done)
    blobs = {path.name: path.read_bytes() for path in (run.directory / "blobs").iterdir()}
    costs = [rewrite(run, blobs, memory / f"{number}") for number in range(repeats)]
    cpu_s, waited_s = (statistics.median(values) / nodes for values in zip(*costs, strict=True))
    tell(f"{len(run.events)} records and {len(blobs)} blobs of {nodes} nodes; a node takes {node_s:.3f} s")
    for durability in ("kill", "power"):
        cpu, waited = (value / nodes for value in rewrite(run, blobs, disk / durability, durability))
        tell(f"on a disk, durability {durability}: {cpu * 1e3:.1f} ms CPU, {waited * 1e3:.1f} ms per node")
    return [
        Figure("CPU of journal, blobs, audit chain and lock", cpu_s, "s/node", 0.002),
        Figure(
            f"time in them, of the wall time of nodes of {PROGRAM_S:g} s on {WORKERS} workers",
            waited_s / node_s,
            "share",
            0.01,
        ),
    ]


def rewrite(
    run: SearchRun, blobs: Mapping[str, bytes], place: Path, durability: str = "kill"
) -> tuple[float, float]:
    """CPU seconds of the process, and seconds that its one thread was held up."""
    io.make_folder(place / "blobs")
    cpu_s, began = own_cpu_s(), time.perf_counter()
    lock = RunLock(place)
    log = Journal(place, durability=durability)
    last = ""
    for event in run.events:
        for name in _blobs_of(event.data):
            io.store_blob(log.blobs, blobs[name])
        data = {**event.data, "prev": last} if event.type == kinds.EXECUTION_DONE else event.data
        written = log.emit(event.type, data)
        if event.type == kinds.EXECUTION_DONE:
            last = digest(written)
    log.close()
    lock.release()
    waited_s, cpu_s = time.perf_counter() - began, own_cpu_s() - cpu_s
    if audit(log.events)["findings"]:
        raise SystemExit("the audit chain of the records doesn't hold")
    return cpu_s, waited_s


def _blobs_of(data: Mapping[str, Any]) -> list[str]:
    texts = [data.get(name) for name in ("stdout", "stderr")]
    return [
        *([data["prompt"]] if "prompt" in data else ()),
        *(text["$text"] for text in texts if isinstance(text, Mapping)),
    ]


if __name__ == "__main__":
    main()
