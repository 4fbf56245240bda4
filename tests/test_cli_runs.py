"""The commands around a run, as a person or a script sees them: exit code, stdout, stderr, files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from corerun.cli import main
from corerun.interfaces import Event
from corerun.runs.journal import encode, read
from tests.support import probe

SECRET = "sk-planted-0123456789"
FLAGS = ("--model", "fake::echo", "--sandbox", "local", "--i-accept-no-isolation", "-o", "min_free_mb=0")


@dataclass
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("plugins")
    with probe.imported(folder):
        yield folder


def environ(plugins: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CORERUN_", "OPENAI_"))}
    return kept | {"PYTHONPATH": str(plugins), "XDG_CONFIG_HOME": str(plugins / "no_config")}


def child(plugins: Path, cwd: Path, *arguments: str) -> Said:
    """The command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "corerun", *arguments],
        cwd=cwd,
        env=environ(plugins),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@dataclass
class World:
    """A folder with a finished run, a stopped one, and what the finished one said."""

    folder: Path
    finished: Said
    stopped: Said
    events: Path

    def journal(self, name: str = "good") -> Path:
        return self.folder / "runs" / "probe" / name / "events.jsonl"


@pytest.fixture(scope="module")
def world(plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    (folder / "job.yaml").write_text("probe:\n  topic: winds\n")
    (folder / ".env").write_text(f"OPENAI_API_KEY={SECRET}\nHOME=/nowhere\n")
    run = ("--plugin", "probe", "run", "--config", "job.yaml", *FLAGS)
    stopped = child(plugins, folder, *run, "--run_id", "short", "-o", "min_free_mb=1000000000")
    finished = child(plugins, folder, *run, "--run_id", "good", "--events", "copied.jsonl")
    return World(folder, finished, stopped, folder / "copied.jsonl")


@pytest.fixture
def corerun(
    plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """The command in this process, in an empty folder unless told otherwise."""
    for name in list(os.environ):
        if name.startswith(("CORERUN_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "work").mkdir()

    def run(*arguments: str, cwd: Path | None = None) -> Said:
        monkeypatch.chdir(cwd or tmp_path / "work")
        code = main(list(arguments))
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


# --------------------------------------------------------------------------------------------- run


def test_run_prints_its_manifest_and_nothing_else_on_stdout(world: World) -> None:
    said = world.finished
    manifest = json.loads((world.journal().parent / "run_manifest.json").read_text())
    assert (said.code, said.json) == (0, manifest)
    assert manifest["status"] == "success"
    assert manifest["argv"][:5] == ["--plugin", "probe", "run", "--config", "job.yaml"]
    assert "a notice of the job" in said.err
    assert "Traceback" not in said.err


def test_a_stopped_run_says_why_and_how_to_go_on(world: World) -> None:
    said = world.stopped
    assert (said.code, said.json["status"], said.json["exit_code"]) == (5, "stopped", 5)
    assert "corerun: DiskFull: only " in said.err
    assert "hint: free some space, then resume with --resume" in said.err


def test_an_env_file_beside_the_job_file_is_read_and_never_shown_or_kept(world: World) -> None:
    assert "corerun: OPENAI_API_KEY taken from .env" in world.finished.err
    assert SECRET not in world.finished.err + world.finished.out
    kept = [path for path in world.folder.rglob("*") if path.is_file() and path.name != ".env"]
    assert [path for path in kept if SECRET.encode() in path.read_bytes()] == []


def test_events_are_copied_to_a_file(world: World) -> None:
    copied = [json.loads(line) for line in world.events.read_text().splitlines()]
    journal = [
        {"seq": event.seq, "t": event.t, "type": event.type, "data": event.data}
        for event in read(world.journal())[0]
    ]
    assert copied == journal


def test_the_resolved_settings_are_kept(world: World) -> None:
    kept = yaml.safe_load((world.journal().parent / "config.resolved.yaml").read_text())
    assert (kept["model"], kept["probe"]["topic"], kept["run_id"]) == ("fake::echo", "winds", "good")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("run",), 2, "run needs a job"),
        (("probe", "run", "--config", "absent.yaml"), 2, "--config: no such file: absent.yaml"),
        (("probe", "run", "--env-file", "absent"), 2, "--env-file: no such file: absent"),
        (("probe", "run", "--resume"), 2, "no run below "),
        (("probe", "run", "--resume", "x"), 2, "no run 'x' below "),
        (("probe", "run", "-o", "modle=x"), 2, "-o modle=x: unknown key 'modle'"),
        (("probe", "run", "-o", "workers"), 2, "-o wants KEY=VALUE"),
        (("probe", "run", "--workers", "no"), 2, "--workers: workers: input should be a valid integer"),
        (("probe", "run", "--max_cost_usd", "-1"), 2, "--max_cost_usd: budget.usd: input should be greater"),
        (("probe", "run", "--topic"), 2, "requires an argument"),
        (("probe", "run", "--display", "loud"), 2, "'loud' is not one of"),
        (("probe", "run", "--model", "fake::echo", "--sandbox", "local"), 3, "sandbox_unavailable"),
        (("probe", "run", *FLAGS, "--events", "no/such/folder"), 3, "can't write no/such/folder"),
        (("probe", "run", *FLAGS, "-o", "observers=[nobody]"), 2, "no component of kind observers"),
        (("probe", "run", "--model", "nobody::x"), 2, "nobody"),
    ],
)
def test_what_cannot_run_is_one_line_and_leaves_nothing(
    corerun: Callable[..., Said], tmp_path: Path, arguments: tuple[str, ...], code: int, error: str
) -> None:
    said = corerun(*arguments)
    lines = [line for line in said.err.splitlines() if line.startswith("corerun: ")]
    assert said.code == code, said.err
    assert len(lines) == 1 and error in lines[0]
    assert (said.out, "Traceback" in said.err) == ("", False)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    corerun: Callable[..., Said], tmp_path: Path
) -> None:
    said = corerun("probe", "run", "--model", "fake::echo", "--workers", "3", "--dry-run")
    assert (said.code, said.json["job"], said.json["roles"]) == (0, "probe", {"code": "fake::echo"})
    assert said.json["inputs"] == {"topic": "tides"}
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("spelling", [("--out_root", "x"), ("--out-root", "x"), ("-o", "out_root=x")])
def test_flags_follow_from_the_settings_of_the_job(
    corerun: Callable[..., Said], tmp_path: Path, spelling: tuple[str, str]
) -> None:
    said = corerun("probe", "run", *FLAGS, *spelling, "--topic", "rain", "--no-loud", "--data", "d.csv")
    assert said.code == 0
    assert (said.json["inputs"], said.json["answers"]) == ({"topic": "rain"}, ["rain"])
    place = Path(said.json["paths"]["run_dir"])
    assert place.parent == tmp_path / "work" / "x" / "runs" / "probe"
    kept = yaml.safe_load((place / "config.resolved.yaml").read_text())
    assert kept["probe"]["data"] == str(tmp_path / "work" / "d.csv")


