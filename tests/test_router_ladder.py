"""How a call climbs down to a request that is taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import RequestRefused, Transient, Unsupported, UnsupportedParameter
from corerun.interfaces import ChatReply, ChatRequest, Connection, Delta, Message
from corerun_openai_router.provider import OpenAIRouter
from tests.support.openai_server import OpenAIServer, fault, text, tool
from tests.support.router import CONTEXT, DIVE, EVERYTHING, KEY, QUESTION, SCHEMA, STRUCTURED


def refusal(message: str, status: int = 400, **fields: Any) -> Any:
    return fault(status, {"error": {"message": message, **fields}})


class Talk:
    """A router that asks a server whose answers follow from bodies."""

    def __init__(self, folder: Path, answer: Callable[[dict[str, Any]], Any], **environ: str) -> None:
        self.server = OpenAIServer(answer)
        self._environ = {"CORERUN_CAPS_PATH": str(folder / "caps.sqlite"), **environ}
        self._fields: dict[str, Any] = {}

    def with_fields(self, **fields: Any) -> Talk:
        self._fields = fields
        return self

    async def __aenter__(self) -> Talk:
        await self.server.__aenter__()
        environ = {**self.server.environ(KEY), **self._environ}
        self.router = OpenAIRouter(Connection(environ=environ, **self._fields))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.router.aclose()
        await self.server.__aexit__(*error)

    async def ask(self, request: ChatRequest = EVERYTHING, *, strict: bool = False) -> ChatReply:
        return await self.router.complete(request, replace(CONTEXT, strict=strict))


def refusing(*names: str) -> Callable[[dict[str, Any]], Any]:
    def answer(sent: dict[str, Any]) -> Any:
        for name in names:
            if name in sent:
                return refusal(f"Unknown parameter: '{name}'.", param=name)
        return {"metres": 1}

    return answer


async def test_each_refused_feature_costs_one_request_once(tmp_path: Path) -> None:
    async with Talk(tmp_path, refusing("seed", "stop")) as talk:
        first, second = await talk.ask(), await talk.ask()
        assert (first.requests, second.requests) == (3, 1)
        assert [lost.feature for lost in first.degradations] == ["seed", "stop"]
        assert first.degradations[0].reason == "HTTP 400: Unknown parameter: 'seed'."
        assert second.degradations[0].reason.startswith("known since 20")
        assert first.created is not None and talk.server.bodies[-1]["temperature"] == 0.5


async def test_all_features_of_one_sentence_go_at_once(tmp_path: Path) -> None:
    def answer(sent: dict[str, Any]) -> Any:
        if sent.keys() & {"seed", "top_p"}:
            return refusal("Unrecognized request arguments supplied: seed, top_p")
        return {"metres": 1}

    async with Talk(tmp_path, answer) as talk:
        assert (await talk.ask()).requests == 2


async def test_a_feature_that_was_not_sent_takes_nothing_else_with_it(tmp_path: Path) -> None:
    async with Talk(tmp_path, lambda sent: refusal("Unknown parameter: 'logprobs'.")) as talk:
        with pytest.raises(RequestRefused):
            await talk.ask()
        assert talk.server.calls == 1


async def test_a_server_that_refuses_everything_is_given_up_and_never_asked_twice_the_same(
    tmp_path: Path,
) -> None:
    async with Talk(tmp_path, lambda sent: fault(400)) as talk:
        with pytest.raises(RequestRefused):
            await talk.ask()
        sent = [json.dumps(item, sort_keys=True) for item in talk.server.bodies]
        assert len(set(sent)) == len(sent) == 8
        assert talk.router.learned("test-model") == []


async def test_a_server_that_haggles_about_the_limit_is_given_up(tmp_path: Path) -> None:
    def answer(sent: dict[str, Any]) -> Any:
        if "max_tokens" not in sent:
            return {"metres": 1}
        return refusal(f"max_tokens is too large: at most {sent['max_tokens'] - 1}", param="max_tokens")

    async with Talk(tmp_path, answer) as talk:
        with pytest.raises(RequestRefused):
            await talk.ask()
        assert [item["max_tokens"] for item in talk.server.bodies] == [64, 63]


async def test_what_is_refused_together_is_kept_apart(tmp_path: Path) -> None:
    def answer(sent: dict[str, Any]) -> Any:
        if "tools" in sent and "reasoning_effort" in sent:
            return refusal("Function tools with reasoning_effort are not supported for x")
        return {"metres": 1}

    async with Talk(tmp_path, answer) as talk:
        await talk.ask()
        await talk.ask(replace(EVERYTHING, schema=None))
        assert "reasoning_effort" not in talk.server.bodies[1]
        assert talk.server.bodies[2]["reasoning_effort"] == "low" and talk.server.calls == 3


async def test_an_internal_error_is_passing_the_first_time_and_lasting_the_second(tmp_path: Path) -> None:
    async with Talk(tmp_path, lambda sent: fault(500) if "seed" in sent else {"metres": 1}) as talk:
        with pytest.raises(Transient):
            await talk.ask()
        reply = await talk.ask()
        assert (reply.requests, [lost.feature for lost in reply.degradations]) == (2, ["seed"])


async def test_a_server_that_was_ill_for_two_requests_has_refused_nothing_for_long(tmp_path: Path) -> None:
    answers = iter([fault(500), fault(500)])
    async with Talk(tmp_path, lambda sent: next(answers, {"metres": 1})) as talk:
        with pytest.raises(Transient):
            await talk.ask()
        await talk.ask()
        (row,) = [row for row in talk.router.learned("test-model") if row["feature"] == "seed"]
        assert row["state"] == "guessed" and row["expires"] - row["last_seen"] == 3600


async def test_an_internal_error_that_says_it_will_pass_is_no_refusal_however_often_it_comes(
    tmp_path: Path,
) -> None:
    said = "The server had an error while processing your request. Sorry about that!"
    async with Talk(tmp_path, lambda sent: refusal(said, 500, type="server_error")) as talk:
        for _ in range(3):
            with pytest.raises(Transient):
                await talk.ask()
        assert talk.server.calls == 3 and all(body["seed"] == 7 for body in talk.server.bodies)


async def test_an_internal_error_that_names_a_parameter_is_a_refusal(tmp_path: Path) -> None:
    def answer(sent: dict[str, Any]) -> Any:
        return refusal("Unsupported param: seed", 500) if "seed" in sent else {"metres": 1}

    async with Talk(tmp_path, answer) as talk:
        assert (await talk.ask()).requests == 2


async def test_an_answer_forgets_an_internal_error(tmp_path: Path) -> None:
    answers = iter([fault(500), {"metres": 1}, fault(500)])
    async with Talk(tmp_path, lambda sent: next(answers)) as talk:
        for expected in (Transient, None, Transient):
            if expected is None:
                assert (await talk.ask()).requests == 1
            else:
                with pytest.raises(expected):
                    await talk.ask()


async def test_what_was_learned_before_a_fault_is_kept(tmp_path: Path) -> None:
    answers = iter([refusal("Unknown parameter: 'seed'."), fault(503), {"metres": 1}])
    async with Talk(tmp_path, lambda sent: next(answers)) as talk:
        with pytest.raises(Transient):
            await talk.ask()
        assert (await talk.ask()).requests == 1 and "seed" not in talk.server.bodies[-1]


async def test_a_strict_call_sends_nothing_that_is_known_to_be_refused(tmp_path: Path) -> None:
    async with Talk(tmp_path, refusing("seed")) as talk:
        for status in (400, 0):
            with pytest.raises(UnsupportedParameter, match="refuses seed") as caught:
                await talk.ask(strict=True)
            assert (caught.value.parameter, caught.value.status) == ("seed", status)
        assert talk.server.calls == 1
        await talk.ask(replace(EVERYTHING, seed=None), strict=True)


async def test_a_declared_ability_is_not_given_up(tmp_path: Path) -> None:
    talk = Talk(tmp_path, refusing("seed")).with_fields(capabilities={"seed": True, "vision": False})
    async with talk:
        with pytest.raises(RequestRefused):
            await talk.ask()
        assert talk.server.calls == 1 and "image_url" not in json.dumps(talk.server.bodies)
        assert {(row["feature"], row["state"]) for row in talk.router.learned("test-model")} == {
            ("seed", "pin-yes"),
            ("images", "pin-no"),
        }


async def test_calls_written_as_text_are_calls(tmp_path: Path) -> None:
    answers = {
        "dive": text('```json\n{"tool": "dive", "arguments": {"metres": 3}}\n```'),
        "no": text("I won't."),
    }
    talk = Talk(tmp_path, lambda sent: answers["no" if "no!" in json.dumps(sent) else "dive"])
    async with talk.with_fields(capabilities={"tools": False, "functions": False}):
        request = replace(QUESTION, tools=(DIVE,))
        reply = await talk.ask(request)
        assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == [
            ("dive", {"metres": 3})
        ]
        refused = await talk.ask(replace(request, messages=(Message("user", "no!"),)))
        assert refused.tool_calls == () and refused.text == "I won't."


async def test_nulls_of_a_strict_answer_are_taken_out(tmp_path: Path) -> None:
    schema = {**SCHEMA, "properties": {"metres": {"type": "number"}, "why": {"type": "string"}}}
    answer = text('{"metres": 3, "why": null}')
    async with Talk(tmp_path, lambda sent: answer).with_fields(capabilities={"tools": False}) as talk:
        assert json.loads((await talk.ask(replace(STRUCTURED, schema=schema))).text) == {"metres": 3}


async def test_a_limit_that_is_ignored_is_sent_under_its_other_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 100}
    async with Talk(tmp_path, lambda sent: text("long", usage=usage)) as talk:
        for _ in range(3):
            await talk.ask(replace(QUESTION, max_tokens=8))
        names = [next(name for name in item if "max" in name) for item in talk.server.bodies]
        assert names == ["max_tokens", "max_completion_tokens", "max_completion_tokens"]
        assert len([line for line in caplog.messages if "max_tokens is ignored" in line]) == 1


async def test_one_answer_in_the_way_that_was_asked_for_starts_the_count_anew(tmp_path: Path) -> None:
    prose, call = text("It is deep."), tool("submit_depth", {"metres": 1})
    answers = iter([prose, prose, call, prose, prose, prose, text('{"metres": 1}')])
    async with Talk(tmp_path, lambda sent: next(answers)) as talk:
        for _ in range(7):
            reply = await talk.ask(STRUCTURED)
        assert ["tools" in item for item in talk.server.bodies] == [True] * 6 + [False]
        assert [lost.feature for lost in reply.degradations] == ["tools"]
        states = {row["feature"]: row["state"] for row in talk.router.learned("test-model")}
        assert states == {"channel.tool": "ignored", "channel.json_schema": "yes"}


async def test_debugging_shows_every_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "corerun.openai_router")
    async with Talk(tmp_path, refusing("seed"), OAIC_DEBUG="1") as talk:
        await talk.ask()
    said = "HTTP 400: Unknown parameter: 'seed'."
    assert caplog.messages == [
        f"test-model: refused: seed ({said})",
        f"test-model: learned seed: no ({said})",
        "test-model: learned channel.tool: yes (an answer came this way)",
    ]


async def test_a_stream_goes_down_the_same_ladder(tmp_path: Path) -> None:
    chunks = [
        {"choices": [{"delta": {"content": piece}, "finish_reason": finish}]}
        for piece, finish in (("10,", None), ("935 m", "stop"))
    ]
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def answer(sent: dict[str, Any]) -> Any:
        for name in ("stream_options", "seed"):
            if name in sent:
                return refusal(f"Unknown parameter: '{name}'.")
        return fault(200, events, {"content-type": "text/event-stream"})

    async with Talk(tmp_path, answer) as talk:
        request = replace(QUESTION, seed=7)
        pieces = [delta async for delta in talk.router.stream(request, CONTEXT)]
        assert pieces[:2] == [Delta("text", "10,"), Delta("text", "935 m")]
        reply = pieces[-1].reply
        assert reply is not None and reply.text == "10,935 m" and reply.requests == 3
        assert talk.server.bodies[0]["stream_options"] == {"include_usage": True}
        assert {lost.feature for lost in reply.degradations} == {"stream_options", "seed"}


async def test_tools_that_are_switched_off_are_refused_before_a_word_is_sent(tmp_path: Path) -> None:
    async with Talk(tmp_path, refusing(), OAIC_DISABLE_TOOLS="1") as talk:
        with pytest.raises(Unsupported, match="OAIC_DISABLE_TOOLS"):
            await talk.ask(replace(QUESTION, tools=(DIVE,)))
        assert talk.server.calls == 0


async def test_a_wrong_address_is_not_mistaken_for_a_refused_feature(tmp_path: Path) -> None:
    async with Talk(tmp_path, lambda sent: fault(404, {"detail": "Not Found"})) as talk:
        with pytest.raises(RequestRefused) as caught:
            await talk.ask()
        assert talk.server.calls == 1 and "OpenAI-compatible" in caught.value.hint
