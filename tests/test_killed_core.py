"""What becomes of programs when the process that runs them is killed, and whether the next one can start."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corerun.plugins import PluginManager

CORE = """
import asyncio, sys
from pathlib import Path
from corerun.execution.processes import kill_stale
from corerun.execution.worker import program_spec, run_program
from corerun.interfaces import ExecRequest, Limits
from corerun.runs.lock import RunLock

folder, sandbox, code = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

async def run(number):
    place = str(folder / "nodes" / f"n{number}.0")
    request = ExecRequest(code=code, node=f"n{number}", workspace=place, limits=Limits(wall_s=600))
    return (await run_program(program_spec(request, sandbox)))["status"]

async def main():
    lock = RunLock(folder)
    await kill_stale(str(folder / "nodes"))
    print("starting", flush=True)
    print(*await asyncio.gather(run(1), run(2)), flush=True)
    lock.release()

asyncio.run(main())
"""

DAEMONS = """
import ctypes, os, time

for number in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(15, b"daemon", 0, 0, 0)
            time.sleep(900)
        os._exit(0)
open("ready", "w").close()
time.sleep(900)
"""

GENEROUS_S = 30.0


def sandboxes() -> dict[str, str]:
    """Those that work here, with what a worker opens them by."""
    manager = PluginManager()
    found = {item.component.name: item.component.target for item in manager.components("sandboxes")}
    return {name: place for name, place in found.items() if manager.get("sandboxes", name)().probe().ok}


WORKING = sandboxes()


def living(folder: Path) -> list[int]:
    """Processes that were started with a variable below ``folder``; zombies have none any more."""
    mark, found = f"={folder}/nodes/".encode(), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # It ended, or it belongs to somebody else.
    return found


def no_daemons(pids: list[int]) -> list[int]:
    return [pid for pid in pids if not _is_daemon(pid)]


def _is_daemon(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "daemon\n"
    except OSError:
        return True


def wait_until_gone(folder: Path, within_s: float, *, daemons: bool) -> float:
    """Seconds until nothing of a killed core was left, daemons included or not."""
    begin = time.monotonic()
    while left := living(folder) if daemons else no_daemons(living(folder)):
        assert time.monotonic() - begin < within_s, f"still there: {left}"
    return time.monotonic() - begin


@contextmanager
def core(folder: Path, sandbox: str, code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CORE, str(folder), sandbox, code], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kill_at(folder: Path, name: str, moment_s: float, within_s: float) -> float:
    """Kill a core so long after its programs were ordered, look what is left, and start another one."""
    folder.mkdir()
    with core(folder, WORKING[name], DAEMONS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        deadline = time.monotonic() + moment_s
        while time.monotonic() < deadline:
            if (folder / "nodes/n1.0/ready").exists() and (folder / "nodes/n2.0/ready").exists():
                break
        process.kill()
        process.wait()
        # Without a process namespace a daemon outlives its core, until the next one starts.
        took = wait_until_gone(folder, within_s, daemons=name not in ("local", "landlock"))
    with core(folder, WORKING[name], "print('well')") as process:
        said, _ = process.communicate(timeout=GENEROUS_S)
    assert said == "starting\nok ok\n"
    wait_until_gone(folder, GENEROUS_S, daemons=True)
    return took


@pytest.mark.parametrize("name", WORKING)
def test_programs_end_with_who_runs_them_and_the_next_one_starts(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    for number in range(3):
        kill_at(tmp_path / f"{number}", name, rng.uniform(0, 0.3) if number else GENEROUS_S, GENEROUS_S)


@pytest.mark.soak
@pytest.mark.parametrize("name", WORKING)
def test_two_hundred_kills(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(name)
    longest = max(kill_at(tmp_path / f"{number}", name, rng.uniform(0, 0.5), 1.0) for number in range(200))
    with capsys.disabled():
        print(f"{name}: 200 kills, all gone after {longest:.3f} s at most")
