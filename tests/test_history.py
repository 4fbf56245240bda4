"""Writers that are killed, stopped and lied to by the clock: the journal against what they acknowledged."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from corerun.interfaces import Event
from corerun.runs import events as kinds
from corerun.runs.clock import STEP_S, StepWatch, since_boot
from corerun.runs.fold import fold
from corerun.runs.journal import Journal, read

WRITER = """
import json, random, sys, time
from pathlib import Path
from corerun.runs.journal import Journal
from corerun.runs.lock import RunLock

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
off = rng.choice((-3600.0, 0.0, 3600.0))

def clock():
    global off
    if rng.random() < 0.05:
        off = rng.choice((-3600.0, 0.0, 3600.0))
    return time.time() + off

lock = RunLock(folder)
log = Journal(folder, clock=clock)
while True:
    number = rng.getrandbits(64)
    size = 70_000 if rng.random() < 0.02 else rng.randrange(200)
    event = log.emit("step", {"number": number, "text": "x" * size})
    sys.stdout.write(f"{event.seq} {number}\\n")
    sys.stdout.flush()
"""


@dataclass
class History:
    """What writers, one after another, said that they had written, in the order in which they said it."""

    folder: Path
    said: list[tuple[int, int]]

    def write(self, seed: int, records: int, stops: int = 0) -> None:
        """Let a writer acknowledge so many records, and kill it. ``stops`` times it is stopped meanwhile."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", WRITER, str(self.folder), str(seed)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        rng = random.Random(seed)
        pauses = set(rng.sample(range(records), min(stops, records)))
        try:
            for count in range(records):
                line = process.stdout.readline()
                assert line.endswith(b"\n"), "the writer ended by itself"
                self.hear(line)
                if count in pauses:
                    self.stop_for_a_while(process)
        finally:
            process.kill()
            rest, _ = process.communicate()
        # The kill may have cut the last word off.
        for line in rest.splitlines(keepends=True):
            if line.endswith(b"\n"):
                self.hear(line)

    def stop_for_a_while(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        before = (self.folder / "events.jsonl").stat().st_size
        select.select([], [], [], STOPPED_S)
        assert (self.folder / "events.jsonl").stat().st_size == before
        process.send_signal(signal.SIGCONT)

    def hear(self, line: bytes) -> None:
        seq, number = line.split()
        self.said.append((int(seq), int(number)))

    def check(self) -> list[Event]:
        """All that was acknowledged is there, at its place, once; numbers rise one by one."""
        events, _ = read(self.folder / "events.jsonl")
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        steps = {event.seq: event.data["number"] for event in events if event.type == "step"}
        assert len(set(steps.values())) == len(steps)
        assert [seq for seq, _ in self.said] == sorted({seq for seq, _ in self.said})
        assert [(seq, steps.get(seq)) for seq, _ in self.said] == self.said
        return events


STOPPED_S = 0.05


def test_what_was_acknowledged_is_there_in_order_and_once(tmp_path: Path) -> None:
    history = History(tmp_path, [])
    for seed in range(6):
        history.write(seed, records=60, stops=1)
    events = history.check()
    times = [event.t for event in events]
    assert times != sorted(times), "the clock did not jump"


@pytest.mark.soak
def test_what_was_acknowledged_is_there_after_a_long_chaos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.STOPPED_S", 30.0)
    history = History(tmp_path, [])
    for seed in range(200):
        history.write(seed, records=random.Random(seed).randrange(1, 400), stops=int(seed % 70 == 0))
        if seed % 20 == 19:
            history.check()


# ---------------------------------------------------------------------------------------- clock steps


class Clocks:
    """A wall clock that can be set, and the time that passes."""

    def __init__(self) -> None:
        self.wall_s = 1_800_000_000.0
        self.passed_s = 50.0

    def wall(self) -> float:
        return self.wall_s

    def passed(self) -> float:
        return self.passed_s

    def go(self, seconds: float) -> None:
        self.wall_s += seconds
        self.passed_s += seconds


def test_each_step_is_told_once() -> None:
    clocks = Clocks()
    watch = StepWatch(clocks.wall, clocks.passed)
    told = []
    for step in (0.0, 3600.0, 0.0, -7200.0, 0.0, STEP_S, 0.0, STEP_S + 0.1):
        clocks.go(600)
        clocks.wall_s += step
        told.append(round(watch.step(), 3))
    assert told == [0.0, 3600.0, 0.0, -7200.0, 0.0, 0.0, 0.0, round(2 * STEP_S + 0.1, 3)]


def test_a_clock_that_drifts_is_told_of_when_it_is_off_and_not_before() -> None:
    clocks = Clocks()
    watch = StepWatch(clocks.wall, clocks.passed)
    told = []
    for _ in range(12):
        clocks.go(600)
        clocks.wall_s += 1.0
        told.append(watch.step())
    assert [round(step) for step in told] == [0, 0, 0, 0, 0, 6] * 2


def test_a_clock_that_was_set_back_between_two_processes_is_told_of() -> None:
    clocks = Clocks()
    ahead = StepWatch(clocks.wall, clocks.passed, last=clocks.wall_s + 100)
    assert (round(ahead.step()), ahead.step()) == (-100, 0.0)
    for last in (clocks.wall_s - 1_000_000, clocks.wall_s + 1, None):
        assert StepWatch(clocks.wall, clocks.passed, last=last).step() == 0.0


def test_time_passes_while_nobody_can_set_it() -> None:
    first = since_boot()
    while since_boot() == first:
        pass
    assert since_boot() > first
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert since_boot() >= uptime


def records(folder: Path, wall: list[float]) -> list[dict[str, Any]]:
    """The journal of steps between which the clock shows these times, while next to no time passes."""
    times = iter(wall)
    now = next(times)
    log = Journal(folder, clock=lambda: now)
    for now in times:  # noqa: B007
        log.emit("step", {})
    log.close()
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_step_of_the_clock_is_a_warning_before_the_next_record(tmp_path: Path) -> None:
    start = 1_800_000_000.0
    found = records(tmp_path, [start, start, start + 3600, start + 3600, start, start])
    assert [record["type"] for record in found] == [
        "step",
        "warning",
        "step",
        "step",
        "warning",
        "step",
        "step",
    ]
    forward, back = (record["data"] for record in found if record["type"] == "warning")
    assert forward["message"] == (
        "the clock of this machine was set forward by 3600 s; times in this run jump there"
    )
    assert "set back by 3600 s" in back["message"]
    assert [round(word["clock_step_s"]) for word in (forward, back)] == [3600, -3600]
    assert [record["seq"] for record in found] == list(range(1, 8))


def test_a_set_clock_makes_no_run_longer(tmp_path: Path) -> None:
    from corerun.job.manifest import build_manifest

    start = 1_800_000_000.0
    records(tmp_path, [start, start, start - 3600, start - 3600])
    events, _ = read(tmp_path / "events.jsonl")
    assert fold(events).warnings[0].startswith("the clock of this machine was set back")
    assert abs(build_manifest(tmp_path, events, {})["wall_s"]) < STEP_S
    # Another process finds a last record of a time that is still to come.
    records(tmp_path, [start - 7200, start - 7200])
    events, _ = read(tmp_path / "events.jsonl")
    assert [event.type for event in events].count(kinds.WARNING) == 2
    assert abs(build_manifest(tmp_path, events, {})["wall_s"]) < STEP_S
