"""A run from its start to its manifest: what is asked, run, kept, resumed, refused and told."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from corerun import errors
from corerun.errors import CorerunError, EnvironmentRefused, PluginError, StateError, Stopped, UsageError
from corerun.interfaces import GUARANTEES, Event, ExecRequest, ExecResult, Run
from corerun.job import environment, observers, signals
from corerun.job.manifest import rebuild
from corerun.job.plan import describe
from corerun.job.start import Finished, run_plan
from corerun.runs import events as kinds
from corerun.runs.audit import audit
from corerun.runs.journal import BALLAST, read
from corerun.testing.fake import FakeProvider
from tests.support import probe
from tests.support.disk import Disk

Script = Callable[[Any, Any], Awaitable[None]]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with probe.imported(tmp_path_factory.mktemp("plugin")) as module:
        yield module


@pytest.fixture
def module(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin; what a test sets on its classes is undone."""
    monkeypatch.setattr(plugin.Recorder, "seen", [])
    monkeypatch.setattr(plugin.Recorder, "closed", 0)
    return plugin


class Jobs:
    """Runs the job below one folder, always under the same name."""

    def __init__(self, folder: Path, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.plugin = plugin
        self.place = folder / "runs" / "probe" / "one"
        self._monkeypatch = monkeypatch

    async def run(
        self,
        script: Script | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        accept_weak: bool = True,
        salvage: bool = False,
        listeners: tuple[Callable[[Event], None], ...] = (),
        **options: Any,
    ) -> Finished:
        chosen = script or self.plugin.script
        self._monkeypatch.setattr(self.plugin.Probe, "script", staticmethod(chosen))
        plan, manager = probe.planned(self.folder, {"run_id": "one", **(settings or {})}, **options)
        return await run_plan(plan, manager, accept_weak=accept_weak, salvage=salvage, listeners=listeners)

    def events(self, *types: str) -> list[Event]:
        found, _ = read(self.place / "events.jsonl")
        return [event for event in found if not types or event.type in types]

    def programs(self) -> int:
        """How often a program of the job really ran."""
        counter = self.place.parent / "counter"
        return len(counter.read_text().splitlines()) if counter.exists() else 0


@pytest.fixture
def jobs(tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    return Jobs(tmp_path, module, monkeypatch)


async def nothing(run: Run, settings: Any) -> None:
    """A job that has nothing to do."""


# -------------------------------------------------------------------------------------- a whole run


async def test_a_run_leaves_journal_log_settings_and_manifest(jobs: Jobs) -> None:
    done = await jobs.run(settings={"probe.loud": True})
    assert (done.exit_code, done.directory) == (0, jobs.place)
    assert {path.name for path in jobs.place.iterdir()} == {
        "answer.md",
        "answers.json",
        "blobs",
        "config.resolved.yaml",
        "events.jsonl",
        "nodes",
        "run.lock",
        "run.log",
        "run_manifest.json",
    }
    assert json.loads((jobs.place / "run_manifest.json").read_text()) == done.manifest
    assert (jobs.place / "answer.md").read_text() == "# tides\n"
    types = [event.type for event in jobs.events()]
    assert types[0] == kinds.RUN_STARTED
    assert types[-1] == kinds.RUN_DONE
    assert [types.count(name) for name in (kinds.CALL_ANSWERED, kinds.EXECUTION_DONE)] == [1, 1]
    assert types.index(kinds.CALL_ASKED) < types.index(kinds.CALL_ANSWERED)
    made = jobs.events(kinds.FILE_MADE)[0].data
    assert made == {"path": "answer.md", "bytes": 8, "sha256": hashlib.sha256(b"# tides\n").hexdigest()}
    assert audit(jobs.events())["findings"] == []


async def test_the_manifest_says_what_the_run_was(jobs: Jobs) -> None:
    manifest = (await jobs.run(settings={"probe.loud": True, "seed": 7})).manifest
    expected = {
        "status": "success",
        "exit_code": 0,
        "error": None,
        "job": "probe",
        "plugin": "probe",
        "argv": ["--plugin", "probe", "run"],
        "seed": 7,
        "strategy": None,
        "inputs": {"topic": "tides"},
        "models": {"fake::echo": {"kind": "model"}},
        "possibly_double_paid": [],
        "resumed_from": None,
        "answers": ["tides"],
    }
    assert {key: manifest[key] for key in expected} == expected
    assert {"corerun_version", "versions", "started_at", "ended_at", "wall_s", "cost", "sandbox"} <= set(
        manifest
    )
    assert manifest["cost"]["calls"] == 1
    assert manifest["disclosure"].startswith("Code, plots and summaries of this run are AI-generated")
    assert set(manifest["paths"]) == {"run_dir", "events", "run_manifest", "answers"}
    assert all(Path(path).exists() for path in manifest["paths"].values())
    assert manifest["warnings"][0] == "a warning of the job"
    assert manifest["warnings"][1].startswith("weak isolation: programs run under 'local', without ")


async def test_rebuilding_gives_the_same_files_from_the_journal_alone(jobs: Jobs) -> None:
    before = (await jobs.run()).manifest
    for name in ("run_manifest.json", "answers.json"):
        (jobs.place / name).unlink()
    _, manager = probe.planned(jobs.folder)
    assert rebuild(jobs.place, manager) == before
    assert json.loads((jobs.place / "run_manifest.json").read_text()) == before
    assert (jobs.place / "answers.json").exists()


async def test_rebuilding_a_journal_without_a_beginning_is_refused(jobs: Jobs) -> None:
    jobs.place.mkdir(parents=True)
    (jobs.place / "events.jsonl").touch()
    with pytest.raises(StateError, match="has no beginning"):
        rebuild(jobs.place, probe.planned(jobs.folder)[1])


async def test_a_journal_that_was_cut_off_still_has_a_manifest(jobs: Jobs) -> None:
    await jobs.run()
    journal = jobs.place / "events.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    manifest = rebuild(jobs.place, probe.planned(jobs.folder)[1])
    assert (manifest["status"], manifest["exit_code"]) == ("interrupted", None)


async def test_files_that_cannot_be_derived_are_a_warning(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.plugin.Probe, "derive_error", KeyError("gone"))
    done = await jobs.run(nothing)
    assert done.exit_code == 0
    assert done.manifest["warnings"][-1] == "derived files are incomplete: KeyError: 'gone'"
    assert "derived files could not be written" in (jobs.place / "run.log").read_text()


@pytest.mark.parametrize("noted", [5, None, ["x"], {"status": "failed", "exit_code": 9, "error": "made up"}])
async def test_a_result_never_decides_how_a_run_ended(jobs: Jobs, noted: Any) -> None:
    async def script(run: Run, settings: Any) -> None:
        run.note("result", noted)

    done = await jobs.run(script)
    end = jobs.events(kinds.RUN_DONE)[0].data
    assert (end["status"], end["exit_code"], end["error"], done.exit_code) == ("success", 0, None, 0)


async def test_the_process_executor_does_the_same(jobs: Jobs) -> None:
    done = await jobs.run(settings={"executor": "process"})
    assert done.exit_code == 0
    assert jobs.events(kinds.EXECUTION_DONE)[0].data["result"]["status"] == "ok"


# --------------------------------------------------------------------------------- how a run may end


@pytest.mark.parametrize(
    ("error", "status", "code", "type"),
    [
        (errors.RunFailed("nothing worked", kind="NoWorkingNode"), "failed", 1, "NoWorkingNode"),
        (UsageError("bad input"), "failed", 2, "UsageError"),
        (EnvironmentRefused("no card"), "failed", 3, "EnvironmentRefused"),
        (StateError("broken"), "failed", 4, "StateError"),
        (Stopped("time is up", hint="--resume"), "stopped", 5, "Stopped"),
        (errors.BudgetExceeded("too dear"), "stopped", 5, "BudgetExceeded"),
        (errors.QuotaExceeded("no money"), "stopped", 5, "QuotaExceeded"),
        (errors.AuthFailed("wrong key"), "failed", 2, "AuthFailed"),
        (errors.ModelNotFound("no such model"), "failed", 2, "ModelNotFound"),
        (errors.Interrupted("Ctrl-C"), "interrupted", 130, "Interrupted"),
        (asyncio.CancelledError(), "interrupted", 130, "CancelledError"),
        (ZeroDivisionError("division by zero"), "failed", 1, "ZeroDivisionError"),
    ],
)
async def test_each_error_has_its_status_and_exit_code(
    jobs: Jobs, error: BaseException, status: str, code: int, type: str
) -> None:
    async def script(run: Run, settings: Any) -> None:
        run.note("answer", 42)
        raise error

    done = await jobs.run(script)
    assert (done.manifest["status"], done.manifest["exit_code"], done.exit_code) == (status, code, code)
    assert done.manifest["error"]["type"] == type
    assert done.manifest["error"]["message"] == (str(error) or type)
    assert done.manifest["error"]["hint"] == getattr(error, "hint", "")
    assert jobs.events()[-1].data["status"] == status
    log = (jobs.place / "run.log").read_text()
    assert "the run ended early" in log
    assert "Traceback" in log and type.rpartition(".")[2].replace("NoWorkingNode", "RunFailed") in log
    # Whatever ended it, it can be gone on with.
    again = await jobs.run(nothing)
    assert (again.manifest["status"], again.exit_code) == ("success", 0)
    assert again.manifest["resumed_from"] == jobs.events(kinds.RUN_RESUMED)[0].seq


async def test_too_little_free_space_pauses_before_the_next_call(jobs: Jobs) -> None:
    done = await jobs.run(settings={"min_free_mb": 10**9})
    assert (done.manifest["status"], done.exit_code) == ("stopped", 5)
    assert "(min_free_mb)" in done.manifest["error"]["message"]
    assert jobs.events(kinds.PAUSED)[0].data == {"reason": "disk_full"}
    assert jobs.events(kinds.CALL_ASKED) == []
    assert (await jobs.run()).exit_code == 0


@pytest.mark.parametrize("kept_back", [BALLAST, 600, 0])
async def test_a_disk_that_fills_stops_the_run_and_loses_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, kept_back: int
) -> None:
    """Even where the space that was kept back is taken by somebody else."""

    async def stays_full(run: Run, settings: Any) -> None:
        monkeypatch.setattr(os, "write", Disk(run.dir, 5000, kept_back).write)
        for number in range(1000):
            run.note("n", number)

    write = os.write
    done = await jobs.run(stays_full)
    assert done.exit_code == 5
    monkeypatch.setattr(os, "write", write)
    notes = [event.data["value"] for event in jobs.events(kinds.NOTED)]
    assert notes == list(range(len(notes))) and len(notes) > 10
    if kept_back == BALLAST:
        assert done.manifest["status"] == "stopped"
        assert [event.type for event in jobs.events()[-2:]] == [kinds.PAUSED, kinds.RUN_DONE]
    seen: list[Any] = []

    async def goes_on(run: Run, settings: Any) -> None:
        seen.append(run.noted("n"))

    assert (await jobs.run(goes_on)).exit_code == 0
    assert seen == [notes[-1]]


async def test_a_disk_that_breaks_is_corrupt_state(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    async def script(run: Run, settings: Any) -> None:
        def broken(descriptor: int, body: bytes) -> int:
            raise OSError(5, "Input/output error")

        run.note("n", 1)
        monkeypatch.setattr(os, "write", broken)
        run.note("n", 2)

    with pytest.raises(StateError, match="Input/output error") as caught:
        await jobs.run(script)
    assert caught.value.exit_code == 4
    monkeypatch.setattr(os, "write", write)
    assert (await jobs.run(nothing)).exit_code == 0


# -------------------------------------------------------------------------------------------- resume


def then_stop(script: Script) -> Script:
    async def stopping(run: Any, settings: Any) -> None:
        await script(run, settings)
        raise Stopped("a limit")

    return stopping


async def test_a_resumed_run_asks_and_runs_nothing_twice(jobs: Jobs) -> None:
    provider = FakeProvider(["high", "never asked for"])
    first = await jobs.run(then_stop(jobs.plugin.script), provider=provider)
    assert first.exit_code == 5
    second = await jobs.run(provider=provider)
    assert (second.exit_code, second.manifest["answers"]) == (0, ["high"])
    assert (len(provider.calls), jobs.programs()) == (1, 1)
    assert [len(jobs.events(name)) for name in (kinds.EXECUTION_DONE, kinds.CALL_ANSWERED)] == [1, 1]


async def test_a_replayed_program_gives_what_it_gave(jobs: Jobs) -> None:
    results: list[ExecResult] = []

    async def script(run: Any, settings: Any) -> None:
        results.append(await run.execute(jobs.plugin.request(run)))
        results.append(await run.execute(jobs.plugin.request(run, "long", LONG)))

    await jobs.run(then_stop(script))
    await jobs.run(script)
    first, second = results[:2], results[2:]
    assert jobs.programs() == 1
    assert [result.stdout for result in first] == [result.stdout for result in second]
    assert len(second[1].stdout) > 4000
    for one, other in zip(first, second, strict=True):
        assert one.files == other.files
        assert (one.status, one.exit_code, one.stderr) == (other.status, other.exit_code, other.stderr)


LONG = "import sys\nfor n in range(2000): print('line', n)\nsys.stderr.write('done')\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "result.json").write_text("{}"),
        lambda folder: (folder / "result.json").unlink(),
    ],
    ids=["changed", "removed"],
)
async def test_a_program_whose_files_are_not_intact_runs_again(jobs: Jobs, damage: Any) -> None:
    await jobs.run(then_stop(jobs.plugin.script))
    damage(jobs.place / "nodes" / "n1.0")
    assert (await jobs.run()).exit_code == 0
    assert jobs.programs() == 2
    assert json.loads((jobs.place / "nodes" / "n1.0" / "result.json").read_text()) == {"question": "why"}
    assert audit(jobs.events()) == {"executions": 2, "weak": 2, "findings": []}


