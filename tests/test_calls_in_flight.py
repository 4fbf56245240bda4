"""A process dies between sending questions and storing the answers: what is asked again, what is said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from corerun.testing.plugins import write_plugin
from tests.support.jobs import clean_environ
from tests.support.killing import read_events
from tests.support.openai_server import OpenAIServer, serve_in_thread, text

QUESTIONS = 6
SOURCE = f"""
import asyncio

from corerun import hookimpl
from corerun.config import Section
from corerun.interfaces import Component, Message, Prepared, Role


@hookimpl
def corerun_jobs():
    return [Component("survey", __name__ + ":Survey")]


class SurveySettings(Section):
    "Nothing to set."


class Survey:
    config_model = SurveySettings

    def prepare(self, settings, invocation):
        return Prepared(roles={{"code": Role()}})

    async def run(self, run, settings):
        questions = [[Message("user", str(number))] for number in range({QUESTIONS})]
        answers = await asyncio.gather(*(run.ask("code", "survey.ask", question) for question in questions))
        run.note("result", {{"answers": [answer.value for answer in answers]}})

    def derive(self, directory, events):
        return {{}}
"""


class Slow:
    """Answers the questions of ``quick`` at once, the others when it is let go."""

    def __init__(self, quick: Sequence[int]) -> None:
        self.quick = set(quick)
        self.sent: Counter[int] = Counter()
        self.changed = threading.Condition()

    async def respond(self, body: dict[str, Any]) -> Any:
        number = int(body["messages"][-1]["content"])
        with self.changed:
            self.sent[number] += 1
            self.changed.notify_all()
        if number not in self.quick:
            await asyncio.Event().wait()
        return text(f"answer {number}")

    def wait_for(self, total: int) -> None:
        """Until that many questions have come in all."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.sent.total() >= total, timeout=60)


class Survey:
    """The job as a command, to be killed."""

    def __init__(self, root: Path, server: OpenAIServer) -> None:
        write_plugin(root / "plugins", "survey", SOURCE)
        self.root = root
        known = {"PYTHONPATH": str(root / "plugins"), "CORERUN_CAPS_PATH": str(root / "caps.sqlite")}
        self.environ = clean_environ(root) | server.environ() | known
        self.directory = root / "runs" / "survey" / "one"

    def command(self, *more: str) -> list[str]:
        head = [sys.executable, "-P", "-m", "corerun", "--plugin", "survey", "run", "--run_id", "one"]
        options = [
            "--out_root",
            str(self.root),
            "--model",
            "test-model",
            "-o",
            f"llm.concurrency={QUESTIONS}",
        ]
        return [*head, *options, "--sandbox", "local", "--i-accept-no-isolation", "--display", "none", *more]

    def killed(self, slow: Slow, sent: int, answered: int) -> None:
        """Kill it when ``sent`` questions came in all and it has recorded ``answered`` more answers."""
        channel, other = os.pipe()
        process = subprocess.Popen(
            self.command("--events", f"/dev/fd/{other}"),
            env=self.environ,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(other,),
        )
        os.close(other)
        with os.fdopen(channel, "rb") as stream:
            recorded = 0
            while recorded < answered:
                recorded += json.loads(stream.readline())["type"] == "call_answered"
            slow.wait_for(sent)
            process.send_signal(signal.SIGKILL)
            process.wait()

    def finished(self) -> dict[str, Any]:
        done = subprocess.run(
            self.command(), env=self.environ, cwd=self.root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        manifest: dict[str, Any] = json.loads(done.stdout)
        return manifest

    def keys(self) -> dict[str, str]:
        """Keys of the calls that were asked, with their questions' blobs."""
        asked = [event["data"] for event in read_events(self.directory) if event["type"] == "call_asked"]
        return {data["key"]: data["prompt"] for data in asked}


@pytest.fixture
def slow() -> Slow:
    return Slow(())


@pytest.fixture
def survey(tmp_path: Path, slow: Slow) -> Iterator[Survey]:
    with serve_in_thread(slow.respond) as server:
        yield Survey(tmp_path, server)


def numbers(survey: Survey, keys: Sequence[str]) -> list[int]:
    """Which questions these calls ask."""
    prompts = survey.keys()
    requests = [json.loads((survey.directory / "blobs" / prompts[key]).read_bytes()) for key in keys]
    return sorted(int(request["messages"][-1]["content"]) for request in requests)


@pytest.mark.parametrize("quick", [(), (1, 4), (0, 1, 2, 3, 5)], ids=["none", "two", "all but one"])
def test_what_was_under_way_is_sent_once_more_and_named(
    survey: Survey, slow: Slow, quick: tuple[int, ...]
) -> None:
    slow.quick = set(quick)
    survey.killed(slow, QUESTIONS, len(quick))
    slow.quick = set(range(QUESTIONS))
    manifest = survey.finished()
    lost = sorted(set(range(QUESTIONS)) - set(quick))
    assert slow.sent == Counter(range(QUESTIONS)) + Counter(lost)
    assert numbers(survey, manifest["possibly_double_paid"]) == lost
    assert manifest["cost"]["calls"] == QUESTIONS
    assert read_events(survey.directory)[-1]["data"]["answers"] == [f"answer {n}" for n in range(QUESTIONS)]


def test_every_crash_costs_at_most_what_was_under_way(survey: Survey, slow: Slow) -> None:
    slow.quick = {0, 1}
    survey.killed(slow, QUESTIONS, 2)
    slow.quick = {0, 1, 2, 3}
    survey.killed(slow, QUESTIONS + 4, 2)
    slow.quick = set(range(QUESTIONS))
    manifest = survey.finished()
    assert slow.sent == {0: 1, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3}
    # Once for every time that nobody knows whether an answer was paid.
    assert numbers(survey, manifest["possibly_double_paid"]) == [2, 3, 4, 4, 5, 5]
    assert survey.finished() == manifest
    assert slow.sent.total() == QUESTIONS + 4 + 2
