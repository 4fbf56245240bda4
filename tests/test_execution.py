"""Programs of every bad kind through the local sandbox: the result tells, and nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import UsageError
from corerun.execution import processes
from corerun.execution.local import LocalSandbox
from corerun.interfaces import ExecRequest, ExecResult, Limits, Policy, Sandbox, Session
from corerun_sandboxes.bwrap import BwrapSandbox
from corerun_sandboxes.landlock import LandlockSandbox

MARK = "TEST_EXECUTION_MARK"


def carriers(mark: str) -> list[int]:
    """Pids of this machine whose environment carries the mark, the living and the stopped."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if f"{MARK}={mark}".encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
    return found


def zombie_children() -> list[int]:
    table = processes.read_table()
    return [pid for pid, row in table.items() if row.parent == os.getpid() and row.state == "Z"]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    # Processes of other tests' killed children may have been adopted and ended by now.
    before = set(zombie_children())
    yield
    assert carriers(str(tmp_path)) == []
    assert set(zombie_children()) <= before
    assert not processes.started
    assert not processes.active


only_local = pytest.mark.parametrize("session", ["local"], indirect=True)
"""Where nothing depends on the sandbox."""

SANDBOXES: dict[str, Sandbox] = {
    "local": LocalSandbox(),
    "landlock": LandlockSandbox(),
    "bwrap": BwrapSandbox(),
}


@pytest.fixture(params=list(SANDBOXES))
async def session(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Session]:
    sandbox = SANDBOXES[request.param]
    probe = sandbox.probe()
    if not probe.ok:
        pytest.skip(f"needs the kernel's support for {request.param}: {probe.reason}")
    opened = await sandbox.open(Policy(), str(tmp_path))
    yield opened
    await opened.close()


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., ExecRequest]:
    def make(code: str, **fields: Any) -> ExecRequest:
        environment = {MARK: str(tmp_path), **fields.pop("env", {})}
        limits = Limits(**{"wall_s": 60.0, "grace_s": 0.2, **fields.pop("limits", {})})
        return ExecRequest(workspace=str(tmp_path), code=code, env=environment, limits=limits, **fields)

    return make


Program = Callable[..., ExecRequest]


# ------------------------------------------------------------------------------ ordinary programs


async def test_a_good_program(session: Session, program: Program, tmp_path: Path) -> None:
    code = "import sys\nprint(__name__, sys.argv, sys.stdin.read())\nopen('out.txt', 'w').write('x')\n"
    result = await session.run(program(code, stdin="told", cwd="working", collect=("*.txt",)))
    folder = tmp_path / "working"
    assert (result.status, result.exit_code, result.signal) == ("ok", 0, None)
    assert result.stdout == f"__main__ ['{folder}/runfile.py'] told\n"
    assert result.stdout_bytes == len(result.stdout)
    assert Path(result.stdout_path).read_text() == result.stdout
    assert result.stdout_sha256 == hashlib.sha256(result.stdout.encode()).hexdigest()
    digest = hashlib.sha256(b"x").hexdigest()
    assert result.files == ({"path": "out.txt", "size": 1, "sha256": digest},)
    assert set(result.timing) == {"start_s", "run_s", "collect_s"}
    assert result.cpu_s > 0
    assert 1 < result.max_rss_mb < 100
    assert result.sandbox["name"] in SANDBOXES
    assert ExecResult.from_json(result.to_json()) == result


async def test_an_exception_is_shown_as_python_shows_it(session: Session, program: Program) -> None:
    code = "def deep(x):\n    return 1 / x\n\ndeep(0)\n"
    result = await session.run(program(code))
    alone = subprocess.run(
        [sys.executable, str(Path(result.stdout_path).with_name("runfile.py"))],
        capture_output=True,
        text=True,
    )
    assert result.stderr == alone.stderr
    assert (result.status, result.exit_code) == ("error", 1)
    assert (result.exc_type, result.exc_msg) == ("ZeroDivisionError", "division by zero")
    assert [(frame["line"], frame["func"], frame["text"]) for frame in result.exc_trace] == [
        (4, "<module>", "deep(0)"),
        (2, "deep", "return 1 / x"),
    ]


async def test_a_syntax_error_names_file_and_line(session: Session, program: Program) -> None:
    result = await session.run(program("x = (\n"))
    assert (result.status, result.exc_type) == ("error", "SyntaxError")
    assert "runfile.py" in result.stderr and "launcher" not in result.stderr


