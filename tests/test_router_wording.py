"""Which features a server's sentence refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun_openai_router.facts import joined, split
from corerun_openai_router.reading.details import read_details
from corerun_openai_router.reading.refusals import refused_features
from tests.support.router import EVERYTHING, QUESTION, written


def named(message: Any, sent: Mapping[str, Any] | None = None, **wording: tuple[str, ...]) -> list[Any]:
    content = message if isinstance(message, dict | list) else {"error": {"message": message}}
    details = read_details(json.dumps(content), QUESTION)
    return [facts[0] for facts in refused_features(details, sent or written(EVERYTHING), wording)]


@pytest.mark.parametrize(
    ("message", "facts"),
    [
        ("Unrecognized request arguments supplied: seed, top_p", ["seed", "top_p"]),
        (
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            ["max_tokens"],
        ),
        ("max_tokens is too large: 64. This model supports at most 16 completion tokens", ["max_tokens<=16"]),
        ("Range of max_tokens should be [1, 8]", ["max_tokens<=8"]),
        ("property 'seed' is unsupported, did you mean 'stop'?", ["seed"]),
        ("unknown field `seed`, expected one of `top_p`, `stop`", ["seed"]),
        ("The `seed` you sent can't be accepted here", ["seed"]),
        ("Model x does not support parameter reasoningEffort.", ["reasoning_effort"]),
        (
            "1 validation error for X\nreasoning_effort\n  Input should be 'high'",
            ["reasoning_effort=low"],
        ),
        ("This model is not supported", []),
        ("Something about this user is wrong, seeds and tools or not", []),
        ("Thinking mode does not support this tool_choice", ["tool_choice&thinking"]),
    ],
)
def test_what_a_sentence_refuses(message: str, facts: list[str]) -> None:
    assert named(message) == facts


def test_a_configured_wording_names_a_feature() -> None:
    assert named("no whales today", seed=(r"no \w+ today",)) == ["seed"]


def test_a_dialect_is_learned_from_one_of_its_words() -> None:
    gemini = (
        "Invalid JSON payload. Unknown name \"const\" at 'tools[0].function_declarations': Cannot find field."
    )
    assert set(named(gemini)) >= {"schema.const", "schema.additionalProperties"}
    groq = "invalid schema for response format: response_format/json_schema/a: minItems is not supported"
    assert set(named(groq)) == {"schema.minItems", "schema.maxItems", "schema.pattern"}


def test_python_s_way_to_write_a_document_is_read_too() -> None:
    inner = {"error": {"message": "x", "param": "seed", "code": "unknown_parameter"}}
    assert named(f"litellm.BadRequestError: OpenAIException - {inner}. No fallback was attempted.") == [
        "seed"
    ]
    located = "{'type': 'int_parsing', 'loc': ('body', 'seed'), 'msg': 'no', 'input': 'x'}"
    assert named(f"1 validation error:\n  {located}") == ["seed=7"]


@given(st.text(max_size=80) | st.text(st.sampled_from("'\"{}[]`:.,seedtolmaxn_ "), max_size=80))
def test_any_sentence_is_read(message: str) -> None:
    for facts in named(message):
        assert joined(*split(facts)) == facts
