"""The matrix of what a server takes: told apart by what it does, in one line each, without a secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from corerun.interfaces import Connection, ProbeRow
from corerun_openai_router.probing.cases import CASES, LIMITS, PLAIN, Answer, judge_seeds
from corerun_openai_router.probing.probe import probe
from corerun_openai_router.wire.choice import make_transport
from corerun_openai_router.wire.endpoint import endpoint_of
from tests.support.openai_server import OpenAIServer, Reply, fault, forced_tool, hang_up, text, tool

KEY = "sk-a-very-secret-key-0123456789"
MODEL = "test-model"
MOST_REQUESTS = 36


async def matrix(answer: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, ProbeRow], OpenAIServer]:
    """Rows by feature, from a server with that answer."""
    async with OpenAIServer(answer, models=(MODEL, "another")) as server:
        environ = server.environ(KEY)
        endpoint = endpoint_of(Connection(environ=environ))
        transport = make_transport(endpoint, environ)
        try:
            rows = await probe(transport, endpoint, MODEL)
        finally:
            await transport.aclose()
    assert server.peak <= 1, "one request after the other"
    assert server.calls <= MOST_REQUESTS
    by_feature = {row.feature: row for row in rows}
    assert len(by_feature) == len(rows)
    for row in rows:
        assert row.evidence and "\n" not in row.evidence and len(row.evidence) <= 160
        assert KEY not in row.evidence
    return by_feature, server


def verdicts(rows: dict[str, ProbeRow]) -> dict[str, str]:
    return {feature: row.verdict for feature, row in rows.items()}


def stream(*events: str) -> Any:
    body = "".join(f"data: {event}\n\n" for event in events)
    return fault(200, body, {"content-type": "text/event-stream"})


def chunk(delta: dict[str, Any], finish: str | None = None, **top: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **top})


def prompt_of(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


# ------------------------------------------------------------------------------- honest servers


def honours(body: dict[str, Any]) -> Any:
    """A server that does everything that it is asked for, and refuses what makes no sense."""
    if body["model"] != MODEL:
        return fault(404, {"error": {"message": f"The model '{body['model']}' does not exist"}})
    if "corerun_probe" in json.dumps(body).replace('"corerun_probe": 1}', "corerun_probe"):
        return fault(400, {"error": {"message": "Invalid value: 'corerun_probe'"}})
    if body.get("stream"):
        usage = chunk({}, None, usage={"completion_tokens": 1, "prompt_tokens": 1})
        return stream(chunk({"content": "Red"}), chunk({}, "stop"), usage, "[DONE]")
    limit = body.get("max_tokens") or body.get("max_completion_tokens")
    if limit == 4:
        return text("1 2", finish="length", usage={"prompt_tokens": 9, "completion_tokens": 4})
    if "stop" in body:
        return text("1 2 3 4 ")
    if body.get("n") == 2:
        choice = {"message": {"role": "assistant", "content": "Red"}, "finish_reason": "stop"}
        return text("", top={"choices": [choice, choice]})
    if body.get("logprobs"):
        choice = {"message": {"content": "Red"}, "finish_reason": "stop", "logprobs": {"content": [{}]}}
        return text("", top={"choices": [choice]})
    if "reasoning_effort" in body:
        return text("Red", usage={"completion_tokens_details": {"reasoning_tokens": 12}})
    if "response_format" in body:
        return text('{"colour": "blue"}')
    if "functions" in body:
        called = {"name": "measure_depth", "arguments": "{}"}
        return Reply(message={"function_call": called}, finish="function_call")
    if forced_tool(body) if isinstance(body.get("tool_choice"), dict) else "tools" in body:
        return tool("measure_depth", {"sea": "Baltic"})
    if "seed" in body:
        return text(f"word {body['seed']}")
    return text("Red, I see.")


async def test_a_server_that_does_everything_is_honoured() -> None:
    rows, _ = await matrix(honours)
    assert verdicts(rows) == {
        "chat": "accepted",
        "max_tokens": "honoured",
        "max_completion_tokens": "honoured",
        "temperature": "accepted",
        "stop": "honoured",
        "n": "honoured",
        "logprobs": "honoured",
        "reasoning_effort": "honoured",
        "user": "accepted",
        "metadata": "accepted",
        "parallel_tool_calls": "accepted",
        "unknown field": "refused",
        "response_format=json_object": "honoured",
        "response_format=json_schema": "honoured",
        "response_format=bogus": "refused",
        "tools": "honoured",
        "tool_choice=function": "honoured",
        "tool_choice=required": "honoured",
        "functions": "honoured",
        "past tool call": "accepted",
        "images": "honoured",
        "developer role": "accepted",
        "unknown model": "refused",
        "seed": "honoured",
        "list of models": "honoured",
        "stream": "honoured",
        "stream [DONE]": "honoured",
        "stream_options.include_usage": "honoured",
    }
    assert rows["user"].evidence.startswith("an impossible value is refused: ")
    assert rows["list of models"].evidence == "2 models, this one is among them"


async def test_a_server_that_looks_at_nothing_is_found_out() -> None:
    answers = iter(range(1000))

    def ignores(body: dict[str, Any]) -> Any:
        if body.get("stream"):
            return stream(chunk({"content": "Blue"}), chunk({}, "stop"))
        usage = {"prompt_tokens": 11, "completion_tokens": 40}
        words = "1 2 3 4 5 6 7 8 9" if "Count" in prompt_of(body) else f"Blue {next(answers)}"
        return text(words, usage=usage)

    rows, _ = await matrix(ignores)
    found = verdicts(rows)
    accepted = {"chat", "temperature", "tools", "past tool call", "developer role"}
    honoured = {"list of models", "stream"}
    assert {name for name, verdict in found.items() if verdict == "accepted"} == accepted
    assert {name for name, verdict in found.items() if verdict == "honoured"} == honoured
    assert set(found.values()) == {"accepted", "honoured", "ignored"}
    assert rows["max_completion_tokens"].evidence == "40 tokens came for a limit of 4"
    assert rows["unknown model"].evidence == f'served anyway, by "{"corerun-probe-no-such-model"}"'


async def test_a_refusal_is_shown_in_the_servers_words_without_the_key() -> None:
    def refuses(body: dict[str, Any]) -> Any:
        extra = set(body) - {"model", "messages", "max_tokens"}
        if not extra and body["messages"][0]["role"] == "user" and len(body["messages"]) == 1:
            return text("Red")
        said = f"Unsupported: {sorted(extra)}\nfor the key {KEY}"
        return fault(400, {"error": {"message": said, "code": "unsupported_parameter"}})

    rows, _ = await matrix(refuses)
    assert rows["seed"].verdict == "refused"
    assert rows["seed"].status == 400
    assert "Unsupported: ['seed', 'temperature']" in rows["seed"].evidence
    assert {rows[name].verdict for name in ("stream", "stream [DONE]", "tools", "developer role")} == {
        "refused"
    }


async def test_questions_are_asked_under_the_limit_that_works() -> None:
    bodies = []

    def old_name_only(body: dict[str, Any]) -> Any:
        bodies.append(body)
        if "max_completion_tokens" in body:
            return fault(400, {"error": {"message": "Unknown parameter: 'max_completion_tokens'."}})
        return text("Red", usage={"prompt_tokens": 5, "completion_tokens": 3})

    rows, _ = await matrix(old_name_only)
    assert rows["max_completion_tokens"].verdict == "refused"
    assert rows["max_tokens"].verdict == "accepted"
    assert all(body["max_tokens"] == 64 for body in bodies[3:])


# ------------------------------------------------------------------------------- broken servers


@pytest.mark.parametrize(
    ("answer", "verdict", "status"),
    [
        (fault(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), "refused", 401),
        (fault(429, {"error": {"message": "Rate limit reached"}}), "failed", 429),
        (fault(200, "<html>Welcome</html>", {"content-type": "text/html"}), "failed", 200),
        (fault(200, {"error": {"message": "upstream is gone"}}), "refused", 200),
        (fault(200, {"choices": []}), "failed", 200),
        (hang_up(), "failed", 0),
    ],
)
async def test_a_server_without_one_good_answer_gives_one_row(answer: Any, verdict: str, status: int) -> None:
    rows, server = await matrix(lambda body: answer)
    assert verdicts(rows) == {"chat": verdict}
    assert rows["chat"].status == status
    assert server.calls == 1


async def test_a_wrong_address_is_told_with_a_hint() -> None:
    rows, _ = await matrix(lambda body: fault(404, "no such page"))
    assert "is http://127.0.0.1" in rows["chat"].evidence


async def test_what_a_busy_server_says_is_no_refusal() -> None:
    def busy(body: dict[str, Any]) -> Any:
        if "n" in body:
            return fault(503, "overloaded")
        return hang_up() if body.get("stream") or "logprobs" in body else text("Red")

    rows, _ = await matrix(busy)
    failed = {"n", "logprobs", "stream", "stream [DONE]", "stream_options.include_usage"}
    assert {name for name, row in rows.items() if row.verdict == "failed"} == failed
    assert rows["n"].status == 503
    assert rows["logprobs"].status == 0


async def test_an_impossible_value_that_meets_a_busy_server_proves_nothing() -> None:
    def busy(body: dict[str, Any]) -> Any:
        return fault(503, "overloaded") if body.get("metadata") == "corerun_probe" else text("Red")

    rows, _ = await matrix(busy)
    assert rows["metadata"].verdict == "accepted"
    assert "impossible" not in rows["metadata"].evidence


NAMES = (
    *("choices", "message", "content", "tool_calls", "function_call", "function", "name", "usage", "model"),
    *("finish_reason", "logprobs", "completion_tokens", "prompt_tokens", "completion_tokens_details"),
    *("reasoning_tokens", "reasoning_content"),
)
ANY = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text() | some.just("{"),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(NAMES), inner),
    max_leaves=12,
)
LOOSE = some.dictionaries(some.sampled_from(NAMES), ANY)


def with_key(name: str, value: Any) -> Any:
    """Dictionaries that mostly hold what is looked for under ``name``."""
    return some.builds(lambda known, rest: {**rest, name: known}, value | ANY, LOOSE)


DOCUMENT = with_key("choices", some.lists(with_key("message", LOOSE), max_size=3))


@given(DOCUMENT, DOCUMENT)
def test_no_answer_is_too_odd_to_be_judged(document: dict[str, Any], first: dict[str, Any]) -> None:
    answer = Answer(document)
    found = [case.judge(answer, Answer(first)) for case in (PLAIN, *LIMITS, *CASES)]
    found.append(judge_seeds([answer, answer, Answer(first)]))
    for verdict, evidence in found:
        assert verdict in {"honoured", "ignored", "accepted", "failed"}
        assert evidence
