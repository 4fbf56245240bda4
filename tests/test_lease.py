"""A lease decides who owns a run where a lock can't: between machines, whatever their clocks say."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import EnvironmentRefused, StateError
from corerun.runs import io, lease
from corerun.runs.journal import Journal, read
from corerun.runs.lease import STALE_S, Lease
from corerun.runs.lock import RunLock
from corerun.runs.owner import Owner, read_owner, this_process
from tests.support.racing import elsewhere, ended_process, rebooted

OTHERS = {"elsewhere": elsewhere, "rebooted": rebooted}


class Time:
    """Time that passes only while somebody waits; ``then`` is what happens meanwhile."""

    def __init__(self, then: Callable[[float], None] = lambda now: None) -> None:
        self.now = 0.0
        self.then = then

    def passed(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.then(self.now)

    def lease(self, path: Path, **options: Any) -> Lease:
        return Lease(path, passed=self.passed, sleep=self.sleep, **options)


def left_by(owner: Owner, folder: Path) -> Path:
    """A lease as a process leaves it that is killed."""
    path = folder / "run.lease"
    path.write_bytes(owner.to_json())
    return path


def test_on_a_local_disk_there_is_no_lease(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    lock.release()


def test_on_a_network_file_system_a_lease_lasts_as_long_as_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, kind="nfs4")
    assert read_owner((tmp_path / "run.lease").read_bytes()) == read_owner(
        (tmp_path / "run.lock").read_bytes()
    )
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def test_a_lease_is_renewed(tmp_path: Path) -> None:
    path = tmp_path / "run.lease"
    held = Lease(path, renew_s=0.001)
    for _ in range(3):
        os.utime(path, (1, 1))
        while path.stat().st_mtime == 1:
            pass
    held.release()


def test_a_living_process_of_this_host_keeps_its_lease_however_old(tmp_path: Path) -> None:
    path = left_by(this_process(), tmp_path)
    os.utime(path, (1, 1))
    time = Time()
    for force in (False, True):
        with pytest.raises(EnvironmentRefused, match=f"in use by pid {os.getpid()} "):
            RunLock(tmp_path, kind="nfs", lease=time.lease, force=force)
    assert time.now == 0.0
    assert path.exists()


@pytest.mark.parametrize(
    "owner", [elsewhere, rebooted, lambda: None], ids=["elsewhere", "rebooted", "nobody"]
)
def test_a_lease_that_is_renewed_is_anothers(tmp_path: Path, owner: Callable[[], Owner | None]) -> None:
    named = owner()
    path = left_by(named, tmp_path) if named else tmp_path / "run.lease"
    path.touch()

    def renew(now: float) -> None:
        if now == 11:
            os.utime(path, (now, now))

    time = Time(renew)
    with pytest.raises(EnvironmentRefused, match="in use by "):
        RunLock(tmp_path, kind="nfs", lease=time.lease)
    assert time.now == 11
    # The lock that it had got is free again.
    RunLock(tmp_path, kind="ext4").release()


@pytest.mark.parametrize(
    "owner", [elsewhere, rebooted, ended_process], ids=["elsewhere", "rebooted", "ended"]
)
@pytest.mark.parametrize("age_s", [0, -3600, 3600])
def test_a_lease_that_is_not_renewed_runs_out_whatever_any_clock_says(
    tmp_path: Path, owner: Callable[[], Owner], age_s: int
) -> None:
    path = left_by(owner(), tmp_path)
    written = path.stat().st_mtime - age_s
    os.utime(path, (written, written))
    time = Time()
    lock = RunLock(tmp_path, kind="cifs", lease=time.lease)
    assert time.now == STALE_S
    assert read_owner(path.read_bytes()) == read_owner((tmp_path / "run.lock").read_bytes())
    lock.release()
    assert [found.name for found in tmp_path.iterdir()] == ["run.lock"]


def test_a_lease_that_is_given_back_while_one_waits_is_free(tmp_path: Path) -> None:
    path = left_by(elsewhere(), tmp_path)
    time = Time(lambda now: path.unlink() if now == 5 else None)
    RunLock(tmp_path, kind="9p", lease=time.lease).release()
    assert time.now == 5


def test_force_does_not_wait_for_a_process_of_this_host_that_has_ended(tmp_path: Path) -> None:
    left_by(ended_process(), tmp_path)
    time = Time()
    RunLock(tmp_path, kind="nfs", lease=time.lease, force=True).release()
    assert time.now == 0.0


@pytest.mark.parametrize("owner", OTHERS.values(), ids=OTHERS)
def test_force_does_not_believe_that_another_host_is_dead(tmp_path: Path, owner: Callable[[], Owner]) -> None:
    path = left_by(owner(), tmp_path)
    time = Time()
    with pytest.raises(EnvironmentRefused, match="in use by ") as caught:
        RunLock(tmp_path, kind="nfs", lease=time.lease, force=True)
    assert caught.value.hint == "only a lock of this host can be forced; wait until it has run out"
    assert (time.now, path.exists()) == (0.0, True)


def test_of_two_that_take_over_one_lease_the_slower_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_by(elsewhere(), tmp_path)
    quicker: list[Lease] = []
    move = io.move_lock

    def slow(source: Path, target: Path) -> None:
        # Just before the slower one moves the old lease away, the quicker one does all of it.
        monkeypatch.setattr(io, "move_lock", move)
        quicker.append(Time().lease(path))
        monkeypatch.setattr(io, "move_lock", move)
        move(source, target)

    monkeypatch.setattr(io, "move_lock", slow)
    with pytest.raises(EnvironmentRefused, match=f"in use by pid {os.getpid()} "):
        RunLock(tmp_path, kind="nfs", lease=Time().lease)
    assert quicker[0]._is_ours()
    quicker[0].release()
    assert [found.name for found in tmp_path.iterdir()] == ["run.lock"]


def test_an_owner_that_was_taken_for_dead_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_EVERY_S", 0.001)
    lock = RunLock(tmp_path, kind="nfs", lease=partial(Lease, renew_s=0.001))
    log = Journal(tmp_path)
    log.emit("step", {})
    lock.when_lost(log.fence)
    theirs = elsewhere().to_json()
    io.replace(tmp_path / "run.lease", theirs)
    assert lock._lease is not None
    lock._lease._renewer.join()
    with pytest.raises(StateError, match="another process has taken over the run") as caught:
        log.emit("step", {})
    assert caught.value.exit_code == 4
    with pytest.raises(StateError):
        log.close()
    lock.release()
    assert (tmp_path / "run.lease").read_bytes() == theirs, "the lease of another was removed"
    assert len(read(tmp_path / "events.jsonl")[0]) == 1


def test_a_server_that_is_away_for_a_while_costs_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def away(descriptor: int) -> None:
        tries.append(descriptor)
        if len(tries) < 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(io, "renew_lock", away)
    lost: list[bool] = []
    held = Lease(tmp_path / "run.lease", renew_s=0.001)
    held.on_lost = lambda: lost.append(True)
    while len(tries) < 5:
        pass
    held.release()
    assert lost == []


def test_where_a_file_system_has_no_locks_the_lease_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", missing)
    lock = RunLock(tmp_path, kind="fuse.sshfs")
    with pytest.raises(EnvironmentRefused, match="in use by "):
        RunLock(tmp_path, kind="fuse.sshfs")
    lock.release()
    with pytest.raises(StateError, match=r"run\.lock: No locks available"):
        RunLock(tmp_path, kind="ext4")
