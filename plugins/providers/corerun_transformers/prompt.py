"""Turns a request into the text that a model reads: through its chat template, or plainly without one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corerun.errors import RequestRefused, Unsupported
from corerun.interfaces import ChatRequest, Degradation, Json, Message

_Turn = dict[str, Any]
_Apply = Callable[[Sequence[_Turn], list[Json] | None], str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads. ``marks``: the tokenizer still has to add its own, such as one for the beginning.

    ``stops`` end the answer beside the request's own.
    """

    text: str
    marks: bool = False
    stops: tuple[str, ...] = ()
    degradations: tuple[Degradation, ...] = ()


def build_prompt(tokenizer: Any, request: ChatRequest) -> Prompt:
    """The prompt for ``request``. Raises `RequestRefused` where the chat template does, and `Unsupported`."""
    template = tokenizer.chat_template
    variables = dict(request.extra.get("chat_template_kwargs") or {})
    dropped: list[Degradation] = []
    if "enable_thinking" in request.extra:
        variables["enable_thinking"] = request.extra["enable_thinking"]
    if request.reasoning_effort is not None:
        variables["reasoning_effort"] = request.reasoning_effort
        if "reasoning_effort" not in str(template):
            dropped.append(Degradation("reasoning_effort", "the model's chat template has no place for it"))
    turns = [_turn(message, request.messages) for message in request.messages]
    if request.schema is not None:
        turns = _with_instruction(turns, _schema_instruction(request.schema))
    tools = [_tool(tool) for tool in request.tools]
    if not template:
        if tools:
            dropped.append(_told("the model has no chat template"))
        lines = [f"{turn['role']}: {turn['content']}" for turn in _tools_as_text(turns, tools)]
        return Prompt("\n".join([*lines, "assistant:"]), True, ("\nuser:",), tuple(dropped))

    def apply(turns: Sequence[_Turn], tools: list[Json] | None) -> str:
        return str(
            tokenizer.apply_chat_template(
                turns, tools=tools, add_generation_prompt=True, tokenize=False, **variables
            )
        )

    text, without_tools = _through_template(apply, turns, tools)
    if without_tools:
        dropped.append(_told(without_tools))
    return Prompt(text, degradations=tuple(dropped))


def _through_template(apply: _Apply, turns: list[_Turn], tools: list[Json]) -> tuple[str, str]:
    """The text, and why it doesn't hold tools in the template's own way, if it doesn't."""
    refusal = ""
    calls = [call["function"]["name"] for turn in turns for call in turn.get("tool_calls", ())]
    if tools or calls or any(turn["role"] == "tool" for turn in turns):
        text = _tried(apply, turns, tools or None)
        if text is None:
            refusal = "the model's chat template refuses tools"
        elif (tools and text == apply(turns, None)) or not all(name in text for name in calls):
            refusal = "the model's chat template ignores tools"
        else:
            return text, ""
        turns = _tools_as_text(turns, tools)
    text = _tried(apply, turns, None)
    if text is None:
        # Templates that know no system turn, or only user and assistant in turn, say so by failing.
        turns = _alternating(turns)
        text = _tried(apply, turns, None)
    if text is None:
        raise RequestRefused(
            "the model's chat template refuses the messages",
            hint="begin with a user's turn, and end with one",
        )
    return text, refusal


def _tried(apply: _Apply, turns: Sequence[_Turn], tools: list[Json] | None) -> str | None:
    from jinja2 import TemplateError

    try:
        return apply(turns, tools)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError):
        return None


def _told(reason: str) -> Degradation:
    return Degradation("tools", f"{reason}: they are described in the system turn")


def _turn(message: Message, messages: Sequence[Message]) -> _Turn:
    content = message.content
    if not isinstance(content, str):
        if any(part.kind == "image" for part in content):
            raise Unsupported("a model in this process can't see images", hint="ask without images")
        content = "\n".join(part.text for part in content)
    turn: _Turn = {"role": message.role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        made = [call for other in messages for call in other.tool_calls if call.id == message.tool_call_id]
        turn |= {"tool_call_id": message.tool_call_id, "name": made[-1].name if made else "function"}
    return turn


def _arguments(text: str) -> Json:
    """Templates print the arguments as an object; what is none is kept under a name of its own."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"_invalid": text}


def _tool(tool: Json) -> Json:
    return tool if "function" in tool else {"type": "function", "function": tool}


def _tools_as_text(turns: Sequence[_Turn], tools: Sequence[Json]) -> list[_Turn]:
    """Calls and results written out, and the tools in the system turn."""
    written: list[_Turn] = []
    for turn in turns:
        content = turn["content"]
        if turn["role"] == "tool":
            written.append({"role": "user", "content": f"result of {turn['name']}: {content}"})
            continue
        calls = [_call_text(call["function"]) for call in turn.get("tool_calls", ())]
        written.append({"role": turn["role"], "content": "\n".join([content] * bool(content) + calls)})
    if not tools:
        return written
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    told = (
        f"You can call these functions, one JSON object per line:\n{described}\n"
        'To call one, write <tool_call>{"name": "the function", "arguments": {...}}</tool_call>.'
    )
    if written and written[0]["role"] == "system":
        return [{"role": "system", "content": f"{written[0]['content']}\n\n{told}"}, *written[1:]]
    return [{"role": "system", "content": told}, *written]


def _call_text(function: Mapping[str, Json]) -> str:
    called = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>{json.dumps(called, ensure_ascii=False)}</tool_call>"


def _alternating(turns: Sequence[_Turn]) -> list[_Turn]:
    """The same words as turns of user and assistant alone, no two of the same role in a row."""
    merged: list[_Turn] = []
    for turn in turns:
        role = "assistant" if turn["role"] == "assistant" else "user"
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += f"\n\n{turn['content']}"
        else:
            merged.append({"role": role, "content": turn["content"]})
    return merged


def _schema_instruction(schema: Json) -> str:
    written = json.dumps(schema, ensure_ascii=False)
    return f"Answer with one JSON object and nothing else. It must fit this JSON Schema:\n{written}"


def _with_instruction(turns: Sequence[_Turn], instruction: str) -> list[_Turn]:
    """``instruction`` at the end of the last turn if that is the user's, else in a turn of its own."""
    if turns and turns[-1]["role"] == "user":
        return [*turns[:-1], {**turns[-1], "content": f"{turns[-1]['content']}\n\n{instruction}"}]
    return [*turns, {"role": "user", "content": instruction}]
