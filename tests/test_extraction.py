"""Finding the value in what a model answered: every wrapping comes off, and nothing makes it raise."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from corerun.interfaces import ChatReply, ToolCall
from corerun.llm.extraction import candidates, extract, read_answer, strip_reasoning
from corerun.llm.jsontext import fenced_blocks, repaired, scan
from corerun.llm.structured import Problems, json_schema, validate


class Point(BaseModel):
    x: int
    label: str = "p"


class Plan(BaseModel):
    title: str
    points: list[Point]
    extra: dict[str, Any] = Field(default_factory=dict)


class Anything(BaseModel):
    payload: dict[str, Any]


texts = st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=4)
chatter = st.text(st.characters(blacklist_characters="{}[]<>`\\", blacklist_categories=("Cs",)), max_size=40)


def reply(text: str, **fields: Any) -> ChatReply:
    return ChatReply(text=text, **fields)


@given(
    objects, chatter, chatter, st.sampled_from(["plain", "fence", "think", "closing tag", "double", "call"])
)
def test_any_object_comes_back_from_any_wrapping(
    payload: dict[str, Any], before: str, after: str, wrapping: str
) -> None:
    text = json.dumps({"payload": payload})
    wrapped = {
        "plain": f"{before}{text}{after}",
        "fence": f"{before}\n```json\n{text}\n```\n{after}",
        "think": f'<think>{before} {{"payload": {{"draft": 1}}}}</think>{text}{after}',
        "closing tag": f'{before} {{"payload": {{"draft": 1}}}}</think>\n{text}{after}',
        "double": json.dumps(json.dumps(text)),
        "call": f'{before}<tool_call>{{"name": "Anything", "arguments": {text}}}</tool_call>{after}',
    }[wrapping]
    assert extract(reply(wrapped), Anything).payload == payload


@given(objects, st.integers(0, 3))
def test_pretty_printed_objects_with_stray_quotes_before_them_come_back(
    payload: dict[str, Any], indent: int
) -> None:
    text = json.dumps({"payload": payload}, indent=indent)
    assert extract(reply(f'the {{ 5" screen: \n{text}\nok'), Anything).payload == payload


fragments = [*"{}[]\"'\\,:/*<>`ab1 \n“”", "<think>", "</think>", "```", "True", "NaN", "<function=f>"]


@given(st.lists(st.sampled_from(fragments), max_size=40).map("".join))
def test_arbitrary_text_never_raises_anything_but_problems(text: str) -> None:
    for finish in ("stop", "length"):
        answer = reply(text, finish=finish, reasoning=text, tool_calls=(ToolCall("1", "f", text),))
        list(candidates(answer))
        with pytest.raises(Problems):
            extract(answer, Plan)


@given(st.text(max_size=200))
def test_any_text_at_all_is_survived(text: str) -> None:
    list(candidates(reply(text, tool_calls=(ToolCall("1", "f", text),))))
    strip_reasoning(text)
    fenced_blocks(text)


@pytest.mark.parametrize(
    "piece", ["[", "{", "}", "[}", '{"', '{"a":', "[]", '{"a":[', "\\", '"', '[{"a":"\\"', "{]" * 3]
)
def test_the_scanner_takes_linear_steps(piece: str) -> None:
    small, large = scan(piece * 1000), scan(piece * 10_000)
    assert large.steps <= 2 * len(piece) * 10_000
    assert large.steps <= 11 * max(small.steps, 1)
    assert len(large.spans) <= 64


def test_the_scanner_gives_largest_spans_first_and_later_ones_on_ties() -> None:
    text = '{"a": 1} [1] {"a": 2} {"b": {"c": [1]}}'
    found = [text[start:end] for start, end in scan(text).spans]
    assert found == ['{"b": {"c": [1]}}', '{"c": [1]}', '{"a": 2}', '{"a": 1}', "[1]", "[1]"]


def test_brackets_in_strings_do_not_count() -> None:
    text = 'see {"title": "a } and a { and \\" {", "points": []}'
    assert extract(reply(text), Plan).title == 'a } and a { and " {'


def test_deep_nesting_is_no_crash() -> None:
    for text in ("[" * 100_000, '{"a":' * 50_000, "[" * 100_000 + "]" * 100_000):
        with pytest.raises(Problems):
            extract(reply(text), Plan)


def test_the_first_that_validates_wins_not_the_first_that_parses() -> None:
    text = 'An example: {"unrelated": [1, 2, 3, 4, 5, 6, 7, 8]}. Answer: {"x": 3}'
    assert extract(reply(text), Point).x == 3


def test_the_last_fence_wins() -> None:
    text = '```json\n{"x": 1}\n```\nNo, better:\n```json\n{"x": 2}\n```'
    assert extract(reply(text), Point).x == 2


def test_an_unclosed_fence_counts() -> None:
    assert fenced_blocks("a\n```json\n{}\n") == ["{}\n"]


@pytest.mark.parametrize(
    "text",
    [
        '{"title": "t", "points": [{"x": 1,},],}',
        "{'title': 't', 'points': [{'x': 1}]}",
        '{"title": "t", // a comment\n "points": [{"x": 1}] /* another */}',
        "{“title”: “t”, “points”: [{“x”: 1}]}",
        '{"title": "t", "points": [{"x": 1}], "extra": {"ok": True, "no": None, "bad": -Infinity}}',
        '{"title": "t", "points": [{"x": 1}',
        '{"title": "t", "points": [{"x": 1, "label": "cut',
        'Here: {\\"title\\": \\"t\\", \\"points\\": [{\\"x\\": 1}]}',
        '{"title": "t", "points": "[{\\"x\\": 1}]"}',
        '{"Plan": {"title": "t", "points": [{"x": "1"}]}}',
        '{"response": "{\\"title\\": \\"t\\", \\"points\\": [{\\"x\\": 1}]}"}',
        '{"name": "Plan", "arguments": {"title": "t", "points": [{"x": 1}]}}',
        '[TOOL_CALLS][{"name": "Plan", "arguments": {"title": "t", "points": [{"x": 1}]}}]',
        '<function=Plan><parameter=title>t</parameter><parameter=points>[{"x": 1}]</parameter></function>',
        '<|channel|>analysis<|message|>{"x": 0}<|end|><|start|>assistant<|channel|>final<|message|>'
        '{"title": "t", "points": [{"x": 1}]}',
    ],
)
def test_light_repair_and_unwrapping(text: str) -> None:
    plan = extract(reply(text), Plan)
    assert (plan.title, plan.points[0].x) == ("t", 1)


def test_raw_newlines_in_strings_are_kept() -> None:
    assert extract(reply('{"title": "two\nlines", "points": []}'), Plan).title == "two\nlines"


def test_an_apostrophe_in_a_single_quoted_string_survives() -> None:
    assert repaired("{'a': 'it\\'s \"so\"'}", closers=False) == {"a": 'it\'s "so"'}


def test_missing_closers_are_added_only_to_an_answer_that_ended_by_itself() -> None:
    text = '{"title": "t", "points": [{"x": 1}'
    assert extract(reply(text, finish="stop"), Plan).points[0].x == 1
    with pytest.raises(Problems):
        extract(reply(text, finish="length"), Plan)


def test_thinking_that_was_cut_off_is_no_answer() -> None:
    with pytest.raises(Problems, match="cut off"):
        extract(reply('<think>perhaps {"x": 1}', finish="length"), Point)


def test_tool_call_arguments_come_first_and_may_be_fenced() -> None:
    call = ToolCall("1", "Point", '```json\n{"x": 7}\n```')
    assert extract(reply('{"x": 1}', tool_calls=(call,), finish="tool"), Point).x == 7


def test_the_reasoning_field_is_taken_only_if_the_answer_is_empty() -> None:
    assert extract(reply("", reasoning='{"x": 4}'), Point).x == 4
    with pytest.raises(Problems):
        extract(reply("I don't know.", reasoning='{"x": 4}'), Point)


def test_scalars_are_left_alone() -> None:
    assert extract(reply('{"title": "{\\"x\\": 1}", "points": []}'), Plan).title == '{"x": 1}'


def test_a_list_of_calls_is_not_taken_apart_when_a_list_is_wanted() -> None:
    assert extract(reply('[{"x": 1}]'), list[Point]) == [Point(x=1)]


def test_problems_name_path_problem_and_value() -> None:
    with pytest.raises(Problems) as caught:
        extract(reply('{"title": 5, "points": [{"x": "many"}]}'), Plan)
    assert caught.value.lines[0] == "title: Input should be a valid string (got: 5)"
    assert caught.value.lines[1].startswith("points.0.x: Input should be a valid integer")
    assert caught.value.lines[1].endswith('(got: "many")')
    with pytest.raises(Problems, match="title: Field required"):
        validate(Plan, {"points": []})


def test_text_answers_lose_their_thinking_and_parsers_say_what_is_wrong() -> None:
    answer = reply("<think>hm</think>\nYes.")
    assert read_answer(answer, None, None) == "Yes."
    assert read_answer(answer, None, str.upper) == "YES."
    with pytest.raises(Problems, match="invalid literal"):
        read_answer(answer, None, int)


class Tree(BaseModel):
    """A tree."""

    name: str = Field(min_length=1, description="its name")
    kind: Literal["oak", "elm"] = "oak"
    only: Literal[3] = 3
    parts: list[Tree] = Field(default_factory=list)
    title: Point | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")


def test_schemas_are_plain_closed_and_free_of_references() -> None:
    schema = json_schema(Tree)
    text = json.dumps(schema)
    assert not any(word in text for word in ('"$ref"', '"$defs"', '"default"', '"const"'))
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name"]
    assert schema["properties"]["name"] == {"type": "string", "minLength": 1, "description": "its name"}
    assert schema["properties"]["only"]["enum"] == [3]
    assert schema["properties"]["parts"]["items"] == {"type": "object"}
    point = schema["properties"]["title"]["anyOf"][0]
    assert point["properties"] == {"x": {"type": "integer"}, "label": {"type": "string"}}
    assert point["additionalProperties"] is False
    assert schema["properties"]["scores"]["additionalProperties"] == {"type": "number"}
    assert len(schema["properties"]["pair"]["prefixItems"]) == 2
