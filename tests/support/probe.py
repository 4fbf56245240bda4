"""A small real plugin: a job that asks, runs a program and notes a value, with observers and an executor."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from corerun.config import Entry, Layer
from corerun.interfaces import Provider
from corerun.job.plan import Plan, make_plan
from corerun.plugins import PluginManager
from corerun.testing.plugins import write_plugin

SOURCE = '''
"""A job for tests."""
from __future__ import annotations

import json
from pathlib import Path

from corerun import hookimpl
from corerun.interfaces import Component, ExecRequest, ExecResult, Message, Prepared, Role


@hookimpl
def corerun_jobs():
    return [Component("probe", __name__ + ":Probe")]


@hookimpl
def corerun_observers():
    names = ("recorder", "raising", "unborn", "gated")
    return [Component(name, __name__ + ":" + name.title()) for name in names]


@hookimpl
def corerun_executors():
    return [Component("scripted", __name__ + ":Scripted")]


PROGRAM = """
import json, os
open("result.json", "w").write(json.dumps({"question": os.environ["QUESTION"]}))
with open(os.environ["COUNTER"], "a") as file:
    file.write("ran\\\\n")
print(json.dumps(dict(os.environ)))
"""


def request(run, node="n1", code=PROGRAM, **fields):
    """A program in a folder of its own that tells how often it ran."""
    env = {"QUESTION": "why", "COUNTER": str(run.dir.parent / "counter"), **fields.pop("env", {})}
    workspace = str(run.dir / "nodes" / f"{node}.0")
    return ExecRequest(code=code, node=node, workspace=workspace, collect=("*.json",), env=env, **fields)


async def script(run, settings):
    """What the job does unless a test says otherwise."""
    own = settings.probe
    run.emit("stage_started", scope="only", title="the only stage", number=1, goals="", max_nodes=1)
    run.emit("node_asked", scope="only", node="n1", parent=None, seq=0, hint={}, attempt=0, counted=True,
             batch=None)
    answer = await run.ask("code", "probe.ask", [Message("user", own.topic)], node="n1")
    result = await run.execute(request(run))
    run.note("answer", answer.value)
    run.note("result", {"best": {"node": "n1", "score": 0.5}})
    run.write("answer.md", f"# {answer.value}\\n")
    if run.noted("node") is None:
        run.note("node", "n1")
        run.emit("node_done", scope="only", node="n1", seq=0, attempt=0, status="good", score=0.5, reason="",
                 open=True, data={"exit_code": result.exit_code})
        run.emit("stage_done", scope="only", best="n1", nodes=1, good=1, failed=0, wall_s=0.1)


def settings_model():
    from pydantic import Field

    from corerun.config import Section

    class ProbeSettings(Section):
        """What the job is about."""

        topic: str = Field("tides", description="what to ask about")
        data: Path | None = None
        loud: bool = False
        role_model: str | None = None

    return ProbeSettings


class Probe:
    config_model = settings_model()
    script = staticmethod(script)
    derive_error = None

    def prepare(self, settings, invocation):
        own = settings.probe
        return Prepared(
            roles={"code": Role(own.role_model)},
            identity={"topic": own.topic},
            inputs={"topic": own.topic},
            notices=("a notice of the job",),
            warnings=("a warning of the job",) if own.loud else (),
        )

    async def run(self, run, settings):
        await self.script(run, settings)

    def derive(self, directory, events):
        if self.derive_error is not None:
            raise self.derive_error
        answers = [event.data["text"] for event in events if event.type == "call_answered"]
        (directory / "answers.json").write_text(json.dumps(answers))
        return {"answers": answers, "paths": {"answers": str(directory / "answers.json")}}


class Recorder:
    seen = []
    closed = 0

    def on_event(self, run_id, event):
        self.seen.append((run_id, event))

    def close(self):
        type(self).closed += 1


class Raising(Recorder):
    def on_event(self, run_id, event):
        raise RuntimeError("this observer is broken")

    def close(self):
        raise RuntimeError("and it can't even close")


class Unborn(Recorder):
    def __init__(self):
        raise RuntimeError("no library for it")


class Gated(Recorder):
    gate = None

    def on_event(self, run_id, event):
        self.gate.wait()


class Scripted:
    """Leaves each program to a coroutine of the test."""

    work = None

    def __init__(self, slots):
        self.slots = slots

    async def submit(self, target, spec, serve=None):
        result = await self.work(ExecRequest.from_json(spec["request"]))
        return (result or ExecResult()).to_json()

    async def close(self):
        pass
'''


def install(folder: Path) -> Path:
    """Write the plugin; put the folder on ``PYTHONPATH`` of a child, or use `imported` here."""
    write_plugin(folder, "probe", SOURCE)
    return folder


@contextlib.contextmanager
def imported(folder: Path) -> Iterator[ModuleType]:
    """The plugin, installed in this process while the block runs."""
    sys.path.insert(0, str(install(folder)))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module("corerun_probe")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("corerun_probe", None)


def planned(
    cwd: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    provider: Provider | None = None,
    resume: str | None = None,
    environ: Mapping[str, str] | None = None,
    config_file: Path | None = None,
) -> tuple[Plan, PluginManager]:
    """A plan of the job, with dotted settings on top of a fake model and the plain sandbox."""
    values = {
        "model": "fake::echo",
        "sandbox.name": "local",
        "workers": 2,
        "min_free_mb": 0,
        **(settings or {}),
    }
    flags: Layer = {tuple(key.split(".")): Entry(value, f"-o {key}") for key, value in values.items()}
    manager = PluginManager()
    env = dict(environ or {})
    plan = make_plan(
        "probe",
        manager,
        flags=flags,
        cwd=cwd,
        environ=env,
        providers=None if provider is None else {"fake": provider},
        resume=resume,
        config_file=config_file,
        argv=("--plugin", "probe", "run"),
    )
    return plan, manager