def test_help_of_run_shows_the_flags_of_the_job(corerun: Callable[..., Said]) -> None:
    said = corerun("probe", "run", "--help")
    assert said.code == 0
    for text in (
        "--topic",
        "what to ask about",
        "--loud / --no-loud",
        "--workers",
        "[default: 2]",
        "--resume",
    ):
        assert text in said.out


def test_a_run_is_resumed_by_name_by_beginning_or_as_the_newest(
    corerun: Callable[..., Said], tmp_path: Path
) -> None:
    run = ("probe", "run", *FLAGS)
    full = ("-o", "min_free_mb=1000000000")
    assert corerun(*run, "--run_id", "first", *full).code == 5
    assert corerun(*run, "--resume", "fir", *full).code == 5
    assert corerun(*run, "--resume", *full).code == 5
    done = corerun(*run, "--resume", str(tmp_path / "work" / "runs" / "probe" / "first"))
    assert (done.code, done.json["status"]) == (0, "success")
    events, _ = read(tmp_path / "work" / "runs" / "probe" / "first" / "events.jsonl")
    assert [event.type for event in events].count("run_resumed") == 3
    refused = corerun(*run, "--resume", "first", "--topic", "other")
    assert (refused.code, refused.out) == (2, "")
    assert "a resumed run can't change its topic" in refused.err


