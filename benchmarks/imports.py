"""What the search command costs before its first event."""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import corerun
import corerun_bfts
import corerun_recipes

# The journal's first record ends the process: what came before is the cost of the start.
UP_TO_FIRST_EVENT = """
import os, resource, sys
import corerun.runs.journal as journal

def emit(self, type, data):
    usage = resource.getrusage(resource.RUSAGE_SELF)
    os.write(1, str(usage.ru_utime + usage.ru_stime).encode())
    os._exit(0)

journal.Journal.emit = emit
from corerun.cli import main
sys.exit(main(["--plugin", "bfts", "run"]))
"""
BARE = """
import resource
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime)
"""


def compile_packages() -> None:
    """Compile our own packages; those of others were compiled when they were installed."""
    for package in (corerun, corerun_bfts, corerun_recipes):
        for folder in package.__path__:
            compileall.compile_dir(folder, quiet=2)


def import_cpu(pairs: int) -> float:
    """Median over pairs of runs: CPU seconds up to the first event, less those of a bare interpreter."""
    compile_packages()
    values = []
    with tempfile.TemporaryDirectory(prefix="corerun-bench-") as place:
        # The first one fills the caches of the disk.
        for _ in range(pairs + 1):
            start = _seconds([sys.executable, "-P", "-c", UP_TO_FIRST_EVENT], Path(place))
            bare = _seconds([sys.executable, "-P", "-c", BARE], Path(place))
            values.append(start - bare)
    return statistics.median(values[1:])


def _seconds(command: Sequence[str], place: Path) -> float:
    # A key would change which model is the default one.
    environ = {key: value for key, value in os.environ.items() if "API_KEY" not in key}
    done = subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True)
    try:
        return float(done.stdout)
    except ValueError:
        raise SystemExit(f"the command to measure failed: {done.stderr[-500:]}") from None