@pytest.mark.parametrize("change", [{"env": {"QUESTION": "how"}}, {"label": "other"}, {"attempt": 1}])
async def test_another_program_is_not_taken_for_a_recorded_one(jobs: Jobs, change: dict[str, Any]) -> None:
    async def first(run: Any, settings: Any) -> None:
        await run.execute(jobs.plugin.request(run))

    async def second(run: Any, settings: Any) -> None:
        await run.execute(jobs.plugin.request(run, **change))

    await jobs.run(then_stop(first))
    await jobs.run(second)
    assert jobs.programs() == 2


async def test_equal_programs_of_one_node_are_told_apart_by_their_order(jobs: Jobs) -> None:
    async def script(run: Any, settings: Any) -> None:
        for _ in range(2):
            await run.execute(jobs.plugin.request(run))

    await jobs.run(then_stop(script))
    assert jobs.programs() == 2
    await jobs.run(script)
    assert jobs.programs() == 2


async def test_a_program_that_was_lost_is_not_recorded(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(self: Any, request: ExecRequest) -> ExecResult:
        return ExecResult(status="infra_error", infra="the machine is gone")

    monkeypatch.setattr(jobs.plugin.Scripted, "work", work)

    async def script(run: Any, settings: Any) -> None:
        with pytest.raises(errors.InfrastructureError, match="the machine is gone"):
            await run.execute(jobs.plugin.request(run))

    assert (await jobs.run(script, {"executor": "scripted"})).exit_code == 0
    assert jobs.events(kinds.EXECUTION_DONE) == []


async def test_notes_and_answers_are_there_after_a_resume(jobs: Jobs) -> None:
    seen: list[Any] = []

    async def script(run: Any, settings: Any) -> None:
        seen.append((run.resumed, run.noted("n", "nothing"), len(run.events("only"))))
        run.note("n", {"pair": (1, 2), "bad": float("nan")}, scope="only")
        seen.append(run.noted("n"))

    await jobs.run(then_stop(script))
    await jobs.run(script)
    value = {"pair": [1, 2], "bad": None}
    assert seen == [(False, "nothing", 0), value, (True, value, 1), value]


@pytest.mark.parametrize(("key", "value", "name"), [("probe.topic", "winds", "topic"), ("seed", 9, "seed")])
@pytest.mark.parametrize("finished", [False, True])
async def test_a_resumed_run_stays_what_it_was(
    jobs: Jobs, key: str, value: Any, name: str, finished: bool
) -> None:
    await jobs.run(nothing if finished else then_stop(nothing))
    before = (jobs.place / "events.jsonl").read_bytes()
    with pytest.raises(UsageError, match=f"a resumed run can't change its {name}") as caught:
        await jobs.run(settings={key: value})
    assert "--run_id" in caught.value.hint
    assert (jobs.place / "events.jsonl").read_bytes() == before


async def test_limits_and_workers_may_change(jobs: Jobs) -> None:
    await jobs.run(then_stop(nothing))
    done = await jobs.run(nothing, {"workers": 5, "budget.tokens": 10**6, "model": "fake::json"})
    assert done.exit_code == 0
    assert jobs.events(kinds.RUN_RESUMED)[0].data["settings"]["workers"] == 5
    assert set(done.manifest["models"]) == {"fake::echo", "fake::json"}


async def test_a_finished_run_is_not_done_again(jobs: Jobs) -> None:
    first = await jobs.run()
    calls = len(jobs.events())
    again = await jobs.run(then_stop(jobs.plugin.script))
    assert (again.manifest, again.exit_code, len(jobs.events())) == (first.manifest, 0, calls)


async def warnings_of_a_resume(jobs: Jobs, settings: Mapping[str, Any]) -> list[str]:
    """What a run that was stopped warns of when it goes on with these settings."""

    async def stopped(run: Any, settings: Any) -> None:
        raise Stopped("enough")

    await jobs.run(stopped)
    before = len(jobs.events(kinds.WARNING))
    assert (await jobs.run(nothing, settings)).exit_code == 0
    return [event.data["message"] for event in jobs.events(kinds.WARNING)[before:] if "resumed" in str(event)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"workers": 5},
        {"in_flight": 9},
        {"executor": "scripted"},
        {"budget.usd": 5.0, "budget.tokens": 10_000, "budget.seconds": 60.0},
        {"llm.retries": 1, "llm.concurrency": 2, "llm.cache": "off"},
        {"observers": ["recorder"]},
        {"durability": "power"},
        {"infra_retries": 3, "min_free_mb": 1},
        {"models.mine.model": "fake::echo", "models.mine.rpm": 5.0},
    ],
)
async def test_limits_and_pace_are_set_anew_freely(jobs: Jobs, settings: dict[str, Any]) -> None:
    told = await warnings_of_a_resume(jobs, settings)
    assert [word for word in told if "mine.rpm" in word or "models" not in word] == []


