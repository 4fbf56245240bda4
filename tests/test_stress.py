"""The supervisor under stress: floods, daemons, programs that won't end, failures and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corerun.execution import processes
from corerun.execution import session as sessions
from corerun.execution.local import LocalSandbox
from corerun.execution.supervisor import Supervisor
from corerun.interfaces import ExecRequest, ExecResult, Handler, Limits, Policy, Sandbox
from corerun_sandboxes import BwrapSandbox, LandlockSandbox

MARK = "TEST_STRESS_MARK"
MIB = 2**20
SANDBOXES: dict[str, Sandbox] = {
    "local": LocalSandbox(),
    "landlock": LandlockSandbox(),
    "bwrap": BwrapSandbox(),
}


class Runner:
    """Runs programs in one sandbox, each in a workspace of its own."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self.folder = folder

    async def __call__(
        self, code: str, name: str = "one", serve: Handler | None = None, **fields: Any
    ) -> ExecResult:
        limits = Limits(**{"wall_s": 200.0, "grace_s": 0.1, **fields.pop("limits", {})})
        session = await self.sandbox.open(Policy(), str(self.folder / name))
        request = ExecRequest(code=code, env={MARK: str(self.folder)}, limits=limits, **fields)
        try:
            return await session.run(request, serve)
        finally:
            await session.close()

    def survivors(self) -> list[int]:
        """Pids that carry the mark of these programs."""
        mark, found = f"{MARK}={self.folder}".encode(), []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
        return found


@pytest.fixture(params=list(SANDBOXES))
async def run(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Runner]:
    sandbox = SANDBOXES[request.param]
    probe = sandbox.probe()
    if not probe.ok:
        pytest.skip(f"needs the kernel's support for {request.param}: {probe.reason}")
    runner = Runner(sandbox, tmp_path)
    # What is opened once and kept.
    assert (await runner("pass", "first")).status == "ok"
    zombies, descriptors = set(zombie_children()), open_descriptors()
    yield runner
    assert runner.survivors() == []
    assert set(zombie_children()) <= zombies
    assert open_descriptors() == descriptors
    assert not processes.started
    assert not processes.active


only_local = pytest.mark.parametrize("run", ["local"], indirect=True)


def zombie_children() -> list[int]:
    table = processes.read_table()
    return [pid for pid, row in table.items() if row.parent == os.getpid() and row.state == "Z"]


def open_descriptors() -> list[str]:
    """What this process holds open, but for the folder of descriptors itself."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            kind = os.readlink(f"/proc/self/fd/{entry}").partition(":")[0]
            found.append(f"{entry} {kind}")
    return sorted(found)


# ------------------------------------------------------------------------------------- floods

FLOOD = (
    "import os, sys\nblock = bytes(range(256)) * 256\n"
    "for number in range({count}):\n"
    "    view = memoryview(block)\n    while view: view = view[os.write(1 + number % 2, view):]\n"
)


def peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def flood(run: Runner, programs: int, megabytes: int) -> None:
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kb()
    results = await asyncio.gather(
        *(run(FLOOD.format(count=16 * megabytes), f"{number}") for number in range(programs))
    )
    grown_mb = (peak_kb() - before) / 1024
    for result in results:
        assert result.status == "ok"
        assert result.stdout_bytes == result.stderr_bytes == megabytes * MIB // 2
        stored = min(megabytes // 2, 64) * MIB
        assert os.path.getsize(result.stdout_path) == os.path.getsize(result.stderr_path) == stored
        digest = hashlib.sha256()
        for _ in range(stored // 65536):
            digest.update(bytes(range(256)) * 256)
        assert result.stdout_sha256 == digest.hexdigest()
    assert grown_mb <= 8 * programs


@only_local
async def test_floods_at_once(run: Runner) -> None:
    await flood(run, 6, 20)


@pytest.mark.soak
async def test_twenty_floods_at_once(run: Runner) -> None:
    await flood(run, 20, 200)


# ------------------------------------------------------------------------------------- daemons

DAEMONS = """
import os, signal, sys, time
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    try: signal.signal(number, signal.SIG_IGN)
    except OSError: pass