@only_local
@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('bad luck')", 1, "bad luck\n"),
        ("import os; os._exit(3)", 3, ""),
        ("raise KeyboardInterrupt", 130, None),
        ("import atexit; atexit.register(print, 'late')", 0, ""),
    ],
)
async def test_exit_codes(
    session: Session, program: Program, code: str, exit_code: int, stderr: str | None
) -> None:
    result = await session.run(program(code))
    assert (result.exit_code, result.status) == (exit_code, "error" if exit_code else "ok")
    assert stderr is None or result.stderr == stderr
    assert ("late" in result.stdout) == ("late" in code)


async def test_threads_are_waited_for(session: Session, program: Program) -> None:
    code = (
        "import threading\nmain = threading.main_thread()\ngate = threading.Event()\n"
        "def late():\n    gate.wait()\n    print('from the thread')\n"
        "threading.Thread(target=late).start()\n"
        "threading.Timer(0.05, gate.set).start()\n"
    )
    assert (await session.run(program(code))).stdout == "from the thread\n"


# Named semaphores are files in /dev/shm, which all processes of the account share.
@pytest.mark.parametrize("session", ["local", "bwrap"], indirect=True)
async def test_multiprocessing_and_pickles_find_main(session: Session, program: Program) -> None:
    code = (
        "import multiprocessing, pickle\n"
        "class Thing:\n    pass\n"
        "def square(x):\n    return x * x\n"
        "if __name__ == '__main__':\n"
        "    pickle.loads(pickle.dumps(Thing()))\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(square, [1, 2, 3]))\n"
    )
    result = await session.run(program(code))
    assert (result.status, result.stdout) == ("ok", "[1, 4, 9]\n")


async def test_shell_and_argv(session: Session, program: Program) -> None:
    shell = await session.run(program("echo $((6 * 7)); exit 4", kind="shell"))
    assert (shell.status, shell.exit_code, shell.stdout) == ("error", 4, "42\n")
    argv = await session.run(program("", kind="argv", argv=("/bin/echo", "a b")))
    assert (argv.status, argv.stdout) == ("ok", "a b\n")
    absent = await session.run(program("", kind="argv", argv=("/no/such/thing",)))
    assert (absent.status, absent.exit_code, absent.exc_type) == ("error", 127, "FileNotFoundError")


async def test_an_interpreter_that_is_missing_is_nobodys_program_error(
    session: Session, program: Program
) -> None:
    before = open_descriptors()
    result = await session.run(program("pass", python="/no/such/python"))
    assert result.status == "infra_error"
    assert "/no/such/python" in result.infra
    assert open_descriptors() == before


async def test_inputs_are_copied_in(session: Session, program: Program, tmp_path: Path) -> None:
    source = tmp_path / "source.csv"
    source.write_text("1,2")
    code = "print(open('input/data.csv').read())"
    result = await session.run(program(code, files={"input/data.csv": str(source)}))
    assert result.stdout == "1,2\n"


# --------------------------------------------------------------------------------- environment