async def test_what_results_may_depend_on_is_set_anew_with_a_warning(jobs: Jobs) -> None:
    told = await warnings_of_a_resume(jobs, {"scheduler": "batch", "probe.loud": True, "workers": 3})
    assert told == [
        "resumed with other settings, from here on: scheduler async -> batch; probe.loud False -> True"
    ]


async def test_another_model_is_a_warning(jobs: Jobs) -> None:
    told = await warnings_of_a_resume(jobs, {"model": "fake::other"})
    assert told == [
        "resumed with other settings, from here on: model fake::echo -> fake::other",
        "resumed with other models, from here on: fake::other, before fake::echo",
    ]
    assert set(jobs.events(kinds.RUN_RESUMED)[0].data["models"]) == {"fake::other"}


async def test_a_change_is_told_once(jobs: Jobs) -> None:
    async def stopped(run: Any, settings: Any) -> None:
        raise Stopped("enough")

    for scheduler in ("async", "batch", "batch", "async", "batch"):
        await jobs.run(stopped, {"scheduler": scheduler})
    assert (
        len([event for event in jobs.events(kinds.WARNING) if "resumed with" in event.data["message"]]) == 3
    )


async def test_another_strategy_is_another_run(jobs: Jobs) -> None:
    async def stopped(run: Any, settings: Any) -> None:
        raise Stopped("enough")

    await jobs.run(stopped, {"strategy": "greedy"})
    with pytest.raises(UsageError, match="a resumed run can't change its strategy"):
        await jobs.run(nothing)


