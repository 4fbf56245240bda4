"""Puts the events of a stream together to a message, and reads a `ChatReply` from it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from corerun.errors import ContentRefused, Transient
from corerun.interfaces import ChatReply, ChatRequest, Delta, Json, ToolCall, Usage
from corerun.llm.messages import printable
from corerun_anthropic.endpoint import Endpoint
from corerun_anthropic.request import schema_tool_name

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool",
}
_DELTAS = {
    "text_delta": ("text", "text", "text"),
    "thinking_delta": ("thinking", "thinking", "reasoning"),
    "input_json_delta": ("partial_json", "input_json", "tool_args"),
}
"""Type of a delta -> its own field, the field of the block that it goes into, our word for it."""


class MessageBuilder:
    """A message that is still being written: feed it events, then take ``message``.

    ``message`` has the API's own fields; texts are joined, arguments of tools stay text in
    ``input_json``. It is complete when it has a ``stop_reason``.
    """

    def __init__(self) -> None:
        self._message: dict[str, Json] = {}
        self._blocks: dict[int, dict[str, Json]] = {}

    def feed(self, event: Mapping[str, Json]) -> Delta | None:
        """Takes one event; what it adds to the answer, if anything. Unknown events add nothing."""
        match event.get("type"):
            case "message":
                self._message.update(event)
            case "message_start":
                self._message.update(_object(event.get("message")))
            case "content_block_start":
                self._blocks[_index(event)] = dict(_object(event.get("content_block")))
            case "content_block_delta":
                return self._extend(_index(event), _object(event.get("delta")))
            case "message_delta":
                self._message.update(_object(event.get("delta")))
                counts = {
                    name: count for name, count in _object(event.get("usage")).items() if count is not None
                }
                self._message["usage"] = {**_object(self._message.get("usage")), **counts}
        return None

    @property
    def message(self) -> dict[str, Json]:
        content = [
            {name: "".join(value) if isinstance(value, list) else value for name, value in block.items()}
            for _, block in sorted(self._blocks.items())
        ]
        return {**self._message, "content": content} if content else self._message

    def _extend(self, index: int, delta: Mapping[str, Json]) -> Delta | None:
        source, target, kind = _DELTAS.get(str(delta.get("type")), ("", "", ""))
        piece = delta.get(source)
        if not isinstance(piece, str) or not piece:
            return None
        block = self._blocks.setdefault(index, {"type": target})
        pieces = block.get(target)
        if not isinstance(pieces, list):
            pieces = block[target] = [pieces] if pieces else []
        pieces.append(piece)
        return Delta(kind, printable(piece))


def read_reply(message: Mapping[str, Json], request: ChatRequest, endpoint: Endpoint) -> ChatReply:
    """The answer in a whole message. Raises `Transient` for an empty one, `ContentRefused` for a refusal."""
    blocks = [block for block in message.get("content") or () if isinstance(block, dict)]
    text = "".join(_text(block.get("text")) for block in blocks if block.get("type") == "text")
    reasoning = "".join(_text(block.get("thinking")) for block in blocks if block.get("type") == "thinking")
    calls = tuple(
        _call(block, number) for number, block in enumerate(blocks) if block.get("type") == "tool_use"
    )
    if message.get("stop_reason") == "refusal":
        said = _object(message.get("stop_details")).get("explanation") or text or "no explanation"
        raise ContentRefused(endpoint.say(f"the model refused to answer: {said}"))
    finish = _FINISH.get(str(message.get("stop_reason")), "unknown")
    if not (text or calls or reasoning) and finish in ("stop", "unknown"):
        raise Transient(endpoint.say("the answer is empty"))
    if request.schema is not None and not text and calls:
        own = [call.arguments for call in calls if call.name == schema_tool_name(request)]
        text = (own or [calls[0].arguments])[0]
    model = message.get("model")
    return ChatReply(
        text=text,
        tool_calls=calls,
        reasoning=reasoning,
        finish=finish,
        usage=_usage(_object(message.get("usage"))),
        model=model if isinstance(model, str) and model else request.model,
    )


def _call(block: Mapping[str, Json], number: int) -> ToolCall:
    arguments = block.get("input_json")
    if not arguments:
        arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
    call_id = block.get("id")
    return ToolCall(
        id=call_id if isinstance(call_id, str) and call_id else f"call_{number}",
        name=_text(block.get("name")),
        arguments=printable(arguments),
    )


def _usage(counts: Mapping[str, Json]) -> Usage:
    """Tokens. The API counts cached tokens beside ``input_tokens``, thinking within ``output_tokens``.

    What is missing is left 0 and marked estimated: the ledger fills it in.
    """
    fresh, completion = _count(counts, "input_tokens"), _count(counts, "output_tokens")
    cached = _count(counts, "cache_read_input_tokens") or 0
    prompt = (fresh or 0) + cached + (_count(counts, "cache_creation_input_tokens") or 0)
    reasoning = _count(_object(counts.get("output_tokens_details")), "thinking_tokens") or 0
    return Usage(
        prompt=prompt,
        completion=completion or 0,
        reasoning=min(reasoning, completion or 0),
        cached=cached,
        estimated=fresh is None or completion is None,
    )


def _count(counts: Mapping[str, Json], name: str) -> int | None:
    count = counts.get(name)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def _object(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _index(event: Mapping[str, Json]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0


def _text(value: Json) -> str:
    return printable(value) if isinstance(value, str) else ""
