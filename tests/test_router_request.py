"""How a request is written for a server of which something is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.interfaces import Json, Message, ToolCall
from corerun_openai_router.asking.request import build
from corerun_openai_router.asking.schema import keywords_of, prepared, strict, without_nulls
from tests.support.router import DIVE, EVERYTHING, QUESTION, STRUCTURED, written

# --------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("facts", "channel"),
    [
        ((), "tool"),
        (("tools",), "json_schema"),
        (("tools", "response_format.json_schema"), "functions"),
        (("tools", "response_format.json_schema", "functions"), "json_object"),
        (("tools", "response_format", "functions"), "prompt"),
        (("channel.tool",), "json_schema"),
        (("tools", "prefer.functions"), "functions"),
        (("tools", "prefer.functions", "functions"), "json_schema"),
        (("prefer.functions",), "tool"),
        (("tools", "functions", "prefer.json_object"), "json_object"),
        (("tools", "response_format&thinking"), "functions"),
    ],
)
def test_a_schema_takes_the_first_way_that_is_open(facts: tuple[str, ...], channel: str) -> None:
    assert build(STRUCTURED, frozenset(facts)).channel == channel


def test_openai_is_asked_for_a_response_format_first() -> None:
    asked = written(STRUCTURED, openai=True)
    described = asked["response_format"]["json_schema"]
    assert described["strict"] is True and described["name"] == "submit_depth" and "tools" not in asked
    assert described["schema"]["additionalProperties"] is False
    assert build(STRUCTURED, frozenset({"response_format"}), openai=True).channel == "tool"


def test_a_way_that_was_ignored_is_followed_by_one_with_words() -> None:
    asked = written(STRUCTURED, "channel.tool")
    assert "JSON Schema" in asked["messages"][-1]["content"] and "response_format" in asked


@pytest.mark.parametrize(
    ("schema", "way"),
    [
        ({"type": "array", "items": {"type": "number"}}, "prompt"),
        (
            {
                "$ref": "#/$defs/T",
                "$defs": {"T": {"type": "object", "properties": {"t": {"$ref": "#/$defs/T"}}}},
            },
            "prompt",
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/A"}},
                "$defs": {"A": {"type": "number"}},
            },
            "tool",
        ),
    ],
)
def test_what_no_function_can_take_is_asked_for_in_words(schema: Any, way: str) -> None:
    built = build(replace(STRUCTURED, schema=schema))
    assert built.channel == way
    assert way == "tool" or "JSON Schema" in built.body["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("fact", "gone"),
    [
        ("seed", "seed"),
        ("reasoning_effort", "reasoning_effort"),
        ("reasoning_effort=low", "reasoning_effort"),
        ("reasoning_effort&tools", "reasoning_effort"),
        ("temperature=0.5", "temperature"),
        ("stop", "stop"),
    ],
)
def test_a_fact_removes_its_parameter_and_nothing_else(fact: str, gone: str) -> None:
    built = build(EVERYTHING, frozenset({fact}))
    before = written(EVERYTHING)
    assert built.applied == (fact,)
    assert built.body == {name: value for name, value in before.items() if name != gone}


@pytest.mark.parametrize("fact", ["reasoning_effort=none", "temperature=1", "n", "max_tokens<=4096"])
def test_a_fact_about_something_else_changes_nothing(fact: str) -> None:
    built = build(EVERYTHING, frozenset({fact}))
    assert built.applied == () and built.body == written(EVERYTHING)


def test_the_limit_has_two_names_and_a_largest_value() -> None:
    def limits(*facts: str) -> dict[str, Any]:
        return {name: value for name, value in written(EVERYTHING, *facts).items() if "max" in name}

    assert limits("max_tokens") == {"max_completion_tokens": 64}
    assert limits("max_tokens", "max_completion_tokens") == {}
    assert limits("max_tokens<=16") == {"max_tokens": 16}
    assert limits("max_tokens", "max_tokens<=16", "max_tokens<=8") == {"max_completion_tokens": 8}


@pytest.mark.parametrize(
    ("facts", "choice"),
    [
        ((), {"type": "function", "function": {"name": "submit_depth"}}),
        (("tool_choice=object",), "auto"),
        (("tool_choice&thinking",), "auto"),
        (("tool_choice",), None),
        (("tool_choice=object", "tool_choice=auto"), None),
    ],
)
def test_the_choice_of_a_tool_is_relaxed(facts: tuple[str, ...], choice: Any) -> None:
    asked = written(STRUCTURED, *facts)
    assert asked.get("tool_choice") == choice and asked["tools"]


def test_a_choice_is_kept_where_thinking_is_switched_off() -> None:
    request = replace(STRUCTURED, extra={"enable_thinking": False})
    assert isinstance(written(request, "tool_choice&thinking")["tool_choice"], dict)


def test_tools_beside_a_schema_are_a_choice_of_all() -> None:
    request = replace(STRUCTURED, tools=(DIVE,))
    asked = written(request)
    names = [item["function"]["name"] for item in asked["tools"]]
    assert names == ["submit_depth", "dive"] and asked["tool_choice"] == "required"
    words = written(request, "tools", "functions", "response_format")["messages"][-1]["content"]
    assert '"oneOf"' in words and '"submit_depth"' in words and '"dive"' in words


def test_functions_are_the_older_way_to_write_tools() -> None:
    strictly = {"type": "function", "function": {**DIVE, "strict": True}}
    choice = {"type": "function", "function": {"name": "dive"}}
    request = replace(
        QUESTION, tools=(strictly,), extra={"tool_choice": choice, "parallel_tool_calls": False}
    )
    asked = written(request, "tools")
    assert asked["functions"] == [DIVE] and asked["function_call"] == {"name": "dive"}
    assert not asked.keys() & {"tools", "tool_choice", "parallel_tool_calls"}
    assert written(request, "tools", "function_call=object")["function_call"] == "auto"
    assert "strict" not in written(request, "tools.strict")["tools"][0]["function"]


def test_a_caller_s_own_response_format_is_relaxed_step_by_step() -> None:
    given_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    request = replace(QUESTION, extra={"response_format": given_format})
    assert written(request)["response_format"] == given_format
    assert written(request, "response_format.json_schema")["response_format"] == {"type": "json_object"}
    facts = ("response_format.json_schema", "response_format.json_object")
    assert "response_format" not in written(request, *facts)
    assert "JSON" in written(request, "messages.no_json_word")["messages"][-1]["content"]


def test_defaults_and_empty_values_are_not_sent() -> None:
    extra: dict[str, Json] = {
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "n": 1,
        "logit_bias": None,
        "stop": [],
    }
    assert written(replace(QUESTION, extra=extra)).keys() == {"model", "messages"}
    assert written(replace(QUESTION, extra={"presence_penalty": 0.1}))["presence_penalty"] == 0.1


@pytest.mark.parametrize(
    ("role", "facts", "openai", "nearest"),
    [
        ("system", ("messages.system",), False, "user"),
        ("system", ("messages.system",), True, "developer"),
        ("system", ("messages.system", "messages.developer"), True, "user"),
        ("developer", ("messages.developer",), False, "system"),
    ],
)
def test_a_refused_role_becomes_the_nearest(
    role: str, facts: tuple[str, ...], openai: bool, nearest: str
) -> None:
    request = replace(QUESTION, messages=(Message(role, "Be brief."), *QUESTION.messages))
    assert written(request, *facts, openai=openai)["messages"][0]["role"] == nearest


def test_a_user_s_turn_is_added_where_servers_insist_on_one() -> None:
    request = replace(QUESTION, messages=(Message("system", "Say hello."),))
    assert [turn["role"] for turn in written(request, "messages.no_user_turn")["messages"]] == [
        "system",
        "user",
    ]
    assert len(written(QUESTION, "messages.no_user_turn")["messages"]) == 1


def test_thinking_goes_back_only_where_it_is_asked_for() -> None:
    turn = Message("assistant", "<think>hm</think>Deep.", reasoning="hm")
    request = replace(QUESTION, messages=(*QUESTION.messages, turn, Message("user", "How deep?")))
    assert written(request)["messages"][1] == {"role": "assistant", "content": "Deep."}
    assert written(request, "needs_reasoning_back")["messages"][1]["reasoning_content"] == "hm"


def test_the_instruction_follows_an_image_as_a_part() -> None:
    asked = written(EVERYTHING, "tools", "functions", "response_format")
    assert asked["messages"][-1]["content"][-1]["text"].startswith("Answer with one JSON object")
    after = replace(STRUCTURED, messages=(*QUESTION.messages, Message("assistant", "Hm.")))
    assert written(after, "tools", "functions", "response_format")["messages"][-1]["role"] == "user"


CALLED = (
    Message("user", "go"),
    Message("assistant", "", (ToolCall("a", "dive", '{"metres": 1}'),)),
    Message("tool", "wet", tool_call_id="a"),
)


def test_a_past_call_is_written_in_every_form() -> None:
    request = replace(QUESTION, messages=CALLED)
    assert [turn["role"] for turn in written(request)["messages"]] == ["user", "assistant", "tool"]
    old = written(request, "tools")["messages"]
    assert old[1]["function_call"] == {"name": "dive", "arguments": '{"metres": 1}'}
    assert old[2] == {"role": "function", "name": "dive", "content": "wet"}
    said = written(request, "tools", "functions")["messages"]
    assert [turn["content"] for turn in said[1:]] == ['called dive({"metres": 1})', "result of dive: wet"]


FACTS = st.frozensets(
    st.sampled_from(
        [
            *("seed", "reasoning_effort", "max_tokens", "max_completion_tokens", "max_tokens<=16", "tools"),
            *("functions", "response_format", "response_format.json_schema", "images", "tool_choice"),
            *("tool_choice=object", "messages.system", "needs_reasoning_back", "channel.tool"),
            *("schema.plain", "schema.description", "prefer.functions", "temperature=0.5"),
        ]
    )
)


@given(FACTS, st.booleans())
def test_a_body_holds_nothing_that_is_refused(facts: frozenset[str], openai: bool) -> None:
    built = build(EVERYTHING, facts, openai=openai)
    assert not built.body.keys() & facts and set(built.applied) <= facts
    assert None not in built.body.values()
    assert build(EVERYTHING, frozenset(built.applied) | {"prefer.functions"} & facts, openai=openai) == built
    if "images" in facts:
        assert "image_url" not in json.dumps(built.body)


# -------------------------------------------------------------------------------------- schemas


def test_a_strict_schema_closes_objects_and_lets_optional_keys_be_null() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "sizes": {
                "type": "array",
                "items": {"type": "object", "properties": {"x": {"type": "number"}}, "required": []},
            },
        },
        "required": ["name"],
    }
    closed: Json = strict(schema)
    assert closed["required"] == ["name", "sizes"] and closed["additionalProperties"] is False
    assert closed["properties"]["sizes"]["anyOf"][1] == {"type": "null"}
    answer = {"name": "a", "sizes": [{"x": None}, {"x": 1}]}
    assert without_nulls(answer, schema) == {"name": "a", "sizes": [{}, {"x": 1}]}
    assert without_nulls({"name": None, "sizes": None}, schema) == {"name": None}


@pytest.mark.parametrize(
    "open_schema", [{"type": "object"}, {"type": "object", "additionalProperties": {"type": "number"}}, {}]
)
def test_a_map_or_anything_has_no_strict_form(open_schema: Any) -> None:
    assert strict({"type": "object", "properties": {"x": open_schema}, "required": ["x"]}) is None


def test_refused_words_are_left_out_of_schemas_but_not_out_of_names() -> None:
    schema = {
        "type": "object",
        "title": "T",
        "properties": {"minItems": {"type": "array", "minItems": 2, "title": "t"}},
    }
    kept = prepared(schema, frozenset({"schema.minItems"}))
    assert kept == {"type": "object", "properties": {"minItems": {"type": "array"}}}
    assert "pattern" not in set(keywords_of(kept))
    built = build(replace(STRUCTURED, schema=schema), frozenset({"schema.minItems", "schema.pattern"}))
    assert built.applied == ("schema.minItems",)
