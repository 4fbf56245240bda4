"""A small experiment search whose process meets a planned fault: many of them, each a fork of a warm one."""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stand_in import FakeModel, cheap_interpreter
from corerun.interfaces import CallContext, ChatReply, ChatRequest
from corerun.testing.plugins import write_plugin
from tests.support.killing import IDEA, check_journal, paid, read_events, tree_of

ROOT = Path(__file__).parents[2]
_SERVER = """
import json, os, sys
import concurrent.futures.thread, ctypes, jinja2
import corerun.cli.app, corerun.cli.run, corerun.execution.executors, corerun.execution.local
import corerun.job.environment, corerun.job.start, corerun.report.page, corerun.report.progress
import corerun_bfts.job, corerun_bfts.strategy, tests.support.faulty
from corerun.runs import faults

print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(request["cwd"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{request['said']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        faults.plan(request["fault"])
        code = corerun.cli.app.run_command(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
_PROVIDER = """
from corerun import hookimpl
from corerun.interfaces import Component


@hookimpl
def corerun_providers():
    return [Component("answering", "tests.support.faulty:connect")]
"""
SEARCH = {
    "workers": 1,
    "in_flight": 1,
    "min_free_mb": 0,
    "llm.cache": "write",
    "bfts.agent.stages.order": [1],
    "bfts.agent.stages.stage1_until": "limit",
    "bfts.agent.stages.stage1_max_iters": 2,
    "bfts.agent.search.num_drafts": 1,
    "bfts.agent.multi_seed_eval.num_seeds": 0,
    "bfts.plot_agg_reflections": 0,
    "bfts.generate_report": False,
}


class Answering(FakeModel):
    """The same question always gets the same answer. Every question leaves a line in ``calls``."""

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        said = repr((ctx.purpose, ctx.node, request.messages))
        number = int(hashlib.sha256(said.encode()).hexdigest()[:12], 16)
        self._random, self._numbers = random.Random(number), itertools.count(number % 10**6)
        with open(os.environ["CALLS"], "a") as file:
            file.write(f"{number}\n")
        return await super().complete(request, ctx)


def connect(connection: Any) -> Answering:
    return Answering()


@dataclass(frozen=True)
class Ended:
    """How a process ended; the code of one that was killed is negative."""

    code: int
    stderr: str


class Faulty:
    """A run in ``folder``, and the warm process whose forks go on with it. A context manager.

    ``disk_mb``: the run has a small disk of its own, which only those processes see; `root` is where
    this one finds what is on it. `OSError` if no such disk can be had.
    """

    def __init__(self, folder: Path, disk_mb: int | None = None) -> None:
        self.folder = folder
        self._place = self.root = folder / "work"
        self._disk_mb = disk_mb
        self._kept = folder / "kept"

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.root / "experiments" / "r_constant_attempt_0"

    def __enter__(self) -> Faulty:
        for place in (self._place, self.folder / "home"):
            place.mkdir(parents=True)
        write_plugin(self.folder / "plugins", "answering", _PROVIDER)
        (self.folder / "ideas.json").write_text(json.dumps([IDEA]))
        self._python = cheap_interpreter(self.folder / "bin")
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "CALLS": str(self.folder / "calls"),
            "XDG_CACHE_HOME": str(self._place / "cache"),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder / 'plugins'}",
        }
        command = [sys.executable, "-P", "-c", _SERVER]
        if self._disk_mb is not None:
            mount = f'mount -t tmpfs -o size={self._disk_mb}m none "$0" && exec "$@"'
            enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
            command = [*enter, str(self._place), *command]
        self._server = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout
        if self._server.stdout.readline() != "ready\n":
            raise OSError("no small disk can be mounted here")
        if self._disk_mb is not None:
            self.root = Path(f"/proc/{self._server.pid}/root{self._place}")
        return self

    def __exit__(self, *raised: object) -> None:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def go(self, fault: str = "", **settings: Any) -> Ended:
        """Start the run, or go on with it, in a process that meets ``fault``."""
        values = {**SEARCH, "bfts.exec.python": str(self._python), **settings}
        options = [part for key, value in values.items() for part in ("-o", f"{key}={json.dumps(value)}")]
        place = ["--out_root", str(self._place), "--run_id", "r", "--model", "answering::x"]
        idea = ["--load_ideas", str(self.folder / "ideas.json"), "--idea_idx", "0"]
        arguments = ["--plugin", "bfts", "run", *idea, *place, "--sandbox", "local"]
        request = {
            "cwd": str(self._place),
            "said": str(self.folder),
            "fault": fault,
            "arguments": [*arguments, "--i-accept-no-isolation", "--display", "none", *options],
        }
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return Ended(code, (self.folder / "stderr").read_text())

    def keep(self) -> None:
        """Remember the run as it is; `back` brings it back to this."""
        shutil.copytree(self.root, self._kept, symlinks=True)
        shutil.copyfile(self.folder / "calls", self.folder / "calls.kept")

    def back(self) -> None:
        """Make the run what it was at `keep`, in the same place."""
        self.clear()
        shutil.copytree(self._kept, self.root, symlinks=True, dirs_exist_ok=True)
        shutil.copyfile(self.folder / "calls.kept", self.folder / "calls")

    def clear(self) -> None:
        """Remove the run."""
        (self.folder / "calls").write_text("")
        for entry in self.root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def events(self) -> list[dict[str, Any]]:
        return read_events(self.run)

    def check(self, tree: dict[str, Any]) -> None:
        """The run came to ``tree`` without losing a node or paying twice for a recorded answer."""
        events = self.events()
        check_journal(events)
        assert tree_of(events) == tree
        answered, lost = paid(events)
        sent = len((self.folder / "calls").read_text().splitlines())
        cached = sum(bool(event["data"].get("cache_hit")) for event in events)
        assert answered - cached <= sent <= answered + lost
        manifest = json.loads((self.run / "run_manifest.json").read_text())
        assert manifest["status"] == "success"
        assert len(manifest["possibly_double_paid"]) <= lost


@functools.cache
def _calls() -> dict[str, bool]:
    """Names of the points in the core's code; whether something is written there."""
    found: dict[str, bool] = {}
    for path in sorted((ROOT / "core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.point":
                name = node.args[0]
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}: a literal names a point"
                found[str(name.value)] = len(node.args) > 1
    return found


def points() -> list[str]:
    """Every point that the core's code passes."""
    return list(_calls())


def writes() -> list[str]:
    """Points before which something is written, so that half of it can be."""
    return [name for name, has_body in _calls().items() if has_body]
