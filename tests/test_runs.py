"""Where runs lie, who owns one, and what its records add up to."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import EnvironmentRefused, StateError, UsageError
from corerun.interfaces import Event
from corerun.runs import directory
from corerun.runs import events as kinds
from corerun.runs.fold import fold, started
from corerun.runs.lock import RunLock

# --------------------------------------------------------------------------------------- directories


def test_new_directories_differ(tmp_path: Path) -> None:
    places = {directory.new_directory(tmp_path, "job") for _ in range(20)}
    assert len(places) == 20
    assert all(re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", place.name) for place in places)
    assert {place.parent for place in places} == {tmp_path / "runs" / "job"}


def test_making_a_directory_twice_keeps_what_is_there(tmp_path: Path) -> None:
    for _ in range(2):
        directory.make_directory(tmp_path / "a" / "b")
        (tmp_path / "a" / "b" / "kept").touch()
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["blobs", "kept", "nodes"]


def test_only_its_owner_enters_a_run(tmp_path: Path) -> None:
    directory.make_directory(tmp_path / "runs" / "one")
    claimed = directory.claim(tmp_path / "runs" / "two")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "runs" / "one", claimed)] == [0o700, 0o700]
    assert (tmp_path / "runs").stat().st_mode & 0o077, "other folders are the user's own affair"


def test_a_place_that_cannot_be_made_is_the_environments_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in (directory.make_directory, directory.claim):
        with pytest.raises(EnvironmentRefused, match="can't make the run directory") as caught:
            make(tmp_path / "file" / "run")
        assert "--out_root" in caught.value.hint


def test_home_and_root_are_no_run_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (tmp_path, Path("/")):
        with pytest.raises(UsageError, match="a run can't live in"):
            directory.make_directory(place)
    assert list(tmp_path.iterdir()) == []


def test_a_claimed_directory_is_nobody_elses(tmp_path: Path) -> None:
    places = [directory.claim(tmp_path / "runs" / "a") for _ in range(3)]
    assert [place.name for place in places] == ["a", "a-2", "a-3"]
    assert all(place.is_dir() for place in places)


def make_runs(root: Path, *places: str) -> None:
    for age, place in enumerate(places):
        path = root / place / "events.jsonl"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1_700_000_000 + age, 1_700_000_000 + age))


def test_runs_are_listed_oldest_first_wherever_they_lie(tmp_path: Path) -> None:
    make_runs(tmp_path, "runs/job/b", "experiments/a", "runs/other/c")
    (tmp_path / "runs" / "job" / "no_journal").mkdir()
    assert [path.name for path in directory.list_runs(tmp_path)] == ["b", "a", "c"]
    assert directory.list_runs(tmp_path / "absent") == []


def test_a_run_is_found_by_path_name_or_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_runs(tmp_path, "runs/job/alpha", "runs/job/alphabet", "experiments/beta")

    def found(text: str) -> str:
        return directory.find_run(text, tmp_path).name

    assert found("alpha") == "alpha"
    assert found("alphab") == "alphabet"
    assert found("b") == found("") == "beta"
    assert found(str(tmp_path / "runs" / "job" / "alpha")) == "alpha"
    monkeypatch.chdir(tmp_path / "runs")
    assert directory.find_run("job/alpha/", Path("absent")).name == "alpha"
    monkeypatch.setenv("HOME", str(tmp_path / "runs"))
    assert found("~/job/alpha") == "alpha"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gamma", "no run 'gamma' below"),
        ("alp", "'alp' names 2 runs: alpha, alphabet"),
        ("twin", "'twin' names 2 runs"),
        ("~nobody-has-this-home/x", "no run"),
        ("*", r"no run '\*' below"),
    ],
)
def test_a_run_that_is_not_there_or_not_one_is_refused(tmp_path: Path, text: str, message: str) -> None:
    make_runs(tmp_path, "runs/job/alpha", "runs/job/alphabet", "runs/a/twin", "runs/b/twin")
    with pytest.raises(UsageError, match=message):
        directory.find_run(text, tmp_path)


def test_without_any_run_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(f"no run below {tmp_path}")):
        directory.find_run("", tmp_path)


# ---------------------------------------------------------------------------------------------- lock

HOLDER = """
import sys
from pathlib import Path
from corerun.errors import CorerunError
from corerun.runs.lock import RunLock

try:
    lock = RunLock(Path(sys.argv[1]))
except CorerunError as error:
    print(error.exit_code, error, error.hint)
else:
    print("held", flush=True)
    sys.stdin.read()
    lock.release()
