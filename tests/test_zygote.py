"""Warm starts: the same results as cold ones, nothing shared between programs, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import UsageError
from corerun.execution import processes, zygote, zygotes
from corerun.execution.executors import InlineExecutor, ProcessExecutor
from corerun.execution.local import LocalSandbox
from corerun.execution.worker import RUN_PROGRAM, program_spec
from corerun.execution.zygote import Zygote
from corerun.interfaces import ExecRequest, ExecResult, Handler, Limits, Policy
from corerun_sandboxes import BwrapSandbox
from tests.support.same_programs import Sample, samples

NEW_EACH_TIME = re.compile(r"0x[0-9a-f]+|(?<=CORERUN_EXEC_ID )\w+|(?<=CORERUN_EXEC_ID=)\w+")
PREDICTABLE = (
    *("status", "exit_code", "signal", "exc_type", "exc_msg", "exc_trace", "stdout", "stderr", "files"),
    *("files_skipped", "left", "truncated", "stdout_bytes", "stderr_bytes", "infra"),
)


@pytest.fixture(scope="module", autouse=True)
def isolating() -> None:
    probe = BwrapSandbox().probe()
    if not probe.ok:
        pytest.skip(f"needs the kernel's user namespaces and bubblewrap: {probe.reason}")


class Runner:
    """Runs programs in bwrap, each name in a workspace of its own, warm unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def __call__(
        self,
        code: str,
        name: str = "program",
        profile: str | None = "bare",
        policy: Policy = Policy(),  # noqa: B008
        serve: Handler | None = None,
        **fields: Any,
    ) -> ExecResult:
        values = {"wall_s": 100.0, "grace_s": 0.2, "pids": 64, **fields.pop("limits", {})}
        session = await BwrapSandbox().open(policy, str(self.folder / name))
        try:
            request = ExecRequest(code=code, preload=profile, limits=Limits(**values), **fields)
            result: ExecResult = await session.run(request, serve)
            return result
        finally:
            await session.close()


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Runner]:
    yield Runner(tmp_path / "nodes")
    await zygotes.close()
    assert not processes.started


def is_warm(result: ExecResult) -> bool:
    return bool(result.sandbox.get("warm"))


async def living() -> list[Zygote]:
    return list(zygotes.of_this_loop()._living)


