"""Kills, full and broken disks at every point of durable work: a run goes on, or says why it can't."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import DiskFull, StateError, UsageError
from corerun.runs import faults, io
from corerun.runs.journal import Journal, read
from corerun_bfts.figures import SCRIPT
from tests.support.faulty import Ended, Faulty, points, writes
from tests.support.killing import tree_of

WITHOUT = {("ballast.reserve", "enospc")} | {
    (place, kind) for place in ("sqlite.commit", "link.make") for kind in ("enospc", "eio")
}
"""What a run goes on without: room for last words, its cache of answers, a link where a copy does."""
AGAIN = {"call.send", "call.receive"}
"""Points whose errors are a broken connection, which is tried again."""
POWER = {"durability": "power"}
MIB = 1 << 20


class Half:
    """A run that was killed half way, with a torn last line and a file that was never renamed."""

    def __init__(self, faulty: Faulty) -> None:
        self.faulty = faulty
        assert faulty.go().code == 0, (faulty.folder / "stderr").read_text()
        self.tree = tree_of(faulty.events())
        records = len(faulty.events())
        faulty.clear()
        assert faulty.go(f"append.write:{records * 3 // 4}:short_write").code == -signal.SIGKILL
        (faulty.run / ".left.json.99999999.tmp").write_text("half")
        (faulty.run / SCRIPT).write_text("# figures of a run that was killed\n")
        faulty.keep()

    def meets(self, fault: str, **settings: Any) -> Ended | None:
        """Go on from where it was killed with a fault, then without; None if the point isn't passed."""
        place, _, kind = fault.split(":")
        self.faulty.back()
        ended = self.faulty.go(fault, **settings)
        case = f"{fault}: {ended}"
        read(self.faulty.run / "events.jsonl")
        if f"{faults.VARIABLE}: {kind} at {place}\n" not in ended.stderr:
            assert ended.code == 0, case
            return None
        assert ended.code == expected(place, kind), case
        assert "Traceback" not in ended.stderr, case
        if ended.code > 0:
            said = ("no space left to write /", "the disk is full") if ended.code == 5 else ("can't write /",)
            told = [line for line in ended.stderr.splitlines() if line.startswith("corerun: ")]
            assert any(words in line for line in told for words in said), case
            assert "  hint: " in ended.stderr and "--resume" in ended.stderr, case
        if ended.code:
            again = self.faulty.go()
            assert again.code == 0, f"{case}, then {again}"
        self.faulty.check(self.tree)
        assert not list(self.faulty.run.rglob(".*.tmp"))
        return ended


def expected(place: str, kind: str) -> int:
    if kind in ("kill", "short_write"):
        return -signal.SIGKILL
    if kind == "delay" or place in AGAIN or (place, kind) in WITHOUT:
        return 0
    return 5 if kind == "enospc" else 4


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Half]]:
    """The same run twice, so that two cases can be tried at once."""
    with ExitStack() as opened, ThreadPoolExecutor(2) as pool:
        folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
        yield list(pool.map(Half, [opened.enter_context(Faulty(folder)) for folder in folders]))


@pytest.mark.parametrize("place", points())
def test_a_run_meets_every_fault_at(place: str, halves: list[Half]) -> None:
    kinds = [kind for kind in faults.KINDS if kind != "short_write" or place in writes()]

    def try_with(one: Half, chosen: list[str]) -> None:
        settings: dict[str, str] = {}
        for kind in chosen:
            met = one.meets(f"{place}:1:{kind}", **settings)
            if met is None:  # Some are passed only by a run that waits for the disk.
                settings = POWER
                met = one.meets(f"{place}:1:{kind}", **settings)
            assert met is not None, "the run doesn't pass the point"

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(try_with, one, kinds[n::2]) for n, one in enumerate(halves)]:
            done.result()


@pytest.mark.parametrize("place", ["copy.write:2", "replace.write:3", "blob.write:1"])
def test_whatever_fills_the_disk_the_journal_says_so(place: str, halves: list[Half]) -> None:
    faulty = halves[0].faulty
    faulty.back()
    assert faulty.go(f"{place}:enospc").code == 5
    *_, paused, done = faulty.events()
    assert (paused["type"], paused["data"]) == ("paused", {"reason": "disk_full"})
    assert (done["type"], done["data"]["status"], done["data"]["exit_code"]) == ("run_done", "stopped", 5)
    assert json.loads((faulty.run / "run_manifest.json").read_text())["error"]["type"] == "DiskFull"


def test_files_that_found_no_room_after_the_run_are_written_by_the_next_one(halves: list[Half]) -> None:
    faulty = halves[0].faulty
    faulty.back()
    assert faulty.go().code == 0
    derived = list((faulty.run / "logs").rglob("*.json"))
    for path in derived:
        path.unlink()
    ended = faulty.go("replace.rename:1:enospc")
    assert ended.code == 5 and "no space left to write" in ended.stderr
    assert json.loads((faulty.folder / "stdout").read_text())["status"] == "stopped"
    assert not all(path.exists() for path in derived)
    assert faulty.go().code == 0
    assert derived and all(path.exists() for path in derived)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_fifty_faults_at_random(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    met = 0
    with Faulty(tmp_path) as faulty:
        half = Half(faulty)
        for _ in range(50):
            place = rng.choice(points())
            kind = rng.choice([kind for kind in faults.KINDS if kind != "short_write" or place in writes()])
            number = int(30 ** rng.random())
            met += (
                half.meets(f"{place}:{number}:{kind}", durability=rng.choice(("kill", "power"))) is not None
            )
    assert met >= 25


# ------------------------------------------------------------------------------------- a full disk


def room_for(faulty: Faulty, free: int) -> Path:
    """Fill the disk but for ``free`` bytes; the file that does it."""
    filler = faulty.root / "filler"
    left = os.statvfs(faulty.root)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize - free)
    return filler


