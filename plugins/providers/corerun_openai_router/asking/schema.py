"""Writes a JSON Schema the way a server can read it: without references, annotations and refused words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from corerun.interfaces import Json
from corerun_openai_router.facts import PLAIN_SCHEMA, Facts

PREFIX = "schema."

GEMINI = frozenset({"additionalProperties", "$schema", "const", "propertyNames", "patternProperties"})
GROQ = frozenset({"minItems", "maxItems", "pattern"})
DIALECTS = (GEMINI, GROQ)
"""Words that are refused together: a server that names one of them refuses the others too."""

KEYWORDS = (
    GEMINI
    | GROQ
    | frozenset(
        {
            *("anyOf", "oneOf", "allOf", "not", "if", "then", "else", "enum", "prefixItems", "contains"),
            *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems"),
            *("minLength", "maxLength", "minProperties", "maxProperties", "minContains", "maxContains"),
            *(
                "dependentRequired",
                "dependentSchemas",
                "unevaluatedProperties",
                "unevaluatedItems",
                "nullable",
            ),
        }
    )
)
"""Words of JSON Schema that a server may refuse and an answer can do without."""

_MOST_KEPT = 256
_kept: dict[tuple[int, Facts], tuple[Json, Json]] = {}
"""Prepared schemas, each with its original, whose identity is the key as long as it is held."""

_ANNOTATIONS = frozenset({"title", "default", "examples", "format", "$schema", "$id", "$comment"})
_DEFINITIONS = ("$defs", "definitions")
_PLAIN = frozenset(
    {"type", "description", "properties", "required", "items", "enum", "anyOf", "additionalProperties"}
)
_SCHEMAS = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", *_DEFINITIONS)


class Recursive(ValueError):
    """The schema refers to itself, which no function and no response format can say."""


def is_object(schema: Json) -> bool:
    """Whether an answer that fits ``schema`` is a JSON object, as arguments of a function must be."""
    return isinstance(schema, dict) and (schema.get("type") == "object" or "properties" in schema)


def prepared(schema: Json, facts: Facts) -> Json:
    """``schema`` with its references written out and without refused words. Raises `Recursive`.

    The result is kept, because a run asks for the same few: a schema must not change any more.
    """
    key = id(schema), facts
    if key not in _kept:
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[key] = schema, _prepared(schema, facts)
    return _kept[key][1]


def _prepared(schema: Json, facts: Facts) -> Json:
    refused = frozenset(fact.removeprefix(PREFIX) for fact in facts if fact.startswith(PREFIX))
    definitions: dict[str, Json] = {}
    for name in _DEFINITIONS:
        found = schema.get(name) if isinstance(schema, dict) else None
        if isinstance(found, dict):
            definitions.update(found)
    return _write(schema, definitions, (), refused, PLAIN_SCHEMA in facts)


def strict(schema: Json) -> Json | None:
    """A prepared schema in the strict dialect: objects are closed, all their keys are required.

    A key that was optional may be null instead; `without_nulls` takes these nulls out of an answer.
    None: the schema has a map or a value of any type, which the dialect can't say.
    """
    if not isinstance(schema, dict) or not schema.keys() & {"type", "anyOf", "enum"}:
        return None
    found = dict(schema)
    if is_object(schema):
        if not isinstance(schema.get("properties"), dict) or schema.get("additionalProperties"):
            return None
        required = schema.get("required", [])
        properties: dict[str, Json] = {}
        for name, value in schema["properties"].items():
            inner = strict(value)
            if inner is None:
                return None
            properties[name] = inner if name in required or _is_nullable(inner) else _nullable(inner)
        found.update(properties=properties, required=list(properties), additionalProperties=False)
    for name in ("items", *_LISTS_OF_SCHEMAS):
        if name not in schema:
            continue
        inner_list = [strict(item) for item in (schema[name] if name != "items" else [schema[name]])]
        if None in inner_list:
            return None
        found[name] = inner_list if name != "items" else inner_list[0]
    return found


def without_nulls(value: Json, schema: Json) -> Json:
    """An answer in the strict dialect as ``schema`` has it: keys that may be missing aren't null."""
    if isinstance(value, dict) and isinstance(schema.get("properties"), dict):
        properties, required = schema["properties"], schema.get("required", [])
        return {
            key: without_nulls(item, properties.get(key) or {})
            for key, item in value.items()
            if item is not None or key in required or _is_nullable(properties.get(key) or {})
        }
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [without_nulls(item, schema["items"]) for item in value]
    return value


def keywords_of(schema: Json) -> Iterator[str]:
    """Every word of JSON Schema that ``schema`` uses, however deep."""
    if isinstance(schema, dict):
        yield from schema
        for inner in _inner(schema):
            yield from keywords_of(inner)


def _inner(schema: Mapping[str, Json]) -> Iterator[Json]:
    for name in _SCHEMAS:
        yield schema.get(name)
    for name in _LISTS_OF_SCHEMAS:
        yield from schema.get(name) or ()
    for name in _MAPS_OF_SCHEMAS:
        yield from (schema.get(name) or {}).values()


def _write(
    schema: Json, definitions: Mapping[str, Json], within: tuple[str, ...], refused: Facts, plain: bool
) -> Json:
    if not isinstance(schema, dict):
        return schema

    def write(inner: Json) -> Json:
        return _write(inner, definitions, within, refused, plain)

    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.rsplit("/", 1)[-1]
        if name in within or name not in definitions:
            raise Recursive(reference)
        inlined = _write(definitions[name], definitions, (*within, name), refused, plain)
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**inlined, **write(rest)}
    found: dict[str, Json] = {}
    for key, value in schema.items():
        if key in _ANNOTATIONS or key in _DEFINITIONS or key in refused or (plain and key not in _PLAIN):
            continue
        if key in _LISTS_OF_SCHEMAS:
            found[key] = [write(item) for item in value]
        elif key in _MAPS_OF_SCHEMAS:
            found[key] = {name: write(item) for name, item in value.items()}
        else:
            found[key] = write(value) if key in _SCHEMAS else value
    if "const" in refused and "const" in schema and "enum" not in refused:
        found.setdefault("enum", [schema["const"]])
    return found


def _is_nullable(schema: Json) -> bool:
    kind = schema.get("type")
    if kind == "null" or (isinstance(kind, list) and "null" in kind):
        return True
    return any(_is_nullable(choice) for choice in schema.get("anyOf", ()))


def _nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}
