"""Reads what a server's error says, whatever its body's shape: codes, sentences, places in the request."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from corerun.interfaces import ChatRequest, Json
from corerun.llm.jsontext import scan

_DEEPEST = 12
_SHORTEST_ECHO = 12
_LONGEST_SENTENCE = 1000
_LONGEST_LITERAL = 20_000
_MOST_LITERALS = 8

_CODES = ("code", "type", "status")
_CARRIERS = (
    "message",
    "msg",
    "detail",
    "details",
    "error",
    "errors",
    "raw",
    "metadata",
    "body",
    "innererror",
)
_QUOTED_INPUT = re.compile(
    r"input_value=.*?(?=, input_type=)|['\"]input['\"]: (?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")", re.DOTALL
)
"""Where validators show what they were given, shortened: words of the prompt say nothing of the server."""
_LOCATION = re.compile(r"['\"]loc['\"]:\s*[(\[](?P<path>[^)\]]*)[)\]]")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the request that an error points at: ``path`` such as ``response_format.type``.

    ``kind`` is the error's code there, ``text`` its sentence.
    """

    path: str
    kind: str
    text: str


@dataclass(slots=True)
class Details:
    """What a body says: codes and types, sentences for people, places in the request, counts."""

    codes: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def message(self) -> str:
        return "; ".join(dict.fromkeys(self.messages))

    @property
    def text(self) -> str:
        return " ".join((*self.codes, *self.messages))

    @property
    def said(self) -> str:
        """The sentence to show people."""
        return self.message or "; ".join(self.codes) or "no explanation"


def read_details(body: str, request: ChatRequest) -> Details:
    """Everything in an error's body, with texts of the request that it quotes cut out."""
    details = Details()
    echoes = sorted(_echoes(request), key=len, reverse=True)
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        sentence = " ".join(re.sub(r"<[^>]*>", " ", body).split()) if body.lstrip()[:1] == "<" else body
        parsed = sentence[:_LONGEST_SENTENCE]
    _collect(parsed, details, 0)
    details.messages = [_without(echoes, message) for message in details.messages]
    details.places = [Place(place.path, place.kind, _without(echoes, place.text)) for place in details.places]
    return details


def _collect(value: Json, details: Details, depth: int) -> None:
    if depth > _DEEPEST:
        return
    if isinstance(value, list | tuple):
        for item in value:
            _collect(item, details, depth + 1)
    elif isinstance(value, dict):
        _collect_object(value, details, depth)
    elif isinstance(value, str):
        _collect_text(value, details, depth)


def _collect_object(value: Mapping[str, Json], details: Details, depth: int) -> None:
    for name in _CODES:
        code = value.get(name)
        if isinstance(code, str | int) and not isinstance(code, bool):
            details.codes.append(str(code))
    for name in ("n_ctx", "n_prompt_tokens"):
        if isinstance(value.get(name), int):
            details.counts[name] = value[name]
    place = _place(value)
    if place is not None:
        details.places.append(place)
    for violation in _objects(value.get("fieldViolations")):
        details.places.append(
            Place(str(violation.get("field", "")), "", str(violation.get("description", "")))
        )
    for name in _CARRIERS:
        if name in value:
            _collect(value[name], details, depth + 1)


def _place(value: Mapping[str, Json]) -> Place | None:
    path = value.get("param")
    if not isinstance(path, str) or not path:
        path = _joined(value.get("loc"))
    if not path:
        return None
    kind = value.get("code") if isinstance(value.get("code"), str) else value.get("type")
    text = value.get("message") or value.get("msg")
    return Place(path, str(kind or ""), text if isinstance(text, str) else "")


def _joined(steps: Json) -> str:
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        return ""
    return ".".join(str(step) for step in steps if step != "body")


def _objects(value: Json) -> Iterator[Mapping[str, Json]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def _collect_text(text: str, details: Details, depth: int) -> None:
    """A string may be, or hold, a document of its own: gateways wrap what their upstream said."""
    whole = _literal(text)
    if whole is not None:
        _collect(whole, details, depth + 1)
        return
    if text.strip():
        details.messages.append(text.strip())
    found_one = False
    for start, end in _outermost(text):
        inner = _literal(text[start:end])
        if isinstance(inner, dict | list):
            found_one = True
            _collect(inner, details, depth + 1)
    if not found_one:
        for location in _LOCATION.finditer(text):
            path = _joined([step.strip().strip("'\"") for step in location["path"].split(",")])
            details.places.append(Place(path, "", text))


def _outermost(text: str) -> list[tuple[int, int]]:
    """Balanced brackets that no other pair holds, in the order of the text."""
    if "{" not in text:
        return []
    kept: list[tuple[int, int]] = []
    for start, end in scan(text[:_LONGEST_LITERAL]).spans:
        if not any(first <= start and end <= last for first, last in kept):
            kept.append((start, end))
    return sorted(kept)[:_MOST_LITERALS]


def _literal(text: str) -> Json | None:
    """JSON, or the same as Python writes it; None if it is neither an object nor a list."""
    text = text.strip()
    if text[:1] not in ("{", "[") or len(text) > _LONGEST_LITERAL:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    return found if isinstance(found, dict | list) else None


def _without(echoes: Sequence[str], text: str) -> str:
    text = _QUOTED_INPUT.sub("input", text)
    for echo in echoes:
        text = text.replace(echo, "...")
    return text


def _echoes(request: ChatRequest) -> Iterator[str]:
    """The prompt's texts as a server may quote them: as they are, as JSON, or as Python writes them."""
    for message in request.messages:
        parts = (
            (message.content,)
            if isinstance(message.content, str)
            else [part.text for part in message.content]
        )
        for text in parts:
            if len(text) >= _SHORTEST_ECHO:
                yield text
                yield json.dumps(text)[1:-1]
                yield repr(text)[1:-1]