@pytest.mark.parametrize(
    ("display", "expected"), [("none", False), ("plain", True), ("log", True), ("rich", True), ("auto", True)]
)
def test_displays_write_to_stderr_alone(corerun: Callable[..., Said], display: str, expected: bool) -> None:
    said = corerun("probe", "run", *FLAGS, "--display", display)
    assert said.code == 0
    assert said.json["status"] == "success"
    shown = [line for line in said.err.splitlines() if line.strip() and "a notice of the job" not in line]
    assert bool(shown) is expected
    if display in ("plain", "log", "auto"):
        assert "\x1b" not in said.err and "\r" not in said.err


def test_an_observer_that_is_named_on_the_command_line_listens(corerun: Callable[..., Said]) -> None:
    seen = sys.modules["corerun_probe"].Recorder.seen
    seen.clear()
    said = corerun("probe", "run", *FLAGS, "-o", "observers=[recorder, raising]")
    assert said.code == 0
    assert [event.type for _, event in seen][-1] == "run_done"


# -------------------------------------------------------------------------------------------- runs


def test_runs_are_listed_as_a_table_and_as_json(corerun: Callable[..., Said], world: World) -> None:
    text = corerun("runs", "list", "--format", "text", cwd=world.folder)
    assert text.code == 0
    assert [line.split() for line in text.out.splitlines()] == [
        ["RUN", "JOB", "STATUS", "NODES", "BEST"],
        ["short", "probe", "stopped", "0", "nodes", "-"],
        ["good", "probe", "success", "1", "nodes", "0.5"],
    ]
    listed = corerun("runs", "list", cwd=world.folder).json
    assert listed[1] == {
        "run": "good",
        "path": str(Path("runs") / "probe" / "good"),
        "job": "probe",
        "status": "success",
        "nodes": 1,
        "best": 0.5,
    }
    assert corerun("runs", "list", "--out-root", str(world.folder)).json[0]["run"] == "short"


def test_an_empty_folder_has_no_runs(corerun: Callable[..., Said]) -> None:
    assert corerun("runs", "list").json == []
    said = corerun("runs", "list", "--format", "text")
    assert (said.code, said.out, "no runs below" in said.err) == (0, "", True)


@pytest.mark.parametrize("best", [None, 0.25, {"score": 0.25}, {"score": None}, {}, "x", [1]])
def test_whatever_a_job_calls_its_best_the_list_stands(
    corerun: Callable[..., Said], world: World, tmp_path: Path, best: Any
) -> None:
    copied = tmp_path / "work" / "runs" / "probe" / "good"
    shutil.copytree(world.journal().parent, copied)
    events, _ = read(copied / "events.jsonl")
    end = events[-1]
    events[-1] = Event(end.seq, end.t, end.type, {**end.data, "best": best})
    (copied / "events.jsonl").write_bytes(b"".join(map(encode, events)))
    expected = 0.25 if best in (0.25, {"score": 0.25}) else None
    assert corerun("runs", "list").json[0]["best"] == expected


def test_one_run_is_shown(corerun: Callable[..., Said], world: World) -> None:
    shown = corerun("runs", "show", "good", cwd=world.folder)
    assert shown.code == 0
    assert Path(shown.json["path"]).resolve() == world.journal().parent
    assert [node["status"] for node in shown.json["nodes"]] == ["good"]
    newest = corerun("runs", "show", "--format", "text", cwd=world.folder)
    assert newest.code == 0
    assert newest.out.splitlines()[-1] == f"run directory: {world.journal().parent}"
    assert "\x1b" not in newest.out


def test_rebuilding_writes_the_derived_files_again(
    corerun: Callable[..., Said], world: World, tmp_path: Path
) -> None:
    copied = tmp_path / "work" / "runs" / "probe" / "good"
    shutil.copytree(world.journal().parent, copied)
    before = (copied / "events.jsonl").read_bytes()
    for name in ("run_manifest.json", "answers.json"):
        (copied / name).unlink()
    said = corerun("runs", "rebuild", "good")
    assert (said.code, said.json) == (0, json.loads((copied / "run_manifest.json").read_text()))
    known = {key: value for key, value in world.finished.json.items() if key != "paths"}
    assert {key: value for key, value in said.json.items() if key != "paths"} == known
    assert json.loads((copied / "answers.json").read_text()) == ["winds"]
    assert (copied / "events.jsonl").read_bytes() == before


