"""How the router reads answers and what it makes of refusals."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import (
    AuthFailed,
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelNotFound,
    QuotaExceeded,
    RequestRefused,
    Transient,
    Unsupported,
)
from corerun.interfaces import Connection, Message
from corerun_openai_router.provider import OpenAIRouter
from corerun_openai_router.reading.failure import classify
from corerun_openai_router.reading.usage import read_usage
from corerun_openai_router.wire.endpoint import endpoint_of
from corerun_openai_router.wire.transport import Response
from tests.support.openai_server import (
    OpenAIServer,
    Reply,
    cut_body,
    cut_json,
    fault,
    hang_up,
    text,
)
from tests.support.router import CONTEXT, KEY, QUESTION, STRUCTURED, ask, fail

ENDPOINT = endpoint_of(Connection(environ={"OPENAI_API_KEY": KEY}))

# --------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "tool"), ("end_turn", "stop"), (None, "unknown")],
)
async def test_the_reasons_to_finish(reason: str | None, finish: str) -> None:
    reply, _ = await ask(text("x", finish=reason))
    assert reply.finish == finish


async def test_reasoning_is_kept_apart() -> None:
    reply, _ = await ask(text("x", message={"reasoning_content": "hm"}))
    assert (reply.text, reply.reasoning) == ("x", "hm")
    reply, _ = await ask(text("", message={"reasoning": '{"metres": 1}'}), STRUCTURED)
    assert (reply.text, reply.reasoning) == ("", '{"metres": 1}')


@pytest.mark.parametrize(
    ("content", "expected"),
    [([{"type": "text", "text": "a"}, {"text": "b"}], "ab"), (7, "7"), ({"metres": 1}, '{"metres": 1}')],
)
async def test_content_of_any_type_becomes_text(content: Any, expected: str) -> None:
    reply, _ = await ask(Reply(content=content))
    assert reply.text == expected


async def test_tool_calls_of_every_dialect() -> None:
    as_dict = {"function": {"name": "submit_depth", "arguments": {"metres": 2}}}
    reply, _ = await ask(Reply(message={"tool_calls": [None, as_dict]}), STRUCTURED)
    assert json.loads(reply.text) == {"metres": 2} and reply.tool_calls[0].id == "call_0"
    old = {"function_call": {"name": "submit_depth", "arguments": '{"metres": 3}'}}
    reply, _ = await ask(Reply(message=old, finish="function_call"), STRUCTURED)
    assert json.loads(reply.text) == {"metres": 3} and reply.finish == "tool"
    both = Reply(calls=(("other", {}), ("submit_depth", {"metres": 4})), message=old)
    reply, _ = await ask(both, STRUCTURED)
    assert json.loads(reply.text) == {"metres": 4}


@pytest.mark.parametrize(
    "answer",
    [
        cut_json(),
        cut_body(),
        hang_up(),
        fault(200, b""),
        fault(200, "[]"),
        fault(200, {"choices": None}),
        fault(200, {"choices": []}),
        fault(200, {"choices": [{}]}),
        fault(200, b'"\xff"'),
        fault(200, {"error": {"message": "upstream broke off"}}),
        fault(200, {"error": {"code": 502, "message": "bad gateway"}}),
        fault(200, {"choices": [{"error": {"code": 502, "message": "bad gateway"}}]}),
        text(""),
        text(None),  # type: ignore[arg-type]
    ],
)
async def test_broken_answers_are_worth_another_try(answer: Any) -> None:
    assert type(await fail(answer)) is Transient


async def test_an_error_under_status_200_is_classified() -> None:
    assert type(await fail(fault(200, {"error": {"code": 401, "message": "no"}}))) is AuthFailed
    assert type(await fail(fault(200, {"error": {"code": "insufficient_quota"}}))) is QuotaExceeded


async def test_a_page_is_no_answer_and_says_what_to_try() -> None:
    async with OpenAIServer(lambda body: fault(200, b"<html>hello</html>")) as server:
        environ = server.environ(KEY) | {"OPENAI_BASE_URL": server.base_url.removesuffix("/v1") + "/"}
        router = OpenAIRouter(Connection(environ=environ))
        with pytest.raises(RequestRefused, match="hello") as caught:
            await router.complete(QUESTION, CONTEXT)
        assert caught.value.hint == f"did you mean {server.base_url}?"
        await router.aclose()


@pytest.mark.parametrize(
    "answer", [text("I", finish="content_filter"), text("", message={"refusal": "I won't."})]
)
async def test_refusals_are_no_answers(answer: Reply) -> None:
    assert type(await fail(answer)) is ContentRefused


# ----------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 3}, (9, 3, 0, 0)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            (9, 8, 5, 4),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 3, "prompt_cache_hit_tokens": 6}, (9, 3, 0, 6)),
        (
            {
                "input_tokens": 9,
                "output_tokens": 3,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 1,
            },
            (30, 3, 0, 20),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 3,
                "total_tokens": 112,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            (9, 103, 100, 0),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": None}, (9, 3, 0, 0)),
    ],
)
def test_usage_of_every_vendor(data: Mapping[str, Any], expected: tuple[int, ...]) -> None:
    usage = read_usage(data, QUESTION, "answer")
    assert (usage.prompt, usage.completion, usage.reasoning, usage.cached) == expected
    assert not usage.estimated and usage.cost_usd is None


@pytest.mark.parametrize("bad", [None, -1, float("nan"), float("inf"), "7", True])
def test_usage_that_is_no_number_is_estimated(bad: Any) -> None:
    usage = read_usage({"prompt_tokens": bad, "completion_tokens": 3}, QUESTION, "12345")
    assert (usage.prompt, usage.completion, usage.estimated) == (5, 3, True)
    usage = read_usage({"prompt_tokens": 9, "completion_tokens": bad, "cost": bad}, QUESTION, "12345")
    assert (usage.prompt, usage.completion, usage.estimated, usage.cost_usd) == (9, 2, True, None)


async def test_usage_on_the_wire_with_its_cost() -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "cost": 0.00125}
    reply, _ = await ask(text("x", usage=usage))
    assert reply.usage.cost_usd == 0.00125 and not reply.usage.estimated
    reply, _ = await ask(
        fault(200, b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":NaN}}')
    )
    assert reply.usage.estimated and reply.usage.prompt == 5


# ---------------------------------------------------------------------------------------- errors


def refused(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ModelError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify(Response(status, headers or {}, content), QUESTION, ENDPOINT)


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


QUOTA_TEXT = "You exceeded your current quota, please check your plan and billing details."
GEMINI_RATE = [error(QUOTA_TEXT, code=429, details=[{"@type": "type/RetryInfo", "retryDelay": "37s"}])]
OPENAI_RATE = error(
    "Rate limit reached. Please try again in 20s. Add a card at https://openai.com/account/billing"
)
LLAMA_CONTEXT = error("too large", code=400, type="exceed_context_size_error", n_ctx=512)
MISTRAL = {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "msg": "Extra inputs"}]}}
WRAPPED = error("Provider returned error", metadata={"raw": json.dumps(error("prompt is too long"))})


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, error("Incorrect API key provided"), AuthFailed),
        (403, b"", AuthFailed),
        (400, error("x", code="invalid_api_key"), AuthFailed),
        (400, [error("API key not valid. Please pass a valid API key.", code=400)], AuthFailed),
        (402, error("pay"), QuotaExceeded),
        (429, error(QUOTA_TEXT, code="insufficient_quota"), QuotaExceeded),
        (429, error("x", type="insufficient_quota"), QuotaExceeded),
        (400, error("Your credit balance is too low to access the API"), QuotaExceeded),
        (429, GEMINI_RATE, Transient),
        (429, OPENAI_RATE, Transient),
        (400, error("x", code="context_length_exceeded"), ContextTooLong),
        (400, LLAMA_CONTEXT, ContextTooLong),
        (400, {"object": "error", "message": "This model's maximum context length is 8"}, ContextTooLong),
        (400, WRAPPED, ContextTooLong),
        (413, b"<html>Too Large</html>", ContextTooLong),
        (400, error("maximum context length", code="string_above_max_length"), RequestRefused),
        (400, error("x", code="content_filter"), ContentRefused),
        (400, error("x", code="data_inspection_failed"), ContentRefused),
        (404, error("No endpoints found that support tool use.", code=404), Unsupported),
        (
            500,
            {"error": {"code": 500, "message": "image input is not supported - hint: mmproj"}},
            Unsupported,
        ),
        (400, error("registry.ollama.ai/library/gemma3:4b does not support tools"), Unsupported),
        (404, error("The model `x` does not exist", code="model_not_found"), ModelNotFound),
        (404, {"error": 'model "x" not found, try pulling it first'}, ModelNotFound),
        (400, {"detail": "Server is pinned to './x'; requested 'y'."}, ModelNotFound),
        (429, error("slow down"), Transient),
        (500, b"Internal Server Error", Transient),
        (503, b"", Transient),
        (529, error("Overloaded", type="overloaded_error"), Transient),
        (408, b"", Transient),
        (400, error("Unsupported parameter: 'seed'", param="seed"), RequestRefused),
        (422, MISTRAL, RequestRefused),
        (422, {"detail": "Unexpected fields in the request: {'x'}"}, RequestRefused),
        (404, b"<html>nothing here</html>", RequestRefused),
        (501, b"", RequestRefused),
        (307, b"", RequestRefused),
    ],
)
def test_refusals_are_told_apart(status: int, body: Any, expected: type[ModelError]) -> None:
    assert type(refused(status, body)) is expected


@pytest.mark.parametrize("body", [b"<html>nothing here</html>", {"detail": "Not Found"}, b""])
def test_a_wrong_address_says_what_to_try(body: Any) -> None:
    bare = endpoint_of(Connection(environ={"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "https://me:pass@host"}))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = classify(Response(404, {}, content), QUESTION, bare)
    assert found.hint.startswith("did you mean https://") and found.hint.endswith("host/v1?")
    assert "pass" not in f"{found} {found.hint}"
    assert refused(404, error("no such page")).hint == ""


def test_a_server_can_forbid_another_try() -> None:
    assert type(refused(503, b"", {"x-should-retry": "false"})) is RequestRefused
    assert type(refused(503, b"", {"x-should-retry": "true"})) is Transient


def test_who_turns_everybody_away_is_left_alone_by_everybody() -> None:
    for status, headers in ((429, {}), (529, {}), (503, {"retry-after": "1"})):
        failed = refused(status, b"", headers)
        assert isinstance(failed, Transient) and failed.limited
    failed = refused(503, b"")
    assert isinstance(failed, Transient) and not failed.limited


async def test_a_byte_order_mark_before_an_answer_is_passed_over() -> None:
    document = {"choices": [{"message": {"content": "deep"}, "finish_reason": "stop"}]}
    reply, _ = await ask(fault(200, b"\xef\xbb\xbf" + json.dumps(document).encode()))
    assert reply.text == "deep"


def test_words_of_the_prompt_decide_nothing() -> None:
    prompt = 'Explain "insufficient_quota" and a maximum context length'
    request = replace(QUESTION, messages=(Message("user", prompt),))
    echo = {"detail": [{"msg": f"Input should be shorter: {prompt}", "input": prompt}]}
    response = Response(422, {}, json.dumps(echo).encode())
    found = classify(response, request, ENDPOINT)
    assert type(found) is RequestRefused and "insufficient_quota" not in str(found)


@given(st.binary(max_size=60), st.sampled_from([200, 400, 404, 429, 500]))
def test_any_body_gives_one_line(body: bytes, status: int) -> None:
    found = refused(status, body)
    assert "\n" not in str(found) and len(str(found)) < 500


async def test_errors_come_over_the_wire_with_one_request() -> None:
    failed = await fail(fault(429, error("try again in 20s"), {"retry-after": "7"}))
    assert isinstance(failed, Transient) and failed.retry_after == 7.0
    assert type(await fail(fault(401, error(f"Incorrect API key provided: {KEY}")))) is AuthFailed
    assert type(await fail(fault(500, "oops"))) is Transient


async def test_an_echoed_key_of_any_shape_is_hidden() -> None:
    own = "correct-horse-battery"
    async with OpenAIServer(lambda body: fault(401, error(f"{own} is no key"))) as server:
        router = OpenAIRouter(Connection(environ=server.environ(own)))
        with pytest.raises(AuthFailed, match="is no key") as caught:
            await router.complete(QUESTION, CONTEXT)
        assert own not in f"{caught.value!r} {caught.value.hint}"
        await router.aclose()


async def test_an_unknown_model_is_told_its_neighbours() -> None:
    models = ["gpt-4o-mini", "gpt-4.1", "whisper"]
    async with OpenAIServer(
        lambda body: fault(404, error("no", code="model_not_found")), models=models
    ) as server:
        router = OpenAIRouter(Connection(environ=server.environ(KEY)))
        with pytest.raises(ModelNotFound) as caught:
            await router.complete(replace(QUESTION, model="gpt-4o-minni"), CONTEXT)
        assert caught.value.hint.startswith("the server offers gpt-4o-mini, gpt-4.1")
        assert await router.list_models() == models
        await router.aclose()


async def test_a_redirect_is_not_followed() -> None:
    async with OpenAIServer(lambda body: text("stolen")) as other:
        target = {"location": f"{other.base_url}/chat/completions"}
        failed = await fail(fault(307, b"", target))
        assert type(failed) is RequestRefused and failed.hint == f"it redirects to {target['location']}"
        assert other.requests == []


async def test_nobody_listens() -> None:
    async with OpenAIServer(lambda body: "x") as server:
        environ = server.environ(KEY)
    with pytest.raises(Transient, match="connection failed"):
        await OpenAIRouter(Connection(environ=environ)).complete(QUESTION, CONTEXT)


async def test_the_deadline_ends_a_call() -> None:
    never = asyncio.Event()

    async def wait(body: Any) -> str:
        await never.wait()
        return "x"

    async with OpenAIServer(wait) as server:
        router = OpenAIRouter(Connection(environ=server.environ(KEY)))
        with pytest.raises(Transient, match="deadline"):
            await router.complete(QUESTION, replace(CONTEXT, deadline=time.monotonic() + 0.05))
        await router.aclose()
