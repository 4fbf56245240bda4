"""What is asked of a model in words where its server can't be told in parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from corerun.interfaces import Json
from corerun.llm.messages import printable


def ask_for_json(schema: Json) -> str:
    """Asks for an answer that fits ``schema``."""
    kind = "object" if isinstance(schema, dict) and schema.get("type", "object") == "object" else "value"
    return f"Answer with one JSON {kind} and nothing else. It must fit this JSON Schema:\n{_written(schema)}"


def ask_for_calls(functions: Sequence[Mapping[str, Json]], *, optional: bool) -> str:
    """Asks for a call of one of ``functions`` as ``{"tool": name, "arguments": {...}}``.

    ``optional``: the model may answer in plain words instead.
    """
    schema = {"oneOf": [_call_schema(function) for function in functions]}
    lines = [
        'Call a function by answering with one JSON object {"tool": name, "arguments": {...}} and nothing '
        f"else. It must fit this JSON Schema:\n{_written(schema)}"
    ]
    if optional:
        lines.append("If no function is needed, answer in plain words.")
    return "\n".join(lines)


def ask_for_the_word() -> str:
    """Some servers refuse a JSON response format unless the prompt holds the word."""
    return "Answer in JSON."


def _call_schema(function: Mapping[str, Json]) -> Json:
    described = {"description": function["description"]} if function.get("description") else {}
    return {
        "type": "object",
        **described,
        "properties": {
            "tool": {"enum": [function["name"]]},
            "arguments": function.get("parameters") or {"type": "object"},
        },
        "required": ["tool", "arguments"],
    }


def _written(schema: Json) -> str:
    return printable(json.dumps(schema, ensure_ascii=False))