def test_an_audit_tells_what_ran_and_what_was_changed(
    corerun: Callable[..., Said], world: World, tmp_path: Path
) -> None:
    said = corerun("runs", "audit", "good", cwd=world.folder)
    assert (said.code, said.json) == (0, {"run": "good", "executions": 1, "weak": 1, "findings": []})
    text = corerun("runs", "audit", "good", "--format", "text", cwd=world.folder)
    assert text.out == "1 programs ran, 1 of them without full isolation\n"
    copied = tmp_path / "work" / "runs" / "probe" / "good"
    shutil.copytree(world.journal().parent, copied)
    events, _ = read(copied / "events.jsonl")
    index = next(number for number, event in enumerate(events) if event.type == "execution_done")
    done = events[index]
    # One more program whose record names another one before it.
    events.insert(index + 1, Event(0, done.t, done.type, {**done.data, "prev": "0" * 64}))
    renumbered = [Event(seq, event.t, event.type, event.data) for seq, event in enumerate(events, 1)]
    (copied / "events.jsonl").write_bytes(b"".join(map(encode, renumbered)))
    found = corerun("runs", "audit")
    assert found.code == 1
    assert found.json["findings"] == [
        f"record {index + 2}: the record of a program before it was changed or is missing"
    ]
    assert found.json["findings"][0] in corerun("runs", "audit", "--format", "text").out


@pytest.mark.parametrize("command", ["show", "rebuild", "audit"])
def test_a_corrupt_journal_is_named_with_its_line(
    corerun: Callable[..., Said], world: World, tmp_path: Path, command: str
) -> None:
    copied = tmp_path / "work" / "runs" / "probe" / "bad"
    shutil.copytree(world.journal().parent, copied)
    body = (copied / "events.jsonl").read_bytes()
    (copied / "events.jsonl").write_bytes(b"?" + body[1:])
    said = corerun("runs", command, "bad")
    assert said.code == 4
    assert f"{copied / 'events.jsonl'}:1: corrupt journal" in said.err
    assert "Traceback" not in said.err
    listed = corerun("runs", "list").json
    assert (listed[0]["run"], listed[0]["status"].startswith("corrupt:")) == ("bad", True)
    # Readers repair nothing.
    assert (copied / "events.jsonl").read_bytes() == b"?" + body[1:]


def test_a_torn_tail_is_read_past_and_left_alone(
    corerun: Callable[..., Said], world: World, tmp_path: Path
) -> None:
    copied = tmp_path / "work" / "runs" / "probe" / "torn"
    shutil.copytree(world.journal().parent, copied)
    body = (copied / "events.jsonl").read_bytes()[:-30]
    (copied / "events.jsonl").write_bytes(body)
    for command in ("show", "rebuild", "audit"):
        assert corerun("runs", command).code == 0
    assert corerun("report").code == 0
    assert corerun("runs", "list").json[0]["status"] == "running"
    assert (copied / "events.jsonl").read_bytes() == body
    assert not list(copied.glob("events.torn-*"))


@pytest.mark.parametrize("command", [("runs", "show"), ("runs", "rebuild"), ("runs", "audit"), ("report",)])
def test_a_run_that_is_not_there_is_a_usage_error(
    corerun: Callable[..., Said], command: tuple[str, ...]
) -> None:
    said = corerun(*command, "nothing")
    assert (said.code, "no run 'nothing' below" in said.err) == (2, True)
    said = corerun(*command)
    assert (said.code, "no run below" in said.err) == (2, True)


def test_a_run_that_is_owned_is_not_rebuilt(
    corerun: Callable[..., Said], world: World, tmp_path: Path
) -> None:
    from corerun.runs.lock import RunLock

    copied = tmp_path / "work" / "runs" / "probe" / "good"
    shutil.copytree(world.journal().parent, copied)
    lock = RunLock(copied)
    said = corerun("runs", "rebuild")
    lock.release()
    assert (said.code, f"in use by pid {os.getpid()}" in said.err) == (3, True)