"""


def hold(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_owner_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    answer, _ = hold(tmp_path).communicate()
    assert answer.startswith(f"3 {tmp_path}: run directory is in use by pid {os.getpid()}")
    assert f"on host {socket.gethostname()} since " in answer
    lock.release()
    with hold(tmp_path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentRefused, match=f"pid {second.pid} "):
            RunLock(tmp_path)


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert f'"pid": {holder.pid}' in (tmp_path / "run.lock").read_text()
        RunLock(tmp_path).release()


def test_a_lock_file_with_odd_content_still_refuses(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    for content in ("", "[]", "{", '{"pid": 1}'):
        (tmp_path / "run.lock").write_text(content)
        with pytest.raises(EnvironmentRefused, match="in use by another process"):
            RunLock(tmp_path)
    lock.release()


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(StateError, match=r"can't write .*run\.lock"):
        RunLock(tmp_path)


# ---------------------------------------------------------------------------------------------- fold


def events(*records: tuple[str, dict[str, Any]]) -> list[Event]:
    return [Event(seq, float(seq), type, data) for seq, (type, data) in enumerate(records, 1)]


def test_an_empty_journal_is_a_run_that_has_not_begun() -> None:
    state = fold([])
    assert (state.status, started(state), state.last) == ("running", {}, None)


def test_answers_and_programs_are_kept_for_a_resumed_run() -> None:
    state = fold(
        events(
            (kinds.RUN_STARTED, {"job": "toy"}),
            (kinds.CALL_ASKED, {"key": "a"}),
            (kinds.CALL_ANSWERED, {"key": "a", "text": "yes"}),
            (kinds.CALL_ASKED, {"key": "b"}),
            (kinds.CALL_FAILED, {"key": "b"}),
            (kinds.EXECUTION_DONE, {"key": "x", "node": "n", "attempt": 0, "result": {}, "prev": ""}),
            (kinds.REFUSED, {"what": "a program", "prev": ""}),
        )
    )
    assert started(state) == {"job": "toy"}
    assert {key: event.data["text"] for key, event in state.answered.items()} == {"a": "yes"}
    assert set(state.executed) == {"x"}
    assert state.audited is not None and state.audited.type == kinds.REFUSED
    assert state.asked == {}


def test_a_call_without_its_answer_at_a_resume_may_have_been_paid_twice() -> None:
    records = events(
        (kinds.RUN_STARTED, {}),
        (kinds.CALL_ASKED, {"key": "a"}),
        (kinds.CALL_ASKED, {"key": "b"}),
        (kinds.CALL_ANSWERED, {"key": "a"}),
        (kinds.RUN_RESUMED, {}),
        (kinds.CALL_ASKED, {"key": "b"}),
        (kinds.CALL_ANSWERED, {"key": "b"}),
        (kinds.CALL_ASKED, {"key": "c"}),
    )
    assert fold(records[:4]).double_paid == []
    assert fold(records).double_paid == ["b"]


def test_a_resumed_run_is_running_again() -> None:
    records = events(
        (kinds.RUN_STARTED, {}),
        (kinds.RUN_DONE, {"status": "stopped"}),
        (kinds.RUN_RESUMED, {}),
        (kinds.RUN_DONE, {"status": "success"}),
    )
    assert [fold(records[:count]).status for count in range(1, 5)] == [
        "running",
        "stopped",
        "running",
        "success",
    ]


def test_nodes_run_until_they_are_done_and_newest_notes_win() -> None:
    state = fold(
        events(
            (kinds.STAGE_STARTED, {"scope": "s"}),
            (kinds.NODE_ASKED, {"node": "a", "scope": "s"}),
            (kinds.NODE_ASKED, {"node": "b", "scope": "s"}),
            (kinds.NODE_DONE, {"node": "a", "scope": "s"}),
            (kinds.STAGE_DONE, {"scope": "s"}),
            (kinds.WARNING, {"message": "careful"}),
            (kinds.NOTED, {"name": "n", "value": 1}),
            (kinds.NOTED, {"name": "n", "value": 2}),
            (kinds.FILE_MADE, {"path": "a.md"}),
        )
    )
    assert (set(state.running), set(state.done)) == ({"b"}, {"a"})
    assert (set(state.stages), set(state.stages_done)) == ({"s"}, {"s"})
    assert (state.warnings, state.notes, set(state.files)) == (["careful"], {"n": 2}, {"a.md"})


def test_records_of_unknown_types_are_taken_in() -> None:
    state = fold(events(("a_plugins_own", {"any": 1}), (kinds.RUN_DONE, {"status": "failed"})))
    assert state.status == "failed"
    assert state.last is not None and state.last.seq == 2
