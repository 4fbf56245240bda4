"""The experiment search against an OpenAI-compatible server on a real socket, good, bad and absent."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.experimenter import Experimenter
from tests.support.killing import FAST, Ended, Experiment, check_journal, paid
from tests.support.openai_server import (
    OpenAIServer,
    cut_body,
    cut_json,
    fault,
    forced_tool,
    serve_in_thread,
    tool,
)
from tests.support.researcher import Researcher

SHORT = FAST | {"bfts.agent.stages.order": [1], "bfts.generate_report": False, "bfts.plot_agg_reflections": 0}
"""One stage without a report, for tests that need no more."""


@dataclass
class Story:
    """A run and what its server saw of it."""

    experiment: Experiment
    ended: Ended
    server: OpenAIServer

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.experiment.events()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["type"] == kind]


def tell(
    root: Path,
    answer: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any] = FAST,
    *more: str,
    **environ: str,
) -> Story:
    """A run against a server with that answer."""
    with serve_in_thread(answer) as server:
        run = Experiment(root, {**server.environ(), **environ}, settings)
        return Story(run, run.start(*more), server)


def check_end(story: Story, code: int = 0) -> None:
    """The run ended as it should, said so, and blew up nowhere."""
    assert story.ended.code == code, story.ended.stderr[-3000:]
    assert "Traceback" not in story.ended.stderr
    assert json.loads((story.experiment.directory / "run_manifest.json").read_text()) == story.ended.manifest
    check_journal(story.events)


# ----------------------------------------------------------------------------------- a good server


@pytest.fixture(scope="module")
def scientist(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The whole job with real programs: regression on made-up data, plots by matplotlib."""
    root = tmp_path_factory.mktemp("scientist")
    return tell(root, Experimenter(faulty=4), FAST, "--workers", "2", "--strict_artifacts")


def test_the_job_runs_over_the_wire_with_tool_calls_and_all_artifacts(scientist: Story) -> None:
    check_end(scientist)
    manifest = scientist.ended.manifest
    assert manifest["status"] == "success" and len(manifest["stages"]) == 4
    tools = {name for body in scientist.server.bodies if (name := forced_tool(body))}
    assert tools >= {"define_metric", "submit_review", "parse_metrics", "analyze_experiment_plots"}
    assert len(manifest["artifacts"]["figure_files"]) == 3
    answered, lost = paid(scientist.events)
    assert (answered, lost) == (scientist.server.calls, 0)


def test_plots_are_shown_to_the_vision_model(scientist: Story) -> None:
    seen = [body for body in scientist.server.bodies if forced_tool(body) == "analyze_experiment_plots"]
    for body in seen:
        images = [part for part in body["messages"][1]["content"] if part["type"] == "image_url"]
        assert 1 <= len(images) <= 10
        assert all(part["image_url"]["url"].startswith("data:image/png;base64,iVBOR") for part in images)
    good = [node for node in scientist.of("node_done") if node["status"] == "good"]
    assert {node["data"]["vision"] for node in good if node["data"]["op"] != "seed"} == {"ok"}


def test_tokens_are_those_that_the_server_counted(scientist: Story) -> None:
    seen = scientist.server.usage.values()
    counted = sum(usage["prompt_tokens"] + usage["completion_tokens"] for usage in seen)
    assert scientist.ended.manifest["cost"]["tokens"] == counted
    assert scientist.ended.manifest["cost"]["calls"] == scientist.server.calls


def test_the_key_is_nowhere_in_the_run(scientist: Story) -> None:
    for path in scientist.experiment.directory.rglob("*"):
        if path.is_file():
            assert b"test-key" not in path.read_bytes(), path


# ------------------------------------------------------------------------------------- no vision


def without_eyes(body: dict[str, Any]) -> Any:
    """A server of a model that reads text only."""
    content = body["messages"][1]["content"]
    if not isinstance(content, str) and any(part["type"] == "image_url" for part in content):
        message = "Invalid content type. image_url is only supported by certain models."
        return fault(400, {"error": {"message": message, "type": "invalid_request_error"}})
    return EYELESS.respond(body)


EYELESS = Researcher()


def test_a_server_that_refuses_images_costs_the_look_and_nothing_else(tmp_path: Path) -> None:
    story = tell(tmp_path, without_eyes, SHORT, "--workers", "1")
    check_end(story)
    assert any("vision" in warning for warning in story.ended.manifest["warnings"])
    assert any("vision" in json.dumps(data) for data in story.of("degraded"))
    good = [node for node in story.of("node_done") if node["status"] == "good"]
    assert good and {node["data"]["vision"] for node in good} <= {"degraded", "off"}
    refused = [body for body in story.server.bodies if not isinstance(body["messages"][1]["content"], str)]
    assert len(refused) == 1, "what was learned is not asked again"


def test_a_user_can_switch_vision_off(tmp_path: Path) -> None:
    story = tell(tmp_path, Researcher().respond, SHORT, OAIC_DISABLE_VISION="1")
    check_end(story)
    assert all(isinstance(body["messages"][1]["content"], str) for body in story.server.bodies)
    good = [node for node in story.of("node_done") if node["status"] == "good"]
    assert good and {node["data"]["vision"] for node in good} == {"off"}


# -------------------------------------------------------------------------------------- nonsense


