"""`python -m benchmarks.execution`: what a program costs to start, cold and forked, in each sandbox."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, Peer, report, tell, tell_machine
from corerun.execution import zygotes
from corerun.execution.local import LocalSandbox
from corerun.interfaces import ExecRequest, Limits, Policy, Sandbox
from corerun_sandboxes import BwrapSandbox, LandlockSandbox

PROGRAMS = {
    "bare": "print(sum(range(50)))\n",
    "numpy": "import numpy as np\nprint((np.ones((50, 50)) @ np.ones((50, 50))).sum())\n",
    "plot": "import matplotlib.pyplot as plt\nprint(plt.get_backend())\n",
    "sklearn": "from sklearn.datasets import load_iris\nprint(load_iris().data.sum())\n",
    "torch": "import torch\nprint((torch.ones(64, 64) @ torch.ones(64, 64)).sum())\n",
}
"""One for each profile. They do next to nothing, so what is left is the start."""

GOALS_MS = {"bare": 10.0, "numpy": 10.0, "plot": 30.0, "sklearn": 30.0, "torch": 30.0}
OVERHEAD_MS = 15.0
WALL_MS = {"bare": 15.0, "numpy": 15.0, "plot": 50.0, "sklearn": 50.0, "torch": 50.0}

TRAIN = """\
import os
import numpy as np
import torch

torch.manual_seed(0)
x = torch.randn(512, 20)
y = x @ torch.randn(20, 1)
model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), 0.01)
losses = []
for epoch in range(20):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
os.makedirs("working", exist_ok=True)
data = {"made up": {"losses": {"train": losses}}}
np.save("working/experiment_data.npy", data, allow_pickle=True)
print(losses[-1])
"""
READ = """\
import json
import numpy as np

data = np.load("working/experiment_data.npy", allow_pickle=True).item()
with open("reading.json", "w") as file:
    json.dump(data, file)
"""
DRAW = """\
import matplotlib.pyplot as plt
import numpy as np

data = np.load("working/experiment_data.npy", allow_pickle=True).item()
plt.plot(data["made up"]["losses"]["train"])
plt.savefig("working/losses.png")
"""
NODE = (("torch", TRAIN), ("numpy", READ), ("plot", DRAW))
"""The three programs of a node of the experiment search: experiment, reader, plot."""

# One thread each, as programs get when as many run at once as there are cores.
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds of one program: processor time of all that ran for it, and the clock."""

    cpu_ms: float
    wall_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.execution", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few programs: shows that it works")
    parser.add_argument("--programs", type=int, default=200, help="forked programs of a kind (default 200)")
    options = parser.parse_args(arguments)
    tell_machine()
    scratch = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="corerun-bench-", dir=scratch) as place, processor_time() as cpu:
        report("execution", measure(Path(place), options, cpu))


@contextlib.contextmanager
def processor_time() -> Iterator[Callable[[], float]]:
    """A clock of the processor seconds of this process and of all that it starts.

    Only a control group sees the processes that a zygote forks. Without one (an ordinary account)
    the clock knows what this process waited for, and programs report their own share.
    """
    group = Path(f"/sys/fs/cgroup/cpuacct/corerun-bench-{os.getpid()}")
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        tell("no control group for processor time: forked programs are counted without their namespaces")
        yield _waited_for
        return
    try:
        yield lambda: int((group / "cpuacct.usage").read_text()) / 1e9
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def _waited_for() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure(place: Path, options: argparse.Namespace, cpu: Callable[[], float]) -> list[Figure]:
    """All figures, in the order of the table of goals."""
    bench = Bench(place, cpu)
    bench.fill_fonts()
    forked, cold = (2, 1) if options.quick else (options.programs, 10)
    bare = min(bench.interpreter() for _ in range(2 if options.quick else 20))
    tell(f"python -c pass: {bare:.1f} ms CPU")
    sandboxes: dict[str, Sandbox] = {
        "local": LocalSandbox(),
        "landlock": LandlockSandbox(),
        "bwrap": BwrapSandbox(),
    }
    sandboxes = {name: sandbox for name, sandbox in sandboxes.items() if sandbox.probe().ok}
    figures = []
    chosen = {name: PROGRAMS[name] for name in ("bare", "numpy")} if options.quick else PROGRAMS
    for profile, code in chosen.items():
        costs = {
            name: asyncio.run(
                bench.programs(sandbox, [(None, code)], cold if profile != "bare" else 2 * cold)
            )
            for name, sandbox in sandboxes.items()
        }
        for name, cost in costs.items():
            tell(f"{profile}, cold, {name}: {cost.cpu_ms:.1f} ms CPU, {cost.wall_ms:.1f} ms wall")
            if profile == "bare":
                what = f"cold start in {name}: CPU over that of python -c pass"
                figures.append(Figure(what, cost.cpu_ms - bare, "ms", OVERHEAD_MS))
        if "bwrap" not in sandboxes:
            continue
        warm = asyncio.run(bench.programs(sandboxes["bwrap"], [(profile, code)], forked))
        tell(f"{profile}, forked, bwrap: {warm.cpu_ms:.1f} ms CPU, {warm.wall_ms:.1f} ms wall")
        peer = Peer("the same program, cold", None, costs["bwrap"].cpu_ms)
        figures.append(
            Figure(
                f"CPU of a {profile} program forked in bwrap", warm.cpu_ms, "ms", GOALS_MS[profile], peer=peer
            )
        )
        figures.append(
            Figure(f"wall of a {profile} program forked in bwrap", warm.wall_ms, "ms", WALL_MS[profile])
        )
    if "bwrap" in sandboxes and not options.quick:
        figures.append(node_figure(bench, sandboxes["bwrap"]))
    return figures


