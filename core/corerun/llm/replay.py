"""A reply as the journal's ``call_answered`` record, and back: what a resumed run is answered from.

Fields that say nothing are left out: empty lists and texts, one request, usage that is no estimate.
"""

from __future__ import annotations

from collections.abc import Mapping

from corerun.interfaces import ChatReply, Degradation, Json, ToolCall, Usage

_TOOL_CALL = ("id", "name", "arguments")
_DETAILS = ("reasoning", "cached", "estimated")


def reply_to_json(reply: ChatReply) -> dict[str, Json]:
    """The fields of the record that come from the reply itself."""
    usage: dict[str, Json] = {"prompt": reply.usage.prompt, "completion": reply.usage.completion}
    usage |= {name: value for name in _DETAILS if (value := getattr(reply.usage, name))}
    record: dict[str, Json] = {
        "model_answered": reply.model,
        "text": reply.text,
        "finish": reply.finish,
        "usage": usage,
        "cost_usd": reply.usage.cost_usd,
    }
    if reply.tool_calls:
        record["tool_calls"] = [
            {name: getattr(call, name) for name in _TOOL_CALL} for call in reply.tool_calls
        ]
    if reply.reasoning:
        record["reasoning"] = reply.reasoning
    if reply.degradations:
        record["degradations"] = [dropped.feature for dropped in reply.degradations]
    if reply.requests != 1:
        record["requests"] = reply.requests
    if reply.created is not None:
        record["created"] = reply.created
    return record


def reply_from_json(data: Mapping[str, Json]) -> ChatReply:
    """The reply that a record holds."""
    return ChatReply(
        text=data["text"],
        tool_calls=tuple(ToolCall(**call) for call in data.get("tool_calls", ())),
        reasoning=data.get("reasoning", ""),
        finish=data["finish"],
        usage=Usage(**(data["usage"] | {"cost_usd": data["cost_usd"]})),
        model=data["model_answered"],
        degradations=tuple(Degradation(feature) for feature in data.get("degradations", ())),
        requests=data.get("requests", 1),
        created=data.get("created"),
    )
