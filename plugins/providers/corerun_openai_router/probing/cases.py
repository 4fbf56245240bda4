"""The questions that find out what a server takes, and how each answer is judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from corerun.interfaces import Json

Judgement = tuple[str, str]
"""A verdict of `ProbeRow` and its evidence."""

UNKNOWN_MODEL = "corerun-probe-no-such-model"
UNKNOWN_FIELD = "corerun_probe"
IMPOSSIBLE = "corerun_probe"
"""A value that a server which reads the field at all can't take."""

_SLACK = 1.1
_COLOUR = "Which colour do you see? Answer with one word."
_COUNT = "Count from 1 to 9, digits only, one blank between them."
_BLUE = "Describe the colour blue in one sentence. A word that must not be in it: JSON."
_SEA = "How deep is the sea? Use the tool."
_SCHEMA: Json = {
    "type": "object",
    "properties": {"colour": {"type": "string"}},
    "required": ["colour"],
    "additionalProperties": False,
}
_FUNCTION: Json = {
    "name": "measure_depth",
    "description": "Measures the depth of a sea.",
    "parameters": {"type": "object", "properties": {"sea": {"type": "string"}}, "required": ["sea"]},
}
_TOOL: Json = {"type": "function", "function": _FUNCTION}
_RED_DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR42mP4z8BAEmIY1TCqYfhqAACQ+f8B8u7oVwAA"
    "AABJRU5ErkJggg=="
)
"""A PNG of 16 x 16 red pixels."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A chat completion as it came; what is missing is empty."""

    document: Mapping[str, Json]

    @property
    def choices(self) -> Sequence[Json]:
        choices = self.document.get("choices")
        return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []

    @property
    def choice(self) -> Mapping[str, Json]:
        return self.choices[0] if self.choices else {}

    @property
    def message(self) -> Mapping[str, Json]:
        message = self.choice.get("message")
        return message if isinstance(message, dict) else {}

    @property
    def text(self) -> str:
        content = self.message.get("content")
        return content if isinstance(content, str) else ""

    @property
    def calls(self) -> list[str]:
        """Names of the functions that were called, in either form."""
        called = self.message.get("tool_calls")
        calls = called if isinstance(called, list) else []
        functions = [call.get("function") for call in calls if isinstance(call, dict)]
        functions.append(self.message.get("function_call"))
        return [str(function.get("name")) for function in functions if isinstance(function, dict)]

    def tokens(self, name: str) -> int | None:
        usage = self.document.get("usage")
        count = usage.get(name) if isinstance(usage, dict) else None
        return count if isinstance(count, int) else None


@dataclass(frozen=True, slots=True)
class Case:
    """One question. ``fields`` are added to a plain body; ``judge`` reads a successful answer.

    ``first`` is the answer to the first case. ``again`` are fields for a second request that only a server
    which doesn't read the feature would accept.
    """

    feature: str
    fields: Mapping[str, Json]
    judge: Callable[[Answer, Answer], Judgement]
    prompt: str = _COLOUR
    again: Mapping[str, Json] = field(default_factory=dict)

    def body(self, model: str, limit: Mapping[str, Json]) -> dict[str, Json]:
        """The body of the request. ``limit`` keeps its answer short, in the name that the server honours."""
        return {
            "model": model,
            "messages": [{"role": "user", "content": self.prompt}],
            **limit,
            **self.fields,
        }


def _accepted(answer: Answer, first: Answer) -> Judgement:
    return "accepted", _shown(answer)


def _shown(answer: Answer) -> str:
    return f"said {json.dumps(answer.text[:60], ensure_ascii=False)}" if answer.text else "no text"


def _kept_limit(limit: int) -> Callable[[Answer, Answer], Judgement]:
    def judge(answer: Answer, first: Answer) -> Judgement:
        count = answer.tokens("completion_tokens")
        if count is None:
            return "accepted", "the server counts no tokens"
        evidence = f"{count} tokens came for a limit of {limit}"
        if count > limit * _SLACK:
            return "ignored", evidence
        cut = answer.choice.get("finish_reason") == "length"
        return ("honoured" if cut else "accepted"), evidence

    return judge


def _stopped(answer: Answer, first: Answer) -> Judgement:
    """Some servers leave the stop string in; what counts is that nothing follows."""
    if "9" in answer.text:
        return "ignored", _shown(answer)
    stopped = "4" in answer.text and answer.choice.get("finish_reason") == "stop"
    return ("honoured" if stopped else "accepted"), _shown(answer)


def _two_choices(answer: Answer, first: Answer) -> Judgement:
    count = len(answer.choices)
    return ("honoured" if count == 2 else "ignored"), f"{count} choice(s) for n=2"


def _has_logprobs(answer: Answer, first: Answer) -> Judgement:
    has = bool(answer.choice.get("logprobs"))
    return ("honoured", "logprobs came") if has else ("ignored", "no logprobs came")


def _reasons(answer: Answer, first: Answer) -> Judgement:
    usage = answer.document.get("usage")
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    count = details.get("reasoning_tokens") if isinstance(details, dict) else None
    if count or answer.message.get("reasoning_content") or answer.message.get("reasoning"):
        return "honoured", f"{count or 'some'} tokens of reasoning"
    return _accepted(answer, first)


