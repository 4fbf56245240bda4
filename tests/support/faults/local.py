"""Rows for local servers as they were measured, and for gateways that write other servers' errors anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from corerun.interfaces import Message
from tests.support.fault_server import ANSWER, Body, Vendor
from tests.support.faults.rows import (
    FULL,
    NO_TOOLS,
    PLAIN,
    SAMPLED,
    STRUCTURED,
    Row,
    carries,
    detail,
    extra,
    failure,
    lacks,
    openai,
    refusal,
)
from tests.support.faults.vendors import CALLED
from tests.support.openai_server import Fault, Reply, fault, text

INTERNAL = fault(500, "Internal Server Error")


def rows() -> Iterator[Row]:
    yield from _transformers()
    yield from _llama_cpp()
    yield from _litellm()


def _transformers() -> Iterator[Row]:
    unexpected = detail("Unexpected fields in the request: {'corerun_probe'}")
    yield refusal("serve-unknown-field", extra(corerun_probe=1), {"corerun_probe": unexpected}, requests=2)
    yield refusal(
        "serve-empty-stop-is-never-sent",
        replace(STRUCTURED, stop=()),
        {"stop": INTERNAL},
        requests=1,
        last=[lacks("stop")],
    )
    yield refusal(
        "serve-limit-is-max-tokens",
        STRUCTURED,
        {},
        requests=1,
        last=[carries("max_tokens", 64), lacks("max_completion_tokens")],
    )
    yield Row("serve-more-choices-asked-than-given", extra(n=2), requests=1)
    pinned = fault(400, {"detail": "Server is pinned to './x'; requested 'y'."})
    yield failure("serve-pinned-model", "ModelNotFound", pinned)
    yield Row(
        "serve-internal-error-for-good",
        PLAIN,
        Vendor({"always": INTERNAL}),
        "RequestRefused",
        requests=2,
        again=2,
    )
    yield Row(
        "serve-internal-error-for-what-no-rung-drops",
        extra(logit_bias={"1": 1}),
        Vendor({"logit_bias": INTERNAL}),
        "RequestRefused",
        requests=(5, 6),
    )
    yield Row(
        "serve-internal-error-for-one-parameter",
        replace(STRUCTURED, stop=()),
        Vendor({"seed": INTERNAL}),
        requests=3,
        blind=True,
        last=[lacks("seed")],
    )


def _validation(place: str, kind: str, said: str) -> Fault:
    message = (
        f"1 validation error:\n  {{'type': '{kind}', 'loc': ({place}), 'msg': '{said}', 'input': "
        f"'x'}}\n\n  File \"/opt/app/server.py\", line 12"
    )
    error = {"message": message, "type": "internal_server_error", "param": None, "code": None}
    return fault(500, {"error": error})


def _llama_cpp() -> Iterator[Row]:
    number = _validation("'body', 'seed'", "int_parsing", "Input should be a valid integer")
    yield refusal("llama-python-seed", FULL, {"seed": number}, requests=2)
    number = _validation("'body', 'temperature'", "float_type", "Input should be a valid number")
    nulls = replace(SAMPLED, temperature=None, extra={"temperature": None})
    yield refusal("llama-python-null", nulls, {"null": number}, requests=1)
    kind = _validation(
        "'body', 'response_format', 'type'", "literal_error", "Input should be text or json_object"
    )
    yield refusal(
        "llama-python-json-schema", FULL, {"response_format.json_schema": kind}, connection=NO_TOOLS
    )
    role = _validation("'body', 'messages', 0, 'role'", "literal_error", "Input should be system")
    developer = replace(STRUCTURED, messages=(Message("developer", "Be brief."), PLAIN.messages[1]))
    yield refusal("llama-python-developer", developer, {"developer": role}, avoidable=True)
    said = (
        "7 validation errors:\n  {'type': 'string_type', 'loc': ('body', 'messages', 1, 'content'), "
        "'msg': 'Input should be a valid string', 'input': None}"
    )
    content = fault(500, {"error": {"message": said}})
    yield refusal(
        "llama-python-null-content",
        replace(STRUCTURED, messages=CALLED),
        {"null content": content},
        avoidable=True,
    )
    yield Row(
        "llama-python-both-call-fields", STRUCTURED, reply=_both_dialects, requests=1, calls=("submit_depth",)
    )
    said = "This model's maximum context length is 512 tokens. However, you requested 600 tokens"
    yield failure(
        "llama-python-context",
        "ContextTooLong",
        openai(said, code="context_length_exceeded"),
        shows={"limit": 512, "used": 600},
    )


def _both_dialects(body: Body) -> Reply:
    call = {"name": "submit_depth", "arguments": '{"metres": 10935}'}
    return Reply(calls=(("submit_depth", ANSWER),), message={"function_call": call}, finish="tool_calls")


def _rewritten(kind: str, original: str, status: int = 400) -> Fault:
    message = (
        f"litellm.{kind}: {kind}: OpenAIException - {original}. Received Model Group=x\n"
        "Available Model Group Fallbacks=None LiteLLM: model group x. No fallback was attempted."
    )
    return fault(status, {"error": {"message": message, "type": None, "param": None, "code": str(status)}})


def _litellm() -> Iterator[Row]:
    said = "This model's maximum context length is 8192 tokens. However, you requested 10020 tokens"
    yield failure(
        "litellm-context",
        "ContextTooLong",
        _rewritten("ContextWindowExceededError", said),
        shows={"limit": 8192, "used": 10020},
    )
    said = "You exceeded your current quota, please check your plan and billing details."
    yield failure("litellm-quota", "QuotaExceeded", _rewritten("RateLimitError", said, 429))
    said = (
        "The response was filtered due to the prompt triggering our content policy "
        "(ResponsibleAIPolicyViolation)"
    )
    yield failure("litellm-content", "ContentRefused", _rewritten("ContentPolicyViolationError", said))
    yield failure("litellm-auth", "AuthFailed", _rewritten("AuthenticationError", "Incorrect API key", 401))
    embedded = (
        "{'detail': [{'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'msg': 'Extra inputs are "
        "not permitted', 'input': 7}]}"
    )
    yield refusal("litellm-python-repr", FULL, {"seed": _rewritten("BadRequestError", embedded)}, requests=2)
    embedded = "Unsupported parameter: 'temperature' is not supported with this model."
    yield refusal(
        "litellm-parameter", FULL, {"temperature": _rewritten("BadRequestError", embedded)}, requests=2
    )
    limited = fault(
        429,
        {
            "error": {
                "message": "litellm.RateLimitError: slow down",
                "type": "throttling_error",
                "code": "429",
            }
        },
        {"llm_provider-retry-after": "3"},
    )
    yield failure("litellm-retry-after", "Transient", limited, shows={"retry_after": (3.0, 3.31)})
    broken = _rewritten("InternalServerError", "Empty or invalid response from LLM endpoint", 500)
    yield Row("litellm-upstream-page", STRUCTURED, first=(broken,), requests=2, again=2)
    yield Row(
        "litellm-error-502",
        STRUCTURED,
        first=(_rewritten("BadGatewayError", "upstream broke off", 502),),
        requests=2,
        again=2,
    )
    thought = text("", message={"reasoning_content": '{"metres": 10935}'})
    yield Row("litellm-answer-in-reasoning", STRUCTURED, reply=lambda body: thought, requests=1)
