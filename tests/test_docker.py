"""The sandbox of containers, over an engine that records what it is told and runs programs plainly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import SandboxBroken, UsageError
from corerun.execution import processes
from corerun.interfaces import ExecRequest, ExecResult, Limits, Policy, Session
from corerun.runs.owner import this_process
from corerun_sandboxes import docker
from corerun_sandboxes.container import LABEL
from corerun_sandboxes.docker import DockerSandbox
from tests.support import docker_cli


class Engine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def calls(self, verb: str) -> list[list[str]]:
        log = self.folder / docker_cli.LOG
        lines = log.read_text().splitlines() if log.exists() else []
        return [words for words in map(json.loads, lines) if words[0] == verb]

    def ask(self, *words: str) -> str:
        return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout

    def containers(self) -> list[str]:
        return [line.split()[0] for line in self.ask("ps").splitlines()]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A docker command whose engine isn't running."""
    folder, programs = tmp_path / "engine", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    script = programs / "docker"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {docker_cli.__file__} {folder} "$@"\n')
    script.chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(docker, "_cleaned", False)
    docker._probe.cache_clear()
    yield folder
    docker._probe.cache_clear()


@pytest.fixture
def engine(command: Path) -> Iterator[Engine]:
    server = subprocess.Popen([sys.executable, "-S", docker_cli.__file__, str(command), "serve"])
    try:
        while not (command / docker_cli.SOCKET).exists():
            assert server.poll() is None
        yield Engine(command)
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "nodes" / "one"


@pytest.fixture
async def session(engine: Engine, workspace: Path) -> AsyncIterator[Session]:
    opened = await DockerSandbox().open(Policy(), str(workspace))
    yield opened
    await opened.close()
    assert engine.containers() == []
    assert not processes.started


async def run(session: Session, code: str, **fields: Any) -> ExecResult:
    limits = Limits(**{"wall_s": 60.0, "grace_s": 0.2, "mem_mb": 500, **fields.pop("limits", {})})
    return await session.run(ExecRequest(code=code, limits=limits, **fields))


