"""`python -m benchmarks.supervision`: what it costs to run, limit, watch and drain foreign programs."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, report, tell, tell_machine
from benchmarks.search_runs import own_cpu_s
from corerun.execution import cgroups, processes
from corerun.execution.cgroups import Group
from corerun.execution.local import LocalSandbox
from corerun.execution.watchdog import Watch, watchdog
from corerun.interfaces import ExecRequest, Limits, Policy

_FLOOD = (
    "import os\nblock = b'0123456789abcdef' * 4096\n"
    "for _ in range({count}):\n"
    "    view = memoryview(block)\n    while view: view = view[os.write(1, view):]\n"
)
_MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.supervision", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works")
    parser.add_argument("--place", help="folder for workspaces (default: that for temporary files)")
    options = parser.parse_args(arguments)
    tell_machine()
    programs, megabytes, small, watched, seconds = (
        (3, 4, 10, 50, 1.0) if options.quick else (20, 200, 300, 1000, 20.0)
    )
    with tempfile.TemporaryDirectory(prefix="corerun-bench-", dir=options.place) as folder:
        grown_mb, flood_s = asyncio.run(flood(Path(folder), programs, megabytes))
        each_s = asyncio.run(one_after_another(Path(folder), small))
        watching = asyncio.run(watch(Path(folder) / "watched", watched, seconds))
    group_s = make_groups(small)
    held = ", ".join(sorted(cgroups.guarantees())) or "nothing"
    tell(f"control groups hold {held}; {programs} programs wrote {megabytes} MB each")
    report(
        "supervision",
        [
            Figure("memory grown per program that floods its output", grown_mb / programs, "MB", 8),
            Figure("CPU per 100 MB of output", flood_s / (programs * megabytes) * 100, "s", 0.5),
            Figure("CPU of this process per program", each_s * 1e3, "ms", 10),
            Figure("of that, its control groups", group_s * 1e3, "ms", 0.5),
            Figure(f"watching {watched} calm programs without control groups", watching, "of a core", 0.2),
        ],
    )


async def flood(folder: Path, programs: int, megabytes: int) -> tuple[float, float]:
    """MB that this process grew, and CPU seconds of it, while all programs write at once."""
    requests = {
        f"{number}": ExecRequest(code=_FLOOD.format(count=16 * megabytes)) for number in range(programs)
    }
    Path("/proc/self/clear_refs").write_text("5")
    before_mb, cpu_s = _peak_mb(), own_cpu_s()
    totals = await asyncio.gather(*(_run(folder / name, request) for name, request in requests.items()))
    if set(totals) != {megabytes * _MIB}:
        raise SystemExit(f"output was lost: {totals}")
    return _peak_mb() - before_mb, own_cpu_s() - cpu_s


async def one_after_another(folder: Path, programs: int) -> float:
    """CPU seconds of this process per program that does nothing."""
    request = ExecRequest(kind="argv", argv=("/bin/true",))
    await _run(folder / "small", request)
    cpu_s = own_cpu_s()
    for _ in range(programs):
        await _run(folder / "small", request)
    return (own_cpu_s() - cpu_s) / programs


async def _run(workspace: Path, request: ExecRequest) -> int:
    session = await LocalSandbox().open(Policy(), str(workspace))
    result = await session.run(request)
    if result.status != "ok":
        raise SystemExit(f"a program came to no good end: {result}")
    return result.stdout_bytes


async def watch(folder: Path, programs: int, seconds: float) -> float:
    """The share of a core that it takes to watch so many programs, of which a few stand for all."""
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}").write_text("x")
    sleepers = [subprocess.Popen(["/bin/sleep", "1000"]) for _ in range(min(programs, 50))]
    try:
        watches = [
            Watch(
                partial(processes.descendants, sleepers[number % len(sleepers)].pid),
                Limits(),
                1000,
                str(folder),
                lambda limit, sentence: None,
                Group(()),
            )
            for number in range(programs)
        ]
        for one in watches:
            watchdog().add(one)
        # What a look costs has to be seen once.
        await asyncio.sleep(1)
        cpu_s, began = own_cpu_s(), time.perf_counter()
        await asyncio.sleep(seconds)
        share = (own_cpu_s() - cpu_s) / (time.perf_counter() - began)
        for one in watches:
            watchdog().remove(one)
        return share
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def make_groups(programs: int) -> float:
    """CPU seconds per program for its control groups, from their making to their removal."""
    cgroups.guarantees()
    cpu_s = own_cpu_s()
    for _ in range(programs):
        group = cgroups.make(uuid.uuid4().hex, 1000, 100)
        group.let_go()
        group.close()
    return (own_cpu_s() - cpu_s) / programs


def _peak_mb() -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