def zygote_pid(owned: Zygote) -> int:
    """The process that forks; what was started is bubblewrap, which waits for it."""
    return processes.children(owned._pid)[0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_gone(pid: int) -> bool:
    row = processes.read_table().get(pid)
    return row is None or row.state in "ZX"


# ---------------------------------------------------------------------------------- equal results


def told(result: ExecResult) -> Any:
    """What a result says of its program, without addresses and names that are new each time."""
    facts = {name: value for name, value in result.to_json().items() if name in PREDICTABLE}
    facts["files"] = [item for item in facts["files"] if not item["path"].endswith(".log")]
    return json.loads(NEW_EACH_TIME.sub("*", json.dumps(facts)))


async def assert_same(run: Runner, chosen: Iterable[Sample]) -> int:
    count = 0
    for sample in chosen:
        count += 1
        found = []
        for profile in (None, sample.profile):
            shutil.rmtree(run.folder / "same", ignore_errors=True)
            result = await run(
                sample.code, "same", profile, env=sample.env, stdin=sample.stdin, collect=("**",)
            )
            assert is_warm(result) == (profile is not None), sample.name
            found.append(told(result))
        assert found[0] == found[1], sample.name
    return count


async def test_programs_come_out_the_same(run: Runner) -> None:
    assert await assert_same(run, samples(1, 1, 0)) == 41


@pytest.mark.soak
async def test_two_hundred_programs_come_out_the_same(run: Runner) -> None:
    assert await assert_same(run, samples()) >= 200


async def test_threads_are_as_many_as_after_a_cold_start(run: Runner) -> None:
    code = "import ctypes, re\nimport numpy as np\nnp.ones((600, 600)) @ np.ones((600, 600))\nimport os\n"
    code += "print(len(os.listdir('/proc/self/task')), os.environ.get('OMP_NUM_THREADS'))"
    for env in ({}, {"OPENBLAS_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "3"}):
        cold = await run(code, profile=None, env=env)
        warm = await run(code, profile="numpy", env=env)
        assert is_warm(warm)
        assert cold.stdout == warm.stdout != ""


# What a program is likely to use of each profile: none of it may be imported anew in each program.
USES = {
    "bare": "import json, re, traceback\ntry:\n    1 / 0\nexcept Exception:\n    traceback.format_exc()",
    "numpy": (
        "import io, numpy as np\nnp.random.default_rng(0).normal(size=3)\nnp.random.rand(2)\n"
        "np.linalg.svd(np.eye(3))\nnp.fft.fft(np.ones(4))\nnp.save(io.BytesIO(), np.ones(2))\n"
        "np.savez(io.BytesIO(), a=np.ones(2))\nnp.polynomial.Polynomial([1, 2])(3)\nprint(np.ma.array([1]))"
    ),
    "plot": (
        "import io, matplotlib.pyplot as plt\nplt.plot([1, 2], label='a')\nplt.legend()\nplt.title('$x^2$')\n"
        "plt.savefig(io.BytesIO())"
    ),
    "sklearn": (
        "from sklearn.datasets import load_iris\nfrom sklearn.linear_model import LogisticRegression\n"
        "x, y = load_iris(return_X_y=True)\nLogisticRegression(max_iter=500).fit(x, y).score(x, y)"
    ),
    "torch": (
        "import torch\nm = torch.nn.Linear(3, 1)\no = torch.optim.SGD(m.parameters(), 0.1)\n"
        "torch.nn.functional.mse_loss(m(torch.ones(2, 3)), torch.ones(2, 1)).backward()\no.step()\n"
        "print(torch.ones(2))"
    ),
}
GROWTH = "import sys\nbefore = set(sys.modules)\n{}\nprint('grew:', sorted(set(sys.modules) - before))"


@pytest.mark.parametrize("profile", ["bare", "numpy", "plot"])
async def test_nothing_is_imported_in_each_program(run: Runner, profile: str) -> None:
    result = await run(GROWTH.format(USES[profile]), profile=profile)
    assert is_warm(result)
    assert result.stdout.splitlines()[-1] == "grew: []", result.stderr


@pytest.mark.soak
@pytest.mark.parametrize("profile", ["sklearn", "torch"])
async def test_nothing_large_is_imported_in_each_program(run: Runner, profile: str) -> None:
    result = await run(GROWTH.format(USES[profile]), profile=profile)
    assert is_warm(result)
    assert result.stdout.splitlines()[-1] == "grew: []", result.stderr


# ------------------------------------------------------------------------ nothing between programs

CHANGES = """
import atexit, builtins, gc, json, os, random, signal, socket, sys, tempfile, threading
import numpy as np

builtins.evil = json.dumps = 1
sys.modules["os.path"].evil = 1
sys.path.insert(0, "/tmp/evil")
os.environ["EVIL"] = "1"
os.environ.pop("LANG", None)
os.umask(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
atexit.register(print, "evil")
np.random.seed(0)
random.seed(0)
np.seterr(all="raise")
gc.disable()
for folder in ("/tmp", "/dev/shm", "."):
    open(folder + "/evil", "w").write("x")
server = socket.socket(socket.AF_UNIX)
server.bind("\\0evil")
loopback = socket.socket()
loopback.bind(("127.0.0.1", 7777))
loopback.listen()
os.chdir("/tmp")
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.pause()
os.wait()
"""

FINDS = """
import builtins, gc, json, os, random, signal, socket, sys
import numpy as np

assert not hasattr(builtins, "evil") and json.dumps([1]) == "[1]" and not hasattr(os.path, "evil")
assert "/tmp/evil" not in sys.path and "EVIL" not in os.environ and gc.isenabled()
assert os.umask(0) == 0o077
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
assert np.geterr()["divide"] == "warn"
assert os.listdir("/dev/shm") == [] and "evil" not in os.listdir("/tmp")
assert [name for name in os.listdir(os.path.dirname(os.getcwd()))] == [os.path.basename(os.getcwd())]
socket.socket(socket.AF_UNIX).bind("\\0evil")
loopback = socket.socket()
loopback.bind(("127.0.0.1", 7777))
loopback.listen()
socket.create_connection(("127.0.0.1", 7777))
print("nothing")
"""


async def test_a_program_finds_nothing_of_another_one(run: Runner) -> None:
    first = await run(CHANGES, "first", "numpy")
    assert (first.status, first.left, is_warm(first)) == ("ok", 1, True), first.stderr
    second = await run(FINDS, "second", "numpy")
    assert (second.stdout, is_warm(second)) == ("nothing\n", True), second.stderr


async def test_a_program_finds_nothing_of_one_that_runs_beside_it(run: Runner) -> None:
    code = CHANGES + "print('ready', flush=True)\nsignal.pause()"
    beside = asyncio.ensure_future(run(code, "beside", "numpy"))
    log = run.folder / "beside" / "program.stdout.log"
    await until(lambda: beside.done() or (log.exists() and "ready" in log.read_text()))
    found = await run(FINDS, "second", "numpy")
    assert (found.stdout, is_warm(found)) == ("nothing\n", True), found.stderr
    beside.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beside


@pytest.mark.parametrize("profile", ["numpy", pytest.param("torch", marks=pytest.mark.soak)])
async def test_chance_differs_from_program_to_program(run: Runner, profile: str) -> None:
    code = (
        "import os, random, secrets, tempfile, uuid, multiprocessing as m\nimport numpy as np\n"
        "print(random.random())\nprint(np.random.rand())\nprint(np.random.default_rng().random())\n"
        "print(uuid.uuid4())\nprint(uuid.uuid1())\nprint(tempfile.mkdtemp())\nprint(secrets.token_hex())\n"
        "print(bytes(m.current_process().authkey))\n"
    )
    if profile == "torch":
        code += "import torch\nprint(torch.rand(1).item())\nprint(torch.initial_seed())\n"
    one, two = [(await run(code, "p", profile)).stdout.splitlines() for _ in range(2)]
    assert len(one) == (10 if profile == "torch" else 8)
    assert not set(one) & set(two)


async def test_a_program_finds_no_workspace_beside_its_own_wherever_it_is() -> None:
    # Below /tmp, where tests have their folders, a program's own /tmp hides all others anyway.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        run = Runner(Path(place) / "nodes")
        await run("open('secret', 'w')", "first")
        code = "import os\nprint(os.listdir('..'), os.path.exists('../first'))\nopen('../x', 'w')"
        result = await run(code, "second")
        assert (result.stdout, is_warm(result)) == ("['second'] False\n", True)
        assert "Read-only" in result.exc_msg
        await zygotes.close()


PRYING = """
import ctypes, os, signal

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
    os.kill(1, number)
opened = []
for pid in (name for name in os.listdir("/proc") if name.isdigit()):
    for part in ("environ", "mem", "fd/4", "maps", "root/etc/passwd", "cwd"):
        path = f"/proc/{pid}/{part}"
        try:
            os.close(os.open(path, os.O_RDONLY)) if part != "cwd" else os.listdir(path)
            opened.append(os.readlink(f"/proc/{pid}/ns/pid") + str(path))
        except OSError:
            pass
own = os.readlink("/proc/self/ns/pid")
mine = os.readlink("/proc/self")
print("opened", [path for path in opened if f"/proc/{mine}/" not in path])
status = open("/proc/self/status").read()
print([line for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "NoNewPrivs"))])
libc = ctypes.CDLL(None, use_errno=True)
print("umount", libc.umount2(os.path.dirname(os.getcwd()).encode(), 2), libc.umount2(b"/tmp", 2))
print("namespaces", libc.unshare(0x10000000), libc.unshare(0x20000))
for path in (f"/proc/self/root{os.path.dirname(os.getcwd())}/x", "/x", "/usr/x"):
    try:
        open(path, "w")
        print("wrote", path)
    except OSError:
        pass
"""


async def test_the_first_process_and_the_zygote_are_out_of_reach(run: Runner) -> None:
    beside = asyncio.ensure_future(run("import signal\nsignal.pause()", "beside"))
    await until(lambda: (run.folder / "beside" / "program.stdout.log").exists())
    result = await run(PRYING, "prying")
    assert (result.status, is_warm(result)) == ("ok", True), result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "opened []"
    assert "CapPrm:\\t0000000000000000" in lines[1] and "CapEff:\\t0000000000000000" in lines[1]
    assert lines[2] == "umount -1 -1"
    assert lines[3].endswith("-1")
    assert [line for line in lines if line.startswith("wrote")] in (
        [],
        [f"wrote /proc/self/root{run.folder}/x"],
    )
    assert not (run.folder / "x").exists()
    beside.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beside


# -------------------------------------------------------------------------------- how programs end


async def test_a_time_limit_ends_what_would_not_end(run: Runner) -> None:
    for code in (
        "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: signal.pause()",
        "import signal\nsignal.signal(15, lambda *a: None)\nwhile True: pass",
        "import os\nos.kill(os.getpid(), 19)",
        "import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True: pass",
    ):
        result = await run(code, limits={"wall_s": 0.3})
        assert (result.status, result.signal, is_warm(result)) == ("timeout", signal.SIGKILL, True), code


async def test_a_program_may_end_in_order_when_it_is_told_to(run: Runner) -> None:
    code = "import signal, sys\nsignal.signal(15, lambda *a: (print('told'), sys.exit(3)))\nsignal.pause()"
    result = await run(code, limits={"wall_s": 0.3, "grace_s": 30.0})
    assert (result.status, result.exit_code, result.stdout) == ("timeout", 3, "told\n")


async def test_what_is_left_behind_is_counted_and_gone(run: Runner) -> None:
    code = "import subprocess\nfor _ in range(7): subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    result = await run(code)
    assert (result.status, result.left, len(result.leftovers)) == ("ok", 7, 5)
    assert set(result.leftovers) == {"sleep 1000"}


async def test_questions_are_answered(run: Runner) -> None:
    async def answer(question: Any) -> Any:
        return question["word"][::-1]

    code = (
        "import json, os, socket\ns = socket.socket(fileno=int(os.environ['CORERUN_SOCKET_FD']))\n"
        's.sendall(b\'{"i": 1, "word": "abc"}\\n\')\nprint(json.loads(s.recv(99)))'
    )
    result = await run(code, serve=answer)
    assert (result.stdout, is_warm(result)) == ("{'i': 1, 'r': 'cba'}\n", True), result.stderr


async def test_limits_hold(run: Runner) -> None:
    code = "import os\nopen('a', 'wb').write(bytes(3 << 20))"
    result = await run(code, limits={"file_mb": 1})
    assert (result.status, is_warm(result)) in (("disk", True), ("error", True))
    code = "import os, signal\nfor n in range(60):\n    if os.fork() == 0:\n        signal.pause()"
    result = await run(code, limits={"pids": 20})
    assert ("pids" not in result.sandbox["guarantees"]) or (result.left <= 20 and is_warm(result))
    code = "open('/tmp/a', 'wb').write(bytes(30 << 20))"
    result = await run(code, limits={"disk_mb": 10, "file_mb": 100})
    assert "No space left" in result.exc_msg


async def test_a_program_whose_guard_is_killed_did_not_fail_by_itself(run: Runner) -> None:
    running = asyncio.ensure_future(run("import signal\nprint('ready', flush=True)\nsignal.pause()"))
    log = run.folder / "program" / "program.stdout.log"
    await until(lambda: running.done() or (log.exists() and "ready" in log.read_text()))
    (only,) = await living()
    (guard,) = processes.children(zygote_pid(only))
    os.kill(guard, signal.SIGKILL)
    result = await running
    assert (result.status, result.infra) == ("infra_error", "the sandbox ended before its program")


async def test_a_place_that_can_not_be_made_is_told(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Zygote.fork

    async def with_a_wish(owned: Zygote, request: dict[str, Any], descriptors: Sequence[int]) -> int:
        return await real(owned, {**request, "keep": ["/nowhere"]}, descriptors)

    monkeypatch.setattr(Zygote, "fork", with_a_wish)
    result = await run("print(1)")
    assert (result.status, result.stdout, is_warm(result)) == ("infra_error", "", True)
    assert "/nowhere" in result.infra


async def test_nothing_stays_open(run: Runner) -> None:
    await run("print(1)")
    before = open_descriptors()
    await asyncio.gather(*(run("print(1)", f"p{number}") for number in range(8)))
    await run("raise SystemExit(3)")
    assert open_descriptors() == before


# ---------------------------------------------------------------------------- the life of a zygote


async def test_programs_of_a_kind_share_one(run: Runner) -> None:
    results = await asyncio.gather(*(run("print(1)", f"p{number}") for number in range(6)))
    assert all(is_warm(result) for result in results)
    assert len(await living()) == 1
    await run("print(1)", "p1", env={"PYTHONHASHSEED": "7"})
    assert len(await living()) == 2


async def test_one_that_dies_costs_no_program(run: Runner) -> None:
    await run("print(1)")
    (only,) = await living()
    os.kill(zygote_pid(only), signal.SIGKILL)
    result = await run("print(2)")
    assert (result.status, result.stdout) == ("ok", "2\n")
    assert is_warm(await run("print(3)"))


async def test_one_that_does_not_answer_costs_no_program(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run("print(1)")
    (only,) = await living()
    monkeypatch.setattr(zygote, "ANSWER_S", 0.2)
    pid = zygote_pid(only)
    os.kill(pid, signal.SIGSTOP)
    result = await run("print(2)")
    assert (result.status, result.stdout, is_warm(result)) == ("ok", "2\n", False)
    await until(lambda: is_gone(pid))


@pytest.mark.parametrize("answered", [False, True])
async def test_a_cancelled_program_takes_no_other_with_it(run: Runner, answered: bool) -> None:
    await run("print(1)")
    (only,) = await living()
    stopped = zygote_pid(only)
    before = open_descriptors()
    os.kill(stopped, signal.SIGSTOP)
    running = asyncio.ensure_future(run("open('begun', 'w')\nimport signal\nsignal.pause()", "cancelled"))
    await until(lambda: bool(only._answers))
    if answered:
        os.kill(stopped, signal.SIGCONT)
        select.select([only._control], [], [], 60)
        only._readable()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    os.kill(stopped, signal.SIGCONT)
    assert is_warm(await run("print(2)"))
    await until(lambda: not [pid for pid in processes.children(stopped) if not is_gone(pid)])
    assert open_descriptors() == before


async def test_one_is_replaced_when_it_is_used_up(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "MOST_FORKS", 1)
    slow = asyncio.ensure_future(run("import time\nwhile True:\n    time.sleep(0.01)", "slow"))
    log = run.folder / "slow" / "program.stdout.log"
    await until(log.exists)
    await until(lambda: any(each._running for each in zygotes.of_this_loop()._living))
    (first,) = await living()
    assert is_warm(await run("print(1)"))
    assert len(await living()) == 2, "the first one is needed as long as its program runs"
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    await until(lambda: first not in zygotes.of_this_loop()._living)


@pytest.mark.parametrize("reason", ["packages", "memory", "age"])
async def test_one_that_is_out_of_date_is_replaced(
    run: Runner, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    await run("print(1)")
    (first,) = await living()
    monkeypatch.setattr(zygote, "LOOK_S", 0.0)
    assert first.worn() == ""
    if reason == "packages":
        monkeypatch.setattr(zygote, "_packages", lambda folders: ["other"])
    elif reason == "memory":
        monkeypatch.setattr(zygote, "MOST_GROWTH", 0.9)
    else:
        monkeypatch.setattr(zygote, "MOST_AGE_S", 0.0)
    assert first.worn()
    assert is_warm(await run("print(1)"))
    assert first not in await living()


def test_a_changed_package_is_seen(tmp_path: Path) -> None:
    record = tmp_path / "thing-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("one")
    link = tmp_path / "thing.pth"
    link.write_text("/a")
    seen = [zygote._packages([str(tmp_path), "/nowhere"])]
    for path in (record, link):
        os.utime(path, ns=(1, 1))
        seen.append(zygote._packages([str(tmp_path), "/nowhere"]))
    shutil.rmtree(record.parent)
    seen.append(zygote._packages([str(tmp_path), "/nowhere"]))
    assert all(one != other for number, one in enumerate(seen) for other in seen[:number])


async def test_programs_that_crash_as_they_begin_start_cold_from_then_on(
    run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    code = "import os\nos.kill(os.getpid(), 11)"
    with caplog.at_level(logging.WARNING):
        results = [await run(code) for _ in range(4)]
    assert [is_warm(result) for result in results] == [True, True, False, False]
    assert {(result.status, result.signal) for result in results} == {("error", 11)}
    assert [record.name for record in caplog.records] == ["corerun.execution.zygotes"]


async def test_what_can_not_be_imported_is_the_programs_own_affair(
    run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    python = shutil.which("python3", path="/usr/bin")
    if python is None or subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode == 0:
        python = sys.executable
        pytest.skip("needs the kernel's own Python without numpy")
    with caplog.at_level(logging.WARNING):
        results = [await run("import numpy", profile="numpy", python=python) for _ in range(2)]
    assert {(result.status, result.exc_type, is_warm(result)) for result in results} == {
        ("error", "ModuleNotFoundError", False)
    }
    assert len(caplog.records) == 1
    assert is_warm(await run("print(1)", profile="bare", python=python))


async def test_what_must_start_cold_does(run: Runner, tmp_path: Path) -> None:
    code = "print(1)"
    link = tmp_path / "link"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real")
    assert not is_warm(await run(code, policy=Policy(zygote=False)))
    assert not is_warm(await run(code, profile=None))
    assert not is_warm(await run(code, read=("/etc/hostname",)))
    assert not is_warm(await run("echo 1", kind="shell"))
    assert not is_warm(await run("", kind="argv", argv=("true",)))
    assert not is_warm(await run(code, env={"MALLOC_ARENA_MAX": "1"}))
    assert not is_warm(await run(code, env={"LONG": "x" * zygote.MESSAGE_BYTES}))
    assert not is_warm(await Runner(link)(code))
    local = await LocalSandbox().open(Policy(), str(tmp_path / "nodes" / "local"))
    assert not is_warm(await local.run(ExecRequest(code=code, preload="bare")))
    await local.close()
    assert is_warm(await run(code))


async def test_a_workspace_among_other_things_gets_a_zygote_of_its_own(run: Runner, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "other").write_text("secret")
    beside = Runner(tmp_path)
    code = "import os\nprint(os.listdir('..'))"
    results = [await beside(code, "own") for _ in range(3)]
    assert [is_warm(result) for result in results] == [False, True, True]
    assert {result.stdout for result in results} == {"['own']\n"}
    (only,) = await living()
    assert only.kind.place.folder == str(tmp_path / "own")


async def test_a_file_that_hides_a_module_hides_it_in_every_start(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("x = 'own'")
    files = {"numpy.py": str(tmp_path / "own.py")}
    results = [
        await run("import numpy; print(numpy.x)", profile=profile, files=files) for profile in (None, "numpy")
    ]
    assert [result.stdout for result in results] == ["own\n", "own\n"]
    assert not is_warm(results[1])


async def test_what_programs_may_read_is_there_wherever_it_lies(run: Runner, tmp_path: Path) -> None:
    late = run.folder / "late"
    policy = Policy(read=(str(tmp_path / "data"), str(late)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("told")
    code = (
        f"import os\nprint(open('{tmp_path}/data/a').read(), os.path.exists('{late}'))\nopen('{late}/x', 'w')"
    )
    first = await run(code, policy=policy)
    assert (first.stdout, is_warm(first)) == ("told False\n", True)
    late.mkdir()
    second = await run(code, policy=policy)
    assert (second.stdout, is_warm(second)) == ("told True\n", True)
    assert "Read-only" in second.exc_msg


async def test_an_unknown_profile_is_named(run: Runner) -> None:
    with pytest.raises(UsageError, match="unknown profile 'pandas'"):
        await run("print(1)", profile="pandas")


async def test_no_zygote_outlives_its_executor(run: Runner, tmp_path: Path) -> None:
    request = ExecRequest(code="print(1)", preload="bare", workspace=str(tmp_path / "nodes" / "a"))
    for executor in (InlineExecutor(1), ProcessExecutor(1)):
        before = set(processes.descendants(os.getpid()))
        spec = program_spec(request, "corerun_sandboxes:BwrapSandbox")
        assert (await executor.submit(RUN_PROGRAM, spec))["sandbox"]["warm"]
        started = set(processes.descendants(os.getpid())) - before
        assert started
        await executor.close()
        assert all(is_gone(pid) for pid in started)


def test_no_zygote_outlives_its_event_loop(tmp_path: Path) -> None:
    async def work() -> list[int]:
        assert is_warm(await Runner(tmp_path / "nodes")("print(1)"))
        (only,) = await living()
        return processes.descendants(only._pid)

    pids = asyncio.run(work())
    assert len(pids) >= 2
    assert all(is_gone(pid) for pid in pids)
    assert not processes.started


OWNER = """
import asyncio, sys
from corerun.execution import processes, zygotes
from corerun.interfaces import ExecRequest, Policy
from corerun_sandboxes import BwrapSandbox


async def main():
    session = await BwrapSandbox().open(Policy(), sys.argv[1])
    print((await session.run(ExecRequest(code="print(1)", preload="bare"))).stdout, end="")
    (zygote,) = zygotes.of_this_loop()._living
    print(*processes.descendants(zygote._pid), flush=True)
    if sys.argv[2] == "stay":
        await asyncio.sleep(1000)


asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["stay", "leave"])
def test_no_zygote_outlives_its_owner(tmp_path: Path, end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "nodes" / "a"), end], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "1\n"
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) >= 2
        if end == "stay":
            owner.kill()
    limit = time.monotonic() + 60
    while not all(is_gone(pid) for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.01)