def _ignored(answer: Answer, first: Answer) -> Judgement:
    return "ignored", "taken without a word"


def _is_json(*names: str) -> Callable[[Answer, Answer], Judgement]:
    def judge(answer: Answer, first: Answer) -> Judgement:
        text = answer.text.strip()
        if answer.choice.get("finish_reason") == "length":
            # Cut off: only its beginning can tell.
            kept = text.startswith("{")
            return ("failed" if not text else "honoured" if kept else "ignored"), _shown(answer)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        kept = isinstance(value, dict) and all(name in value for name in names)
        return ("honoured" if kept else "ignored"), _shown(answer)

    return judge


def _calls(*, must: bool) -> Callable[[Answer, Answer], Judgement]:
    def judge(answer: Answer, first: Answer) -> Judgement:
        if answer.calls:
            known = _FUNCTION["name"] in answer.calls
            return ("honoured" if known else "ignored"), f"called {', '.join(answer.calls)}"
        return ("ignored" if must else "accepted"), "no call was made"

    return judge


def _sees(answer: Answer, first: Answer) -> Judgement:
    if "red" in answer.text.lower():
        return "honoured", _shown(answer)
    with_image, without = answer.tokens("prompt_tokens"), first.tokens("prompt_tokens")
    if with_image is not None and with_image == without:
        return "ignored", f"{with_image} prompt tokens with the image and without it"
    return "accepted", _shown(answer)


def _served_anyway(answer: Answer, first: Answer) -> Judgement:
    return "ignored", f"served anyway, by {json.dumps(answer.document.get('model'))}"


def _tools(**more: Json) -> dict[str, Json]:
    return {"tools": [_TOOL], **more}


def _format(kind: str, **more: Json) -> dict[str, Json]:
    return {"response_format": {"type": kind, **more}}


_PAST_CALL = [
    {"role": "user", "content": _SEA},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": _FUNCTION["name"], "arguments": '{"sea": "Baltic"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "55 metres"},
]
_IMAGE = [
    {"type": "text", "text": _COLOUR},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_RED_DOT}"}},
]

PLAIN = Case("chat", {}, _accepted)
"""Asked first: a server that refuses it can't tell anything about the rest."""

LIMITS = (
    Case("max_tokens", {"max_tokens": 4}, _kept_limit(4), _COUNT),
    Case("max_completion_tokens", {"max_completion_tokens": 4}, _kept_limit(4), _COUNT),
)
"""Asked next: the other questions are asked under the limit that works."""

CASES = (
    Case("temperature", {"temperature": 0.5}, _accepted),
    Case("stop", {"stop": ["5"]}, _stopped, _COUNT),
    Case("n", {"n": 2}, _two_choices),
    Case("logprobs", {"logprobs": True}, _has_logprobs),
    Case("reasoning_effort", {"reasoning_effort": "low"}, _reasons, again={"reasoning_effort": IMPOSSIBLE}),
    Case("user", {"user": "someone"}, _accepted, again={"user": {IMPOSSIBLE: 1}}),
    Case("metadata", {"metadata": {"purpose": "probe"}}, _accepted, again={"metadata": IMPOSSIBLE}),
    Case(
        "parallel_tool_calls",
        _tools(parallel_tool_calls=False),
        _accepted,
        _SEA,
        again=_tools(parallel_tool_calls=IMPOSSIBLE),
    ),
    Case("unknown field", {UNKNOWN_FIELD: 1}, _ignored),
    Case("response_format=json_object", _format("json_object"), _is_json(), _BLUE),
    Case(
        "response_format=json_schema",
        _format("json_schema", json_schema={"name": "colour", "schema": _SCHEMA, "strict": True}),
        _is_json("colour"),
        _BLUE,
    ),
    Case("response_format=bogus", _format(IMPOSSIBLE), _ignored),
    Case("tools", _tools(), _calls(must=False), _SEA),
    Case(
        "tool_choice=function",
        _tools(tool_choice={"type": "function", "function": {"name": _FUNCTION["name"]}}),
        _calls(must=True),
    ),
    Case("tool_choice=required", _tools(tool_choice="required"), _calls(must=True)),
    Case(
        "functions",
        {"functions": [_FUNCTION], "function_call": {"name": _FUNCTION["name"]}},
        _calls(must=True),
    ),
    Case("past tool call", _tools(messages=_PAST_CALL), _accepted),
    Case("images", {"messages": [{"role": "user", "content": _IMAGE}]}, _sees),
    Case(
        "developer role",
        {
            "messages": [
                {"role": "developer", "content": "Answer in one word."},
                {"role": "user", "content": _COLOUR},
            ]
        },
        _accepted,
    ),
    Case("unknown model", {"model": UNKNOWN_MODEL}, _served_anyway),
)


def seeded(seed: int) -> Case:
    """A question whose answers differ unless the seed is the same."""
    return Case("seed", {"seed": seed, "temperature": 1.0}, _accepted, "Say five words, any words.")


def judge_seeds(answers: Sequence[Answer]) -> Judgement:
    """``answers`` are to the same question: two with one seed, one with another."""
    one, same, other = (answer.text for answer in answers)
    if one != same:
        return "ignored", "two answers to one question with one seed differ"
    if one == other:
        return "accepted", "the answers are equal, whatever the seed"
    return "honoured", "equal for one seed, different for another"