async def test_no_key_reaches_a_program(
    session: Session, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-one")
    monkeypatch.setenv("UNRELATED", "canary-two")
    result = await session.run(program("import os\nprint(dict(os.environ))"))
    assert "canary" not in result.stdout
    assert "'PYTHONHASHSEED': '0'" in result.stdout


@only_local
async def test_hashes_are_the_same_in_every_run(session: Session, program: Program) -> None:
    outputs = {(await session.run(program("print(hash('a'), {*'abcdef'})"))).stdout for _ in range(2)}
    assert len(outputs) == 1


async def test_neighbours_are_importable_and_the_launcher_is_not(
    session: Session, program: Program, tmp_path: Path
) -> None:
    (tmp_path / "helper.py").write_text("value = 5\n")
    code = "import helper, sys\nprint(helper.value, [p for p in sys.path if 'execution' in p])"
    assert (await session.run(program(code))).stdout == "5 []\n"


# ------------------------------------------------------------------------------- time and trees


TREE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
heard, told = os.pipe()
def daemon(depth):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            print('daemon', flush=True)
            os.write(told, b'x')
            if depth:
                daemon(depth - 1)
            while True:
                time.sleep(1000)
        os._exit(0)
daemon(2)
for _ in range(3): os.read(heard, 1)
"""


async def test_an_endless_loop_is_stopped(session: Session, program: Program) -> None:
    result = await session.run(program("while True: pass", limits={"wall_s": 0.3}))
    assert (result.status, result.signal) == ("timeout", signal.SIGTERM)
    assert result.exc_msg == "ran longer than 0.3 s"


async def test_a_stopped_program_is_stopped(session: Session, program: Program) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"
    result = await session.run(program(code, limits={"wall_s": 0.3}))
    assert (result.status, result.signal) == ("timeout", signal.SIGKILL)


async def test_a_tree_that_ignores_signals_is_killed(session: Session, program: Program) -> None:
    result = await session.run(program(f"{TREE}while True: time.sleep(1000)", limits={"wall_s": 1.0}))
    assert (result.status, result.signal) == ("timeout", signal.SIGKILL)
    assert "daemon" in result.stdout


async def test_daemons_that_hold_stdout_do_not_hold_the_result(session: Session, program: Program) -> None:
    result = await session.run(program(TREE + "print('main')\n"))
    assert result.status == "ok"
    assert "main" in result.stdout
    assert len(result.leftovers) == 3
    assert all("start.py" in line for line in result.leftovers)


async def test_a_daemon_without_a_trace_of_its_origin_is_found(session: Session, program: Program) -> None:
    code = (
        "import os\n"
        "heard, closed_by_exec = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.execve('/bin/sleep', ['sleep', '98765'], {})\n"
        "    os._exit(0)\n"
        "os.close(closed_by_exec)\n"
        "os.read(heard, 1)\n"
    )
    result = await session.run(program(code))
    assert result.leftovers == ("sleep 98765",)


async def test_a_foreign_child_of_this_process_is_left_alone(session: Session, program: Program) -> None:
    bystander = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
    ended = subprocess.Popen(["/bin/sh", "-c", "exit 9"], start_new_session=True)
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        await session.run(program(TREE))
        assert bystander.poll() is None
        assert ended.wait() == 9
    finally:
        bystander.kill()
        bystander.wait()


async def test_many_forks_end_with_the_program(session: Session, program: Program) -> None:
    code = "import os, time\nfor _ in range(60):\n    if os.fork() == 0:\n        time.sleep(1000)\n"
    result = await session.run(program(code))
    assert result.status == "ok"
    assert len(result.leftovers) == processes.LEFTOVERS_SHOWN


async def test_too_many_processes_are_stopped(session: Session, program: Program) -> None:
    code = (
        "import os, time\n"
        "for made in range(60):\n"
        "    try:\n"
        "        if os.fork() == 0:\n            break\n"
        "    except OSError as error:\n        os._exit(made)\n"
        "time.sleep(1000)\n"
    )
    result = await session.run(program(code, limits={"pids": 20}))
    if "pids" in result.sandbox["guarantees"]:
        # The kernel refuses them. Beside the program there may be one more, that watches over it.
        assert (result.status, result.left) == ("error", result.exit_code)
        assert result.exit_code in (19, 20)
    else:
        assert result.status == "killed"
        assert result.exc_msg.endswith("processes, limit 20")


@pytest.mark.parametrize("fallback", [False, True])
async def test_cancelling_kills_the_tree(
    session: Session, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallback: bool
) -> None:
    if fallback:
        monkeypatch.setattr(processes, "_children_listed", lambda: False)
    before = open_descriptors()
    seen = asyncio.Event()

    async def told(message: Any) -> None:
        seen.set()

    ready = (
        "import socket\nsocket.socket(fileno=int(os.environ['CORERUN_SOCKET_FD'])).send(b'{\"i\":1}\\n')\n"
    )
    code = TREE + ready + "while True: time.sleep(1000)"
    run = asyncio.ensure_future(session.run(program(code), told))
    await seen.wait()
    assert carriers(str(tmp_path))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert carriers(str(tmp_path)) == []
    assert open_descriptors() == before


async def test_two_at_once_and_no_descriptor_is_lost(session: Session, program: Program) -> None:
    await session.run(program("pass"))
    before = open_descriptors()
    codes = {"one": "print('a')", "two": "import sys; sys.exit(2)", "three": TREE}
    results = await asyncio.gather(
        *(session.run(program(code, label=label, file_name=f"{label}.py")) for label, code in codes.items())
    )
    assert [result.status for result in results] == ["ok", "error", "ok"]
    assert results[0].stdout == "a\n"
    assert open_descriptors() == before


# ------------------------------------------------------------------------------ memory and disk


@only_local
async def test_a_flood_of_output_stays_out_of_memory(session: Session, program: Program) -> None:
    code = "import os\nblock = b'0123456789abcdef' * 4096\nfor _ in range(3200): os.write(1, block)\n"
    request = program(code, limits={"stdout_store_mb": 8})
    await session.run(program("print('warm')"))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kb()
    result = await session.run(request)
    grown = peak_kb() - before
    assert result.status == "ok"
    assert result.stdout_bytes == 200 * 2**20
    assert os.path.getsize(result.stdout_path) == 8 * 2**20
    assert result.truncated
    cut = 200 * 2**20 - (64 + 192) * 1024
    assert f"\n[... {cut} bytes cut ...]\n" in result.stdout
    assert grown < 8 * 1024


def peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@only_local
async def test_memory_eaten_is_oom(session: Session, program: Program) -> None:
    code = (
        "import time\nx = []\n"
        "for _ in range(50):\n    x.append(bytearray(b'x' * 2**24))\n    time.sleep(0.03)\n"
    )
    result = await session.run(program(code, limits={"mem_mb": 300}))
    assert result.status == "oom"
    assert result.oom is not None
    held = "mem_total" in result.sandbox["guarantees"]
    assert (result.oom["by"], result.oom["limit_mb"]) == ("cgroup" if held else "watchdog", 300)
    assert result.oom["peak_mb"] > 270
    assert "limit" in result.exc_msg or "300 MB" in result.exc_msg


@only_local
async def test_memory_shared_by_forks_is_counted_once(session: Session, program: Program) -> None:
    code = (
        "import os, time\nx = b'x' * (100 * 2**20)\n"
        "for _ in range(8):\n    if os.fork() == 0:\n        time.sleep(0.8)\n        os._exit(0)\n"
        "for _ in range(8): os.wait()\n"
    )
    result = await session.run(program(code, limits={"mem_mb": 400}))
    assert result.status == "ok"
    assert 100 < result.max_rss_mb < 400


async def test_one_large_file_is_refused(session: Session, program: Program) -> None:
    code = "f = open('big', 'wb')\nfor _ in range(5): f.write(b'x' * 2**20)\n"
    result = await session.run(program(code, limits={"file_mb": 2}))
    assert (result.status, result.exc_type) == ("error", "OSError")
    assert "File too large" in result.stderr


@only_local
async def test_a_full_disk_quota_stops_the_program(
    session: Session, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corerun.execution.watchdog.DISK_INTERVAL_S", 0.0)
    code = "import time\nfor i in range(4): open(str(i), 'wb').write(b'x' * 2**20)\ntime.sleep(1000)\n"
    result = await session.run(program(code, limits={"disk_mb": 3}))
    assert (result.status, result.exc_msg) == ("disk", "wrote 4 MB, limit 3 MB")


async def test_processor_time_is_limited(session: Session, program: Program) -> None:
    result = await session.run(program("while True: pass", limits={"cpu_s": 1}))
    assert (result.status, result.signal) == ("timeout", signal.SIGXCPU)


# --------------------------------------------------------------------------------- odd endings


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "error"), (signal.SIGABRT, "error")]
)
async def test_death_by_signal(session: Session, program: Program, number: int, status: str) -> None:
    result = await session.run(program(f"import os\nos.kill(os.getpid(), {int(number)})"))
    assert (result.status, result.exit_code, result.signal) == (status, None, number)
    assert f"signal {int(number)}" in result.exc_msg


@only_local
async def test_odd_text_survives(session: Session, program: Program) -> None:
    code = "import os\nos.write(1, b'\\xff[bold]\\x1b[31m\\xc3\\xa9[/nope]')\n"
    result = await session.run(program(code))
    assert result.stdout == "\\xff[bold]\x1b[31mé[/nope]"
    assert Path(result.stdout_path).read_bytes() == b"\xff[bold]\x1b[31m\xc3\xa9[/nope]"


@only_local
async def test_a_huge_exception_fits_the_record(session: Session, program: Program) -> None:
    result = await session.run(program("raise ValueError('\\U0001f600' * 3_000_000)"))
    assert (result.status, result.exc_type) == ("error", "ValueError")
    assert 1000 < len(result.exc_msg) <= 16384
    assert set(result.exc_msg) == {"\U0001f600"}


@only_local
async def test_an_exception_that_cannot_be_printed(session: Session, program: Program) -> None:
    code = "class Odd(Exception):\n    def __str__(self):\n        raise RuntimeError\nraise Odd\n"
    result = await session.run(program(code))
    assert (result.status, result.exit_code, result.exc_type) == ("error", 1, "Odd")


@only_local
async def test_endless_recursion(session: Session, program: Program) -> None:
    result = await session.run(program("def f(): f()\nf()\n"))
    assert (result.status, result.exc_type) == ("error", "RecursionError")
    assert len(result.exc_trace) == 100


async def test_a_closed_stdout(session: Session, program: Program) -> None:
    result = await session.run(program("import os\nos.close(1)\nopen('x', 'w').close()"))
    assert result.status == "ok"
    result = await session.run(program("import os\nos.close(1)\nprint('lost')"))
    assert result.status == "error"


async def test_a_forged_record_is_only_a_claim(session: Session, program: Program) -> None:
    code = (
        "import json, os, sys\n"
        "for fd in range(3, 50):\n"
        "    record = {'exc_trace': 5, 'exc_msg': [1], 'peak_kb': 'x'}\n"
        "    try: os.write(fd, json.dumps(record).encode())\n"
        "    except OSError: pass\n"
        "os._exit(1)\n"
    )
    result = await session.run(program(code))
    assert (result.status, result.exc_msg, result.exc_trace) == ("error", "[1]", ())


async def test_a_deleted_workspace(session: Session, program: Program, tmp_path: Path) -> None:
    code = f"import shutil\nprint('bye')\nshutil.rmtree({str(tmp_path)!r}, ignore_errors=True)\n"
    result = await session.run(program(code, collect=("*",)))
    assert (result.status, result.stdout, result.files) == ("ok", "bye\n", ())
    assert result.stdout_path == ""
    assert (await session.run(program("print('again')"))).stdout == "again\n"


async def test_links_planted_by_an_earlier_program_are_not_followed(
    session: Session, program: Program, tmp_path: Path
) -> None:
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("precious")
    plant = (
        "import os\n"
        f"for name in ('next.stdout.log', 'next.py', '.tmp2'): os.symlink({str(victim)!r}, name)\n"
        f"os.rmdir('.tmp'); os.symlink({str(outside)!r}, '.tmp'); os.symlink({str(outside)!r}, 'sub')\n"
    )
    assert (await session.run(program(plant))).status == "ok"
    result = await session.run(program("print('fine')", label="next", file_name="next.py"))
    assert (result.status, result.stdout) == ("ok", "fine\n")
    refused = await session.run(program("print('fine')", cwd="sub"))
    assert refused.status == "infra_error"
    assert sorted(path.name for path in outside.iterdir()) == ["victim"]
    assert victim.read_text() == "precious"


# ----------------------------------------------------------------------------------- bad requests


@only_local
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "ruby"}, "unknown kind"),
        ({"kind": "argv"}, "needs argv"),
        ({"label": "../x"}, "label"),
        ({"file_name": "a/b.py"}, "file_name"),
        ({"cwd": "../.."}, "leads out"),
        ({"files": {"/etc/x": "/etc/hosts"}}, "leads out"),
        ({"files": {"x": "/no/such/file"}}, "doesn't exist"),
        ({"env": {"HF_TOKEN": "x"}}, "refused: HF_TOKEN is a provider credential"),
        ({"env": {"LD_PRELOAD": "x"}}, "refused: LD_PRELOAD"),
    ],
)
async def test_a_bad_request_is_refused(
    session: Session, program: Program, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        await session.run(program("pass", **fields))


@only_local
@pytest.mark.parametrize("workspace", ["relative", "/", str(Path.home())])
async def test_a_workspace_that_is_no_workspace(session: Session, workspace: str) -> None:
    with pytest.raises(UsageError, match="isn't this session's"):
        await session.run(ExecRequest(workspace=workspace, code="pass"))
    opened = await LocalSandbox().open(Policy(), workspace)
    with pytest.raises(UsageError, match=r"no absolute path|holds more than"):
        await opened.run(ExecRequest(code="pass"))


async def test_the_policys_limits_bound_the_requests(program: Program, tmp_path: Path) -> None:
    opened = await LocalSandbox().open(Policy(limits=Limits(wall_s=0.3)), str(tmp_path))
    result = await opened.run(program("while True: pass", limits={"wall_s": 50.0}))
    assert result.exc_msg == "ran longer than 0.3 s"
