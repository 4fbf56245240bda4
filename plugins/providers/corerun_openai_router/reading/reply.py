"""Reads a server's answer into a `ChatReply`: checks everything, trusts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from corerun.errors import ContentRefused, RequestRefused, Transient
from corerun.interfaces import ChatReply, ChatRequest, Json, ToolCall
from corerun.llm.extraction import candidates
from corerun.llm.messages import printable
from corerun_openai_router.asking.channels import FUNCTION, TOOL
from corerun_openai_router.asking.request import Built, schema_tool_name
from corerun_openai_router.asking.schema import without_nulls
from corerun_openai_router.reading.usage import is_amount, read_usage
from corerun_openai_router.wire.endpoint import Endpoint
from corerun_openai_router.wire.transport import Response

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


def read_document(response: Response, endpoint: Endpoint) -> dict[str, Json]:
    """The JSON object in a response whose status says success.

    Raises `RequestRefused` for a page and `Transient` for anything that is cut or no object.
    """
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


def hidden_error(document: Mapping[str, Json]) -> Json:
    """The error object that a server put into an answer whose status says success; None if there is none."""
    choice = _choice(document)
    for holder in (document, choice):
        if isinstance(holder, dict) and holder.get("error"):
            return holder["error"]
    return None


def read_reply(
    document: Mapping[str, Json], request: ChatRequest, endpoint: Endpoint, built: Built
) -> ChatReply:
    """The answer in a server's document; ``built`` says in which way it was asked for.

    Raises `Transient` for an answer that is empty or has no choice, `ContentRefused` for a refusal.
    """
    choice = _choice(document)
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
    usage = read_usage(document.get("usage"), request, text + reasoning)
    if built.calls_in_text and not calls:
        call = _call_in_text(text, reasoning, finish, request)
        if call is not None:
            text, calls, finish = "", (call,), "tool"
    if request.schema is not None:
        text = _schema_answer(text, calls, request, built)
    model, created = document.get("model"), document.get("created")
    return ChatReply(
        text=text,
        tool_calls=calls,
        reasoning=reasoning,
        finish=finish,
        usage=usage,
        model=model if isinstance(model, str) and model else request.model,
        created=int(created) if created is not None and is_amount(created) else None,
    )


def came_as_asked(reply: ChatReply, channel: str) -> bool:
    """Whether an answer came in the way that was asked for, whatever it says."""
    if channel in (TOOL, FUNCTION):
        return bool(reply.tool_calls)
    text = reply.text.strip()
    if text[:1] == "{" and text[-1:] == "}":
        return True
    return any(isinstance(candidate, dict) for candidate in candidates(reply))


def _choice(document: Mapping[str, Json]) -> Json:
    choices = document.get("choices")
    return choices[0] if isinstance(choices, list) and choices else None


def _call_in_text(text: str, reasoning: str, finish: str, request: ChatRequest) -> ToolCall | None:
    """The call that a text is, if it is one of a function that was offered."""
    names = {tool.get("function", tool).get("name") for tool in request.tools}
    if request.schema is not None:
        names.add(schema_tool_name(request))
    for candidate in candidates(ChatReply(text=text, reasoning=reasoning, finish=finish)):
        if not isinstance(candidate, dict):
            continue
        name = candidate.get("tool", candidate.get("name"))
        if isinstance(name, str) and name in names:
            return ToolCall("call_0", printable(name), _text(candidate.get("arguments")))
    return None


def _schema_answer(text: str, calls: tuple[ToolCall, ...], request: ChatRequest, built: Built) -> str:
    """The answer, wherever the server put it, in the caller's own schema."""
    own = [call.arguments for call in calls if call.name == schema_tool_name(request)]
    others = [] if request.tools else [call.arguments for call in calls]
    text = text or (own or others or [""])[0]
    if built.strict_schema and "null" in text:
        with suppress(ValueError, RecursionError):
            text = json.dumps(without_nulls(json.loads(text), request.schema), ensure_ascii=False)
    return printable(text)


def _text(content: Json) -> str:
    """The text of a message; a list of parts is joined, null is empty."""
    if content is None:
        return ""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, list):
        return "".join(_text(part.get("text") if isinstance(part, dict) else part) for part in content)
    return printable(json.dumps(content, ensure_ascii=False))


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
                name=printable(function["name"]),
                arguments=_text(function.get("arguments")),
            )
        )
    return tuple(calls)
