"""Rows for what OpenAI and Azure were seen to say, in their own words and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.support.faults.rows import AZURE, FULL, NO_TOOLS, SAMPLED, Row, carries, lacks, openai, refusal
from tests.support.openai_server import fault

USE_OTHER = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead."
)
DIVE = {"name": "dive", "description": "Dive.", "parameters": {"type": "object", "properties": {}}}


def rows() -> Iterator[Row]:
    yield from _openai()
    yield from _azure()


def _openai() -> Iterator[Row]:
    other = openai(USE_OTHER, param="max_tokens", code="unsupported_parameter")
    yield refusal(
        "openai-max-tokens",
        FULL,
        {"max_tokens": other},
        requests=2,
        last=[carries("max_completion_tokens", 64), lacks("max_tokens")],
    )
    value = (
        "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default "
        "(1) value is supported."
    )
    yield refusal(
        "openai-temperature-value",
        FULL,
        {"temperature=0.2": openai(value, param="temperature", code="unsupported_value")},
        requests=2,
    )
    for style, path in {
        "dots": "messages.[1].content.[1].type",
        "plain": "messages[1].content[1].type",
    }.items():
        answer = openai("Invalid content type. image_url is only supported by certain models.", param=path)
        yield refusal(f"openai-image-{style}", FULL, {"images": answer}, requests=2)
        answer = openai("Invalid value.", param=path)
        yield refusal(f"openai-image-{style}-by-path-alone", FULL, {"images": answer}, requests=2)
    said = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model"
    for name, where in {"pinned": NO_TOOLS, "azure": AZURE}.items():
        refused = {"response_format.json_schema": openai(said, param="response_format")}
        yield refusal(f"openai-json-schema-{name}", FULL, refused, connection=where)
    copilot = fault(400, {"error": {"message": USE_OTHER, "code": "invalid_request_body"}})
    yield refusal("copilot-max-tokens", FULL, {"max_tokens": copilot}, requests=2)
    said = "max_tokens is too large: 100000. This model supports at most 16384 completion tokens."
    yield refusal(
        "openai-max-tokens-too-large",
        replace(FULL, max_tokens=100_000),
        {"max_tokens>16384": openai(said, param="max_tokens", code="invalid_value")},
        requests=2,
        last=[carries("max_tokens", 16384)],
    )
    pair = "Function tools with reasoning_effort are not supported with this model."
    yield refusal("openai-tools-with-effort", FULL, {"reasoning_effort&tools": openai(pair)}, requests=2)
    strict = replace(SAMPLED, tools=({**DIVE, "strict": True},))
    answer = openai("Invalid value: strict is not permitted.", param="tools[0].function.strict")
    yield refusal("openai-strict", strict, {"tools.strict": answer}, value="", calls=("dive",), requests=2)
    both = {
        "max_tokens": other,
        "max_completion_tokens": openai("Unsupported parameter: 'max_completion_tokens'."),
    }
    yield refusal(
        "both-token-limits", FULL, both, requests=3, last=[lacks("max_tokens", "max_completion_tokens")]
    )


def _azure() -> Iterator[Row]:
    effort = "reasoning_effort"
    old = openai("Unrecognized request argument supplied: reasoning_effort")
    new = openai("Unknown parameter: 'reasoning_effort'.", param=effort, code="unknown_parameter")
    yield refusal("azure-effort-unrecognized", FULL, {effort: old}, connection=AZURE, requests=2)
    yield refusal("azure-effort-unknown", FULL, {effort: new}, connection=AZURE, requests=2)
    said = "Invalid value: 'none'. Supported values are: 'minimal', 'low', 'medium', and 'high'."
    yield refusal(
        "azure-effort-value",
        replace(FULL, reasoning_effort="none"),
        {'reasoning_effort="none"': openai(said, param=effort, code="invalid_value")},
        connection=AZURE,
        requests=2,
    )
    said = "Unrecognized request argument supplied: max_completion_tokens"
    yield refusal(
        "azure-max-completion-tokens",
        FULL,
        {"max_completion_tokens": openai(said)},
        connection=AZURE,
        requests=2,
        last=[carries("max_tokens", 64), lacks("max_completion_tokens")],
    )
