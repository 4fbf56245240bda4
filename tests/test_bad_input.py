"""Every bad file of the corpus is refused in one line that says where, soon, and with little memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import bad_journals, jobs
from tests.support.bad_inputs import Case, corpus

ROOT = Path(__file__).parent.parent
CASES = corpus()
SAMPLE = CASES[:: len(CASES) // 20]
MOST_CPU_S = 2.0
MOST_KB = 300 * 1024


def environment(folder: Path) -> dict[str, str]:
    """The variables of a command that takes ``folder / "home"`` for home and finds the tests."""
    environ = jobs.clean_environ(folder / "home", PYTHONPATH=str(ROOT))
    del environ["XDG_CONFIG_HOME"]
    return environ


def laid_out(cases: Sequence[Case], folder: Path) -> list[Path]:
    places = [folder / str(number) for number in range(len(cases))]
    for case, place in zip(cases, places, strict=True):
        place.mkdir()
        case.make(place)
    return places


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command made of all cases, one after another in one process, and that process's peak."""
    folder = tmp_path_factory.mktemp("corpus")
    places = laid_out(CASES, folder)
    given = [
        {"folder": str(place), "arguments": case.arguments} for case, place in zip(CASES, places, strict=True)
    ]
    worker = [sys.executable, "-m", "tests.support.bad_input_worker"]
    done = subprocess.run(
        worker, input=json.dumps(given), capture_output=True, text=True, env=environment(folder), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = [case.name for case in CASES]
    return {"peak_kb": found["peak_kb"], **dict(zip(names, found["results"], strict=True))}


def check(case: Case, code: int, out: str, err: str) -> None:
    lines = err.splitlines()
    said = [line for line in lines if line.startswith("corerun: ")]
    assert code == case.code, err
    assert out == ""
    assert len(said) == 1 and len(said[0]) < 1000, err
    after = lines[lines.index(said[0]) + 1 :]
    assert len(after) <= 1 and all(line.startswith("  hint: ") for line in after), err
    assert (case.says or Path(case.file).name) in said[0], err
    assert "internal error" not in said[0]


def test_the_corpus_is_large_and_each_file_of_it_has_a_name() -> None:
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_file_is_refused_in_one_line(outcomes: dict[str, Any], case: Case) -> None:
    found = outcomes[case.name]
    check(case, found["code"], found["out"], found["err"])
    assert found["cpu_s"] < MOST_CPU_S


def test_no_bad_file_takes_much_memory(outcomes: dict[str, Any]) -> None:
    assert outcomes["peak_kb"] < MOST_KB


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_a_bad_file_is_refused_by_the_real_command(tmp_path: Path, case: Case) -> None:
    (place,) = laid_out([case], tmp_path)
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
        command = [sys.executable, "-m", "corerun", *case.arguments]
        child = subprocess.Popen(command, cwd=place, env=environment(place), stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        check(case, child.returncode, out.read(), err.read())
    assert cpu_s(usage) < MOST_CPU_S
    assert usage.ru_maxrss < MOST_KB


def cpu_s(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


# ------------------------------------------------------------------- run directories of somebody else

LINKS = {
    "run.lock": ("runs", "rebuild", "run"),
    "run.log": ("runs", "rebuild", "run"),
    "blobs": ("runs", "rebuild", "run"),
    "nodes": ("runs", "rebuild", "run"),
    "logs": ("runs", "rebuild", "run"),
    "report.html": ("report", "run"),
}
"""What is a link in a run directory, and a command that would write there."""


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_directory_leads_nothing_out_of_it(tmp_path: Path, name: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    (run / "events.jsonl").write_bytes(bad_journals.journal(bad_journals.STAGE))
    if name in ("blobs", "nodes", "logs"):
        outside.mkdir()
    else:
        outside.write_text("mine")
    (run / name).symlink_to(outside)
    command = [sys.executable, "-m", "corerun", *LINKS[name]]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert name in done.stderr and "leads through a symbolic link" in done.stderr
    assert list(outside.iterdir()) == [] if outside.is_dir() else outside.read_text() == "mine"


def test_without_a_link_the_same_directory_is_rebuilt(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_bytes(bad_journals.journal(bad_journals.STAGE))
    for arguments in set(LINKS.values()):
        command = [sys.executable, "-m", "corerun", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file() and (tmp_path / "run" / "logs").is_dir()
