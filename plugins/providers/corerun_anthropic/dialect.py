"""JSON Schemas in the dialect of Anthropic's structured outputs."""

from __future__ import annotations

from collections.abc import Mapping

from corerun.interfaces import Json
from corerun.llm.structured import LIMIT_KEYWORDS

_KEPT = ("type", "description", "enum", "const", "required")


def output_schema(schema: Json) -> Json | None:
    """``schema`` as ``output_config.format`` takes it; None if the dialect can't say it.

    Every object lists its keys and allows no others, so a free-form object or an untyped value has
    no form. Limits on numbers, lengths and counts aren't known to the API: they are told to the
    model in the description, and whoever reads the answer still checks them.
    """
    if not isinstance(schema, Mapping):
        return None
    found: dict[str, Json] = {name: schema[name] for name in _KEPT if name in schema}
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        found["anyOf"] = [output_schema(choice) for choice in choices]
        if None in found["anyOf"]:
            return None
    elif "type" not in found and "enum" not in found and "const" not in found:
        return None
    kinds = found.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if "object" in kinds:
        properties = schema.get("properties")
        if not properties:
            return None
        found["properties"] = {name: output_schema(value) for name, value in properties.items()}
        if None in found["properties"].values():
            return None
        found["additionalProperties"] = False
    if "array" in kinds:
        found["items"] = output_schema(schema.get("items"))
        if found["items"] is None:
            return None
    limits = [f"{name}: {schema[name]}" for name in schema if name in LIMIT_KEYWORDS]
    if limits:
        described = [schema["description"]] if schema.get("description") else []
        found["description"] = " ".join([*described, f"({', '.join(limits)})"])
    return found
