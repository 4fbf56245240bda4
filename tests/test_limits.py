"""Limits of programs: what ends one that passes a limit, and what its result says of that."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from corerun.execution import cgroups, watchdog
from corerun.execution.cgroups import Group, Outcome
from corerun.execution.disk_use import measure
from corerun.execution.local import LocalSandbox
from corerun.execution.results import result_of
from corerun.execution.streams import Stream
from corerun.execution.supervisor import Ended
from corerun.execution.trees import Death
from corerun.execution.watchdog import ALERT_S, CALM_S, Watch
from corerun.execution.worker import program_spec, run_program
from corerun.interfaces import ExecRequest, ExecResult, Limits, Policy

MIB = 2**20
GROUPS = cgroups.guarantees()
needs_groups = pytest.mark.skipif(
    "mem_total" not in GROUPS, reason="needs the kernel's control groups and the right to make some"
)
Run = Callable[..., Awaitable[ExecResult]]


@pytest.fixture
async def run(tmp_path: Path) -> Run:
    async def one(code: str, **fields: Any) -> ExecResult:
        limits = Limits(**{"wall_s": 60.0, "grace_s": 0.2, **fields.pop("limits", {})})
        session = await LocalSandbox().open(Policy(), str(tmp_path / "work"))
        return await session.run(ExecRequest(code=code, limits=limits, **fields))

    return one


@pytest.fixture
def no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "make", lambda exec_id, memory_mb, pids: Group(()))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "DISK_INTERVAL_S", 0.05)


# ---------------------------------------------------------------------------------------- memory

EATER = "import time\nx = []\nwhile True:\n    x.append(bytearray(b'x' * 2**23))\n    time.sleep(0.005)\n"
FAMILY = f"import os\nfor _ in range(3):\n    if os.fork() == 0: break\n{EATER}"


@needs_groups
@pytest.mark.parametrize("code", [EATER, FAMILY])
async def test_the_kernel_ends_what_eats_memory(run: Run, code: str) -> None:
    result = await run(code, limits={"mem_mb": 100})
    assert (result.status, result.oom and result.oom["by"]) == ("oom", "cgroup")
    assert result.peak_tree_mb <= 100.1


@needs_groups
async def test_who_waits_for_a_process_that_is_dead_is_ended_too(run: Run, eager: None) -> None:
    code = (
        "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        f"if os.fork() == 0:\n    {EATER.replace(chr(10), chr(10) + '    ')}\nwhile True: time.sleep(1000)\n"
    )
    result = await run(code, limits={"mem_mb": 100})
    assert (result.status, result.oom and result.oom["by"]) == ("oom", "cgroup")
    assert result.exc_msg == "used more than 100 MB of memory"


@needs_groups
async def test_files_in_memory_are_no_lack_of_memory(run: Run) -> None:
    code = (
        "import os\nfor _ in range(3):\n    with open('big', 'wb') as file:\n"
        "        for _ in range(40): file.write(bytes(2 << 20))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    result = await run(code, limits={"mem_mb": 64})
    assert (result.status, result.oom) == ("killed", None)
    assert result.written_mb > 200


@pytest.mark.usefixtures("no_groups")
async def test_the_watchdog_ends_what_eats_memory_together(run: Run) -> None:
    result = await run(FAMILY, limits={"mem_mb": 300})
    assert (result.status, result.oom and result.oom["by"]) == ("oom", "watchdog")
    assert result.exc_msg.endswith("MB of memory, limit 300 MB")
    assert result.peak_tree_mb > 300


@pytest.mark.usefixtures("no_groups")
async def test_one_process_is_refused_more_than_all_may_have(run: Run) -> None:
    code = "try:\n    x = bytearray(600 << 20)\nexcept MemoryError:\n    print('refused')\n"
    result = await run(code, limits={"mem_mb": 300})
    assert (result.status, result.stdout) == ("ok", "refused\n")


@pytest.mark.usefixtures("no_groups")
async def test_a_program_with_cards_is_refused_no_memory(run: Run) -> None:
    code = (
        "import mmap\nx = mmap.mmap(-1, 600 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\nprint('given')\n"
    )
    refused = await run(code, limits={"mem_mb": 300})
    assert (refused.status, refused.stdout) == ("error", "")
    assert (await run(code, limits={"mem_mb": 300}, gpus=("0",))).stdout == "given\n"


def ended(tmp_path: Path, record: Any = None, group: Outcome | None = None, **fields: Any) -> ExecResult:
    streams = [Stream(str(tmp_path / name), Limits()) for name in "oe"]
    for stream in streams:
        stream.close()
    death = Death(
        **{name: fields.pop(name) for name in tuple(fields) if name in ("exit_code", "signal", "broken")}
    )
    facts = {"cause": "", "detail": "", "wall_s": 1.0, "peak_mb": 0.0, **fields}
    report = {"begun": True, **(record or {})}
    return result_of(Ended(death=death, **facts), report, streams[0], streams[1], group or Outcome(), 100)


MEMORY_ERROR = {"exc_type": "MemoryError", "exc_msg": ""}


@pytest.mark.parametrize(
    ("facts", "status", "by"),
    [
        ({"exit_code": 1, "record": MEMORY_ERROR, "peak_mb": 91.0}, "oom", "rlimit"),
        ({"exit_code": 1, "record": MEMORY_ERROR, "peak_mb": 89.0}, "error", None),
        ({"exit_code": 1, "record": MEMORY_ERROR, "group": Outcome(100.0, 0)}, "error", None),
        ({"exit_code": 1, "peak_mb": 99.0}, "error", None),
        ({"signal": signal.SIGSEGV, "peak_mb": 95.0}, "oom", "rlimit"),
        ({"signal": signal.SIGABRT, "peak_mb": 95.0}, "oom", "rlimit"),
        ({"signal": signal.SIGSEGV, "group": Outcome(100.0, 0)}, "error", None),
        ({"signal": signal.SIGKILL, "peak_mb": 95.0}, "oom", "kernel"),
        ({"signal": signal.SIGKILL, "peak_mb": 20.0}, "killed", None),
        ({"signal": signal.SIGKILL, "group": Outcome(100.0, 1)}, "oom", "cgroup"),
        ({"broken": "the sandbox ended", "group": Outcome(100.0, 3)}, "oom", "cgroup"),
        ({"broken": "the sandbox ended"}, "infra_error", None),
        ({"exit_code": 1, "group": Outcome(100.0, 1)}, "oom", "cgroup"),
        ({"exit_code": 0, "group": Outcome(100.0, 1)}, "ok", None),
        ({"signal": signal.SIGKILL, "cause": "oom", "peak_mb": 120.0}, "oom", "watchdog"),
        ({"signal": signal.SIGKILL, "cause": "pids"}, "killed", None),
        ({"signal": signal.SIGKILL, "cause": "protocol"}, "killed", None),
        ({"signal": signal.SIGTERM, "cause": "timeout", "peak_mb": 99.0}, "timeout", None),
        ({"signal": signal.SIGKILL, "cause": "disk"}, "disk", None),
        ({"signal": signal.SIGKILL, "cause": "output_limit"}, "output_limit", None),
        ({"signal": signal.SIGXFSZ}, "disk", None),
        ({"signal": signal.SIGXCPU}, "timeout", None),
        ({"signal": signal.SIGTERM}, "killed", None),
        ({"exit_code": 1, "record": {"begun": False}}, "infra_error", None),
        ({"exit_code": 0, "record": {"begun": False}}, "infra_error", None),
        ({"exit_code": 125, "record": {"begun": True, "infra": "a lie"}}, "error", None),
    ],
)
def test_what_an_end_is_called(tmp_path: Path, facts: dict[str, Any], status: str, by: str | None) -> None:
    result = ended(tmp_path, **facts)
    assert result.status == status
    assert (result.oom and result.oom["by"]) == by
    assert bool(result.infra) == (status == "infra_error")


async def test_an_interpreter_that_does_not_begin_is_nobodys_program_error(run: Run) -> None:
    result = await run("print(1)", python="/bin/false")
    assert (result.status, result.infra) == ("infra_error", "the interpreter ended with code 1")


async def test_a_program_cannot_take_back_that_it_has_begun(run: Run) -> None:
    code = (
        "import os\n"
        "for fd in range(3, 200):\n"
        "    for way in (os.O_RDONLY, os.O_RDWR):\n"
        "        try:\n"
        "            back = os.open(f'/proc/self/fd/{fd}', way | os.O_NONBLOCK)\n"
        "            os.read(back, 100)\n"
        "        except OSError:\n            pass\n"
        "    try:\n        os.read(fd, 100) if False else None\n"
        "        os.set_blocking(fd, False); os.read(fd, 100)\n"
        "    except OSError:\n        pass\n"
        '    try:\n        os.write(fd, b\'{"infra": "the machine is broken"}\')\n'
        "    except OSError:\n        pass\n"
        "os._exit(125)\n"
    )
    result = await run(code)
    assert (result.status, result.exit_code, result.infra) == ("error", 125, "")


# ------------------------------------------------------------------------------- output and disk


async def test_output_beyond_the_store_is_dropped_and_a_flood_ends_the_program(run: Run) -> None:
    code = "import os\nfor _ in range(64): os.write(1, b'x' * 2**17)\nprint('end')\n"
    result = await run(code, limits={"stdout_store_mb": 1})
    assert (result.status, result.stdout_bytes) == ("ok", 8 * MIB + 4)
    assert os.path.getsize(result.stdout_path) == MIB
    endless = "import os\nwhile True: os.write(2, b'x' * 2**17)\n"
    result = await run(endless, limits={"stdout_store_mb": 1, "flood_mb": 4})
    assert (result.status, result.exc_msg) == ("output_limit", "wrote more than 4 MB of output")


FILL = "block = bytes(1 << 20)\n{how}import time\ntime.sleep(1000)\n"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "how",
    [
        "for i in range(8):\n    with open(str(i), 'wb') as file: file.write(block)\n",
        # Deeper than any path can be long.
        "import os\nfor _ in range(60):\n    os.mkdir('d' * 100); os.chdir('d' * 100)\n"
        "for i in range(8):\n    with open(str(i), 'wb') as file: file.write(block)\n",
        # Without names.
        "import os\nkept = []\nfor i in range(8):\n    kept.append(open('x', 'wb')); os.unlink('x')\n"
        "    kept[-1].write(block); kept[-1].flush()\n",
    ],
    ids=["many files", "deep folders", "files without names"],
)
async def test_a_full_share_of_the_disk_ends_the_program(run: Run, how: str) -> None:
    result = await run(FILL.format(how=how), limits={"disk_mb": 6})
    assert result.status == "disk"
    assert result.exc_msg.endswith("MB, limit 6 MB")


@pytest.mark.usefixtures("eager")
async def test_too_many_files_end_the_program(run: Run) -> None:
    code = "import time\nfor i in range(300): open(str(i), 'w').close()\ntime.sleep(1000)\n"
    result = await run(code, limits={"files": 200})
    assert (result.status, result.exc_msg) == ("disk", "made more than 200 files")


def test_a_walk_ends_where_the_limit_is_passed_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for number in range(50):
        (tmp_path / f"a/b/{number}").write_bytes(b"x" * 4096)
    (tmp_path / "link").symlink_to("/usr")
    before = len(os.listdir("/proc/self/fd"))
    size, count = measure(str(tmp_path))
    assert count == 53
    assert 50 * 4096 <= size < 80 * 4096
    assert measure(str(tmp_path), (), 10)[1] == 11
    assert measure(str(tmp_path / "absent")) == (0, 0)
    pids = (os.getpid(), 2**22 + 1)
    others = measure(str(tmp_path), pids)
    kept = (tmp_path / "gone").open("wb")
    kept.write(b"x" * 2**20)
    kept.flush()
    (tmp_path / "gone").unlink()
    again = os.dup(kept.fileno())
    assert measure(str(tmp_path), pids) == (others[0] + 2**20, others[1] + 1)
    os.close(again)
    kept.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -------------------------------------------------------------------------------------- watching


class Watched:
    """A program as a watch sees it: so much memory, so many processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **limits: Any) -> None:
        self.used, self.pids, self.breaches = 0.0, [1], list[tuple[str, str]]()
        monkeypatch.setattr(watchdog, "memory_bytes", self._memory)
        self.watch = Watch(
            lambda: self.pids,
            Limits(**limits),
            1000,
            str(tmp_path),
            lambda *why: self.breaches.append(why),
            Group(()),
        )
        self.now = time.monotonic()

    def _memory(self, pids: Iterable[int], precise_above: float) -> int:
        assert precise_above == 500 * MIB
        return int(self.used * MIB)

    def look(self, used: float, after: float = CALM_S, others: int = 0) -> float:
        """Seconds until the next look."""
        self.used = used
        self.now += after
        self.watch.look(self.now, others)
        return self.watch.next_look - self.now


