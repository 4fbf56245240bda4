"""Control groups: made, joined, limited and removed, with a kernel that has them and with a made-up one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from corerun.errors import InfrastructureError
from corerun.execution import cgroups
from corerun.execution.cgroups import Group, Outcome

JOIN = "import os, sys\nfor fd in map(int, sys.argv[1:]): os.write(fd, b'0')\n"
HOLDS = bool(cgroups.guarantees())
needs_groups = pytest.mark.skipif(
    not HOLDS, reason="needs the kernel's control groups and the right to make some"
)
MIB = 2**20


def start(group: Group, code: str) -> subprocess.Popen[str]:
    """A process in a group; its code begins there."""
    words = [sys.executable, "-I", "-S", "-c", JOIN + code, *map(str, group.descriptors)]
    return subprocess.Popen(words, pass_fds=group.descriptors, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def group() -> Iterator[Group]:
    made = cgroups.make(f"test-{uuid.uuid4().hex}", 60, 10)
    yield made
    made.close()


def folders(group: Group) -> list[Path]:
    return [Path(folder) for folder in group._folders]


# ------------------------------------------------------------------------------- with this kernel


@needs_groups
def test_too_much_memory_ends_a_process_and_is_told(group: Group) -> None:
    eater = start(group, "x = []\nfor _ in range(50): x.append(bytearray(b'x' * (4 << 20)))\n")
    eater.communicate()
    assert eater.returncode == -signal.SIGKILL
    assert group.oom_kills() == 1
    outcome = group.close()
    assert outcome.oom_kills == 1
    assert 55 < outcome.peak_mb <= 60
    assert group.close() == outcome


@needs_groups
def test_memory_is_counted_over_all_processes(group: Group) -> None:
    code = (
        "import signal, time\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0:\n        x = bytearray(b'x' * (24 << 20)); time.sleep(1000)\n"
        "print(os.wait()[1] == signal.SIGKILL)\n"
    )
    eater = start(group, code)
    assert eater.stdout is not None
    assert eater.stdout.readline() == "True\n"
    assert group.oom_kills() >= 1
    group.close()
    eater.communicate()


@needs_groups
def test_processes_are_limited(group: Group) -> None:
    code = (
        "made = 0\ntry:\n"
        "    for _ in range(30):\n"
        "        if os.fork() == 0: os.read(0, 1); os._exit(0)\n"
        "        made += 1\n"
        "except BlockingIOError: pass\nprint(made)\n"
    )
    hold, let_go = os.pipe()
    words = [sys.executable, "-I", "-S", "-c", JOIN + code, *map(str, group.descriptors)]
    done = subprocess.Popen(words, pass_fds=group.descriptors, stdin=hold, stdout=subprocess.PIPE)
    try:
        assert done.stdout is not None
        # The limit, one for who watches, less the first.
        assert done.stdout.readline() == b"10\n"
    finally:
        os.close(let_go)
        os.close(hold)
        done.communicate()


@needs_groups
def test_closing_kills_what_is_left_and_removes_the_folders(group: Group) -> None:
    for folder in folders(group):
        (folder / "of-its-own").mkdir()
    sleeper = start(group, "print('in', flush=True)\nimport time; time.sleep(1000)")
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline() == "in\n"
    group.close()
    assert sleeper.wait(60) == -signal.SIGKILL
    sleeper.stdout.close()
    for name in list(cgroups._undead):
        cgroups._undead.remove(name)
        cgroups._remove(name)
    assert folders(group)
    assert not any(folder.exists() for folder in folders(group))


@needs_groups
def test_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    one = cgroups.make(f"test-{uuid.uuid4().hex}", 60, 10)
    assert len(os.listdir("/proc/self/fd")) == before + len(one.descriptors) > before
    one.let_go()
    assert len(os.listdir("/proc/self/fd")) == before
    one.close()
    with pytest.raises(InfrastructureError, match="no control group"):
        cgroups.make(f"test-{uuid.uuid4().hex}", -5, 10)
    assert len(os.listdir("/proc/self/fd")) == before


@needs_groups
def test_a_group_that_cannot_be_made_is_no_group_without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "makedirs", full)
    with pytest.raises(InfrastructureError, match=r"no control group for a program: .*No space left"):
        cgroups.make("test-full", 60, 10)


@needs_groups
def test_what_a_killed_process_left_is_removed_and_that_of_a_living_one_is_not() -> None:
    code = (
        "import os, signal, sys\nfrom corerun.execution import cgroups\n"
        "group = cgroups.make('left', 60, 10)\n"
        "print(*group._folders, flush=True)\n"
        "if sys.argv[1] == 'dies': os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.stdin.read()\n"
    )
    processes = {
        end: subprocess.Popen(
            [sys.executable, "-c", code, end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for end in ("dies", "lives")
    }
    places = {end: process.stdout.readline().split() for end, process in processes.items() if process.stdout}
    processes["dies"].communicate()
    assert places["dies"]
    assert all(map(os.path.isdir, places["dies"] + places["lives"]))
    again = "from corerun.execution import cgroups; cgroups.guarantees()"
    subprocess.run([sys.executable, "-c", again], check=True)
    assert not any(map(os.path.isdir, places["dies"]))
    assert all(map(os.path.isdir, places["lives"]))
    processes["lives"].communicate()
    assert not any(map(os.path.isdir, places["lives"]))


# ----------------------------------------------------------------------------- with a made-up one


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where the file systems of control groups would be mounted; nobody can really join there."""
    monkeypatch.setattr(cgroups, "MOUNT", str(tmp_path))
    monkeypatch.setattr(cgroups, "_try", lambda folder, controller: None)
    cgroups._home.cache_clear()
    yield tmp_path
    cgroups._home.cache_clear()


