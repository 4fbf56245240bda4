"""Runs many small programs quickly: each is a fork of one process that has the heavy imports behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

_SERVER = """
import json, os, sys
import matplotlib.pyplot
import numpy
import sklearn.datasets

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(request["cwd"])
        os.environ["CORERUN_SEED"] = str(request["seed"])
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        raised = ""
        try:
            exec(compile(open("program.py").read(), "program.py", "exec"), {"__name__": "__main__"})
        except BaseException as error:
            raised = type(error).__name__
            print(f"{raised}: {error}")
        open("raised.txt", "w").write(raised)
        sys.stdout.flush()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(json.dumps(status), flush=True)
"""


class WarmPython:
    """A context manager; `run` leaves ``output.txt`` and whatever the program wrote in the folder."""

    def __enter__(self) -> WarmPython:
        settings = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")} | {"MPLBACKEND": "Agg"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, code: str, folder: Path, seed: int = 0) -> str:
        """Runs the code in the folder; the name of the exception it ended with, "" without one."""
        assert self._process.stdin and self._process.stdout
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "program.py").write_text(code)
        self._process.stdin.write(json.dumps({"cwd": str(folder), "seed": seed}) + "\n")
        self._process.stdin.flush()
        assert json.loads(self._process.stdout.readline()) == 0, "the program died"
        return (folder / "raised.txt").read_text()