async def test_resume_finds_the_run_its_settings_and_its_place(jobs: Jobs) -> None:
    await jobs.run(then_stop(nothing), {"probe.topic": "winds", "workers": 3})
    plan, _ = probe.planned(jobs.folder, resume="on")
    assert (plan.directory, plan.resume, plan.settings.probe.topic) == (jobs.place, True, "winds")
    assert plan.settings.workers == 2, "a flag wins over what was saved"
    assert probe.planned(jobs.folder, resume="")[0].directory == jobs.place
    with pytest.raises(UsageError, match="no run 'two'"):
        probe.planned(jobs.folder, resume="two")


async def test_a_run_that_was_killed_at_its_very_start_begins_again(jobs: Jobs) -> None:
    for name in ("blobs", "nodes"):
        (jobs.place / name).mkdir(parents=True)
    (jobs.place / "run.lock").touch()
    assert probe.planned(jobs.folder, {"run_id": "one"})[0].resume is False
    (jobs.place / "events.jsonl").write_bytes(b'{"seq":1,"t":1.0,"ty')
    with pytest.raises(UsageError, match="has no beginning"):
        probe.planned(jobs.folder, resume="one")
    assert (await jobs.run(then_stop(nothing))).exit_code == 5
    assert [event.type for event in jobs.events()][:2] == [kinds.REPAIRED, kinds.RUN_STARTED]
    assert probe.planned(jobs.folder, resume="one")[0].settings.probe.topic == "tides"
    assert (await jobs.run(nothing)).exit_code == 0


