"""Finds the structured value in whatever a model answered: the first candidate that validates wins."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from corerun.inputs.documents import JSON_DEPTH, deeper_than
from corerun.interfaces import ChatReply, Json
from corerun.llm.jsontext import LENIENT, MAX_SPANS, fenced_blocks, parsed, repaired, scan
from corerun.llm.structured import Problems, json_schema, model_name, validate

MAX_CHARACTERS = 10_000_000
WORK_PER_CHARACTER = 8

_TAG = re.compile(
    r"<(/?)(think|thinking|reasoning)>|<\|channel\|>(\w*)(?:<\|message\|>)?|<\|end\|>|<\|return\|>"
)
_OBJECT = re.compile(r'\{\s*["}]')
_PARAMETER = re.compile(r"<parameter=([\w.-]+)>((?:(?!<parameter=|</parameter>).)*)", re.DOTALL)


def read_answer(reply: ChatReply, schema: Any, parse: Callable[[str], Any] | None) -> Any:
    """The value of a reply: of ``schema``, through ``parse``, or its text without thinking.

    Raises `Problems`.
    """
    if schema is not None:
        return extract(reply, schema)
    text = strip_reasoning(reply.text)[0]
    if parse is None:
        return text
    try:
        return parse(text)
    except ValueError as error:
        problem = " ".join(str(error).split())
        if reply.finish == "length":
            problem += " (the answer was cut off at the length limit)"
        raise Problems([problem]) from error


def extract(reply: ChatReply, model: Any) -> Any:
    """The value of ``model`` in ``reply``; raises `Problems` that say what is wrong with it."""
    schema, name = json_schema(model), model_name(model)
    first: Problems | None = None
    for candidate in candidates(reply):
        for form in unwrapped(candidate, name, schema):
            try:
                return validate(model, form)
            except Problems as problems:
                first = first or problems
    if first is not None:
        raise first
    if reply.finish == "length":
        raise Problems(["answer: it was cut off at the length limit before it was complete"])
    raise Problems(["answer: no JSON was found in it"])


def candidates(reply: ChatReply) -> Iterator[Json]:
    """Everything in a reply that may be the value, best guess first; lazily, never raising."""
    for call in reply.tool_calls:
        yield from _in_text(call.arguments[:MAX_CHARACTERS], closers=reply.finish in ("stop", "tool"))
    text = reply.text[:MAX_CHARACTERS]
    whole, found = parsed(text)
    if found:
        yield whole
    answer, cut = strip_reasoning(text)
    if cut and reply.finish == "length":
        return
    yield from _in_text(answer, closers=reply.finish == "stop")
    if not answer.strip() and reply.reasoning:
        yield from _in_text(reply.reasoning[:MAX_CHARACTERS], closers=False)


def strip_reasoning(text: str) -> tuple[str, bool]:
    """``text`` without the model's thinking, and whether a thinking block was never closed.

    A closing tag without its opening one ends thinking that began with the text. An unclosed block
    is kept, without its tag: only its finish reason tells whether it holds the answer.
    """
    kept: list[str] = []
    position, inside = 0, ""
    for tag in _TAG.finditer(text):
        closes, name = (tag[1] == "/", tag[2]) if tag[2] else (tag[3] is None, "channel")
        if inside:
            if name == inside and (closes or name == "channel"):
                inside = "channel" if tag[3] == "analysis" else ""
                position = tag.end()
        elif closes and name != "channel":
            kept, position = [], tag.end()
        else:
            kept.append(text[position : tag.start()])
            position = tag.end()
            if not closes and (tag[2] or tag[3] == "analysis"):
                inside = name
    kept.append(text[position:])
    return ("".join(kept).strip() if position else text), bool(inside)


def unwrapped(data: Json, name: str, schema: Json) -> Iterator[Json]:
    """``data`` and what it may be a wrapping of, likeliest first."""
    for _ in range(2):
        if not isinstance(data, str):
            break
        inner, found = parsed(data)
        if not found:
            break
        data = inner
    if (
        isinstance(data, list)
        and len(data) == 1
        and isinstance(data[0], dict)
        and schema.get("type") == "object"
    ):
        yield from unwrapped(data[0], name, schema)
    if isinstance(data, dict):
        inside = _inside(data, name, schema)
        if inside is not None:
            yield from unwrapped(inside, name, schema)
        decoded = _decoded(data, schema)
        if decoded is not data:
            yield decoded
    yield data


def _in_text(text: str, *, closers: bool) -> Iterator[Json]:
    whole, found = parsed(text)
    if found:
        yield whole
    blocks = fenced_blocks(text)[::-1][:MAX_SPANS]
    for block in blocks:
        data, found = parsed(block)
        if found:
            yield data
    yield from _marked_calls(text)
    scanned = scan(text)
    budget = WORK_PER_CHARACTER * len(text)
    for start, end in scanned.spans:
        budget -= end - start
        if budget < 0:
            break
        data, found = parsed(text[start:end])
        if not found and '\\"' in text[start:end]:
            data, found = parsed(f'"{text[start:end]}"')
        if found:
            yield data
    yield from _strict_objects(text)
    broken = [block for block in blocks if block.lstrip()[:1] in ("{", "[")][:4]
    broken += [text[start:end] for start, end in scanned.spans[:4]]
    if scanned.opened is not None:
        broken.append(text[scanned.opened :])
    for piece in broken:
        try:
            yield repaired(piece, closers=closers)
        except ValueError:
            continue


def _strict_objects(text: str) -> Iterator[Json]:
    """Objects found by trying to read at each ``{``: chatter with odd quotes can't hide them.

    Work is bounded by a multiple of the text's length, failed tries included.
    """
    budget = WORK_PER_CHARACTER * len(text)
    start = _OBJECT.search(text)
    while start is not None and budget > 0:
        position = start.start() + 1
        try:
            data, position = LENIENT.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            # The error counts the lines before it, at about 64 characters in the time of one step.
            budget -= error.pos - start.start() + error.pos // 64 + 1
        except (ValueError, RecursionError):
            budget -= len(text) // MAX_SPANS + 1
        else:
            if not deeper_than(data, JSON_DEPTH):
                yield data
        start = _OBJECT.search(text, position)


def _marked_calls(text: str) -> Iterator[Json]:
    """Calls that a model wrote as text because its server has no parser for them."""
    for piece in text.split("<tool_call>")[1 : MAX_SPANS + 1]:
        data, found = parsed(piece.split("</tool_call>", 1)[0])
        if found:
            yield data
    marker = text.find("[TOOL_CALLS]")
    if marker >= 0:
        data, found = parsed(text[marker + len("[TOOL_CALLS]") :])
        if found:
            yield data
    for piece in text.split("<function=")[1 : MAX_SPANS + 1]:
        parameters = _PARAMETER.findall(piece.split("</function>", 1)[0])
        if parameters:
            yield {key: value.strip() for key, value in parameters}


def _inside(data: Mapping[str, Json], name: str, schema: Json) -> Json | None:
    own = schema.get("properties", {})
    for key in ("arguments", "parameters"):
        if key in data and key not in own and isinstance(data.get("name"), str) and len(data) <= 4:
            return data[key]
    if len(data) == 1:
        ((key, value),) = data.items()
        known = (name.lower(), "response", "answer", "result", "arguments", "parameters", "properties")
        if key not in own and key.lower() in known:
            return value
    return None


def _decoded(data: Mapping[str, Json], schema: Json) -> Json:
    """``data`` with strings decoded where the schema wants an object or an array."""
    changed: dict[str, Json] = {}
    for key, wanted in schema.get("properties", {}).items():
        value = data.get(key)
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") and _wants_container(wanted):
            inner, found = parsed(value)
            if found:
                changed[key] = inner
        elif isinstance(value, dict) and wanted.get("properties"):
            inner = _decoded(value, wanted)
            if inner is not value:
                changed[key] = inner
    return {**data, **changed} if changed else data


def _wants_container(schema: Json) -> bool:
    if "anyOf" in schema:
        return not any(choice.get("type") == "string" for choice in schema["anyOf"]) and any(
            _wants_container(choice) for choice in schema["anyOf"]
        )
    return schema.get("type") in ("object", "array")
