"""One run, one owner: between processes, and after whatever end an owner came to."""

from __future__ import annotations

import json
import os
import select
import socket
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from corerun.errors import EnvironmentRefused
from corerun.llm.sqlite import open_shared
from corerun.runs.filesystem import file_system, is_network
from corerun.runs.journal import read
from corerun.runs.lock import RunLock
from corerun.runs.owner import read_owner, this_process
from tests.support.jobs import UNSAFE
from tests.support.killing import Experiment
from tests.support.racing import elsewhere, ended_process, racers, rebooted
from tests.support.story import researcher

# --------------------------------------------------------------------------------------------- owner


def test_a_lock_says_who_holds_it_so_that_it_can_be_told_from_any_other(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    content = json.loads((tmp_path / "run.lock").read_bytes())
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert content.keys() == {"host", "pid", "start_time", "boot_id", "since", "corerun"}
    assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
    assert content["start_time"] == int(fields[19])
    assert content["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    lock.release()
    assert (tmp_path / "run.lock").read_bytes() == b""


def test_only_the_same_process_of_the_same_boot_of_this_host_runs_here() -> None:
    mine = this_process()
    assert mine.runs_here and mine.is_local
    assert not replace(mine, start_time=mine.start_time - 1).runs_here, "the pid was given away again"
    assert not rebooted().runs_here and not elsewhere().runs_here
    assert not ended_process().runs_here and ended_process().is_local


def test_a_killed_process_that_nobody_waited_for_runs_no_more() -> None:
    with racers(1) as [racer]:
        racer.process.kill()
        os.waitid(os.P_PID, racer.process.pid, os.WEXITED | os.WNOWAIT)
        start_time = int(Path(f"/proc/{racer.process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert not replace(this_process(), pid=racer.process.pid, start_time=start_time).runs_here


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"pid": 1}', b"\xff", b"null", b'{"pid": [], "host": 1}']
)
def test_odd_content_names_nobody(body: bytes) -> None:
    assert read_owner(body) is None


# --------------------------------------------------------------------------------------------- races


@pytest.mark.parametrize("kind", ["ext4", "nfs4"])
def test_of_two_processes_one_gets_the_run(tmp_path: Path, kind: str) -> None:
    with racers(2) as both:
        for number in range(100):
            folder = tmp_path / f"{number % 50}"
            folder.mkdir(exist_ok=True)
            for racer in both:
                racer.tell(folder, kind)
            answers = [racer.answer() for racer in both]
            assert sorted(answer.split()[0] for answer in answers) == ["3", "held"], answers
            winner = both[answers.index("held")]
            refused = next(answer for answer in answers if answer != "held")
            # The winner may not have written its name yet.
            assert f"by pid {winner.process.pid} " in refused or "by another process" in refused
            winner.tell("release")
            assert winner.answer() == "released"


def start(run: Experiment, said: Path) -> subprocess.Popen[bytes]:
    with said.open("w") as stream:
        return subprocess.Popen(
            run.command("--display", "none"),
            env={"PATH": os.environ["PATH"], "HOME": str(run.root), **run.environ},
            cwd=run.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )


def race_of_commands(root: Path) -> None:
    """Two ``run`` commands on one directory; the one that proceeds is killed once the other was refused."""
    with researcher() as server:
        run = Experiment(root, server.environ(), arguments=(*UNSAFE, "--workers", "1"))
        said = {start(run, root / name): root / name for name in ("one", "two")}
        handles = {os.pidfd_open(process.pid): process for process in said}
        try:
            (ended, *both), _, _ = select.select(list(handles), [], [], 60)
            loser = handles[ended]
            assert not both and loser.wait() == 3, said[loser].read_text()
            assert "in use by" in said[loser].read_text()
        finally:
            for handle, process in handles.items():
                os.close(handle)
                process.kill()
                process.wait()
        events, _ = read(run.directory / "events.jsonl")
        assert [event.type for event in events].count("run_started") <= 1


def test_of_two_commands_one_proceeds(tmp_path: Path) -> None:
    for number in range(2):
        race_of_commands(tmp_path / f"{number}")


@pytest.mark.soak
def test_of_two_commands_one_proceeds_a_hundred_times(tmp_path: Path) -> None:
    for number in range(100):
        race_of_commands(tmp_path / f"{number % 50}")


# --------------------------------------------------------------------------------------------- force


def test_a_run_that_lives_cannot_be_forced(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(EnvironmentRefused, match=f"in use by pid {os.getpid()} on host ") as caught:
        RunLock(tmp_path, force=True)
    assert caught.value.hint == f"--force-unlock needs a holder that has ended: pid {os.getpid()} runs"
    lock.release()
    RunLock(tmp_path, force=True).release()


def test_a_lock_that_a_dead_process_left_to_another_cannot_be_forced(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    for owner, reason in (
        (ended_process(), "has ended, but a process that it left behind still holds the lock"),
        (elsewhere(), "it is on host elsewhere"),
    ):
        (tmp_path / "run.lock").write_bytes(owner.to_json())
        with pytest.raises(EnvironmentRefused) as caught:
            RunLock(tmp_path, force=True)
        assert reason in caught.value.hint
    (tmp_path / "run.lock").write_bytes(b"")
    with pytest.raises(EnvironmentRefused) as caught:
        RunLock(tmp_path, force=True)
    assert caught.value.hint.endswith("nobody knows who holds it")
    lock.release()


def test_the_command_refuses_to_force_a_run_that_lives(tmp_path: Path) -> None:
    run = Experiment(tmp_path, {"OPENAI_API_KEY": "none"}, arguments=UNSAFE)
    directory = tmp_path / "experiments" / "r_constant_attempt_0"
    directory.mkdir(parents=True)
    (directory / "events.jsonl").touch()
    lock = RunLock(directory)
    refused = run.start("--force-unlock")
    lock.release()
    assert refused.code == 3, refused.stderr
    assert f"--force-unlock needs a holder that has ended: pid {os.getpid()} runs" in refused.stderr


# -------------------------------------------------------------------------------------- file systems


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "fuse.sshfs", "fuseblk", "ceph"]
)
def test_file_systems_that_other_machines_may_see(kind: str) -> None:
    assert is_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", ""])
def test_file_systems_of_one_machine(kind: str) -> None:
    assert not is_network(kind)


def test_the_type_of_a_file_system_is_known() -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(Path("/proc/self/fd")) == "proc"
    assert file_system(Path("/")) != ""


def test_the_later_of_two_mounts_at_one_place_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "1 1 0:1 / {place} rw - {kind} none rw"
    mounts = [("/", "ext4"), (str(tmp_path), "ext4"), (str(tmp_path), "nfs4"), ("/elsewhere", "proc")]
    text = "\n".join(line.format(place=place, kind=kind) for place, kind in mounts)
    monkeypatch.setattr(Path, "read_text", lambda *arguments: text)
    assert file_system(tmp_path / "run") == "nfs4"


@pytest.mark.parametrize(("kind", "journal"), [("ext4", "wal"), ("nfs4", "delete"), ("fuse.sshfs", "delete")])
def test_a_shared_file_on_a_network_file_system_shares_no_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, journal: str
) -> None:
    path = tmp_path / "shared.sqlite"
    with closing(open_shared(path, "CREATE TABLE IF NOT EXISTS t (a)", kind="ext4")):
        pass
    with closing(open_shared(path, "CREATE TABLE IF NOT EXISTS t (a)", kind=kind)) as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == (journal,)
        file.execute("INSERT INTO t VALUES (1)")
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT a FROM t").fetchall() == [(1,)]
    told = [record.message for record in caplog.records if "lies on a network file system" in record.message]
    assert len(told) == (journal == "delete")