async def test_a_folder_with_other_things_is_not_taken(jobs: Jobs) -> None:
    jobs.place.mkdir(parents=True)
    (jobs.place / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no journal"):
        await jobs.run()
    assert [path.name for path in jobs.place.iterdir()] == ["thesis.tex"]


async def test_a_corrupt_journal_needs_salvage(jobs: Jobs) -> None:
    await jobs.run(then_stop(jobs.plugin.script))
    journal = jobs.place / "events.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[1] = b"?" + lines[1][1:]
    journal.write_bytes(b"".join(lines))
    with pytest.raises(StateError, match=r"events\.jsonl:2: corrupt journal"):
        await jobs.run()
    assert (await jobs.run(salvage=True)).exit_code == 0
    assert jobs.programs() == 1


async def test_two_owners_at_once_are_refused(jobs: Jobs) -> None:
    async def script(run: Run, settings: Any) -> None:
        plan, manager = probe.planned(jobs.folder, {"run_id": "one"})
        with pytest.raises(EnvironmentRefused, match=f"in use by pid {os.getpid()} on host"):
            await run_plan(plan, manager, accept_weak=True)

    assert (await jobs.run(script)).exit_code == 0


# ------------------------------------------------------------------------- refused before a directory


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": "nobody::x"}, CorerunError, "nobody"),
        ({"model": "::"}, UsageError, "bad model string"),
        ({"executor": "nowhere"}, PluginError, "no component of kind executors is named nowhere"),
        ({"observers": ["nobody"]}, PluginError, "no component of kind observers is named nobody"),
        ({"observers": ["unborn"]}, PluginError, "observer unborn can't start: RuntimeError: no library"),
        ({"sandbox.name": "nothing"}, PluginError, "no component of kind sandboxes is named nothing"),
        ({"plugins.required": ["corerun-absent"]}, PluginError, "corerun-absent"),
        ({"plugins.disable": ["core"]}, UsageError, "the plugin core can't be blocked"),
        ({"probe.topics": "x"}, errors.ConfigError, "unknown key 'probe.topics'"),
        ({"probe.topics": None}, errors.ConfigError, "unknown key 'probe.topics'"),
    ],
)
async def test_what_cannot_start_leaves_nothing_behind(
    jobs: Jobs, settings: dict[str, Any], error: type[CorerunError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await jobs.run(settings=settings)
    assert list(jobs.folder.iterdir()) == []


async def test_a_models_programs_need_isolation_or_consent(jobs: Jobs) -> None:
    with pytest.raises(errors.SandboxUnavailable, match="sandbox_unavailable: needs"):
        await jobs.run(accept_weak=False)
    assert list(jobs.folder.iterdir()) == []
    assert (await jobs.run(nothing, {"sandbox.allow_weak": True}, accept_weak=False)).exit_code == 0


async def test_a_disabled_plugin_offers_nothing(jobs: Jobs) -> None:
    with pytest.raises(PluginError, match="openai_router"):
        await jobs.run(settings={"model": "gpt-x", "plugins.disable": ["openai_router"]})


def test_the_plan_can_be_described_without_writing(module: ModuleType, tmp_path: Path) -> None:
    settings = {"models.fast.model": "fake::json", "probe.role_model": "fast", "workers": 4}
    plan, _ = probe.planned(tmp_path, settings)
    found = describe(plan)
    assert (found["roles"], found["models"]) == ({"code": "fast"}, {"fast": "fake::json"})
    assert (found["workers"], found["in_flight"], found["resumes"]) == (4, plan.settings.expansions, False)
    assert found["run_dir"].startswith(str(tmp_path / "runs" / "probe"))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ files and paths


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "a/../../outside"])
async def test_a_run_writes_inside_its_directory_only(jobs: Jobs, path: str) -> None:
    async def script(run: Run, settings: Any) -> None:
        with pytest.raises(UsageError, match="is no path below"):
            run.write(path, "text")
        run.write("deep/er/file.bin", b"\x00")

    assert (await jobs.run(script)).exit_code == 0
    assert (jobs.place / "deep" / "er" / "file.bin").read_bytes() == b"\x00"


async def test_job_paths_are_relative_to_the_file_that_names_them(jobs: Jobs) -> None:
    (jobs.folder / "sub").mkdir()
    file = jobs.folder / "sub" / "job.yaml"
    file.write_text("probe:\n  data: numbers.csv\n")
    plan, _ = probe.planned(jobs.folder, config_file=file)
    assert plan.settings.probe.data == jobs.folder / "sub" / "numbers.csv"


async def test_random_numbers_depend_on_the_seed_and_the_parts_alone(jobs: Jobs) -> None:
    drawn: list[list[float]] = []

    async def script(run: Run, settings: Any) -> None:
        run.rng("other").random()
        drawn.append([run.rng("a", 1).random(), run.rng("a", 2).random(), run.rng("a", 1).random()])

    await jobs.run(then_stop(script))
    await jobs.run(script)
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == drawn[0][2] != drawn[0][1]


# ------------------------------------------------------------------------------- what programs get

SECRET = "sk-planted-0123456789"
CREDENTIALS = dict.fromkeys(
    ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"), SECRET
)


