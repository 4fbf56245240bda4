"""Reads YAML that somebody else wrote: plain data within limits, and the line of every key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from corerun.errors import ConfigError
from corerun.inputs.documents import Json, read_text

YAML_BYTES = 5 * 2**20
DEPTH = 50
VALUES = 100_000
"""Values in a document; what an alias stands for is counted each time."""
ALIASES = 100

_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# As in JSON: on, off, yes, no, dates, 12:30 and 007 stay texts, and a typed key may still take them.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_MOST_DIGITS = 4300
_STANDARD = "tag:yaml.org,2002:"
_TEXT_TAGS = ("!", f"{_STANDARD}str")


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """Plain data, and the line of each key by its path. Values that come from one alias are one object."""

    source: str
    data: Json
    lines: Mapping[tuple[str, ...], int]

    def where(self, *keys: str) -> str:
        """``file:line`` of a key; of the nearest one above where the key has no line of its own."""
        for length in range(len(keys), 0, -1):
            line = self.lines.get(keys[:length])
            if line is not None:
                return f"{self.source}:{line}"
        return f"{self.source}:1"


def read_yaml_document(path: Path) -> YamlDocument:
    """The document in a file. Raises `ConfigError` with file and line."""
    text = read_text(path, limit=YAML_BYTES, error=ConfigError)
    if text.startswith("\ufeff"):
        raise ConfigError(
            "not YAML: it begins with a byte order mark",
            where=f"{path}:1",
            hint="save the file as UTF-8 without one",
        )
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> YamlDocument:
    """The one document of a text; an empty text is null. Raises `ConfigError`; ``source`` names the text.

    Refused are duplicate keys, keys that aren't one word, merge keys, tags other than ``!!str``, a
    value that contains itself, and what is beyond the limits of this module.
    """
    try:
        reader = _Reader(yaml.parse(text, Loader=_Parser), source)
        return YamlDocument(source, reader.document(), reader.lines)
    except yaml.reader.ReaderError as problem:
        line = text.encode()[: problem.position].count(b"\n") + 1
        raise ConfigError(f"not YAML: {problem.reason}", where=f"{source}:{line}") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        said = " ".join(str(problem.problem or problem.context).split())
        raise ConfigError(
            f"not YAML: {said}",
            where=f"{source}:{mark.line + 1}" if mark else source,
            hint="indent with spaces, not with tabs" if "'\\t'" in said else "",
        ) from None
    except UnicodeEncodeError:
        raise ConfigError("not YAML: not UTF-8", where=source) from None


class _Reader:
    """Makes data of a stream of events, so that no limit is passed before it is noticed."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self.lines: dict[tuple[str, ...], int] = {}
        self._events = events
        self._source = source
        self._values = 0
        self._aliases = 0
        self._anchors: dict[str, tuple[Json, int]] = {}
        self._open: list[str] = []

    def document(self) -> Json:
        next(self._events)
        event = next(self._events)
        if isinstance(event, StreamEndEvent):
            return None
        value = self._value(next(self._events), ())
        next(self._events)
        event = next(self._events)
        if isinstance(event, DocumentStartEvent):
            self._refuse(event, "not YAML: a second document begins")
        return value

    def _value(self, event: Any, path: tuple[str, ...]) -> Json:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        before = self._values
        self._count(event, 1)
        if len(path) >= DEPTH:
            self._refuse(event, f"nested deeper than {DEPTH} levels")
        anchor: str | None = event.anchor
        if anchor:
            self._open.append(anchor)
        if isinstance(event, ScalarEvent):
            value = self._scalar(event)
        elif event.tag is not None:
            self._refuse(event, f"the tag {_shown(event.tag)} isn't allowed")
        elif isinstance(event, SequenceStartEvent):
            value = self._sequence(path)
        else:
            value = self._mapping(path)
        if anchor:
            self._open.pop()
            self._anchors[anchor] = value, self._values - before
        return value

    def _alias(self, event: Any) -> Json:
        self._aliases += 1
        if self._aliases > ALIASES:
            self._refuse(event, f"more than {ALIASES} aliases")
        if event.anchor in self._open:
            self._refuse(event, f"&{event.anchor} contains itself")
        if event.anchor not in self._anchors:
            self._refuse(event, f"*{event.anchor} stands for nothing")
        value, size = self._anchors[event.anchor]
        self._count(event, size)
        return value

    def _count(self, event: Any, size: int) -> None:
        self._values += size
        if self._values > VALUES:
            self._refuse(event, f"more than {VALUES:,} values")

    def _sequence(self, path: tuple[str, ...]) -> list[Json]:
        items: list[Json] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._value(event, (*path, str(len(items)))))
        return items

    def _mapping(self, path: tuple[str, ...]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent) or (event.value == "<<" and event.implicit[0]):
                self._refuse(event, "a key must be one word")
            key = str(event.value)
            place = (*path, key)
            if key in found:
                self._refuse(event, f"key {'.'.join(place)[-200:]!r} is given twice")
            self._count(event, 1)
            self.lines[place] = _line(event)
            found[key] = self._value(next(self._events), place)
        return found

    def _scalar(self, event: Any) -> Json:
        text = str(event.value)
        if event.tag is not None:
            if event.tag not in _TEXT_TAGS:
                self._refuse(event, f"the tag {_shown(event.tag)} isn't allowed")
            return text
        if not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > _MOST_DIGITS:
                self._refuse(event, f"a number has more than {_MOST_DIGITS} digits")
            return int(text)
        if _FLOAT.fullmatch(text):
            value = float(text)
            if math.isinf(value):
                self._refuse(event, f"the number {text[:20]} is too large")
            return value
        return text

    def _refuse(self, event: Any, message: str) -> NoReturn:
        raise ConfigError(message, where=f"{self._source}:{_line(event)}")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _shown(tag: str) -> str:
    return tag.replace(_STANDARD, "!!", 1)[:60]
