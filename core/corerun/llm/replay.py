"""A reply as the journal's ``call_answered`` record, and back: what a resumed run is answered from."""

from __future__ import annotations

from collections.abc import Mapping

from corerun.interfaces import ChatReply, Degradation, Json, ToolCall, Usage

_TOOL_CALL = ("id", "name", "arguments")
_USAGE = ("prompt", "completion", "reasoning", "cached", "estimated", "cost_usd")


def reply_to_json(reply: ChatReply) -> dict[str, Json]:
    """The fields of the record that come from the reply itself."""
    return {
        "model_answered": reply.model,
        "text": reply.text,
        "tool_calls": [{name: getattr(call, name) for name in _TOOL_CALL} for call in reply.tool_calls],
        "reasoning": reply.reasoning,
        "finish": reply.finish,
        "usage": {name: getattr(reply.usage, name) for name in _USAGE},
        "requests": reply.requests,
        "degradations": [dropped.feature for dropped in reply.degradations],
    }


def reply_from_json(data: Mapping[str, Json]) -> ChatReply:
    """The reply that a record holds."""
    return ChatReply(
        text=data["text"],
        tool_calls=tuple(ToolCall(**call) for call in data["tool_calls"]),
        reasoning=data["reasoning"],
        finish=data["finish"],
        usage=Usage(**data["usage"]),
        model=data["model_answered"],
        degradations=tuple(Degradation(feature) for feature in data["degradations"]),
        requests=data["requests"],
    )
