"""Reads a server's answer into a `ChatReply`: checks everything, trusts nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from corerun.errors import ContentRefused, RequestRefused, Transient
from corerun.interfaces import ChatReply, ChatRequest, Json, Part, ToolCall, Usage
from corerun_openai_router.endpoint import Endpoint
from corerun_openai_router.failure import classify
from corerun_openai_router.request import schema_tool_name
from corerun_openai_router.text import clean
from corerun_openai_router.transport import Response

_FINISH = {
    "stop": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool",
    "function_call": "tool",
    "tool_use": "tool",
    "content_filter": "filter",
    "refusal": "refusal",
}
_CHARACTERS_PER_TOKEN = 4


def read_reply(response: Response, request: ChatRequest, endpoint: Endpoint) -> ChatReply:
    """The answer in a response whose status says success.

    Raises `Transient` for an answer that is cut, empty or has no choice, `ContentRefused` for a
    refusal, `RequestRefused` for a page, and what an ``error`` object under status 200 says.
    """
    data = _parse(response, endpoint)
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    for holder in (data, choice):
        if isinstance(holder, dict) and holder.get("error"):
            raise classify(response.with_error(holder["error"]), request, endpoint)
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Transient(endpoint.say("the answer has no choices"))
    calls = _tool_calls(message)
    text = _text(message.get("content"))
    reasoning = _text(message.get("reasoning_content") or message.get("reasoning"))
    finish = _finish(choice.get("finish_reason"), calls)
    refusal = _text(message.get("refusal"))
    if refusal or finish in ("filter", "refusal"):
        raise ContentRefused(endpoint.say(f"the model refused to answer: {refusal or 'content filter'}"))
    if not (text or calls or reasoning) and finish in ("stop", "unknown"):
        raise Transient(endpoint.say("the answer is empty"))
    if request.schema is not None and not text:
        text = _schema_answer(calls, schema_tool_name(request))
    return ChatReply(
        text=text,
        tool_calls=calls,
        reasoning=reasoning,
        finish=finish,
        usage=read_usage(data.get("usage"), request, text + reasoning),
        model=data["model"] if isinstance(data.get("model"), str) and data["model"] else request.model,
    )


def _parse(response: Response, endpoint: Endpoint) -> dict[str, Json]:
    text = response.text
    if "html" in response.headers.get("content-type", "") or text.lstrip()[:1] == "<":
        kind = response.headers.get("content-type", "no content type")
        raise RequestRefused(
            endpoint.say(f"answered with a page ({kind}): {text[:200]}"), hint=endpoint.version_hint
        )
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise Transient(
            endpoint.say("the answer is empty or cut" if text else "the answer is empty")
        ) from None
    if not isinstance(data, dict):
        raise Transient(endpoint.say("the answer is no JSON object"))
    return data


def _text(content: Json) -> str:
    """The text of a message; a list of parts is joined, null is empty."""
    if content is None:
        return ""
    if isinstance(content, str):
        return clean(content)
    if isinstance(content, list):
        return "".join(_text(part.get("text") if isinstance(part, dict) else part) for part in content)
    return clean(json.dumps(content, ensure_ascii=False))


def _finish(reason: Json, calls: tuple[ToolCall, ...]) -> str:
    if isinstance(reason, str) and reason.lower() in _FINISH:
        return _FINISH[reason.lower()]
    return "tool" if calls else "unknown"


def _tool_calls(message: Mapping[str, Json]) -> tuple[ToolCall, ...]:
    """The calls of a message; some servers fill the older field ``function_call``, or both."""
    found = message.get("tool_calls")
    if not isinstance(found, list) or not found:
        found = [{"function": message.get("function_call")}]
    calls: list[ToolCall] = []
    for item in found:
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        call_id = item.get("id")
        calls.append(
            ToolCall(
                id=call_id if isinstance(call_id, str) and call_id else f"call_{len(calls)}",
                name=clean(function["name"]),
                arguments=_text(function.get("arguments")),
            )
        )
    return tuple(calls)


def _schema_answer(calls: tuple[ToolCall, ...], name: str) -> str:
    named = [call.arguments for call in calls if call.name == name]
    return (named or [call.arguments for call in calls] or [""])[0]


# ---------------------------------------------------------------------------------------- usage


def read_usage(data: Json, request: ChatRequest, answer: str) -> Usage:
    """Tokens as the vendors report them; what is missing or no number is estimated.

    OpenAI counts cached tokens inside the prompt, DeepSeek names them ``prompt_cache_hit_tokens``,
    Anthropic counts them beside ``input_tokens``; xAI counts reasoning beside the completion.
    """
    usage: Mapping[str, Json] = data if isinstance(data, dict) else {}
    prompt = _count(usage, "prompt_tokens")
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    if cached is None:
        cached = _count(usage, "prompt_cache_hit_tokens")
    if prompt is None:
        prompt = _count(usage, "input_tokens")
        if prompt is not None:
            read = _count(usage, "cache_read_input_tokens") or 0
            prompt += read + (_count(usage, "cache_creation_input_tokens") or 0)
            cached = cached or read
    completion = _count(usage, "completion_tokens")
    if completion is None:
        completion = _count(usage, "output_tokens")
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens") or 0
    if prompt is not None and completion is not None:
        total = _count(usage, "total_tokens")
        if reasoning and total == prompt + completion + reasoning:
            completion += reasoning
    estimated = prompt is None or completion is None
    if prompt is None:
        prompt = _estimate(sum(_characters(message.content) for message in request.messages))
    if completion is None:
        completion = _estimate(len(answer))
    return Usage(
        prompt=prompt,
        completion=completion,
        reasoning=min(reasoning, completion),
        cached=min(cached or 0, prompt),
        estimated=estimated,
        cost_usd=_amount(usage.get("cost")),
    )


def _amount(value: Json) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) and value >= 0 else None


def _count(usage: Mapping[str, Json], name: str) -> int | None:
    amount = _amount(usage.get(name))
    return None if amount is None else int(amount)


def _detail(usage: Mapping[str, Json], group: str, name: str) -> int | None:
    details = usage.get(group)
    return _count(details, name) if isinstance(details, dict) else None


def _estimate(characters: int) -> int:
    return math.ceil(characters / _CHARACTERS_PER_TOKEN)


def _characters(content: str | tuple[Part, ...]) -> int:
    return len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