# ------------------------------------------------------------------------------------------ report


def test_a_report_is_one_page(corerun: Callable[..., Said], world: World, tmp_path: Path) -> None:
    said = corerun("report", "good", "-f", str(tmp_path / "page.html"), cwd=world.folder)
    assert (said.code, said.out) == (0, f"{tmp_path / 'page.html'}\n")
    page = (tmp_path / "page.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "good" in page and SECRET not in page
    assert not (world.journal().parent / "report.html").exists()


def test_a_report_lies_beside_the_journal_by_default(
    corerun: Callable[..., Said], world: World, tmp_path: Path
) -> None:
    copied = tmp_path / "work" / "runs" / "probe" / "good"
    shutil.copytree(world.journal().parent, copied)
    said = corerun("report")
    assert Path(said.out.strip()) == copied / "report.html"
    assert (copied / "report.html").stat().st_size > 1000


def test_a_report_that_cannot_be_written_is_refused(corerun: Callable[..., Said], world: World) -> None:
    said = corerun("report", "good", "-f", "no/such/folder.html", cwd=world.folder)
    assert (said.code, "can't write no/such/folder.html" in said.err) == (3, True)


# ------------------------------------------------------------------------------------------ config


def test_settings_are_shown_with_their_origin(
    corerun: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "job.yaml").write_text("workers: 3\nbudget:\n  usd: 2\nprobe:\n  topic: winds\n")
    (tmp_path / "config" / "corerun").mkdir(parents=True)
    user = tmp_path / "config" / "corerun" / "config.yaml"
    user.write_text("workers: 4\nseed: 5\nmodel:\n")
    monkeypatch.setenv("CORERUN_SEED", "6")
    monkeypatch.setenv("CORERUN_STRATEGY", "greedy")
    arguments = ("config", "show", "probe", "--config", "job.yaml", "-o", "budget.usd=9")
    shown = corerun(*arguments, "--origin")
    assert shown.out.splitlines() == [
        "budget.usd: 9  # -o budget.usd=9",
        'probe.topic: "winds"  # job.yaml:5',
        f"seed: 5  # {user}:2",
        'strategy: "greedy"  # CORERUN_STRATEGY',
        "workers: 3  # job.yaml:1",
    ]
    whole = yaml.safe_load(corerun(*arguments).out)
    assert (whole["workers"], whole["budget"]["usd"], whole["seed"]) == (3, 9, 5)
    assert (whole["model"], whole["durability"]) == (None, "kill")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("show", "probe", "-o", "probe.topci=x"), "did you mean 'topic'?"),
        (("show", "nobody"), "no component of kind jobs is named nobody"),
        (("schema", "nobody"), "no component of kind jobs is named nobody"),
        (("show", "probe", "--config", "absent.yaml"), "no such file"),
    ],
)
def test_mistakes_in_settings_are_usage_errors(
    corerun: Callable[..., Said], arguments: tuple[str, ...], error: str
) -> None:
    said = corerun("config", *arguments)
    assert (said.code, said.out) == (2, "")
    assert error in said.err


@pytest.mark.parametrize("job", ["bfts", "probe"])
def test_the_schema_is_json_schema_and_takes_the_settings_of_the_job(
    corerun: Callable[..., Said], job: str
) -> None:
    said = corerun("config", "schema", job)
    assert said.code == 0
    schema = said.json
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({"workers": 3, "budget": {"usd": 1}, job: {}})
    for bad in ({"workers": -1}, {"modle": "x"}, {"budget": {"usdd": 1}}, {job: {"no_such_key": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(bad)
    for short in ({"sandbox": "local"}, {"observers": "a, b"}):
        validator.validate(short)


# ------------------------------------------------------------------------------------ JSON for scripts


def test_errors_are_json_for_those_who_ask(corerun: Callable[..., Said]) -> None:
    said = corerun("runs", "show", "nothing", "--json")
    assert said.code == 2
    assert said.json["error"]["code"] == 2
    assert said.json["error"]["message"].startswith("no run 'nothing' below")