async def test_a_program_and_what_the_container_is_told(
    session: Session, engine: Engine, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNRELATED", "canary")
    code = "import os, sys\nprint(sys.stdin.read(), dict(os.environ))\nopen('out.txt', 'w').write('x')\n"
    result = await run(session, code, stdin="told", collect=("*.txt",), limits={"pids": 30})
    assert (result.status, result.exit_code, result.stderr) == ("ok", 0, "")
    assert result.stdout.startswith("told ") and "canary" not in result.stdout
    assert [item["path"] for item in result.files] == ["out.txt"]
    assert result.sandbox["name"] == "docker"
    [made] = engine.calls("run")
    text = " ".join(made)
    for option in (
        *("--init", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "--network none"),
        *(f"--user {os.geteuid()}:{os.getegid()}", "--pids-limit 34", "--memory 500m", "--memory-swap 500m"),
        *("size=250m", f"--label {LABEL}=", f"source={workspace},target={workspace}"),
    ):
        assert option in text, option
    assert made[-2:] == [docker.IMAGE, "infinity"]
    [executed] = engine.calls("exec")
    assert "timeout -k 0.2 60" in " ".join(executed)
    mounts = [word for word in made if word.startswith("type=bind")]
    assert [word for word in mounts if not word.endswith(",readonly")] == [
        f"type=bind,source={workspace},target={workspace}"
    ]
    assert not any(sys.prefix in word.split(",")[1] for word in mounts)


async def test_one_container_serves_a_workspace(session: Session, engine: Engine) -> None:
    results = await asyncio.gather(
        *(run(session, f"print({number})", label=f"p{number}") for number in range(3))
    )
    assert [result.stdout for result in results] == ["0\n", "1\n", "2\n"]
    assert len(engine.calls("run")) == 1
    await run(session, "pass", limits={"mem_mb": 600})
    assert len(engine.calls("run")) == 2
    assert len(engine.containers()) == 1


async def test_how_programs_end(session: Session) -> None:
    failed = await run(session, "1 / 0")
    assert (failed.status, failed.exit_code, failed.exc_type) == ("error", 1, "ZeroDivisionError")
    code = await run(session, "import sys; sys.exit(137)")
    assert (code.status, code.exit_code, code.signal) == ("error", 137, None)
    killed = await run(session, "import os; os.kill(os.getpid(), 9)")
    assert (killed.status, killed.exit_code, killed.signal) == ("killed", None, signal.SIGKILL)
    shell = await run(session, "echo $((6 * 7)); exit 4", kind="shell")
    assert (shell.status, shell.exit_code, shell.stdout) == ("error", 4, "42\n")
    absent = await run(session, "pass", python="/no/such/python")
    assert absent.status == "infra_error"
    assert "can't start programs" in absent.infra


async def test_an_endless_program_is_stopped_inside(session: Session, engine: Engine) -> None:
    polite = await run(session, "while True: pass", limits={"wall_s": 0.5, "grace_s": 60.0})
    assert (polite.status, polite.signal) == ("timeout", signal.SIGTERM)
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass"
    result = await run(session, deaf, limits={"wall_s": 0.5})
    assert (result.status, result.signal) == ("timeout", signal.SIGKILL)
    assert engine.containers() == []


async def test_what_is_left_behind_ends_with_the_container(session: Session, engine: Engine) -> None:
    code = (
        "import os, time\nheard, ready = os.pipe()\nif os.fork() == 0:\n    os.setsid()\n"
        "    os.write(ready, b'x')\n    time.sleep(1000)\nos.read(heard, 1)\nprint('main')\n"
    )
    result = await run(session, code)
    assert (result.status, result.stdout, result.left) == ("ok", "main\n", 1)
    assert "start.py" in result.leftovers[0]
    assert engine.containers() == []
    assert (await run(session, "print('again')")).stdout == "again\n"


async def test_cancelling_removes_the_container(session: Session, engine: Engine, workspace: Path) -> None:
    task = asyncio.ensure_future(run(session, "open('begun', 'w')\nwhile True: pass"))
    while not (workspace / "begun").exists():
        assert not task.done()
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.containers() == []


async def test_a_container_that_dies_proves_nothing(
    session: Session, engine: Engine, workspace: Path
) -> None:
    task = asyncio.ensure_future(run(session, "open('begun', 'w')\nwhile True: pass"))
    while not (workspace / "begun").exists():
        assert not task.done()
        await asyncio.sleep(0.01)
    await asyncio.to_thread(engine.ask, "rm", "--force", *engine.containers())
    with pytest.raises(SandboxBroken, match="the container ended"):
        await task
    assert (await run(session, "print(1)")).stdout == "1\n"


async def test_memory_is_the_engines_word(session: Session, engine: Engine) -> None:
    (engine.folder / docker_cli.OOM).touch()
    fine = await run(session, "print(1)")
    assert fine.status == "ok"
    result = await run(session, "import os; os.kill(os.getpid(), 9)")
    assert result.status == "oom"
    assert result.oom == {"by": "cgroup", "limit_mb": 500, "peak_mb": 500.0}
    assert engine.containers() == []


async def test_an_image_that_is_missing(engine: Engine, workspace: Path) -> None:
    opened = await DockerSandbox().open(Policy(image="no/such:image"), str(workspace))
    result = await run(opened, "pass")
    assert result.status == "infra_error"
    assert "Unable to find image" in result.infra
    assert engine.containers() == []


async def test_containers_of_dead_processes_are_removed(engine: Engine, session: Session) -> None:
    mine = this_process().to_json().decode()
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    facts = json.loads(mine)
    for name, owner in (
        ("mine", facts),
        ("dead", facts | {"pid": gone.pid}),
        ("rebooted", facts | {"boot_id": "another"}),
        ("elsewhere", facts | {"pid": gone.pid, "host": "another"}),
    ):
        engine.ask("run", "--name", name, "--label", f"{LABEL}={json.dumps(owner)}", "image")
    await run(session, "pass")
    left = set(engine.containers())
    assert {"mine", "elsewhere"} < left and len(left) == 3
    engine.ask("rm", "mine", "elsewhere")


async def test_calls_back_are_refused(session: Session) -> None:
    async def answer(message: Any) -> None: ...

    with pytest.raises(UsageError, match="can't ask back"):
        await session.run(ExecRequest(code="pass"), answer)


def test_the_probe_asks_the_engine(engine: Engine) -> None:
    probe = DockerSandbox().probe()
    assert probe.ok and probe.strength == 40
    assert "engine 99.1" in probe.reason


def test_the_probe_says_why_there_is_none(command: Path) -> None:
    probe = DockerSandbox().probe()
    assert not probe.ok
    assert "Is the docker daemon running" in probe.reason


async def test_a_real_engine(workspace: Path) -> None:
    docker._probe.cache_clear()
    probe = DockerSandbox().probe()
    if not probe.ok:
        pytest.skip(f"needs the kernel's docker engine: {probe.reason}")
    opened = await DockerSandbox().open(Policy(), str(workspace))
    try:
        result = await run(opened, "import os\nprint(os.listdir('/root'), os.getpid() < 100)")
        assert (result.status, result.stdout) == ("ok", "[] True\n")
        assert (await run(opened, "open('/usr/x', 'w')")).exc_type == "OSError"
    finally:
        await opened.close()
