"""What is left out when a server refuses it, and how it is said instead."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import UnsupportedParameter
from corerun.interfaces import ChatRequest, Message, Part, ToolCall
from corerun.llm.client import LanguageModels, LlmSettings
from tests.support.fault_server import (
    ANSWER,
    Desk,
    Vendor,
    functions,
    images,
    present,
    words,
)
from tests.support.faults.asking import (
    BARE,
    CONTEXT,
    MODEL,
    NO_IMAGES,
    NO_SEED,
    NO_TOOLS,
    Asked,
    depth,
    named,
    told,
)
from tests.support.faults.driver import Depth, Memory, OneProvider
from tests.support.faults.rows import FULL, IMAGE, KEY, PLAIN, QUESTION, SAMPLED, STRUCTURED, openai
from tests.support.openai_server import fault, text

# ---------------------------------------------------------------------------------------- switches


async def test_000_45_without_tools_answers_are_still_structured(tmp_path: Path) -> None:
    async with Asked(Desk(), tmp_path) as asked:
        reply = await asked.ask(FULL, {"OAIC_DISABLE_TOOLS": "Yes"})
        (body,) = asked.desk.log
        assert not functions(body) and "tool_choice" not in body and "function_call" not in body
        assert depth(reply) == ANSWER and images(body) == 1
        assert '"metres"' in words(body) or present("response_format.json_schema", body)


async def test_000_45_without_vision_no_image_is_sent(tmp_path: Path) -> None:
    async with Asked(Desk(), tmp_path) as asked:
        reply = await asked.ask(FULL, {"OAIC_DISABLE_VISION": "on"})
        (body,) = asked.desk.log
        assert images(body) == 0 and QUESTION in words(body)
        assert depth(reply) == ANSWER and "images" in told(reply)


async def test_000_45_debugging_logs_rungs_without_a_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echoing = openai(f"Unsupported parameter: 'seed' (key {KEY})", param="seed")
    async with Asked(Desk(Vendor({"seed": echoing, "tools": NO_TOOLS})), tmp_path) as asked:
        await asked.ask(FULL, {"OAIC_DEBUG": "1"})
    ours = [item.getMessage() for item in caplog.records if item.name.startswith("corerun")]
    assert any("seed" in line for line in ours) and any("tools" in line for line in ours)
    assert KEY not in caplog.text and all("\n" not in line for line in ours)


# ------------------------------------------------------------------------------------- the seven


@pytest.mark.parametrize("feature", ["seed", "reasoning_effort"])
async def test_000_46_a_refused_parameter_is_dropped_alone(tmp_path: Path, feature: str) -> None:
    async with Asked(Desk(named(feature)), tmp_path) as asked:
        reply = await asked.ask(FULL)
        first, second = asked.desk.log
        assert depth(reply) == ANSWER and told(reply) == {feature}
        assert {**first, feature: None} == {**second, feature: None} and feature not in second


async def test_000_46_a_refused_response_format_is_dropped(tmp_path: Path) -> None:
    async with Asked(Desk(named("response_format")), tmp_path) as asked:
        reply = await asked.ask(STRUCTURED, {"OAIC_DISABLE_TOOLS": "1"})
        assert "response_format" in asked.desk.log[0] and "response_format" not in asked.desk.log[-1]
        assert depth(reply) == ANSWER and asked.desk.log[-1]["seed"] == 7


async def test_000_46_a_null_stop_is_never_sent(tmp_path: Path) -> None:
    async with Asked(
        Desk(Vendor({"null": openai("None is not of type 'array' - 'stop'")})), tmp_path
    ) as asked:
        await asked.ask(replace(SAMPLED, stop=(), extra={"stop": None}))
        (body,) = asked.desk.log
        assert "stop" not in body


@pytest.mark.parametrize(
    ("asked_as", "instead"),
    [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")],
)
@pytest.mark.parametrize("says", ["names it", "says nothing"])
async def test_000_47_token_limits_are_swapped_both_ways(
    tmp_path: Path, asked_as: str, instead: str, says: str
) -> None:
    said = openai(f"Unsupported parameter: '{asked_as}'. Use '{instead}' instead.", param=asked_as)
    desk = Desk(Vendor({asked_as: said if says == "names it" else BARE}))
    azure: dict[str, Any] = {} if asked_as == "max_tokens" else {"api_version": "2024-10-21"}
    async with Asked(desk, tmp_path) as asked:
        request = replace(PLAIN, model=MODEL, max_tokens=64)
        await asked.router(**azure).complete(request, CONTEXT)
        limits = [{name: body[name] for name in (asked_as, instead) if name in body} for body in desk.log]
        assert limits == [{asked_as: 64}, {instead: 64}]
        await asked.router(**azure).complete(request, CONTEXT)
        assert len(desk.log) == 3 and desk.log[2][instead] == 64


SCHEMA_SAID = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
CHANNELS = {
    "tools": NO_TOOLS,
    "response_format.json_schema": openai(SCHEMA_SAID, param="response_format"),
    "functions": openai("Unrecognized request argument supplied: functions"),
}
"""What a server must refuse until only the prompt is left to ask for JSON."""


@pytest.mark.parametrize("refused", [0, 2, 3], ids=["tools", "functions", "JSON"])
async def test_000_48_three_servers_give_the_same_structured_answer(tmp_path: Path, refused: int) -> None:
    async with Asked(Desk(Vendor(dict(list(CHANNELS.items())[:refused]))), tmp_path) as asked:
        reply = await asked.ask(STRUCTURED)
        assert depth(reply) == ANSWER
        last = asked.desk.log[-1]
        assert ("tools" in last, "functions" in last) == (refused == 0, refused == 2)
        if refused == 2:
            assert last["function_call"] == {"name": "submit_depth"}
            assert not {"tool_choice", "parallel_tool_calls"} & set(last)
            assert "strict" not in last["functions"][0]
        if refused == 3:
            turn = last["messages"][-1]
            assert turn["role"] == "user" and "JSON" in turn["content"] and '"metres"' in turn["content"]
            assert turn["content"].startswith(QUESTION)
        assert len(asked.desk.log) == 1 + refused and last["seed"] == 7


async def test_000_49_images_become_text(tmp_path: Path) -> None:
    async with Asked(Desk(Vendor({"images": NO_IMAGES})), tmp_path) as asked:
        reply = await asked.ask(FULL)
        first, second = asked.desk.log
        assert images(first) == 1 and images(second) == 0 and depth(reply) == ANSWER
        assert second["messages"][-1]["content"] == QUESTION and told(reply) == {"images"}
        assert {**first, "messages": 0} == {**second, "messages": 0}


async def test_000_50_the_order_when_the_error_says_nothing(tmp_path: Path) -> None:
    tool = {"name": "dive", "parameters": {"type": "object", "properties": {}}}
    request = replace(
        SAMPLED,
        messages=FULL.messages,
        tools=(tool,),
        extra={"response_format": {"type": "json_object"}},
    )
    desk = Desk(Vendor({"images": BARE}), reply=lambda body: text('{"tool": "dive", "arguments": {}}'))
    async with Asked(desk, tmp_path) as asked:
        await asked.ask(request)
        assert all(present(name, desk.log[0]) for name in ("seed", "tools", "response_format", "images"))
        order = [
            next(number for number, body in enumerate(desk.log) if not present(feature, body))
            for feature in ("seed", "reasoning_effort", "max_tokens", "response_format", "tools", "images")
        ]
        assert order == [1, 2, 3, 4, 5, len(desk.log) - 1]
        assert "functions" in desk.log[5] and "functions" not in desk.log[6]
        assert desk.log[3]["max_completion_tokens"] == 64
        desk.log = []
        await asked.ask(request)
        (body,) = desk.log
        kept = ("seed", "reasoning_effort", "max_tokens", "response_format", "tools")
        assert all(present(feature, body) for feature in kept) and not images(body)


async def test_002_22_failed_calls_are_repeated_by_themselves(tmp_path: Path) -> None:
    busy = fault(429, {"error": {"message": "slow down"}}, {"retry-after": "3"})
    first = (busy, fault(503), busy, fault(503))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with Asked(Desk(first=first), tmp_path) as asked:
        models = LanguageModels(
            record=Memory(),
            directory=OneProvider(asked.router()),
            roles={},
            default_model=MODEL,
            settings=LlmSettings(),
            environ={},
            sleep=sleep,
        )
        answer = await models.ask("asker", "test.ask", PLAIN.messages, schema=Depth)
        assert answer.value.model_dump() == ANSWER
        assert len(asked.desk.log) == 5 and answer.reply.requests == 5
        assert len({json.dumps(body) for body in asked.desk.log}) == 1
    assert len(waits) == 4 and all(3.0 <= wait <= 3.3 for wait in waits[::2])
    assert all(0 < wait <= 30.0 for wait in waits[1::2])


# ------------------------------------------------------------------------------------------ strict


async def test_a_strict_call_names_what_is_refused(tmp_path: Path) -> None:
    strict = replace(CONTEXT, strict=True)
    async with Asked(Desk(Vendor({"seed": NO_SEED})), tmp_path) as asked:
        request = replace(SAMPLED, model=MODEL)
        with pytest.raises(UnsupportedParameter, match="seed") as caught:
            await asked.router().complete(request, strict)
        found = caught.value
        assert (found.parameter, found.provider, found.model, found.status) == ("seed", "default", MODEL, 400)
        assert len(asked.desk.log) == 1
        await asked.ask(SAMPLED)
        asked.desk.log = []
        with pytest.raises(UnsupportedParameter) as caught:
            await asked.router().complete(request, strict)
        assert (caught.value.parameter, caught.value.status) == ("seed", 0) and not asked.desk.log


async def test_a_strict_call_does_not_leave_out_features_blindly(tmp_path: Path) -> None:
    async with Asked(Desk(Vendor({"seed": BARE})), tmp_path) as asked:
        with pytest.raises(UnsupportedParameter):
            await asked.router().complete(replace(SAMPLED, model=MODEL), replace(CONTEXT, strict=True))
        assert len(asked.desk.log) == 1


# ---------------------------------------------------------------------------------- past turns, tools

CALLS = (
    ToolCall("call_1", "dive", '{"metres": 3}'),
    ToolCall("call_2", "look", "not JSON at all"),
)


def past(calls: Sequence[ToolCall]) -> ChatRequest:
    """A question after a turn of tool calls."""
    results = [Message("tool", f"Nothing at {call.name}.", tool_call_id=call.id) for call in calls]
    turns = (PLAIN.messages[1], Message("assistant", "", tool_calls=tuple(calls)), *results)
    return replace(STRUCTURED, messages=(*turns, Message("user", "And how deep is it?")))


async def test_a_past_tool_call_is_told_as_a_function_call(tmp_path: Path) -> None:
    async with Asked(Desk(Vendor({"tools": NO_TOOLS})), tmp_path) as asked:
        assert depth(await asked.ask(past(CALLS[:1]))) == ANSWER
        _, turn, result, _ = asked.desk.log[-1]["messages"]
        assert turn["function_call"]["name"] == "dive" and "tool_calls" not in turn
        assert json.loads(turn["function_call"]["arguments"]) == {"metres": 3}
        assert (result["role"], result["name"]) == ("function", "dive") and "tool_call_id" not in result


async def test_two_past_calls_in_one_turn_skip_the_functions(tmp_path: Path) -> None:
    async with Asked(Desk(Vendor({"tools": NO_TOOLS})), tmp_path) as asked:
        assert depth(await asked.ask(past(CALLS))) == ANSWER
        assert len(asked.desk.log) == 2 and "functions" not in asked.desk.log[-1]


async def test_past_tool_calls_become_text_without_tools(tmp_path: Path) -> None:
    async with Asked(Desk(Vendor(CHANNELS)), tmp_path) as asked:
        assert depth(await asked.ask(past(CALLS[:1]))) == ANSWER
        last = asked.desk.log[-1]
        assert {turn["role"] for turn in last["messages"]} <= {"system", "user", "assistant"}
        assert not any({"tool_calls", "function_call"} & set(turn) for turn in last["messages"])
        assert "dive" in words(last) and "Nothing at dive." in words(last)
        assert "JSON" in last["messages"][-1]["content"]


async def test_malformed_arguments_of_a_past_turn_are_legal_json(tmp_path: Path) -> None:
    async with Asked(Desk(), tmp_path) as asked:
        await asked.ask(past(CALLS[1:]))
        (call,) = asked.desk.log[0]["messages"][1]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"_invalid": "not JSON at all"}


async def test_one_of_several_tools_is_chosen_in_the_prompt(tmp_path: Path) -> None:
    tools = [
        {"name": name, "parameters": {"type": "object", "properties": {key: {"type": "number"}}}}
        for name, key in {"dive": "metres", "look": "degrees"}.items()
    ]
    chosen = text('{"tool": "dive", "arguments": {"metres": 3}}')
    desk = Desk(Vendor({"tools": NO_TOOLS, "functions": NO_TOOLS}), reply=lambda body: chosen)
    async with Asked(desk, tmp_path) as asked:
        reply = await asked.ask(replace(PLAIN, tools=tuple(tools)))
        (call,) = reply.tool_calls
        assert call.name == "dive" and json.loads(call.arguments) == {"metres": 3}
        prompt = words(desk.log[-1])
        assert all(word in prompt for word in ('"tool"', '"arguments"', "dive", "look", "oneOf"))


async def test_images_of_earlier_turns_are_left_out_too(tmp_path: Path) -> None:
    request = replace(
        PLAIN,
        messages=(
            Message("user", (IMAGE,)),
            Message("assistant", "A picture."),
            Message("user", (Part("text", "Really?"), IMAGE, Part("text", "Sure?"))),
        ),
    )
    async with Asked(Desk(Vendor({"images": NO_IMAGES})), tmp_path) as asked:
        await asked.ask(request)
        last = asked.desk.log[-1]
        assert "[image omitted]" in json.dumps(last["messages"][0]) and not images(last)
        assert "Really?" in words(last) and "Sure?" in words(last)