def node_figure(bench: Bench, sandbox: Sandbox) -> Figure:
    """The three programs of one node of a search; each of them in the node's workspace."""
    cold_programs = [(None, code) for _, code in NODE]
    cold = asyncio.run(bench.programs(sandbox, cold_programs, 3))
    warm = asyncio.run(bench.programs(sandbox, list(NODE), 20))
    tell(f"a node's three programs: cold {cold.cpu_ms:.0f} ms CPU, {cold.wall_ms:.0f} ms wall")
    tell(f"a node's three programs: forked {warm.cpu_ms:.0f} ms CPU, {warm.wall_ms:.0f} ms wall")
    peer = Peer("the same programs, cold", None, cold.cpu_ms)
    return Figure("CPU of a node's three programs, forked in bwrap", warm.cpu_ms, "ms", 200.0, peer=peer)


class Bench:
    """Runs programs in workspaces below ``place`` and measures them with the clock ``cpu``."""

    def __init__(self, place: Path, cpu: Callable[[], float]) -> None:
        self._nodes = place / "nodes"
        self._fonts = place / "fonts"
        self._cpu = cpu

    def interpreter(self) -> float:
        """Milliseconds of processor time of an interpreter that does nothing."""
        before = self._cpu()
        subprocess.run([sys.executable, "-s", "-B", "-c", "pass"], check=True)
        return (self._cpu() - before) * 1000

    def fill_fonts(self) -> None:
        """Matplotlib's font cache, which a run makes once."""
        self._fonts.mkdir()
        command = [sys.executable, "-c", "import matplotlib.font_manager"]
        subprocess.run(command, check=True, env=os.environ | {"MPLCONFIGDIR": str(self._fonts)})

    async def programs(
        self, sandbox: Sandbox, programs: Sequence[tuple[str | None, str]], turns: int
    ) -> Cost:
        """The cost of one turn, in which the programs run one after another in a fresh workspace.

        Processor time is the mean over the turns, the clock's the median. What a zygote takes to start
        isn't in it: the first turn isn't counted.
        """
        fonts = {f".home/.cache/matplotlib/{path.name}": str(path) for path in self._fonts.glob("fontlist*")}
        walls = []
        before = 0.0
        for turn in range(turns + 1):
            if turn == 1:
                before = self._cpu()
            workspace = self._nodes / f"{turn % 4}"
            shutil.rmtree(workspace, ignore_errors=True)
            began = time.perf_counter()
            session = await sandbox.open(Policy(), str(workspace))
            for profile, code in programs:
                request = ExecRequest(
                    code=code,
                    preload=profile,
                    limits=Limits(wall_s=300.0, mem_mb=4096),
                    env=THREADS,
                    files=fonts if "matplotlib" in code else {},
                )
                result = await session.run(request)
                if result.status != "ok" or bool(result.sandbox.get("warm")) != (profile is not None):
                    raise SystemExit(f"{profile}: {result.status} {result.infra} {result.stderr[-500:]}")
            await session.close()
            walls.append(time.perf_counter() - began)
        spent = self._cpu() - before
        await zygotes.close()
        return Cost(spent / turns * 1000, statistics.median(walls[1:]) * 1000)


if __name__ == "__main__":
    main()