def test_nonsense_becomes_buggy_nodes_and_the_run_ends_cleanly(tmp_path: Path) -> None:
    story = tell(tmp_path, Experimenter(nonsense=True))
    check_end(story, code=1)
    manifest = story.ended.manifest
    assert (manifest["status"], manifest["error"]["type"]) == ("failed", "NoWorkingNode")
    nodes = story.of("node_done")
    assert len(nodes) == FAST["bfts.agent.stages.stage1_max_iters"]
    assert all(node["status"] == "failed" and "BadAnswer" in node["reason"] for node in nodes)
    directory = story.experiment.directory
    assert (directory / "token_tracker.json").is_file() and (directory / "run.log").is_file()


def test_an_answer_that_gets_better_when_asked_again_is_taken(tmp_path: Path) -> None:
    rubbish, sound = Experimenter(nonsense=True), Researcher(faulty=0)
    seen: set[str] = set()

    def answer(body: dict[str, Any]) -> Any:
        # A question that is asked again has the bad answer behind it.
        key = json.dumps(body["messages"][:2])
        if key not in seen:
            seen.add(key)
            return rubbish(body)
        return sound.respond(body)

    story = tell(tmp_path, answer, SHORT)
    check_end(story)
    assert story.ended.manifest["stages"][0]["buggy"] == 0


def test_a_model_that_often_talks_nonsense_gets_to_the_end(tmp_path: Path) -> None:
    rubbish, sound = Experimenter(nonsense=True), Researcher()

    def answer(body: dict[str, Any]) -> Any:
        # By the question, not by turns: the test is the same whenever it runs.
        question = json.dumps(body["messages"]).replace(str(tmp_path), "")
        often = zlib.crc32(question.encode()) % 5 < 2
        return rubbish(body) if often else sound.respond(body)

    story = tell(tmp_path, answer, FAST | {"bfts.agent.stages.stage1_max_iters": 6, "in_flight": 1})
    check_end(story)
    reasons = [node["reason"] for node in story.of("node_done")]
    assert any("BadAnswer" in reason for reason in reasons)


# ---------------------------------------------------------------------------------------- faults


def test_faults_of_the_transport_cost_nothing_but_time(tmp_path: Path) -> None:
    turns = itertools.count(1)
    kinds = itertools.cycle([cut_json(), fault(503), cut_body(), fault(429, headers={"retry-after": "0"})])
    sound = Researcher(faulty=0)

    def answer(body: dict[str, Any]) -> Any:
        return next(kinds) if next(turns) % 6 == 0 else sound.respond(body)

    story = tell(tmp_path, answer, SHORT, "--workers", "2")
    check_end(story)
    assert story.ended.manifest["stages"][0]["buggy"] == 0
    assert story.server.calls > paid(story.events)[0]


def test_a_cut_tool_call_is_asked_again(tmp_path: Path) -> None:
    turns = itertools.count(1)
    sound = Researcher(faulty=0)

    def answer(body: dict[str, Any]) -> Any:
        name = forced_tool(body)
        if name and next(turns) % 3 == 0:
            return tool(name, '{"is_bug": fal', finish="length")
        return sound.respond(body)

    story = tell(tmp_path, answer, SHORT)
    check_end(story)
    assert story.ended.manifest["stages"][0]["buggy"] == 0


def test_one_review_that_stays_cut_costs_its_node(tmp_path: Path) -> None:
    sound = Researcher(faulty=0)
    cut: list[str] = []

    def answer(body: dict[str, Any]) -> Any:
        if forced_tool(body) == "submit_review":
            question = json.dumps(body["messages"][1])
            if not cut:
                cut.append(question)
            if question == cut[0]:
                return tool("submit_review", '{"is_bug": fal', finish="length")
        return sound.respond(body)

    story = tell(tmp_path, answer, SHORT)
    check_end(story)
    (failed,) = [node for node in story.of("node_done") if node["status"] == "failed"]
    assert "BadAnswer" in failed["reason"]


@pytest.mark.parametrize(("status", "kind", "code"), [(401, "AuthFailed", 2), (404, "ModelNotFound", 2)])
def test_what_no_retry_can_mend_stops_the_run_at_once(
    tmp_path: Path, status: int, kind: str, code: int
) -> None:
    error = {"error": {"message": "no", "code": "model_not_found" if status == 404 else "invalid_api_key"}}
    story = tell(tmp_path, lambda body: fault(status, error), SHORT)
    assert story.ended.code == code
    assert story.ended.manifest["error"]["type"] == kind
    assert "Traceback" not in story.ended.stderr and story.server.calls == 1


class LateServer(OpenAIServer):
    """Has its port from the start, and refuses connections until ``seconds`` have passed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(Researcher(faulty=0).respond)
        self._seconds = seconds
        self._place = socket.socket()
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]

    async def __aenter__(self) -> LateServer:
        await asyncio.sleep(self._seconds)
        self._server = await asyncio.start_server(self._serve, sock=self._place)
        return self


def run_against_a_dead_server(root: Path, seconds: float, **settings: Any) -> Story:
    server = LateServer(seconds)
    run = Experiment(root, server.environ(), SHORT | settings)

    async def both() -> Ended:
        ended = asyncio.create_task(asyncio.to_thread(run.start))
        async with server:
            return await ended

    return Story(run, asyncio.run(both()), server)


def test_a_server_that_is_away_for_a_while_costs_nothing_but_time(tmp_path: Path) -> None:
    story = run_against_a_dead_server(tmp_path, 3)
    check_end(story)
    assert story.ended.manifest["stages"][0]["buggy"] == 0


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 4])
def test_a_server_that_is_away_for_half_a_minute(tmp_path: Path, workers: int) -> None:
    story = run_against_a_dead_server(tmp_path, 30, workers=workers)
    check_end(story)
    assert story.ended.manifest["stages"][0]["buggy"] == 0
