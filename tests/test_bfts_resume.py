"""Kills the experiment search at random records of its journal: nothing finished or paid is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.killing import Experiment, check_journal, processes_of, tree_of
from tests.support.openai_server import serve_in_thread
from tests.support.researcher import Researcher, fenced
from tests.support.story import BATCH, FREE, ONE, Story, researcher, tell

RECIPES = ("--model", "recipes::default")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return tell(tmp_path_factory.mktemp("one"), ONE)


@pytest.fixture(scope="module")
def one_killed(tmp_path_factory: pytest.TempPathFactory, one: Story) -> Story:
    return tell(tmp_path_factory.mktemp("one-killed"), ONE, kills=12, records=one.ended.records, seed=1)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return tell(tmp_path_factory.mktemp("batch"), BATCH)


@pytest.fixture(scope="module")
def batch_killed(tmp_path_factory: pytest.TempPathFactory, batch: Story) -> Story:
    return tell(tmp_path_factory.mktemp("batch-killed"), BATCH, kills=4, records=batch.ended.records, seed=2)


@pytest.fixture(scope="module")
def free_killed(tmp_path_factory: pytest.TempPathFactory, one: Story) -> Story:
    return tell(tmp_path_factory.mktemp("free-killed"), FREE, kills=6, records=one.ended.records, seed=3)


@pytest.fixture(params=["one_killed", "batch_killed", "free_killed"])
def killed(request: pytest.FixtureRequest) -> Story:
    story: Story = request.getfixturevalue(request.param)
    return story


def test_no_finished_node_and_no_paid_answer_is_lost(killed: Story) -> None:
    assert killed.kills >= 3
    assert killed.ended.manifest["status"] == "success"
    check_journal(killed.events)
    killed.check_payments()


def test_every_artifact_is_there_after_kills(killed: Story) -> None:
    manifest = killed.ended.manifest
    assert not [warning for warning in manifest["warnings"] if "Missing" in warning or "empty" in warning]
    assert len(manifest["artifacts"]["figure_files"]) == 2
    for node in tree_of(killed.events).items():
        folder = killed.experiment.directory / f"logs/0-run/experiment_results/experiment_{node[0]}"
        if node[1]["status"] == "good" and node[1]["op"] != "carried":
            assert {path.name for path in folder.iterdir()} >= {"experiment_code.py", "experiment_data.npy"}


def test_workspaces_are_gone_at_the_end(killed: Story) -> None:
    left = [path.name for path in (killed.experiment.directory / "nodes").iterdir()]
    assert [name for name in left if not name.startswith(".")] == []


@pytest.mark.parametrize("mode", ["one", "batch"])
def test_killed_and_resumed_a_deterministic_run_comes_to_the_same_tree(
    request: pytest.FixtureRequest, mode: str
) -> None:
    whole, killed = request.getfixturevalue(mode), request.getfixturevalue(f"{mode}_killed")
    expected, found = tree_of(whole.events), tree_of(killed.events)
    assert set(found) == set(expected)
    for node, facts in expected.items():
        assert found[node] == facts
    for name in ("best", "first_good"):
        ids = [story.ended.manifest[name]["id"] for story in (killed, whole)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("mode", ["one", "batch"])
def test_a_resumed_run_puts_the_same_questions_to_the_byte(request: pytest.FixtureRequest, mode: str) -> None:
    whole, killed = request.getfixturevalue(mode), request.getfixturevalue(f"{mode}_killed")
    assert set(killed.requests) == set(whole.requests)


def test_an_ended_run_prints_its_manifest_again_and_does_nothing(one: Story) -> None:
    before = (one.experiment.directory / "events.jsonl").read_bytes()
    again = one.experiment.resume()
    assert again.code == 0 and again.manifest == one.ended.manifest
    assert (one.experiment.directory / "events.jsonl").read_bytes() == before


def test_whatever_stops_a_run_it_goes_on_to_the_same_tree(tmp_path: Path, one: Story) -> None:
    with researcher() as server:
        run = Experiment(tmp_path, server.environ())
        run.arguments = (*run.arguments, *ONE)
        full = run.start("-o", "min_free_mb=1000000000000")
        assert (full.code, full.manifest["status"]) == (5, "stopped")
        assert "min_free_mb" in full.stderr
        poor = run.resume("-o", "min_free_mb=1", "-o", "budget.tokens=30000")
        assert (poor.code, poor.manifest["status"]) == (5, "stopped")
        assert "budget.tokens" in poor.stderr and poor.manifest["cost"]["tokens"] <= 30000
        room = ("-o", "min_free_mb=1", "-o", "budget.tokens=10000000")
        for sign in (signal.SIGINT, signal.SIGTERM):
            asked = run.resume(*room, stop_after=25, sign=sign)
            assert (asked.code, asked.manifest["status"]) == (130, "interrupted"), asked.stderr
        ended = run.resume(*room)
        assert (ended.code, ended.manifest["status"]) == (0, "success")
    for document in (full, poor, asked, ended):
        assert "Traceback" not in document.stderr
    check_journal(run.events())
    assert tree_of(run.events()) == tree_of(one.events)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_runs_when_the_run_is_stopped_is_stopped_too(tmp_path: Path, sign: int) -> None:
    endless = fenced("Endless.", "import signal, time\nsignal.signal(2, signal.SIG_IGN)\ntime.sleep(900)\n")
    with serve_in_thread(Researcher(lambda q: endless if q.wants_experiment else None).respond) as server:
        run = Experiment(tmp_path, server.environ())
        # When an answer is recorded the program in it is what comes next.
        stopped = run.start("--workers", "1", "-o", "in_flight=2", stop_at="bfts.draft", sign=sign)
    assert stopped.code == (130 if sign != signal.SIGKILL else -signal.SIGKILL), stopped.stderr
    with researcher() as server:
        run.environ = server.environ()
        # With another time limit the questions differ, so the endless answers are not replayed.
        again = ("-o", "bfts.exec.timeout=30", "-o", "bfts.agent.stages.order=[1]")
        assert run.resume(*again).code == 0
    assert processes_of(run.directory) == []
    check_journal(run.events())


STUBBORN = """\
import os, signal, time

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    time.sleep(300)
time.sleep(300)
"""


def test_who_presses_ctrl_c_again_and_again_gets_an_end_in_order(tmp_path: Path) -> None:
    def impatient(pid: int) -> None:
        """Like a person at a terminal: a second time when asked for it, and then without a break."""
        while "press Ctrl-C again" not in (tmp_path / "stderr").read_text():
            assert Path(f"/proc/{pid}").exists()
        while b'"type":"run_done"' not in (run.directory / "events.jsonl").read_bytes():
            os.kill(pid, signal.SIGINT)
            # As fast as a keyboard repeats: more at once than Python can note is another thing.
            time.sleep(0.02)

    endless = fenced("Endless.", STUBBORN)
    with serve_in_thread(Researcher(lambda q: endless if q.wants_experiment else None).respond) as server:
        run = Experiment(tmp_path, server.environ())
        run.arguments = (*run.arguments, *ONE)
        stopped = run.start(stop_at="bfts.draft", sign=signal.SIGINT, then=impatient)
    assert (stopped.code, stopped.manifest["status"]) == (130, "interrupted"), stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert processes_of(run.directory) == []
    last = run.events()[-1]
    assert (last["type"], last["data"]["status"]) == ("run_done", "interrupted")


def test_another_idea_or_seed_is_no_resume(one: Story) -> None:
    for change in (("-o", "seed=5"), ("-o", "strategy=greedy")):
        refused = one.experiment.start("--resume", str(one.experiment.directory), *change)
        assert refused.code == 2
        assert "Traceback" not in refused.stderr and change[1].split("=")[0] in refused.stderr


# ------------------------------------------------------------------------------------------ soak


@pytest.mark.soak
@pytest.mark.parametrize("mode", [ONE, BATCH, FREE], ids=["one", "batch", "free"])
def test_fifty_kills_on_recipes(tmp_path: Path, mode: tuple[str, ...]) -> None:
    def recipes(root: Path) -> Experiment:
        experiment = Experiment(root, {}, arguments=(*RECIPES, *mode))
        ideas = json.loads(experiment.ideas.read_text())
        experiment.ideas.write_text(json.dumps([{**ideas[0], "Recipe": "few_labels"}]))
        return experiment

    whole = recipes(tmp_path / "whole")
    ended = whole.start()
    assert ended.code == 0, ended.stderr
    for seed in range(5):
        killed = recipes(tmp_path / f"{seed}")
        assert killed.killed(10, ended.records, random.Random(seed)).code == 0
        check_journal(killed.events())
        if mode != FREE:
            assert tree_of(killed.events()) == tree_of(whole.events())
