"""Executors, worker processes and the programs' socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import InfrastructureError, UsageError
from corerun.execution import processes
from corerun.execution.executors import InlineExecutor, ProcessExecutor
from corerun.execution.local import LocalSandbox
from corerun.execution.select import MODEL_CODE_GUARANTEES, RULES_CODE_GUARANTEES
from corerun.execution.worker import RUN_PROGRAM, program_spec
from corerun.interfaces import ExecRequest, ExecResult, Executor, Json, Limits, Policy

LOCAL = "corerun.execution.local:LocalSandbox"
ASK = """
import json, os, socket
wire = socket.socket(fileno=int(os.environ['CORERUN_SOCKET_FD'])).makefile('rw')
def ask(**message):
    print(json.dumps(message), file=wire, flush=True)
    return json.loads(wire.readline())
"""


@pytest.fixture(params=[InlineExecutor, ProcessExecutor])
async def executor(request: pytest.FixtureRequest) -> AsyncIterator[Executor]:
    made = request.param(2)
    yield made
    await made.close()
    assert not processes.started


@pytest.fixture
async def workers() -> AsyncIterator[ProcessExecutor]:
    made = ProcessExecutor(2)
    yield made
    await made.close()
    assert not processes.started


def spec(folder: Path, code: str, **fields: Any) -> Json:
    return json.loads(
        json.dumps(program_spec(ExecRequest(workspace=str(folder), code=code, **fields), LOCAL))
    )


async def run(executor: Executor, folder: Path, code: str, serve: Any = None, **fields: Any) -> ExecResult:
    return ExecResult.from_json(await executor.submit(RUN_PROGRAM, spec(folder, code, **fields), serve))


async def test_a_program_runs_anywhere(executor: Executor, tmp_path: Path) -> None:
    result = await run(executor, tmp_path, "print('hello')")
    assert (result.status, result.stdout) == ("ok", "hello\n")
    assert not (tmp_path / ".home").exists()
    assert not (tmp_path / ".tmp").exists()


async def test_more_programs_than_slots(executor: Executor, tmp_path: Path) -> None:
    results = await asyncio.gather(
        *(run(executor, tmp_path / str(number), f"print({number})") for number in range(5))
    )
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(5)]


async def test_an_errors_class_survives_the_way(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="refused: OPENAI_API_KEY is a provider credential") as caught:
        await run(executor, tmp_path, "pass", env={"OPENAI_API_KEY": "canary"})
    assert "canary" not in str(caught.value) + caught.value.hint
    with pytest.raises(UsageError, match="can't load"):
        await executor.submit("no.such.module:thing", {})


async def test_a_program_asks_and_is_answered(executor: Executor, tmp_path: Path) -> None:
    asked = []

    async def answer(message: Json) -> Json:
        asked.append(message)
        if message["op"] == "fail":
            raise UsageError("no such operator")
        return {"twice": message["x"] * 2}

    code = f"{ASK}\nprint(ask(i=1, op='double', x='ä'))\nprint(ask(i=2, op='fail')['e']['msg'])\n"
    result = await run(executor, tmp_path, code, answer)
    assert (result.status, result.stdout) == ("ok", "{'i': 1, 'r': {'twice': 'ää'}}\nno such operator\n")
    assert asked == [{"op": "double", "x": "ä"}, {"op": "fail"}]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("b'no json\\n'", "no JSON"),
        ("b'[1]\\n'", "no JSON object"),
        ("b'{\"op\": 1}\\n'", "number of its own"),
        ("b'[' * 900_000 + b'\\n'", "no JSON"),
        ("b'x' * (2 << 20)", "more than 1048576 bytes"),
        ("b'{\"i\": 1}\\n' * 2", "number of its own"),
        ("b''.join(b'{\"i\": %d}\\n' % i for i in range(1100))", "1024 open calls"),
    ],
)
async def test_a_broken_protocol_ends_the_program(tmp_path: Path, message: str, reason: str) -> None:
    async def never(message: Json) -> Json:
        return await asyncio.Event().wait()

    code = f"{ASK}\nimport time\nwire.buffer.write({message}); wire.buffer.flush()\ntime.sleep(1000)\n"
    result = await run(InlineExecutor(1), tmp_path, code, never)
    assert result.status == "killed"
    assert reason in result.exc_msg


async def test_cancelling_reaches_the_program(executor: Executor, tmp_path: Path) -> None:
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def tell(message: Json) -> None:
        seen.set_result(message["pid"])

    code = f"{ASK}\nimport time\nask(i=1, pid=os.getpid())\ntime.sleep(1000)\n"
    task = asyncio.ensure_future(run(executor, tmp_path, code, tell))
    pid = await seen
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()
    assert (await run(executor, tmp_path, "print('next')")).stdout == "next\n"


async def test_a_worker_is_kept_and_replaced_when_it_dies(workers: ProcessExecutor, tmp_path: Path) -> None:
    parent = "import os; print(os.getppid())"
    first = (await run(workers, tmp_path, parent)).stdout
    assert (await run(workers, tmp_path, parent)).stdout == first
    assert int(first) != os.getpid()
    seen: asyncio.Future[Json] = asyncio.get_running_loop().create_future()

    async def tell(message: Json) -> None:
        seen.set_result(message)

    daemon = "if os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\n"
    code = f"{ASK}\nimport time\n{daemon}ask(i=1, pid=os.getpid(), worker=os.getppid())\ntime.sleep(1000)\n"
    task = asyncio.ensure_future(run(workers, tmp_path, code, tell))
    told = await seen
    os.kill(told["worker"], signal.SIGKILL)
    with pytest.raises(InfrastructureError, match="worker process was lost"):
        await task
    assert not Path(f"/proc/{told['pid']}").exists()
    assert [
        pid for pid in processes.read_table() if processes.variable(pid, "HOME").startswith(str(tmp_path))
    ] == []
    second = await run(workers, tmp_path, parent)
    assert second.status == "ok"
    assert second.stdout != first


async def test_an_idle_worker_that_died_is_not_used(workers: ProcessExecutor, tmp_path: Path) -> None:
    first = int((await run(workers, tmp_path, "import os; print(os.getppid())")).stdout)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    result = None
    while result is None:
        try:
            result = await run(workers, tmp_path, "print('fine')")
        except InfrastructureError:
            continue  # Its end had not been noticed yet.
    assert result.stdout == "fine\n"


async def test_work_that_prints_or_fails_does_not_break_the_protocol(workers: ProcessExecutor) -> None:
    with pytest.raises(InfrastructureError, match="TypeError"):
        await workers.submit("builtins:print", {"id": 1})
    with pytest.raises(InfrastructureError, match="TypeError"):
        await workers.submit("builtins:print", {"id": 2})


async def test_workers_have_no_keys(
    workers: ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    code = "import os; print(open(f'/proc/{os.getppid()}/environ').read())"
    result = await run(workers, tmp_path, code)
    assert result.status == "ok"
    assert "canary" not in result.stdout


def test_the_worker_speaks_json_lines_over_pipes(tmp_path: Path) -> None:
    task = {"id": 7, "target": RUN_PROGRAM, "spec": spec(tmp_path, "print('piped')")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "corerun.execution.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdin as stdin, process.stdout as stdout:
        stdin.write(json.dumps(task).encode() + b"\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
    assert process.wait() == 0
    assert (answer["id"], answer["result"]["stdout"]) == (7, "piped\n")


async def test_memory_is_shared_among_slots(tmp_path: Path) -> None:
    assert ExecutorProbe(4).share * 4 <= ExecutorProbe(1).share * 1.2
    own = await run(InlineExecutor(1), tmp_path, "x = b'x' * 2**28; input()", limits=Limits(mem_mb=64))
    assert own.status in ("oom", "error")


class ExecutorProbe:
    def __init__(self, slots: int) -> None:
        self.share = InlineExecutor(slots)._memory_mb


KILLED_CORE = """
import asyncio, sys
from corerun.execution.local import LocalSandbox
from corerun.interfaces import ExecRequest, Policy
async def tell(message):
    print(message['pid'], message['child'], flush=True)
