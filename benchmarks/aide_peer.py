"""Runs AIDE (PyPI aideml) beside corerun where an interpreter has it, on the same sizes of answers."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Peer, tell

NAME = "AIDE"
DRIVER = Path(__file__).with_name("aide_driver.py")


@dataclass(frozen=True, slots=True)
class Aide:
    """What AIDE came to; None where it wasn't run. ``bytes_per_node``: what the last node wrote."""

    version: str | None = None
    import_s: float | None = None
    cpu_s: float | None = None
    bytes_per_node: float | None = None

    def peer(self, value: float | None) -> Peer | None:
        """The figure's peer, or None without AIDE."""
        return None if self.version is None else Peer(NAME, self.version, value)


def measure_aide(python: str | None, nodes: int) -> Aide:
    """Let AIDE do ``nodes`` steps with a model and an interpreter that answer at once."""
    if python is None:
        return Aide()
    done = subprocess.run(
        [python, "-W", "ignore", str(DRIVER), str(nodes)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        tell(f"AIDE is left out: {done.stderr.strip().splitlines()[-1:]}")
        return Aide()
    aide = Aide(**json.loads(done.stdout.splitlines()[-1]))
    tell(f"{NAME} {aide.version}, {nodes} steps: {aide}")
    return aide
