"""Processes that race for a run, and owners that are gone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from corerun.runs.owner import Owner, this_process

RACER = """
import sys
from pathlib import Path
from corerun.errors import CorerunError
from corerun.runs.lock import RunLock

while line := sys.stdin.readline():
    folder, kind = line.split()
    try:
        lock = RunLock(Path(folder), kind=kind)
    except CorerunError as error:
        print(error.exit_code, error, flush=True)
    else:
        print("held", flush=True)
        sys.stdin.readline()
        lock.release()
        print("released", flush=True)
"""


class Racer:
    """A process that takes locks when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def racers(count: int) -> Iterator[list[Racer]]:
    with ExitStack() as all_of_them:
        made = [Racer() for _ in range(count)]
        for racer in made:
            all_of_them.callback(racer.end)
        yield made


def ended_process() -> Owner:
    """A process of this machine that has ended."""
    with racers(1) as [racer]:
        owner = replace(this_process(), pid=racer.process.pid)
    return owner


def elsewhere() -> Owner:
    return replace(this_process(), host="elsewhere", boot_id="another", pid=1)


def rebooted() -> Owner:
    return replace(this_process(), boot_id="of yesterday")