async def main():
    session = await LocalSandbox().open(Policy(), sys.argv[1])
    await session.run(ExecRequest(workspace=sys.argv[1], code=sys.argv[2]), tell)
asyncio.run(main())
"""


async def test_programs_end_with_a_killed_parent_and_their_children_at_the_next_start(tmp_path: Path) -> None:
    workspace = tmp_path / "run" / "node"
    fork = "child = os.fork()\nif child == 0:\n    time.sleep(1000)\n"
    # No answer is waited for: its absence would end the program too.
    tell = "print(json.dumps({'i': 1, 'pid': os.getpid(), 'child': child}), file=wire, flush=True)\n"
    code = f"{ASK}\nimport time\n{fork}{tell}time.sleep(1000)\n"
    core = subprocess.Popen([sys.executable, "-c", KILLED_CORE, str(workspace), code], stdout=subprocess.PIPE)
    assert core.stdout is not None
    with core.stdout as stdout:
        main, child = (int(word) for word in stdout.readline().split())
    watched = os.pidfd_open(main)
    core.kill()
    core.wait()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(watched, ended.set)
    async with asyncio.timeout(60):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(watched)
    os.close(watched)
    assert await processes.kill_stale(str(tmp_path / "elsewhere")) == []
    assert Path(f"/proc/{child}").exists()
    assert len(await processes.kill_stale(str(tmp_path / "run"))) == 1
    assert processes.variable(child, "HOME") == ""
    for pid in (main, child):
        # This process is a subreaper: both have become its children.
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue


# ------------------------------------------------------------------------------------ guarantees


async def test_local_gives_what_rules_need_and_reports_what_is_missing(tmp_path: Path) -> None:
    sandbox = LocalSandbox()
    probe = sandbox.probe()
    assert probe.ok and probe.strength == 10
    assert probe.guarantees >= RULES_CODE_GUARANTEES
    assert not probe.guarantees & {"fs_read", "fs_write", "net"}
    session = await sandbox.open(Policy(require=MODEL_CODE_GUARANTEES), str(tmp_path))
    result = await session.run(ExecRequest(code="pass"))
    assert result.sandbox["missing"] == ["fs_read", "fs_write", "net"]