heard, told = os.pipe()
def daemon(depth):
    if os.fork() == 0:
        os.setsid()
        between = os.getpid()
        if os.fork() == 0:
            while os.getppid() == between: time.sleep(0.001)
            os.write(told, b'x')
            if depth: daemon(depth - 1)
            while True: time.sleep(1000)
        os._exit(0)
daemon(3)
for _ in range(4): os.read(heard, 1)
"""
BYSTANDER = """
import os, signal, sys
def note(number, frame): os.write(1, b'signal %d' % number)
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, note)
os.write(1, b'ready')
while True:
    if not os.read(0, 1): break
"""


@contextlib.contextmanager
def bystanders() -> Iterator[Callable[[], bool]]:
    """Processes that are none of our programs; gives what says whether nothing was done to them."""
    names = ("python torch bfts", "python experiment.py", "corerun mp")
    started = [
        subprocess.Popen(
            [name, "-c", BYSTANDER],
            executable=sys.executable,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=number > 0,
        )
        for number, name in enumerate(names)
    ]

    def untouched() -> bool:
        table = processes.read_table()
        for one in started:
            assert one.stdout is not None
            os.set_blocking(one.stdout.fileno(), False)
            if one.poll() is not None or table[one.pid].state in "TZX" or one.stdout.read() is not None:
                return False
        return True

    try:
        for one in started:
            assert one.stdout is not None
            assert os.read(one.stdout.fileno(), 5) == b"ready"
        yield untouched
    finally:
        for one in started:
            one.kill()
            one.communicate()


async def daemons(run: Runner, programs: int) -> None:
    with bystanders() as untouched:
        places = asyncio.Queue[str]()
        for number in range(8):
            places.put_nowait(f"place-{number}")

        async def one(number: int) -> None:
            place = await places.get()
            result = await run(DAEMONS + ("" if number % 2 else "sys.exit(3)\n"), place)
            places.put_nowait(place)
            assert (result.exit_code, result.left) == (0 if number % 2 else 3, 4)

        await asyncio.gather(*map(one, range(programs)))
        assert untouched()


async def test_daemons_are_found_and_nobody_else(run: Runner) -> None:
    await daemons(run, 16)


@pytest.mark.soak
async def test_five_hundred_programs_with_daemons(run: Runner) -> None:
    await daemons(run, 500)


# ------------------------------------------------------------------- programs that will not end

SAY = (
    "import socket as _s, os as _o; "
    "_s.socket(fileno=_o.dup(int(_o.environ['CORERUN_SOCKET_FD']))).send(b'{\"i\":1}\\n')"
)
BLOCKED = "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
ENDLESS = {
    "loop": ("", "while True: pass", signal.SIGTERM),
    "sleep": ("import time", "time.sleep(100000)", signal.SIGTERM),
    "regex": ("import re", "re.match('(a+)+$', 'a' * 60 + 'b')", signal.SIGTERM),
    "blas": (
        "import numpy as np\nx = np.ones((1500, 1500))",
        "while True: x = np.minimum(x @ x, 1)",
        signal.SIGTERM,
    ),
    "stopped": ("import os, signal", "os.kill(os.getpid(), signal.SIGSTOP)", signal.SIGKILL),
    "lock held in C": ("import ctypes", "ctypes.PyDLL(None).sleep(100000)", signal.SIGTERM),
    "signals blocked": (BLOCKED, "while True: time.sleep(1000)", signal.SIGKILL),
    "interrupt caught": (
        "import signal\nfor n in (15, 2, 1): signal.signal(n, signal.default_int_handler)",
        "while True:\n    try:\n        {say}\n        while True: pass\n    except BaseException: pass",
        signal.SIGKILL,
    ),
}


@pytest.mark.parametrize("kind", list(ENDLESS))
async def test_nothing_defers_the_end(run: Runner, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is up at the moment when the program is where it would stay."""
    made: list[Supervisor] = []
    order: list[str] = []

    class Watched(Supervisor):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

        def _kill(self) -> None:
            order.append("kill")
            super()._kill()

    async def told(message: Any) -> None:
        if order:
            return
        order.append("time is up")
        while kind == "stopped" and not any(processes.read_table()[pid].state == "T" for pid in members()):
            await asyncio.sleep(0.01)
        made[0]._expire()

    def members() -> list[int]:
        return made[0]._tree.members()

    monkeypatch.setattr(sessions, "Supervisor", Watched)
    before, code, number = ENDLESS[kind]
    code = code.replace("{say}", SAY) if "{say}" in code else f"{SAY}\n{code}"
    result = await run(f"{before}\n{code}\n", serve=told)
    assert (result.status, result.signal) == ("timeout", number)
    assert order[:2] == ["time is up", "kill"][: 2 if number == signal.SIGKILL else 1]