def fill_and_free(folder: Path, rooms: list[tuple[int, bool]]) -> None:
    """A run on a disk with so much room, and with or without what it keeps back, stops with its journal
    whole; it goes on once there is more."""
    with ExitStack() as opened:
        try:
            faulty = opened.enter_context(Faulty(folder, disk_mb=32))
        except OSError:
            pytest.skip("needs the kernel's tmpfs mount")
        half = Half(faulty)
        stopped = 0
        for room, kept_back in rooms:
            faulty.back()
            if not kept_back:
                (faulty.run / ".ballast").unlink()
            filler = room_for(faulty, room)
            ended = faulty.go()
            assert ended.code in (0, 5), ended
            assert ended.code == 0 or "hint: free some space" in ended.stderr, ended
            stopped += ended.code == 5
            events, _ = read(faulty.run / "events.jsonl")
            if kept_back and events[-2].type != "repaired" and ended.code == 5:
                assert [event.type for event in events[-2:]] == ["paused", "run_done"], room
            filler.unlink()
            assert faulty.go().code == 0
            faulty.check(half.tree)
        assert stopped >= len(rooms) // 2


def test_a_run_goes_on_after_its_disk_was_full(tmp_path: Path) -> None:
    rooms = [(0, True), (0, False), (60_000, True), (MIB + 120_000, False), (MIB + 200_000, True)]
    fill_and_free(tmp_path, rooms)


@pytest.mark.soak
def test_a_disk_is_full_at_sixty_moments(tmp_path: Path) -> None:
    rng = random.Random(0)
    fill_and_free(tmp_path, [(rng.randrange(MIB + MIB // 2), rng.random() < 0.5) for _ in range(60)])


# ------------------------------------------------------------------------------------ single pieces


@pytest.mark.parametrize(
    "text", ["x", "append.write:1", "append.write:0:kill", "a:1:melt", ":1:kill", "a:-1:eio"]
)
def test_a_text_that_names_no_fault_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no fault") as caught:
        faults.plan(text)
    assert caught.value.where == faults.VARIABLE


def test_the_command_refuses_it_in_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "corerun",
        "--plugin",
        "bfts",
        "run",
        "--model",
        "recipes::default",
    ]
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), faults.VARIABLE: "append.write"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stderr.startswith(f"corerun: {faults.VARIABLE}: ")


@pytest.fixture
def planned() -> Iterator[None]:
    yield
    faults.plan("")


@pytest.mark.usefixtures("planned")
def test_a_fault_comes_once_at_the_passage_that_was_named(tmp_path: Path) -> None:
    faults.plan("replace.sync:2:eio")
    io.replace(tmp_path / "a", "1")
    with pytest.raises(StateError, match=r"can't write .*/b: Input/output error"):
        io.replace(tmp_path / "b", "2")
    io.replace(tmp_path / "b", "3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.usefixtures("planned")
def test_a_sync_that_failed_is_not_tried_again_as_if_it_had_worked(tmp_path: Path) -> None:
    log = Journal(tmp_path, durability="power")
    faults.plan("log.sync:1:eio")
    for _ in range(3):
        with pytest.raises(StateError, match="Input/output error"):
            log.emit("node_done", {"node": "a", "scope": "s", "seq": 0, "attempt": 0, "status": "good"})
    with pytest.raises(StateError, match="Input/output error"):
        log.close()


@pytest.mark.usefixtures("planned")
def test_a_part_that_cannot_be_taken_back_ends_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the space kept back used for the next record, that would stand behind half a line."""
    log = Journal(tmp_path)
    log.emit("step", {})
    write = os.write
    calls = iter([5])

    def short(descriptor: int, body: bytes) -> int:
        for size in calls:
            return write(descriptor, body[:size])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    faults.plan("log.cut:1:enospc")
    with pytest.raises(StateError, match="can't be taken back"):
        log.emit("step", {})
    monkeypatch.setattr(os, "write", write)
    for _ in range(2):
        with pytest.raises(StateError):
            log.emit("step", {})
    with pytest.raises(StateError):
        log.close()
    assert [event.type for event in read(tmp_path / "events.jsonl")[0]] == ["step"]


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(other)
    io.replace(tmp_path / "file", "new")
    assert (other.read_text(), (tmp_path / "file").read_text()) == ("mine", "new")


def test_a_copied_folder_keeps_links_and_modes_and_says_when_the_disk_is_full(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "tool").write_text("#!/bin/sh\n")
    (source / "deep" / "tool").chmod(0o755)
    (source / "link").symlink_to("deep/tool")
    io.copy_tree(source, tmp_path / "target")
    assert os.readlink(tmp_path / "target" / "link") == "deep/tool"
    assert os.access(tmp_path / "target" / "deep" / "tool", os.X_OK)
    faults.plan("copy.write:1:enospc")
    try:
        with pytest.raises(DiskFull, match="no space left to write"):
            io.copy_tree(source, tmp_path / "target")
    finally:
        faults.plan("")
