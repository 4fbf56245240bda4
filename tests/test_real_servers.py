"""The router and the experiment search against servers that others wrote, run here with a small model."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import AuthFailed, ModelNotFound, Transient
from corerun.interfaces import CallContext, ChatRequest, Connection, Message, ProbeRow
from corerun_bfts import answers
from corerun_openai_router.probing.probe import probe
from corerun_openai_router.provider import OpenAIRouter
from corerun_openai_router.wire.choice import make_transport
from corerun_openai_router.wire.endpoint import endpoint_of
from corerun_openai_router.wire.transport import Response
from tests.support.answering_model import build_answering_model
from tests.support.experiment_answers import DEPTH, STRUCTURED, TEXTS
from tests.support.experiment_questions import structured_questions
from tests.support.killing import FAST, Experiment, check_journal
from tests.support.language_models import Clock, Journal, client
from tests.support.real_servers import (
    RealServer,
    free_port,
    gateway_command,
    litellm_gateway,
    transformers_serve,
)

DOWN = "behind-a-closed-port"
ASK = ChatRequest("", (Message("user", "Count, please."),))
CONTEXT = CallContext("test.ask")
QUESTIONS = structured_questions()


class WallClock(Clock):
    """The time by which providers judge a call's deadline."""

    def __call__(self) -> float:
        return time.monotonic()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """`transformers serve` with the model that knows an answer to every question of a search."""
    folder = tmp_path_factory.mktemp("serve")
    model = build_answering_model(folder / "parrot", TEXTS)
    with transformers_serve(folder / "home", model) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(served: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The litellm proxy in front of it."""
    command = gateway_command()
    if command is None:
        pytest.skip("litellm is not installed in .gateway: run `make test`")
    upstreams = {
        "parrot": (served.base_url, served.model),
        DOWN: (f"http://127.0.0.1:{free_port()}/v1", "nobody"),
    }
    with litellm_gateway(tmp_path_factory.mktemp("gateway") / "home", upstreams, command) as server:
        yield server


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"CORERUN_CAPS_PATH": str(tmp_path / "caps.sqlite")}


@asynccontextmanager
async def router_to(server: RealServer, environ: Mapping[str, str]) -> AsyncIterator[OpenAIRouter]:
    router = OpenAIRouter(Connection(environ={**server.environ(), **environ}))
    try:
        yield router
    finally:
        await router.aclose()


async def ask_everything(server: RealServer, environ: Mapping[str, str]) -> tuple[Journal, OpenAIRouter]:
    """Every structured question of a search, one after the other; each must be answered as the model says."""
    journal = Journal()
    async with router_to(server, environ) as router:
        models = client(router, journal=journal, clock=WallClock(), model=f"default::{server.model}")
        for name, question in QUESTIONS.items():
            answer = await models.ask(
                question.role, question.purpose, question.messages, schema=question.schema, node=name
            )
            assert question.schema is not None
            assert answer.value == question.schema(**STRUCTURED[name][1]), name
    return journal, router


def depth_question(server: RealServer, key: str) -> ChatRequest:
    schema = {"type": "object", "properties": {key: {"type": "number"}}, "required": [key]}
    return replace(ASK, model=server.model, schema=schema, schema_name="submit_depth")


def probed(server: RealServer) -> dict[str, ProbeRow]:
    async def rows() -> dict[str, ProbeRow]:
        endpoint = endpoint_of(Connection(environ=server.environ()))
        transport = make_transport(endpoint, server.environ())
        try:
            return {row.feature: row for row in await probe(transport, endpoint, server.model)}
        finally:
            await transport.aclose()

    return asyncio.run(rows())


def run_search(
    root: Path, server: RealServer, environ: Mapping[str, str], stages: Sequence[int] = (1, 2, 3, 4)
) -> list[dict[str, Any]]:
    """A search over the wire, with its report and figures; the events of its journal."""
    settings = FAST | {"model": server.model, "bfts.agent.stages.order": list(stages)}
    run = Experiment(root, {**server.environ(), **environ}, settings)
    ended = run.start()
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    events = run.events()
    check_journal(events)
    done = [event["data"] for event in events if event["type"] == "node_done"]
    assert len(done) > 2 * len(stages)
    assert {node["status"] for node in done} == {"good"}
    assert [event for event in events if event["type"] == "call_failed"] == []
    if server.key:
        for path in run.directory.rglob("*"):
            assert not path.is_file() or server.key.encode() not in path.read_bytes(), path
    return events


# --------------------------------------------------------------------------- transformers serve


def test_there_is_a_question_for_every_structured_answer_of_a_search() -> None:
    asked = {kind.__name__ for kind in answers.Answer.__subclasses__() if kind.__name__.islower()}
    assert set(QUESTIONS) == set(STRUCTURED) == asked


async def test_every_structured_answer_of_a_search_comes_from_transformers_serve(
    served: RealServer, environ: dict[str, str]
) -> None:
    journal, _ = await ask_everything(served, environ)
    answered = journal.of("call_answered")
    assert len(answered) == len(QUESTIONS)
    assert {record.get("requests", 1) for record in answered} == {1}
    assert all(record["usage"]["completion"] > 0 for record in answered)


def test_a_whole_search_runs_on_transformers_serve(
    served: RealServer, tmp_path: Path, environ: dict[str, str]
) -> None:
    events = run_search(tmp_path / "run", served, environ)
    purposes = {event["data"]["purpose"] for event in events if event["type"] == "call_answered"}
    assert purposes >= {
        "bfts.metric",
        "bfts.draft",
        "bfts.review",
        "bfts.parse_metric",
        "bfts.plot",
        "bfts.plot_analysis",
        "bfts.tune_idea",
        "bfts.ablate_idea",
        "bfts.overall_plan",
        "bfts.draft_summary",
        "bfts.aggregate_plots",
    }


async def test_limits_stops_and_usage_of_transformers_serve(
    served: RealServer, environ: dict[str, str]
) -> None:
    ask = replace(ASK, model=served.model)
    async with router_to(served, environ) as router:
        whole = await router.complete(ask, CONTEXT)
        assert (whole.text, whole.finish) == ("1 2 3 4 5 6 7 8 9", "stop")
        assert whole.usage.completion == 10 and not whole.usage.estimated
        assert whole.created is not None
        cut = await router.complete(replace(ask, max_tokens=3), CONTEXT)
        assert (cut.text, cut.finish, cut.usage.completion) == ("1 2 3 ", "length", 3)
        stopped = await router.complete(replace(ask, stop=("5",)), CONTEXT)
        assert stopped.text.startswith("1 2 3 4 5") and "9" not in stopped.text


async def test_a_seed_gives_the_same_answer_again(served: RealServer, environ: dict[str, str]) -> None:
    ask = replace(
        ASK, model=served.model, messages=(Message("user", "Say five words, any words."),), temperature=1.0
    )
    async with router_to(served, environ) as router:
        said = [(await router.complete(replace(ask, seed=seed), CONTEXT)).text for seed in [*range(8)] * 2]
    assert said[:8] == said[8:]
    assert len(set(said)) > 1


async def test_a_model_that_the_server_does_not_serve(served: RealServer, environ: dict[str, str]) -> None:
    async with router_to(served, environ) as router:
        with pytest.raises(ModelNotFound) as caught:
            await router.complete(replace(ASK, model="another"), CONTEXT)
        assert "Server is pinned to './parrot'" in caught.value.message
        assert await router.list_models() == ["./parrot"]


async def test_tools_that_are_ignored_three_times_give_way_to_the_prompt(
    served: RealServer, environ: dict[str, str]
) -> None:
    ask = depth_question(served, DEPTH)
    async with router_to(served, environ) as router:
        replies = [await router.complete(ask, CONTEXT) for _ in range(5)]
    assert {reply.text for reply in replies} == {f'{{"{DEPTH}": 55}}'}
    assert {reply.requests for reply in replies} == {1}
    dropped = [[feature.feature for feature in reply.degradations] for reply in replies]
    assert dropped == [[], [], [], ["tools"], ["tools"]]
    async with router_to(served, environ) as another:
        reply = await another.complete(ask, CONTEXT)
    assert [feature.feature for feature in reply.degradations] == ["tools"]


async def test_what_is_always_ignored_ends_with_the_prompt_alone(
    served: RealServer, environ: dict[str, str]
) -> None:
    async with router_to(served, environ) as router:
        replies = [await router.complete(depth_question(served, "unheard_of"), CONTEXT) for _ in range(13)]
        rows = router.learned(served.model)
    assert {reply.text for reply in replies} == {"1 2 3 4 5 6 7 8 9"}
    assert {str(row["feature"]) for row in rows if row["state"] == "ignored"} == {
        "channel.tool",
        "channel.json_schema",
        "channel.functions",
        "channel.json_object",
    }
    assert {feature.feature for feature in replies[-1].degradations} >= {"tools", "response_format"}


async def test_a_field_that_transformers_serve_does_not_know_is_left_out_alone(
    served: RealServer, environ: dict[str, str]
) -> None:
    ask = replace(ASK, model=served.model, extra={"corerun_probe": 1}, seed=3, temperature=1.0)
    async with router_to(served, environ) as router:
        first, second = [await router.complete(ask, CONTEXT) for _ in range(2)]
    assert first.text == second.text == "1 2 3 4 5 6 7 8 9"
    assert (first.requests, second.requests) == (2, 1)
    for reply in (first, second):
        assert [dropped.feature for dropped in reply.degradations] == ["corerun_probe"]
        assert "Unexpected fields in the request" in reply.degradations[0].reason


async def test_a_stream_of_transformers_serve_has_no_end_mark(
    served: RealServer, environ: dict[str, str]
) -> None:
    ask = replace(ASK, model=served.model)
    async with router_to(served, environ) as router:
        deltas = [delta async for delta in router.stream(ask, CONTEXT)]
    assert "".join(delta.text for delta in deltas[:-1]) == "1 2 3 4 5 6 7 8 9"
    assert len(deltas) > 2
    reply = deltas[-1].reply
    assert reply is not None
    assert (reply.text, reply.finish, reply.usage.completion) == ("1 2 3 4 5 6 7 8 9", "stop", 10)


SERVE = {
    "chat": ("accepted", 200),
    "max_tokens": ("honoured", 200),
    "max_completion_tokens": ("honoured", 200),
    "temperature": ("accepted", 200),
    "stop": ("honoured", 200),
    "n": ("ignored", 200),
    "logprobs": ("ignored", 200),
    "reasoning_effort": ("ignored", 200),
    "user": ("ignored", 200),
    "metadata": ("ignored", 200),
    "parallel_tool_calls": ("ignored", 200),
    "unknown field": ("refused", 422),
    "response_format=json_object": ("ignored", 200),
    "response_format=json_schema": ("ignored", 200),
    "response_format=bogus": ("ignored", 200),
    "tools": ("accepted", 200),
    "tool_choice=function": ("ignored", 200),
    "tool_choice=required": ("ignored", 200),
    "functions": ("ignored", 200),
    "past tool call": ("accepted", 200),
    "images": ("ignored", 200),
    "developer role": ("accepted", 200),
    "unknown model": ("refused", 400),
    "seed": ("honoured", 200),
    "list of models": ("honoured", 200),
    "stream": ("honoured", 200),
    "stream [DONE]": ("ignored", 200),
    "stream_options.include_usage": ("honoured", 200),
}


@pytest.fixture(scope="module")
def serve_matrix(served: RealServer) -> dict[str, ProbeRow]:
    return probed(served)


def test_the_matrix_has_no_row_that_is_not_looked_at(serve_matrix: dict[str, ProbeRow]) -> None:
    assert set(serve_matrix) == set(SERVE)


@pytest.mark.parametrize("feature", SERVE)
def test_what_transformers_serve_takes(serve_matrix: dict[str, ProbeRow], feature: str) -> None:
    row = serve_matrix[feature]
    assert (row.verdict, row.status) == SERVE[feature], row.evidence


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"seed": "x"}, 500, "Internal Server Error"),
        ({"max_tokens": 0}, 500, "Internal Server Error"),
        ({"max_tokens": 10**9}, 200, ""),
        ({"temperature": None}, 200, ""),
        ({"stop": None}, 200, ""),
        ({"stop": []}, 500, "Internal Server Error"),
        ({"logit_bias": {"7": 1}}, 500, "Internal Server Error"),
        ({"messages": []}, 500, "Internal Server Error"),
        ({"corerun_probe": 1}, 422, "Unexpected fields in the request: {'corerun_probe'}"),
    ],
    ids=str,
)
async def test_what_the_router_must_never_send_to_transformers_serve(
    served: RealServer, fields: dict[str, Any], status: int, said: str
) -> None:
    body = {"model": served.model, "messages": [{"role": "user", "content": "Count"}], **fields}
    endpoint = endpoint_of(Connection(environ=served.environ()))
    transport = make_transport(endpoint, served.environ())
    try:
        response: Response = await transport.chat(body)
    finally:
        await transport.aclose()
    assert response.status == status, response.text
    assert said in response.text


def test_broken_json_is_refused_by_transformers_serve(served: RealServer) -> None:
    request = urllib.request.Request(
        f"{served.base_url}/chat/completions", b'{"model": ', {"content-type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request):
        pass
    with caught.value as answer:
        assert answer.code == 422
        assert json.load(answer)["detail"][0]["type"] == "json_invalid"


# ------------------------------------------------------------------------------ litellm's proxy


async def test_004_20_every_structured_answer_of_a_search_comes_through_a_gateway(
    gateway: RealServer, environ: dict[str, str]
) -> None:
    journal, _ = await ask_everything(gateway, environ)
    answered = journal.of("call_answered")
    assert len(answered) == len(QUESTIONS)
    assert {record.get("requests", 1) for record in answered} == {1}


def test_004_20_a_search_runs_through_a_gateway(
    gateway: RealServer, tmp_path: Path, environ: dict[str, str]
) -> None:
    run_search(tmp_path / "run", gateway, environ, stages=[1])


async def test_004_20_a_gateway_that_does_not_know_the_key(
    gateway: RealServer, environ: dict[str, str]
) -> None:
    stranger = replace(gateway, key="sk-" + "0" * 20)
    async with router_to(stranger, environ) as router:
        with pytest.raises(AuthFailed) as caught:
            await router.complete(replace(ASK, model=gateway.model), CONTEXT)
    assert "OPENAI_API_KEY" in caught.value.hint
    assert stranger.key not in str(caught.value)


async def test_004_20_a_model_that_the_gateway_does_not_route(
    gateway: RealServer, environ: dict[str, str]
) -> None:
    async with router_to(gateway, environ) as router:
        with pytest.raises(ModelNotFound) as caught:
            await router.complete(replace(ASK, model="parot"), CONTEXT)
    assert "parrot" in caught.value.hint


async def test_004_20_a_gateway_whose_upstream_is_down(gateway: RealServer, environ: dict[str, str]) -> None:
    async with router_to(gateway, environ) as router:
        with pytest.raises(Transient) as caught:
            await router.complete(replace(ASK, model=DOWN), CONTEXT)
    assert "HTTP 500" in caught.value.message


async def test_004_20_a_stream_through_the_gateway(gateway: RealServer, environ: dict[str, str]) -> None:
    ask = replace(ASK, model=gateway.model)
    async with router_to(gateway, environ) as router:
        deltas = [delta async for delta in router.stream(ask, CONTEXT)]
    reply = deltas[-1].reply
    assert reply is not None
    assert (reply.text, reply.finish, reply.usage.completion) == ("1 2 3 4 5 6 7 8 9", "stop", 10)


def test_004_20_what_the_gateway_takes_is_what_its_upstream_takes(
    gateway: RealServer, serve_matrix: dict[str, ProbeRow]
) -> None:
    through = {feature: row.verdict for feature, row in probed(gateway).items()}
    # Streams are written anew, in OpenAI's form.
    assert through == {feature: row.verdict for feature, row in serve_matrix.items()} | {
        "stream [DONE]": "honoured"
    }
