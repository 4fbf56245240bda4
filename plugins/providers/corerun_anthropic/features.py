"""Learns from a refusal which features a model does without."""

from __future__ import annotations

import re
from collections.abc import Mapping

from corerun.interfaces import ChatRequest, Json
from corerun_anthropic.failure import Answer
from corerun_anthropic.request import REQUIRED, Refusals

_LARGEST_ANSWER = re.compile(r"max_tokens: \d+ > (?P<most>\d+)")
_EXTRA = re.compile(r"(?<![\w.])(?P<name>[a-z_]+)(?:\.(?P<inner>[a-z_]+))?: Extra inputs are not permitted")
_FIELDS = {"stop_sequences": "stop"}
_KEPT = REQUIRED | {"system", "output_config"}
_WORDINGS: tuple[tuple[str, str], ...] = (
    ("temperature&top_p", r"temperature\W+and\W+top_p\W+cannot both"),
    ("reasoning_effort", r"\beffort\b"),
    ("json_schema NAME", r"output_config\.format\.schema|schema is too complex|compiled grammar"),
    ("json_schema", r"output_config\.format|output format|structured output|json_schema"),
    ("tool_choice", r"\btool_choice\b"),
    ("images", r"does not support (?:image|vision)|image input"),
    ("tools", r"does not support tool|tools? (?:use )?(?:is|are) not supported"),
    ("temperature", r"\btemperature\b"),
    ("top_p", r"\btop_p\b"),
    ("stop", r"\bstop_sequences\b"),
)


def learn(
    answer: Answer,
    request: ChatRequest,
    body: Mapping[str, Json],
    refusals: Refusals,
    wording: Mapping[str, tuple[str, ...]],
    reason: str,
) -> tuple[str, ...]:
    """Notes in ``refusals`` what ``answer`` says ``body`` must do without, and names it; () if nothing.

    Only what was sent is ever taken away: a message that names another field changes nothing.
    ``wording`` has further regular expressions by feature.
    """
    if answer.status not in (400, 422):
        return ()
    message = answer.message
    largest = _LARGEST_ANSWER.search(message)
    if largest and int(largest["most"]) < body["max_tokens"]:
        refusals.max_tokens = int(largest["most"])
        return ("max_tokens",)
    sent = {feature: name for feature, name in _sent(request, body).items() if feature not in refusals.kept}
    named = {
        feature for feature, patterns in wording.items() if any(re.search(p, message, re.I) for p in patterns)
    }
    extra = _EXTRA.search(message)
    if extra:
        named |= _features_of(extra["name"], extra["inner"])
    for feature, pattern in () if named & sent.keys() else _WORDINGS:
        if feature in sent and re.search(pattern, message, re.IGNORECASE):
            named = {feature}
            break
    found = tuple(sent[feature] for feature in sent if feature in named)
    refusals.features.update((feature, reason) for feature in found)
    return found


def _sent(request: ChatRequest, body: Mapping[str, Json]) -> dict[str, str]:
    """The features in ``body`` that it could do without, each with the name under which it is learned."""
    config = body.get("output_config", {})
    found = {_FIELDS.get(name, name): True for name in body if name not in _KEPT}
    found["tool_choice"] = body.get("tool_choice", {}).get("type") in ("any", "tool")
    found["reasoning_effort"] = "effort" in config
    found["json_schema NAME"] = found["json_schema"] = "format" in config
    found["temperature&top_p"] = "temperature" in body and "top_p" in body
    found["images"] = any(block["type"] == "image" for turn in body["messages"] for block in turn["content"])
    return {
        feature: feature.replace("NAME", request.schema_name) for feature, is_sent in found.items() if is_sent
    }


def _features_of(name: str, inner: str | None) -> set[str]:
    if name == "output_config":
        inside = {"effort": {"reasoning_effort"}, "format": {"json_schema"}}
        return inside.get(inner or "", {"reasoning_effort", "json_schema"})
    return {_FIELDS.get(name, name)}
