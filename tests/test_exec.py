"""`corerun exec`: one program through the real command, its output, its end, its folder left clean."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from corerun.cli.app import run_command
from corerun.errors import InfrastructureError, UsageError
from corerun.execution import worker
from corerun.execution.environment import program_environment
from corerun.execution.worker import program_spec, run_program
from corerun.interfaces import ExecRequest, ExecResult, Limits, Policy
from corerun.job import program
from corerun.job.isolation import Isolation
from corerun.job.tee import Copier

COMMAND = (sys.executable, "-P", "-m", "corerun", "exec")
LOCAL = ("--sandbox", "local")
PATIENCE_S = 60


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CORERUN_", "OPENAI_"))}
    return {**kept, **more}


def run(
    *arguments: str | Path, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
    )


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says on stderr when it refuses, with exit code 2 and nothing on stdout."""
    assert run_command(["exec", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("corerun: ")
    return err


def written(path: Path, code: str) -> Path:
    path.write_text(code)
    return path


def facts(folder: Path) -> dict[str, tuple[int, int, str]]:
    """What a folder holds: each file's identity, time of change and content."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_ino,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "code", "arguments", "exit_code", "stdout", "said"),
    [
        ("a.py", "print('out')\n", (), 0, b"out\n", b""),
        ("a.py", "import sys\nprint('x')\nsys.exit(7)\n", (), 7, b"x\n", b""),
        ("a.py", "import sys\nsys.exit(124)\n", (), 124, b"", b""),
        ("a.py", "1 / 0\n", (), 1, b"", b"ZeroDivisionError"),
        ("a.sh", "echo out; echo err >&2; exit 3\n", (), 3, b"out\n", b"err\n"),
        ("a.sh", "kill -SEGV $$\n", (), 139, b"", b"corerun: error: ended by signal 11"),
        ("a.py", "import os\nos.kill(os.getpid(), 9)\n", (), 137, b"", b"corerun: killed: ended by signal 9"),
        (
            *("a.py", "print('x', flush=True)\nwhile True: pass\n", ("--timeout", "0.5"), 124, b"x\n"),
            b"corerun: timeout: ran longer than 0.5 s",
        ),
        (
            *(
                "a.py",
                "import time\nx = bytearray(400 << 20)\ntime.sleep(60)\n",
                ("--memory-mb", "100"),
                137,
                b"",
            ),
            b" 100 MB",
        ),
    ],
)
def test_output_and_code_are_the_programs(
    tmp_path: Path,
    name: str,
    code: str,
    arguments: Sequence[str],
    exit_code: int,
    stdout: bytes,
    said: bytes,
) -> None:
    written(tmp_path / name, code)
    before = facts(tmp_path)
    done = run(*LOCAL, *arguments, name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (exit_code, stdout), done.stderr
    assert said in done.stderr
    if not said:
        assert done.stderr.count(b"\n") == 1, "the warning alone"
    assert facts(tmp_path) == before


WAITING = """
import os, sys, time
print("ready", flush=True)
print("steady", file=sys.stderr, flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
"""


def started(folder: Path) -> subprocess.Popen[bytes]:
    """The command with ``a.py`` of a folder, under way."""
    return subprocess.Popen(
        [*COMMAND, *LOCAL, "a.py"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_what_is_printed_comes_while_the_program_runs(tmp_path: Path) -> None:
    written(tmp_path / "a.py", WAITING)
    with started(tmp_path) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == b"ready\n"
        assert running.stderr.readline().startswith(b"corerun: warning: a.py runs under local, without ")
        assert running.stderr.readline() == b"steady\n"
        assert running.poll() is None
        (tmp_path / "go").touch()
        assert running.wait(PATIENCE_S) == 0


def test_nothing_of_a_long_output_is_lost(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for n in range(300_000):\n"
        "    sys.stdout.write(f'{n:064d}\\n')\n"
        "    if n % 10 == 0: sys.stderr.write(f'{n:064x}\\n')\n"
    )
    done = run(*LOCAL, written(tmp_path / "a.py", code), cwd=tmp_path)
    assert done.stdout == b"".join(b"%064d\n" % n for n in range(300_000))
    assert done.stderr.endswith(b"".join(b"%064x\n" % n for n in range(0, 300_000, 10)))


def test_bytes_that_are_no_text_pass_unchanged(tmp_path: Path) -> None:
    every = bytes(range(256)) * 3
    code = f"import sys\nsys.stdout.buffer.write({every!r})\n"
    assert run(*LOCAL, written(tmp_path / "a.py", code), cwd=tmp_path).stdout == every


def test_a_terminal_gets_no_control_characters(tmp_path: Path) -> None:
    said = "héllo\\x1b]52;c;QUFB\\x07\\x9b31m\\ttab\\rline\\n"
    written(tmp_path / "a.py", f"import sys\nsys.stdout.buffer.write('{said}'.encode())\n")
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [*COMMAND, *LOCAL, "a.py"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0
        shown = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert shown.replace("\r\n", "\n") == "héllo\ttab line\n"


# ---------------------------------------------------------------------------------- the folder


def test_a_file_from_elsewhere_takes_no_place_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    written(folder / "a.py", "the person's own\n")
    written(folder / "exec.py", "and this\n")
    written(tmp_path / "a.py", "import os\nprint(os.getcwd())\nopen('made', 'w').write('x')\n")
    before = facts(folder)
    done = run(*LOCAL, "--cwd", folder, tmp_path / "a.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{folder}\n".encode()), done.stderr
    assert (folder / "made").read_text() == "x"
    (folder / "made").unlink()
    assert facts(folder) == before
    assert sorted(os.listdir(folder)) == ["a.py", "exec.py"]


@pytest.mark.parametrize("name", ["-rf.py", "a b.py", "ü.py", "x" * 100 + ".py", ".hidden.py"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    written(tmp_path / name, "print('ran')\n")
    done = run(*LOCAL, "--", name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr
    assert os.listdir(tmp_path) == [name]


def test_a_program_that_swaps_its_log_shows_nothing_of_others(tmp_path: Path) -> None:
    canary = written(tmp_path / "canary", "not for you\n")
    folder = tmp_path / "work"
    folder.mkdir()
    code = (
        "import glob, os\n"
        "for path in glob.glob('exec-*.log'):\n"
        f"    os.unlink(path)\n    os.symlink({str(canary)!r}, path)\n"
        "print('mine')\n"
    )
    done = run(*LOCAL, "--cwd", folder, written(tmp_path / "a.py", code))
    assert (done.returncode, done.stdout) == (0, b"mine\n"), done.stderr
    assert os.listdir(folder) == []
    assert canary.read_text() == "not for you\n"


@pytest.mark.parametrize("put", [os.symlink, os.link, lambda canary, path: os.mkfifo(path)])
def test_what_is_put_in_the_place_of_a_log_is_not_copied(
    tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    put(written(tmp_path / "canary", "not for you\n"), tmp_path / "log")
    reader, writer = os.pipe()
    try:
        copier = Copier(str(tmp_path / "log"), writer, lambda: None)
        copier.finish("the program's own\n")
        assert os.read(reader, 4096) == b"the program's own\n"
    finally:
        os.close(reader)
        os.close(writer)


def _holding(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "work" / name).mkdir(parents=True)
        return folder / "work"

    return make


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        (lambda _: Path("/"), "is or holds"),
        (lambda _: Path.home(), "is or holds your home folder"),
        (lambda _: Path.home().parent, "is or holds"),
        (lambda _: Path(tempfile.gettempdir()), "the folder for temporary files"),
        (lambda _: Path(sys.prefix), "the Python that runs it"),
        (lambda _: Path(sys.prefix).parent, "the Python that runs it"),
        (lambda _: Path("/etc"), "belongs to the system"),
        (lambda _: Path("/proc/self"), "belongs to the system"),
        (_holding(".ssh"), "holds .ssh"),
        (_holding(".tmp"), "has a .tmp"),
        (_holding(".home"), "has a .home"),
        (lambda folder: folder / "nowhere", "no such folder"),
    ],
)
def test_a_folder_that_holds_more_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Callable[[Path], Path], why: str
) -> None:
    written(tmp_path / "a.py", "open('made', 'w')\n")
    said = refusal(capsys, *LOCAL, "--cwd", folder(tmp_path), tmp_path / "a.py")
    assert why in said
    assert "hint: name a folder of its own with --cwd DIR" in said


def test_a_link_to_a_refused_folder_is_that_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").symlink_to(Path.home())
    written(tmp_path / "a.py", "pass\n")
    said = refusal(capsys, *LOCAL, "--cwd", tmp_path / "work", tmp_path / "a.py")
    assert "your home folder" in said


# ---------------------------------------------------------------------------------- bad usage


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.py")
    return folder / "a.py"


def _bytes(folder: Path, data: bytes) -> Path:
    (folder / "a.py").write_bytes(data)
    return folder / "a.py"


def _large(folder: Path) -> Path:
    path = _bytes(folder, b"#")
    os.truncate(path, 17 << 20)
    return path


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (lambda folder: folder / "none.py", "no such file"),
        (lambda folder: written(folder / "a.rb", "puts 1"), "neither .py nor .sh"),
        (lambda folder: written(folder / "a", "puts 1"), "neither .py nor .sh"),
        (lambda folder: _holding("a.py")(folder) / "a.py", "no regular file"),
        (_fifo, "no regular file"),
        (lambda folder: _bytes(folder, b"\xff\xfe"), "no text in UTF-8"),
        (_large, "larger than 16 MB"),
    ],
)
def test_what_is_no_program_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: Callable[[Path], Path], why: str
) -> None:
    path = file(tmp_path)
    (tmp_path / "empty").mkdir()
    assert why in refusal(capsys, *LOCAL, "--cwd", tmp_path / "empty", path)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--timeout", "nan"), "above 0"),
        (("--timeout", "inf"), "above 0"),
        (("--timeout", "0"), "above 0"),
        (("--memory-mb", "0"), "--memory-mb"),
        (("--pids", "-1"), "--pids"),
        (("--preload", "everything"), "no profile is named everything"),
        (("--sandbox", "nope"), "no component of kind sandboxes is named nope"),
        (("--pass-env", "SOME_API_KEY"), "refused: SOME_API_KEY is a provider credential"),
        (("--pass-env", "LD_PRELOAD"), "refused: LD_PRELOAD"),
    ],
)
def test_wrong_flags_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], why: str
) -> None:
    written(tmp_path / "a.py", "open('made', 'w')\n")
    assert why in refusal(capsys, *LOCAL, *arguments, "--cwd", tmp_path, tmp_path / "a.py")
    assert os.listdir(tmp_path) == ["a.py"]


# ---------------------------------------------------------------------------------- isolation


def test_without_isolation_only_if_one_says_so(tmp_path: Path) -> None:
    written(tmp_path / "a.py", "print('ran')\n")
    alone = {"CORERUN_DISABLE_PLUGINS": "sandboxes"}
    done = run("a.py", cwd=tmp_path, **alone)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.decode().startswith(
        "corerun: sandbox_unavailable: needs fs_read, fs_write, net; local: "
    )
    assert "--sandbox local --i-accept-no-isolation" in done.stderr.decode()
    assert os.listdir(tmp_path) == ["a.py"]
    for arguments in (("--i-accept-no-isolation",), LOCAL):
        done = run(*arguments, "a.py", cwd=tmp_path, **alone)
        assert (done.returncode, done.stdout) == (0, b"ran\n")
        warning = done.stderr.decode()
        assert warning.startswith("corerun: warning: a.py runs under local, without ")
        assert {"fs_read", "fs_write", "net", "unix_sockets"} <= set(
            warning.strip().partition("without ")[2].split(", ")
        )


def test_only_named_variables_get_in(tmp_path: Path) -> None:
    written(tmp_path / "a.py", "import os\nprint(os.environ.get('WANTED'), os.environ.get('OTHER'))\n")
    done = run(*LOCAL, "--pass-env", "WANTED", "a.py", cwd=tmp_path, WANTED="yes", OTHER="no")
    assert done.stdout == b"yes None\n"


@pytest.mark.parametrize("name", ["MY_API_KEY", "AWS_REGION", "HF_TOKEN", "LD_LIBRARY_PATH", "PYTHONPATH"])
def test_what_is_refused_gets_in_where_one_insists(name: str) -> None:
    for request, pass_env in ((ExecRequest(), (name,)), (ExecRequest(env={name: "x"}), ())):
        with pytest.raises(UsageError, match=f"refused: {name} "):
            program_environment(request, workspace="/w", base={name: "x"}, pass_env=pass_env)
        found = program_environment(
            request, workspace="/w", base={name: "x"}, pass_env=pass_env, pass_env_unsafe=(name,)
        )
        assert found[name] == "x"


def test_what_marks_a_programs_processes_cant_be_set_at_all() -> None:
    with pytest.raises(UsageError, match="refused: CORERUN_EXEC_ID"):
        program_environment(ExecRequest(), workspace="/w", base={}, pass_env_unsafe=("CORERUN_EXEC_ID",))


async def test_a_workers_sandbox_gets_the_whole_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(
        require=frozenset({"net"}),
        read=("/r",),
        write=("/w",),
        pass_env=("A",),
        pass_env_unsafe=("B_TOKEN",),
        zygote=False,
        image="mine:1",
        network="loopback",
        limits=Limits(pids=3),
    )
    opened: list[Policy] = []

    class Recording:
        async def open(self, policy: Policy, workspace: str) -> Any:
            opened.append(policy)
            raise InfrastructureError("far enough")

    monkeypatch.setattr(worker, "load", lambda target: Recording)
    with pytest.raises(InfrastructureError, match="far enough"):
        spec = json.loads(json.dumps(program_spec(ExecRequest(workspace="/w"), secrets.token_hex(4), policy)))
        await run_program(spec)
    assert opened == [policy]


# ------------------------------------------------------------------------------- the other ends

FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open("pids.tmp", "w").write(f"{os.getpid()} {child.pid}")
os.rename("pids.tmp", "pids")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_programs_whole_tree(tmp_path: Path, number: signal.Signals) -> None:
    written(tmp_path / "a.py", FAMILY)
    with started(tmp_path) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)
        assert running.wait(PATIENCE_S) == 130
        assert f"interrupted by {number.name}".encode() in running.stderr.read()
    pids = (tmp_path / "pids").read_text().split()
    until(lambda: not any(Path("/proc", pid).exists() for pid in pids))
    assert sorted(os.listdir(tmp_path)) == ["a.py", "pids"]


def test_a_reader_that_leaves_ends_the_program(tmp_path: Path) -> None:
    written(tmp_path / "a.py", FAMILY.replace("time.sleep(600)\n", "while True: print('x' * 1000)\n"))
    with started(tmp_path) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.stdout.close()
        assert running.wait(PATIENCE_S) == 0
    pids = (tmp_path / "pids").read_text().split()
    until(lambda: not any(Path("/proc", pid).exists() for pid in pids))
    assert sorted(os.listdir(tmp_path)) == ["a.py", "pids"]


def test_output_that_cannot_be_written_is_an_error_of_its_own(tmp_path: Path) -> None:
    written(tmp_path / "a.py", "print('x', flush=True)\nimport time\ntime.sleep(600)\n")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *LOCAL, "a.py"],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 4
    assert b"corerun: can't write the program's output: No space left on device" in done.stderr
    assert os.listdir(tmp_path) == ["a.py"]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (ExecResult(), 0),
        (ExecResult(status="error", exit_code=9), 9),
        (ExecResult(status="error", exit_code=None, signal=6), 134),
        (ExecResult(status="killed", exit_code=None, signal=15), 143),
        (ExecResult(status="timeout", exit_code=None, signal=9), 124),
        (ExecResult(status="timeout", exit_code=0), 124),
        (ExecResult(status="oom", exit_code=1), 137),
        (ExecResult(status="disk", exit_code=None, signal=9), 137),
        (ExecResult(status="disk", exit_code=None, signal=25), 153),
        (ExecResult(status="killed", exit_code=None), 137),
    ],
)
def test_every_end_has_its_code(result: ExecResult, code: int) -> None:
    assert program.exit_code(result) == code
    ended_by_itself = result.status in ("ok", "error") and result.signal is None
    assert bool(program.why_stopped(result)) is not ended_by_itself


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def run_program(spec: Any) -> Any:
        return ExecResult(status="infra_error", exit_code=None, infra="the sandbox is gone").to_json()

    monkeypatch.setattr(program, "run_program", run_program)
    yield


async def test_a_lost_sandbox_says_nothing_of_the_program(
    lost: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ready = program.read_program(written(tmp_path / "a.py", "pass\n"), tmp_path, Limits())
    isolation = Isolation("local", "corerun.execution.local:LocalSandbox", (), (), (), Policy())
    with pytest.raises(InfrastructureError, match="the sandbox is gone") as caught:
        await program.run_file(ready, isolation)
    assert caught.value.exit_code == 3