def test_what_grows_fast_or_is_half_full_is_looked_at_often(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watched = Watched(monkeypatch, tmp_path)
    assert watched.look(10) == pytest.approx(CALM_S)
    assert watched.look(29, after=0.1) == pytest.approx(CALM_S)
    assert watched.look(60, after=0.1) == pytest.approx(ALERT_S)
    assert watched.look(61, after=0.02) == pytest.approx(CALM_S)
    assert watched.look(501, after=10) == pytest.approx(ALERT_S)
    assert not watched.breaches
    watched.look(1001)
    assert watched.breaches == [("oom", "used 1001 MB of memory, limit 1000 MB")]
    assert watched.watch.peak_mb == 1001


def test_many_calm_programs_are_looked_at_less_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watched = Watched(monkeypatch, tmp_path)
    clock = iter([0.0, 0.001] * 3)
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    assert watched.look(10) == pytest.approx(CALM_S)
    assert watched.look(10, others=999) == pytest.approx(10.0)
    # Not what is near its limit.
    assert watched.look(600, others=999) == pytest.approx(ALERT_S)


def test_a_dear_walk_is_taken_less_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watched = Watched(monkeypatch, tmp_path)
    walks: list[float] = []

    def slow(*arguments: Any) -> tuple[int, int]:
        walks.append(watched.now)
        watched.now += 0.03
        return 0, 0

    monkeypatch.setattr(watchdog, "measure", slow)
    for clock in ("monotonic", "thread_time"):
        monkeypatch.setattr(time, clock, lambda: watched.now)
    began = watched.now
    for _ in range(150):
        watched.look(1, after=0.1, others=3)
    # 0.03 s for each of four programs are a twentieth of 2.4 s.
    gaps = [later - earlier for earlier, later in itertools.pairwise([began, *walks])]
    assert len(gaps) == 6
    assert 0.99 < gaps[0] < 1.2
    assert all(2.39 < gap < 2.6 for gap in gaps[1:])


def test_processes_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    watched = Watched(monkeypatch, tmp_path, pids=3)
    watched.pids = [1, 2, 3]
    watched.look(1)
    assert not watched.breaches
    watched.pids.append(4)
    watched.look(1)
    assert watched.breaches == [("pids", "had 4 processes, limit 3")]


async def test_what_was_written_in_a_moment_is_seen_in_the_end(tmp_path: Path) -> None:
    """Sooner than anybody looks."""
    spec = program_spec(
        ExecRequest(
            code="open('large', 'wb').write(b'x' * 3_000_000)\nprint('done')",
            limits=Limits(disk_mb=2),
            workspace=str(tmp_path / "w"),
        ),
        "corerun.execution.local:LocalSandbox",
    )
    result = await run_program(spec)
    assert (result["status"], result["exit_code"]) == ("disk", 0)
    assert "limit 2 MB" in result["exc_msg"] and "done" in result["stdout"]
