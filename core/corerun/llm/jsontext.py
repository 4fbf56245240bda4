"""Finds and mends JSON in text that isn't only JSON; every function is linear in its text."""

from __future__ import annotations

import heapq
import json
import re
from dataclasses import dataclass

from corerun.inputs.documents import JSON_DEPTH, deeper_than
from corerun.interfaces import Json

MAX_SPANS = 64

LENIENT = json.JSONDecoder(strict=False, parse_constant=lambda _: None)
"""Reads JSON with line breaks in its strings; NaN and infinities become null."""

_STRUCTURE = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_LITERALS = {"True": "true", "False": "false", "None": "null", "undefined": "null", "NaN": "null"}
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*(?:"|\Z))"""
    r"""|(?P<single>'(?:[^'\\]|\\.)*(?:'|\Z))"""
    r"""|(?P<smart>[“„](?:[^”“\\]|\\.)*(?:[”“]|\Z))"""
    r"""|(?P<comment>//[^\n]*|/\*(?:(?!\*/).)*(?:\*/|\Z))"""
    r"""|(?P<word>[-+]?\b(?:True|False|None|undefined|NaN|Infinity)\b)"""
    r"""|(?P<bracket>[{}\[\]])""",
    re.DOTALL,
)
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*(?:"|\Z))|,(?=\s*(?:[}\]]|\Z))', re.DOTALL)
_QUOTE_OR_ESCAPE = re.compile(r'\\(.)|"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Scan:
    """Balanced ``{...}`` and ``[...]`` spans, largest first, later first on ties.

    ``steps`` counts the scanner's work; ``opened`` is the start of the outermost bracket that was
    never closed, or None.
    """

    spans: tuple[tuple[int, int], ...]
    steps: int
    opened: int | None


def parsed(text: str) -> tuple[Json, bool]:
    """JSON read from a whole text and True, or None and False; NaN and infinities become null.

    What is nested deeper than any document may be counts as no JSON.
    """
    try:
        data = LENIENT.decode(text)
    except (ValueError, RecursionError):
        return None, False
    return (None, False) if deeper_than(data, JSON_DEPTH) else (data, True)


def fenced_blocks(text: str) -> list[str]:
    """The contents of the code fences, in order; one that is never closed runs to the end."""
    blocks: list[str] = []
    lines: list[str] | None = None
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            if lines is None:
                lines = []
            else:
                blocks.append("\n".join(lines))
                lines = None
        elif lines is not None:
            lines.append(line)
    if lines:
        blocks.append("\n".join(lines))
    return blocks


def scan(text: str) -> Scan:
    """Finds balanced brackets in one pass that knows strings and escapes; linear in ``text``."""
    stack: list[tuple[str, int]] = []
    waiting = {"{": 0, "[": 0}
    largest: list[tuple[int, int]] = []
    steps, in_string = 0, False
    for token in _STRUCTURE.finditer(text):
        steps += 1
        sign = token[0]
        if sign == '"':
            in_string = bool(stack) and not in_string
        elif in_string or sign[0] == "\\":
            continue
        elif sign in waiting:
            stack.append((sign, token.start()))
            waiting[sign] += 1
        else:
            opener = "{" if sign == "}" else "["
            if not waiting[opener]:
                continue
            while True:
                steps += 1
                top, start = stack.pop()
                waiting[top] -= 1
                if top == opener:
                    break
            found = (token.end() - start, start)
            (heapq.heappush if len(largest) < MAX_SPANS else heapq.heappushpop)(largest, found)
    spans = tuple((start, start + size) for size, start in sorted(largest, reverse=True))
    return Scan(spans, steps, stack[0][1] if stack else None)


def repaired(text: str, *, closers: bool) -> Json:
    """JSON read with a light hand: commas, quotes, comments, Python literals, missing closers.

    ``closers``: whether brackets that were never closed may be closed. Raises ValueError.
    """
    open_brackets: list[str] = []
    unclosed_string = False

    def token(match: re.Match[str]) -> str:
        nonlocal unclosed_string
        found = match[0]
        if match.lastgroup == "bracket":
            if found in "{[":
                open_brackets.append("}" if found == "{" else "]")
            elif open_brackets:
                open_brackets.pop()
            return found
        if match.lastgroup == "comment":
            return ""
        if match.lastgroup == "word":
            return _LITERALS.get(found, "null")
        closing = {"string": '"', "single": "'", "smart": "”“"}[match.lastgroup or ""]
        complete = len(found) > 1 and found[-1] in closing
        unclosed_string = unclosed_string or not complete
        body = found[1:-1] if complete else found[1:]
        return f'"{body if match.lastgroup == "string" else _QUOTE_OR_ESCAPE.sub(_double_quoted, body)}"'

    cleaned = _TOKEN.sub(token, text)
    if open_brackets or unclosed_string:
        if not closers:
            raise ValueError("it was cut off")
        cleaned += "".join(reversed(open_brackets))
    cleaned = _TRAILING_COMMA.sub(lambda match: match[1] or "", cleaned)
    data, found = parsed(cleaned)
    if not found:
        raise ValueError("it isn't JSON")
    return data


def _double_quoted(match: re.Match[str]) -> str:
    if match[0] == '"':
        return '\\"'
    return "'" if match[1] == "'" else match[0]