def unified(mount: Path, monkeypatch: pytest.MonkeyPatch, path: str, *, alone: bool = True) -> Path:
    """A hierarchy of version 2 in which this process is in the group ``path``."""
    (mount / "cgroup.controllers").write_text("cpu memory pids")
    own = mount / path.strip("/")
    own.mkdir(parents=True, exist_ok=True)
    for name in ("cgroup.controllers", "cgroup.subtree_control", "cgroup.procs"):
        (own / name).write_text("memory pids" if name == "cgroup.controllers" else "")
    owner = own / "corerun-owner"
    owner.mkdir(exist_ok=True)
    (owner / "cgroup.procs").write_text("")
    read, write = cgroups._read, cgroups._write
    monkeypatch.setattr(
        cgroups, "_read", lambda name: f"0::{path}\n" if name == "/proc/self/cgroup" else read(name)
    )

    def checked(name: str, value: object) -> None:
        if name == f"{own}/cgroup.subtree_control" and not alone:
            raise OSError(16, "Device or resource busy")
        Path(name).touch()
        write(name, value)

    monkeypatch.setattr(cgroups, "_write", checked)
    return own


def make_in(mount: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    makedirs = os.makedirs

    def with_files(path: str, *args: object, **kwargs: object) -> None:
        makedirs(path, exist_ok=True)
        (Path(path) / "cgroup.procs").touch()

    with monkeypatch.context() as patched:
        patched.setattr(os, "makedirs", with_files)
        return cgroups.make("one", 100, 20)


@pytest.mark.parametrize("path", ["/user/run-1.scope", "/user/run-1.scope/corerun-owner"])
def test_a_delegated_subtree_is_used(mount: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    own = unified(mount, monkeypatch, path.removesuffix("/corerun-owner"))
    if path.endswith("owner"):
        # As in a worker process, whose parent has gone there before it.
        read = cgroups._read
        monkeypatch.setattr(
            cgroups, "_read", lambda name: f"0::{path}\n" if name == "/proc/self/cgroup" else read(name)
        )
    assert cgroups.guarantees() == {"mem_total", "pids"}
    assert (own / "corerun-owner/cgroup.procs").read_text() == "0"
    group = make_in(mount, monkeypatch)
    folder = Path(group._folders[0])
    assert folder.parent.parent == own
    assert group.holds_all
    assert len(group.descriptors) == 1
    assert (folder / "memory.max").read_text() == str(100 * MIB)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "memory.oom.group").read_text() == "1"
    assert (folder / "pids.max").read_text() == "21"
    (folder / "memory.peak").write_text(f"{50 * MIB}\n")
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 3\noom_group_kill 1\n")
    assert group.close() == Outcome(50.0, 3)
    assert (folder / "cgroup.kill").exists() is False


def test_a_group_with_others_in_it_is_left_as_it_was(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = unified(mount, monkeypatch, "/user/terminal", alone=False)
    assert cgroups.guarantees() == frozenset()
    assert (own / "cgroup.procs").read_text() == "0"
    group = cgroups.make("one", 100, 20)
    assert (group.descriptors, group.holds_all, group.oom_kills()) == ((), False, 0)
    assert group.close() == Outcome()


def test_no_groups_at_all(mount: Path) -> None:
    assert cgroups.guarantees() == frozenset()
    assert cgroups.make("one", 100, 20).close() == Outcome()


def test_processes_of_other_namespaces_are_not_taken_for_our_own_group(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("0\n0\n")
    cgroups._kill(str(tmp_path))