def files_with(text: str, folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


async def test_no_credential_reaches_a_program_or_a_file(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("PLAIN", "is not handed on either")
    monkeypatch.setenv("WANTED", "is")
    results: list[ExecResult] = []

    async def script(run: Any, settings: Any) -> None:
        results.append(await run.execute(jobs.plugin.request(run)))
        for name in CREDENTIALS:
            with pytest.raises(UsageError, match=f"refused: {name} is a provider credential"):
                await run.execute(jobs.plugin.request(run, env={name: "x"}))
        await jobs.plugin.script(run, settings)

    done = await jobs.run(script, {"sandbox.pass_env": "WANTED"}, environ=dict(os.environ))
    assert done.exit_code == 0
    got = json.loads(results[0].stdout)
    assert (got["WANTED"], got["LC_ALL"]) == ("is", "C.UTF-8")
    assert {*CREDENTIALS, "PLAIN"} & set(got) == set()
    assert SECRET not in results[0].stdout
    assert files_with(SECRET, jobs.folder) == []


async def test_a_credential_in_pass_env_is_refused(jobs: Jobs) -> None:
    done = await jobs.run(settings={"sandbox.pass_env": ["OPENAI_API_KEY"]})
    assert (done.exit_code, done.manifest["error"]["type"]) == (2, "UsageError")
    assert jobs.programs() == 0


async def test_a_credential_gets_in_where_one_insists(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    results: list[ExecResult] = []

    async def script(run: Any, settings: Any) -> None:
        code = "import os\nprint(len(os.environ['OPENAI_API_KEY']))\n"
        results.append(await run.execute(jobs.plugin.request(run, code=code)))

    done = await jobs.run(script, {"sandbox.pass_env_unsafe": ["OPENAI_API_KEY"]})
    assert (done.exit_code, results[0].stdout) == (0, f"{len(SECRET)}\n")


async def test_what_programs_ran_in_is_in_the_manifest_the_journal_and_on_screen_again(jobs: Jobs) -> None:
    async def stopped(run: Any, settings: Any) -> None:
        await run.execute(jobs.plugin.request(run))
        raise errors.Stopped("enough")

    missing = sorted(GUARANTEES - {"env", "tree_kill", "file_size", "mem_total", "mem_proc", "pids"})
    for script, warnings in ((stopped, 1), (nothing, 2)):
        done = await jobs.run(script)
        sandbox = done.manifest["sandbox"]
        assert set(sandbox) == {"name", "guarantees", "missing"}
        assert sandbox["name"] == "local" and set(missing) <= set(sandbox["missing"])
        told = [event.data["message"] for event in jobs.events(kinds.WARNING)]
        said = "weak isolation: programs run under 'local', without fs_read, fs_write, net"
        assert told == [said] * warnings, "each process says it once"
        assert done.manifest["warnings"] == [said]
    (ran,) = jobs.events(kinds.EXECUTION_DONE)
    assert ran.data["result"]["sandbox"]["name"] == "local"


async def test_a_sandbox_that_lost_a_guarantee_fails_no_program(
    jobs: Jobs, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(self: Any, request: ExecRequest) -> ExecResult:
        return ExecResult(sandbox={"name": "local", "guarantees": ["env"], "missing": []})

    async def script(run: Any, settings: Any) -> None:
        await run.execute(jobs.plugin.request(run))

    monkeypatch.setattr(module.Scripted, "work", work)
    done = await jobs.run(script, {"executor": "scripted"})
    assert (done.exit_code, done.manifest["error"]["type"]) == (3, "SandboxBroken")
    assert jobs.events(kinds.EXECUTION_DONE) == []


async def test_programs_share_the_cores(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found: list[dict[str, str]] = []

    async def script(run: Any, settings: Any) -> None:
        for node in ("a", "b"):
            found.append(json.loads((await run.execute(jobs.plugin.request(run, node))).stdout))

    await jobs.run(script, {"workers": 3})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        assert [got[name] for got in found] == ["2", "2"]
    assert {got["CUDA_VISIBLE_DEVICES"] for got in found} == {""}
    assert {got["MPLBACKEND"] for got in found} == {"Agg"}
    assert found[0]["HOME"] != found[1]["HOME"]


async def test_the_cache_of_fonts_is_made_once_in_a_run(jobs: Jobs) -> None:
    found: list[ExecResult] = []
    code = """
import os
import matplotlib
place = matplotlib.get_cachedir()
print(place == os.path.expanduser("~/.cache/matplotlib"), os.listdir(place))
import matplotlib.font_manager
print(os.listdir(place))
"""

    async def script(run: Any, settings: Any) -> None:
        for node in ("a", "b"):
            found.append(await run.execute(replace(jobs.plugin.request(run, node), code=code)))

    await jobs.run(script)
    (kept,) = (path.name for path in (jobs.place / "nodes" / ".matplotlib").glob("fontlist*"))
    assert [result.stdout for result in found] == [f"True ['{kept}']\n['{kept}']\n"] * 2
    assert [result.stderr for result in found] == ["", ""]


# -------------------------------------------------------------------------------------------- GPUs


class Cards:
    """Programs that wait for the test, and which cards each of them has."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.cards: dict[str, tuple[str, ...]] = {}
        self.ends: dict[str, asyncio.Future[ExecResult]] = {}

    async def work(self, request: ExecRequest) -> ExecResult:
        self.cards[request.node] = request.gpus
        assert request.env["CUDA_VISIBLE_DEVICES"] == ",".join(request.gpus)
        self.ends[request.node] = asyncio.get_running_loop().create_future()
        self.started.put_nowait(request.node)
        return await self.ends[request.node]


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def cards(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Cards:
    held = Cards()

    async def work(self: Any, request: ExecRequest) -> ExecResult:
        return await held.work(request)

    monkeypatch.setattr(module.Scripted, "work", work)
    return held


TWO_CARDS = {"CUDA_VISIBLE_DEVICES": "4,7"}


@pytest.mark.parametrize("end", ["result", "failure", "cancel"])
async def test_cards_are_leased_waited_for_and_given_back(jobs: Jobs, cards: Cards, end: str) -> None:
    async def script(run: Any, settings: Any) -> None:
        assert run.gpus == ("4", "7")
        tasks = {
            node: asyncio.create_task(run.execute(jobs.plugin.request(run, node, gpus=("any",))))
            for node in "abc"
        }
        assert {await cards.started.get(), await cards.started.get()} == {"a", "b"}
        await turns()
        assert cards.started.empty(), "there are two cards"
        assert sorted(cards.cards.values()) == [("4",), ("7",)]
        if end == "result":
            cards.ends["a"].set_result(ExecResult(status="error", exit_code=1))
        elif end == "failure":
            cards.ends["a"].set_exception(errors.InfrastructureError("lost"))
        else:
            tasks["a"].cancel()
        assert await cards.started.get() == "c"
        assert cards.cards["c"] == cards.cards["a"]
        for node in "bc":
            cards.ends[node].set_result(ExecResult())
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        both = asyncio.create_task(run.execute(jobs.plugin.request(run, "d", gpus=("any", "any"))))
        await cards.started.get()
        assert cards.cards["d"] == ("4", "7")
        cards.ends["d"].set_result(ExecResult())
        await both

    done = await jobs.run(script, {"executor": "scripted", "workers": 4}, environ=TWO_CARDS)
    assert done.manifest["error"] is None
    recorded = {event.data["node"]: event.data["gpus"] for event in jobs.events(kinds.EXECUTION_DONE)}
    assert recorded["d"] == ["4", "7"]


async def test_more_cards_than_there_are_is_refused_at_once(jobs: Jobs, cards: Cards) -> None:
    async def script(run: Any, settings: Any) -> None:
        await run.execute(jobs.plugin.request(run, gpus=("any",) * 3))

    done = await jobs.run(script, {"executor": "scripted"}, environ=TWO_CARDS)
    assert (done.exit_code, done.manifest["error"]["type"]) == (3, "EnvironmentRefused")
    assert "wants 3 GPUs, and there are 2" in done.manifest["error"]["message"]


async def test_no_more_programs_at_once_than_workers(jobs: Jobs, cards: Cards) -> None:
    async def script(run: Any, settings: Any) -> None:
        tasks = [asyncio.create_task(run.execute(jobs.plugin.request(run, node))) for node in "abc"]
        for _ in range(2):
            await cards.started.get()
        await turns()
        assert cards.started.empty()
        for node in "abc":
            while node not in cards.ends:
                await asyncio.sleep(0)
            cards.ends[node].set_result(ExecResult())
        await asyncio.gather(*tasks)

    assert (await jobs.run(script, {"executor": "scripted", "workers": 2})).exit_code == 0


# ----------------------------------------------------------------------------------------- observers


async def test_observers_get_every_event_in_order(jobs: Jobs) -> None:
    await jobs.run(settings={"observers": "recorder"})
    seen = [event for _, event in jobs.plugin.Recorder.seen]
    assert seen == jobs.events()
    assert {run for run, _ in jobs.plugin.Recorder.seen} == {"one"}
    assert jobs.plugin.Recorder.closed == 1


async def test_a_broken_observer_breaks_neither_the_run_nor_the_others(jobs: Jobs) -> None:
    done = await jobs.run(settings={"observers": ["raising", "recorder"]})
    assert (done.exit_code, done.manifest["status"]) == (0, "success")
    assert [event for _, event in jobs.plugin.Recorder.seen] == jobs.events()
    log = (jobs.place / "run.log").read_text()
    assert log.count("observer raising failed and is left out from here on") == 1
    assert log.count("observer raising failed at its end") == 1
    assert "RuntimeError: this observer is broken" in log


async def test_a_slow_observer_holds_nothing_up(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(jobs.plugin.Gated, "gate", gate)
    monkeypatch.setattr(observers, "QUEUE", 3)
    monkeypatch.setattr(observers, "END_S", 0.2)
    finished: list[Event] = []

    def watch(event: Event) -> None:
        if event.type == kinds.RUN_DONE:
            finished.append(event)

    try:
        done = await jobs.run(settings={"observers": ["gated", "recorder"]}, listeners=(watch,))
        assert done.exit_code == 0 and len(finished) == 1
    finally:
        gate.set()
    log = (jobs.place / "run.log").read_text()
    assert "observer gated is still busy; it is left behind" in log
    assert "observer gated was too slow:" in log


async def test_events_emitted_in_a_burst_beyond_the_queue_lose_the_oldest(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(jobs.plugin.Gated, "gate", gate)
    monkeypatch.setattr(
        jobs.plugin.Gated, "on_event", lambda self, run, event: (gate.wait(), told.append(event))
    )
    monkeypatch.setattr(observers, "QUEUE", 5)
    told: list[Event] = []

    async def script(run: Run, settings: Any) -> None:
        for number in range(50):
            run.note("n", number)

    def open_at_the_end(event: Event) -> None:
        if event.type == kinds.RUN_DONE:
            gate.set()

    await jobs.run(script, {"observers": ["gated"]}, listeners=(open_at_the_end,))
    assert told[-1].type == kinds.RUN_DONE
    assert len(told) <= 7
    assert "events dropped" in (jobs.place / "run.log").read_text()


# ----------------------------------------------------------------------------- .env files and streams


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("OPENAI_API_KEY=abc", "abc"),
        ("  export OPENAI_API_KEY = abc  ", "abc"),
        ("OPENAI_API_KEY='a b # c'", "a b # c"),
        ('OPENAI_API_KEY="abc"  # the key', "abc"),
        ("OPENAI_API_KEY=abc # the key", "abc"),
        ("OPENAI_API_KEY=a#c", "a#c"),
        ("OPENAI_API_KEY=a=b", "a=b"),
        ('OPENAI_API_KEY="abc', '"abc'),
        ("OPENAI_API_KEY=", None),
        ('OPENAI_API_KEY=""', None),
        ("# OPENAI_API_KEY=abc", None),
        ("OPENAI_API_KEY", None),
        ("openai_api_key=abc", None),
    ],
)
def test_lines_of_an_env_file(tmp_path: Path, line: str, value: str | None) -> None:
    (tmp_path / ".env").write_text(f"\n{line}\nrubbish\n")
    environ: dict[str, str] = {}
    said = environment.read_env_file(tmp_path / ".env", environ)
    assert environ == ({} if value is None else {"OPENAI_API_KEY": value})
    assert said == ([] if value is None else [f"OPENAI_API_KEY taken from {tmp_path / '.env'}"])


def test_an_env_file_sets_known_names_and_never_over_a_set_one(tmp_path: Path) -> None:
    names = ("OPENAI_BASE_URL", "OAIC_X_AI_API_KEY", "OLLAMA_API_KEY", "CORERUN_MODEL")
    others = ("PATH", "LD_PRELOAD", "AWS_SECRET_ACCESS_KEY", "MY_OPENAI_API_KEY", "OPENAI_API_KEY_2")
    lines = [f"{name}=from-the-file" for name in (*names, *others, "OPENAI_API_KEY")]
    (tmp_path / ".env").write_text("\n".join(lines))
    environ = {"OPENAI_API_KEY": "set"}
    said = environment.read_env_file(tmp_path / ".env", environ)
    assert environ == {"OPENAI_API_KEY": "set", **dict.fromkeys(names, "from-the-file")}
    assert "from-the-file" not in "".join(said)


def test_an_env_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    assert environment.read_env_file(tmp_path / ".env", {}) == []
    with pytest.raises(UsageError, match="--env-file: no such file"):
        environment.read_env_file(tmp_path / ".env", {}, required=True)


def test_copied_events_are_json_lines_whatever_they_hold() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    write = environment.event_writer(stream)
    write(Event(1, 2.5, "step", {"text": "é\ud800\n"}))
    body = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert json.loads(body) == {"seq": 1, "t": 2.5, "type": "step", "data": {"text": "é\ud800\n"}}
    assert body.count(b"\n") == 1


async def test_a_reader_of_the_events_that_leaves_does_not_end_the_run(jobs: Jobs) -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", encoding="utf-8")
    os.close(reading)
    done = await jobs.run(listeners=(environment.event_writer(stream),))
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    assert done.exit_code == 0
    assert "the copy of the events ends here" in (jobs.place / "run.log").read_text()


# ------------------------------------------------------------------------------------------- signals


async def test_the_first_ctrl_c_lets_what_runs_end(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    async def script(run: Any, settings: Any) -> None:
        os.kill(os.getpid(), 2)
        while not run.stopping:
            await asyncio.sleep(0)
        run.note("finished", True)
        raise errors.Interrupted("interrupted")

    done = await jobs.run(script)
    assert (done.manifest["status"], done.exit_code) == ("interrupted", 130)
    assert len(jobs.events(kinds.NOTED)) == 1
    assert "press Ctrl-C again to stop at once" in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [(2, 2), (15,), (2, 15)])
async def test_a_second_ctrl_c_or_sigterm_ends_it_at_once(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...]
) -> None:
    monkeypatch.setattr(signals, "GRACE_S", 3600.0)

    async def script(run: Any, settings: Any) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            await turns()
        await asyncio.get_running_loop().create_future()

    done = await jobs.run(script)
    assert (done.manifest["status"], done.exit_code) == ("interrupted", 130)


async def test_what_does_not_end_in_time_is_ended(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE_S", 0.0)

    async def script(run: Any, settings: Any) -> None:
        os.kill(os.getpid(), 2)
        await asyncio.get_running_loop().create_future()

    assert (await jobs.run(script)).exit_code == 130


@pytest.mark.parametrize("numbers", [(2,), (15,), (2, 2, 15, 2)])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_signal_that_comes_while_a_run_ends_spoils_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...], fails: bool
) -> None:
    """The end is in the journal, and the manifest is written."""

    async def script(run: Any, settings: Any) -> None:
        if fails:
            raise errors.RunFailed("nothing was found")

    async def close(self: Any) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            await turns()

    monkeypatch.setattr(jobs.plugin.Scripted, "close", close)
    done = await jobs.run(script, {"executor": "scripted"})
    expected = ("failed", 1) if fails else ("success", 0)
    assert (done.manifest["status"], done.exit_code) == expected
    assert [event.data["status"] for event in jobs.events(kinds.RUN_DONE)] == [expected[0]]


async def test_impatience_after_the_second_ctrl_c_spoils_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(run: Any, settings: Any) -> None:
        os.kill(os.getpid(), 15)
        await asyncio.get_running_loop().create_future()

    async def close(self: Any) -> None:
        for number in (2, 2, 15):
            os.kill(os.getpid(), number)
            await turns()

    monkeypatch.setattr(jobs.plugin.Scripted, "close", close)
    done = await jobs.run(script, {"executor": "scripted"})
    assert (done.manifest["status"], done.exit_code) == ("interrupted", 130)
    assert [event.data["status"] for event in jobs.events(kinds.RUN_DONE)] == ["interrupted"]


async def test_a_run_that_ends_within_its_moment_is_not_cut_off_later(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "GRACE_S", 0.01)

    async def script(run: Any, settings: Any) -> None:
        os.kill(os.getpid(), 2)
        while not run.stopping:
            await asyncio.sleep(0)

    async def close(self: Any) -> None:
        await asyncio.sleep(0.05)

    monkeypatch.setattr(jobs.plugin.Scripted, "close", close)
    assert (await jobs.run(script, {"executor": "scripted"})).exit_code == 0
