"""Reads text, JSON and JSON Lines that somebody else wrote, within limits; errors name file and line."""

from __future__ import annotations

import itertools
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from corerun.errors import CorerunError, UsageError

Json: TypeAlias = Any
"""What `json` reads back. The name in `corerun.interfaces` lies on a higher floor."""

JSON_BYTES = 50 * 2**20
JSON_DEPTH = 100
"""Lists and objects inside each other, the outermost counted."""
JSON_VALUES = 1_000_000
"""Values in one document: 50 MB of empty lists would become 3 GB of objects."""
_NOT_UTF_8 = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\x00\x00\xfe\xff", "UTF-32"))


class NotJson(ValueError):
    """Why a text isn't JSON that may be read; ``line`` counts from 1 and is 0 where it isn't known."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def read_text(
    path: Path, *, limit: int = JSON_BYTES, where: str = "", error: type[CorerunError] = UsageError
) -> str:
    """The text of a regular file of at most ``limit`` bytes of UTF-8 without NUL.

    Raises ``error``; ``where`` is what named the file (a flag, a key), for errors that have no line.
    """
    body = read_bytes(path, limit=limit, where=where, error=error)
    for mark, name in _NOT_UTF_8:
        if body.startswith(mark):
            raise error(f"not UTF-8 but {name}", where=f"{path}:1", hint="save the file as UTF-8")
    try:
        text = body.decode()
    except UnicodeDecodeError as problem:
        line = body.count(b"\n", 0, problem.start) + 1
        message = f"not UTF-8: byte 0x{body[problem.start]:02x}"
        raise error(message, where=f"{path}:{line}", hint="save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error("not text: it holds a NUL character", where=f"{path}:{line}")
    return text


def read_bytes(
    path: Path, *, limit: int = JSON_BYTES, where: str = "", error: type[CorerunError] = UsageError
) -> bytes:
    """What is in a regular file of at most ``limit`` bytes; raises ``error`` as `read_text` does."""
    try:
        # A pipe without a writer would block the opening for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
                raise error(f"can't read {path}: it is {kind}", where=where)
            with open(descriptor, "rb", closefd=False) as file:
                body = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise error(f"no such file: {path}", where=where) from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"can't read {path}: {reason}", where=where) from None
    if len(body) > limit:
        raise error(f"can't read {path}: it is larger than {limit // 2**20} MB", where=where)
    return body


def parse_json(text: str | bytes, *, depth: int = JSON_DEPTH, unique: bool = False) -> Json:
    """The value of a JSON text; raises `NotJson`.

    Refused are NaN, infinities, numbers too large for a float or of more than 4300 digits, nesting
    beyond ``depth`` and, with ``unique``, a key that is given twice in one object.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_unique_keys if unique else None,
        )
    except json.JSONDecodeError as problem:
        raise NotJson(problem.msg, problem.lineno) from None
    except UnicodeDecodeError:
        raise NotJson("not UTF-8") from None
    except RecursionError:
        raise NotJson(_too_deep(depth)) from None
    except NotJson:
        raise
    except ValueError:
        raise NotJson("a number has more than 4300 digits") from None
    brackets = (text.count("["), text.count("{")) if isinstance(text, str) else _brackets(text)
    if sum(brackets) > depth and deeper_than(value, depth):
        raise NotJson(_too_deep(depth))
    return value


def _brackets(text: bytes) -> tuple[int, int]:
    return text.count(b"["), text.count(b"{")


def _too_deep(depth: int) -> str:
    return f"nested deeper than {depth} levels"


def _no_constant(name: str) -> Json:
    raise NotJson(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise NotJson(f"the number {digits[:20]} is too large")
    return value


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = sorted(key for key, _ in pairs)
        twice = next(key for key, following in itertools.pairwise(keys) if key == following)
        raise NotJson(f"key {twice[:60]!r} is given twice")
    return found


def deeper_than(value: Json, depth: int) -> bool:
    """Whether lists and objects of ``value`` lie deeper inside each other than ``depth``."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(depth):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
    return bool(level)


def read_json(
    path: Path, *, unique: bool = True, where: str = "", error: type[CorerunError] = UsageError
) -> Json:
    """The JSON document in a file; raises ``error``. ``where``: see `read_text`."""
    # Some editors begin a file with a byte order mark.
    text = read_text(path, where=where, error=error).removeprefix("\ufeff")
    try:
        if text.count(",") + text.count("[") + text.count("{") > JSON_VALUES:
            raise NotJson(f"more than {JSON_VALUES:,} values")
        return parse_json(text, unique=unique)
    except NotJson as problem:
        place = f"{path}:{problem.line}" if problem.line else str(path)
        raise error(f"not JSON: {problem}", where=place) from None


def read_json_lines(
    path: Path, *, where: str = "", error: type[CorerunError] = UsageError
) -> Iterator[tuple[str, Json]]:
    """The place (``file:line``) and the value of each line that isn't blank; raises ``error``."""
    # Not splitlines: a JSON string may hold what Python takes for the end of a line.
    for number, line in enumerate(read_text(path, where=where, error=error).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield place, parse_json(line)
        except NotJson as problem:
            raise error(f"not JSON: {problem}", where=place) from None
