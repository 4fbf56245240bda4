"""`python -m benchmarks.startup`: CPU of the light commands, against a bare interpreter of the same run."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import Figure, Peer, report, tell, tell_machine
from benchmarks.imports import compile_packages
from corerun.testing.plugins import write_plugin

COMMANDS = (
    ("corerun --version", ("--version",), 2.0),
    ("corerun --help", ("--help",), 7.0),
    ("corerun plugins list", ("plugins", "list"), 9.0),
    ("corerun plugins list with 50 broken plugins", ("plugins", "list"), 9.0),
)
TOOLS = {
    "hatch": {"corerun --version": ("--version",), "corerun --help": ("--help",)},
    "llm": {
        "corerun --version": ("--version",),
        "corerun --help": ("--help",),
        "corerun plugins list": ("plugins",),
    },
    "pytest": {"corerun --version": ("--version",), "corerun --help": ("--help",)},
}
"""Peers, and what each of them is asked for the same thing."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pairs: shows that it works")
    parser.add_argument("--pairs", type=int, default=31, help="pairs of runs per command (default 31)")
    parser.add_argument(
        "--peer", choices=TOOLS, default="hatch", help="run it beside, if installed (default hatch)"
    )
    options = parser.parse_args(arguments)
    tell_machine()
    compile_packages()
    with tempfile.TemporaryDirectory(prefix="corerun-bench-") as place:
        report("startup", measure(Path(place), 3 if options.quick else options.pairs, options.peer))


def measure(place: Path, pairs: int, tool: str) -> list[Figure]:
    """One figure per command; peers are timed against the same bare interpreter."""
    broken = place / "broken"
    for number in range(50):
        write_plugin(broken, f"broken_{number}", "import no_such_module_at_all")
    version = installed(tool)
    figures = []
    for what, arguments, goal in COMMANDS:
        path = {"PYTHONPATH": str(broken)} if "broken" in what else {}
        value = ratio(["corerun", *arguments], pairs, path)
        asked = TOOLS[tool].get(what) if version else None
        peer_value = ratio([tool, *asked], pairs) if asked else None
        tell(f"{what}: {value:.2f} x" + ("" if peer_value is None else f", {tool} {peer_value:.1f} x"))
        figures.append(Figure(what, value, "x python -c pass", goal, peer=Peer(tool, version, peer_value)))
    return figures


def installed(tool: str) -> str | None:
    """The version of a peer, None where it isn't installed."""
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return None


def ratio(module: Sequence[str], pairs: int, more: Mapping[str, str] | None = None) -> float:
    """Median over pairs of the CPU of ``python -m module`` by that of ``python -c pass`` before it."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CORERUN_")}
    environ |= more or {}
    command = [sys.executable, "-P", "-m", *module]
    cpu_s(command, environ)  # fills the caches of the disk
    bare = [sys.executable, "-P", "-c", "pass"]
    found = []
    for _ in range(pairs):
        floor = cpu_s(bare, environ)
        found.append(cpu_s(command, environ) / floor)
    return statistics.median(found)


def cpu_s(command: Sequence[str], environ: Mapping[str, str]) -> float:
    """CPU seconds of one process, user and system. A failing command ends the measurement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-300:]}")
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


if __name__ == "__main__":
    main()
