"""JSON Schemas of pydantic models in plain words, and validation with one line per problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from corerun.interfaces import Json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

LIMIT_KEYWORDS = frozenset(
    {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "pattern",
        "minItems",
        "maxItems",
        "uniqueItems",
    }
)
PLAIN_KEYWORDS = LIMIT_KEYWORDS | {"type", "description", "enum", "required"}


class Problems(ValueError):
    """What is wrong with an answer: ``lines`` of ``path: problem (got: value)``."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


@lru_cache(maxsize=256)
def json_schema(model: Any) -> Json:
    """The JSON Schema of a pydantic model (or any type pydantic knows), for servers of every dialect.

    References are inlined, a recursive one becomes a bare object; titles, defaults and formats are
    dropped; objects with named keys allow no others. Treat the result as read-only: it is cached.
    """
    raw = _adapter(model).json_schema()
    return _plain(raw, raw.get("$defs", {}), ())


def validate(model: Any, data: Json) -> Any:
    """``data`` as a value of ``model``, with harmless conversions (``"3"`` to 3); raises `Problems`."""
    from pydantic import ValidationError

    try:
        return _adapter(model).validate_python(data)
    except ValidationError as error:
        raise Problems([_line(item) for item in error.errors(include_url=False)]) from None


def model_name(model: Any) -> str:
    """The name under which a schema is shown to a model."""
    name = getattr(model, "__name__", "answer")
    return name if name.isidentifier() else "answer"


@lru_cache(maxsize=256)
def _adapter(model: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(model)


def _line(error: Mapping[str, Any]) -> str:
    path = ".".join(str(step) for step in error["loc"]) or "answer"
    problem = " ".join(str(error["msg"]).split())
    if error["type"] == "missing":
        return f"{path}: {problem}"
    try:
        got = json.dumps(error["input"], ensure_ascii=False)
    except (TypeError, ValueError):
        got = repr(error["input"])
    return f"{path}: {problem} (got: {got if len(got) <= 80 else got[:77] + '...'})"


def _plain(schema: Json, definitions: Mapping[str, Json], within: tuple[str, ...]) -> Json:
    if not isinstance(schema, dict):
        return {}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.rsplit("/", 1)[-1]
        if name in within:
            return {"type": "object"}
        inlined = _plain(definitions.get(name, {}), definitions, (*within, name))
        described = schema.get("description")
        return {**inlined, "description": described} if described else inlined
    found = {key: value for key, value in schema.items() if key in PLAIN_KEYWORDS}
    if "const" in schema:
        found["enum"] = [schema["const"]]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        found["anyOf"] = [_plain(choice, definitions, within) for choice in choices]
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            found[keyword] = _plain(schema[keyword], definitions, within)
    if "prefixItems" in schema:
        found["prefixItems"] = [_plain(item, definitions, within) for item in schema["prefixItems"]]
    if "properties" in schema:
        properties = schema["properties"]
        found["properties"] = {key: _plain(value, definitions, within) for key, value in properties.items()}
        found["additionalProperties"] = False
    return found