@only_local
async def test_many_that_will_not_end_at_once(run: Runner) -> None:
    code = f"{BLOCKED}import os\nos.fork()\nwhile True: time.sleep(1000)\n"
    results = await asyncio.gather(*(run(code, f"{number}", limits={"wall_s": 1.0}) for number in range(8)))
    assert {result.status for result in results} == {"timeout"}


# ---------------------------------------------------------------------- failures, cancellation


class Failing:
    """Makes the nth of all calls that open something fail, as if this process had too much open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.left = number
        self.failed = ""
        for module, names in (
            (os, ("pipe", "pidfd_open", "memfd_create", "dup", "open")),
            (socket, ("socketpair",)),
            (subprocess, ("Popen",)),
        ):
            for name in names:
                monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            of_ours = name != "open" or str(arguments[0]).endswith(("cgroup.procs", ".log", "/dev/null"))
            if of_ours:
                self.left -= 1
                if self.left == 0:
                    self.failed = name
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(*arguments, **options)

        return call


async def test_whatever_cannot_be_opened_leaves_nothing_behind(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []
    for number in range(1, 60):
        with monkeypatch.context() as patched:
            failing = Failing(patched, number)
            result = await run(DAEMONS)
        if not failing.failed:
            break
        failed.append(failing.failed)
        assert result.status in ("infra_error", "ok"), failing.failed
        assert result.status == "ok" or "Too many open files" in result.infra
        assert run.survivors() == []
        assert not processes.started
    assert {"pipe", "pidfd_open", "socketpair", "Popen", "open"} <= set(failed)
    assert (await run("print(1)")).status == "ok"


async def test_cancelling_at_any_moment_leaves_nothing_behind(run: Runner) -> None:
    done = 0
    for turns in [*range(0, 8), *range(8, 300, 60)]:
        task = asyncio.ensure_future(run(DAEMONS))
        for _ in range(turns):
            await asyncio.sleep(0 if turns < 8 else 0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            done += 1
        assert run.survivors() == []
    assert done < 13


@pytest.mark.parametrize("moment", ["_finish", "_abandon"])
async def test_cancelling_while_a_program_is_ended(
    run: Runner, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Others must not lose what they opened meanwhile: a descriptor that is closed twice may be theirs."""
    tasks: list[asyncio.Task[Any]] = []
    begun = asyncio.Event()

    class Watched(Supervisor):
        async def _finish(self) -> Any:
            if moment == "_finish":
                tasks[0].cancel()
            return await super()._finish()

        async def _abandon(self) -> None:
            for _ in range(3):
                tasks[0].cancel()
                await asyncio.sleep(0)
            await super()._abandon()

    async def told(message: Any) -> None:
        begun.set()

    monkeypatch.setattr(sessions, "Supervisor", Watched)
    closed: list[int] = []
    close = os.close

    def checked(descriptor: int) -> None:
        try:
            close(descriptor)
        except OSError:
            closed.append(descriptor)
            raise

    monkeypatch.setattr(os, "close", checked)
    tasks.append(asyncio.ensure_future(run(f"{DAEMONS}{SAY}\n", serve=told)))
    await begun.wait()
    if moment == "_abandon":
        tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert closed == []


@only_local
async def test_processes_that_cannot_be_killed_are_an_error_of_ours(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_SWEEP_ROUNDS", 3)
    send = processes._send
    sleeping: list[int] = []

    def stop_only(pid: int, number: int) -> None:
        sleeping.append(pid)

    with monkeypatch.context() as patched:
        patched.setattr(processes, "_send", stop_only)
        result = await run(DAEMONS)
    assert result.status == "infra_error"
    assert "survive SIGKILL" in result.infra
    for pid in sleeping:
        send(pid, signal.SIGKILL)
    # The next program's sweep finds the dead ones.
    async with asyncio.timeout(60):
        while run.survivors() or set(sleeping) & set(processes.read_table()):
            await run("pass")
