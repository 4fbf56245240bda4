"""`python -m benchmarks.router`: what a model call costs in this process, beside other clients' calls."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Peer, report, tell, tell_machine
from benchmarks.imports import compile_packages

ROOT = Path(__file__).parents[1]
GOALS = {"corerun": {1: 1.5, 32: 0.9, 256: 0.9}, "corerun-sdk": {1: 4.0, 32: 3.5, 256: 3.5}}
"""CPU milliseconds per call, by calls at once."""
PEERS = {"corerun": "litellm", "corerun-sdk": "openai"}
"""The client that does about the same, in whose place one would stand for the other."""
NAMES = {"corerun": "direct transport", "corerun-sdk": "SDK transport"}
SLOW_S = 2
MANY = 256
# A thousand prompts a second make files a hundred times as fast as a real run; see `benchmarks.bfts`.
MEMORY = "/dev/shm"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.router", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few calls: shows that it works")
    parser.add_argument("--litellm-python", help="interpreter that has litellm, to run it beside")
    parser.add_argument(
        "--calls", type=int, default=1000, help="calls that are counted each time (default 1000)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which the best counts (default 3)")
    options = parser.parse_args(arguments)
    tell_machine()
    compile_packages()
    pythons = dict.fromkeys(("aiohttp", "corerun", "corerun-sdk", "openai"), sys.executable)
    if options.litellm_python:
        pythons["litellm"] = options.litellm_python
    with server() as address:
        if options.quick:
            report("router", measure(address, pythons, calls=20, repeats=1, sizes=(1, 8), many=8))
        else:
            sizes = (1, 32, MANY)
            report("router", measure(address, pythons, options.calls, options.repeats, sizes, MANY))


@contextmanager
def server() -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.router_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def measure(
    address: str,
    pythons: Mapping[str, str],
    calls: int,
    repeats: int,
    sizes: Sequence[int],
    many: int,
) -> list[Figure]:
    """All figures. Clients take turns, so that a busy machine is busy for all of them."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for size in sizes:
        for _ in range(repeats):
            for name, python in pythons.items():
                found.setdefault((name, size), []).append(run(python, name, f"{address}/0", size, calls))
        row = {name: f"{best(found[name, size], 'ms_per_call'):.2f}" for name in pythons}
        tell(f"CPU ms per call, {size} at once: {row}")
    last = {name: found[name, sizes[-1]] for name in pythons}
    figures = [
        Figure(
            f"CPU per call, {NAMES[name]}, {size} at once",
            best(found[name, size], "ms_per_call"),
            "ms",
            goals.get(size, goals[32]),
            peer=peer(found.get((PEERS[name], size)), PEERS[name], "ms_per_call"),
        )
        for name, goals in GOALS.items()
        for size in sizes
    ]
    waits = [run(pythons["corerun"], "corerun", f"{address}/{SLOW_S}", many, 0) for _ in range(repeats)]
    return [
        *figures,
        of_start(last, "CPU up to the first answer", "first_answer_cpu_s", "s", 0.6),
        of_start(last, "modules loaded at the first answer", "modules", "modules", 900),
        of_start(last, f"memory with {sizes[-1]} calls at once", "rss_mib", "MiB", 100),
        Figure(
            f"{many} calls at once to a server that takes {SLOW_S} s",
            best(waits, "first_round_s"),
            "s",
            4.0,
        ),
    ]


def of_start(
    last: Mapping[str, Sequence[dict[str, Any]]], what: str, key: str, unit: str, goal: float
) -> Figure:
    """A figure of the direct transport beside litellm's, the others on stderr."""
    tell(f"{what}: " + ", ".join(f"{name} {best(runs, key):.4g}" for name, runs in last.items()))
    return Figure(
        what, best(last["corerun"], key), unit, goal, peer=peer(last.get("litellm"), "litellm", key)
    )


def peer(runs: Sequence[dict[str, Any]] | None, name: str, key: str) -> Peer:
    """A peer's best value; None where it isn't installed."""
    return Peer(name, runs[0]["version"], best(runs, key)) if runs else Peer(name, None, None)


def best(runs: Sequence[dict[str, Any]], key: str) -> float:
    """The lowest value of several runs: what the work costs when nothing is in its way."""
    return min(float(found[key]) for found in runs)


def run(python: str, name: str, address: str, concurrency: int, calls: int) -> dict[str, Any]:
    """One client in a fresh process. A client that fails ends the measurement."""
    environ = {key: value for key, value in os.environ.items() if "API_KEY" not in key}
    if os.path.isdir(MEMORY):
        environ["TMPDIR"] = MEMORY
    done = subprocess.run(
        [
            python,
            "-m",
            "benchmarks.router_client",
            name,
            address,
            f"--concurrency={concurrency}",
            f"--calls={calls}",
        ],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
