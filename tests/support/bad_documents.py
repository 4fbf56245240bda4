"""What can be wrong with any document, whatever it is about: its bytes, and what the message says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

Content: TypeAlias = str | bytes | Callable[[Path], None]
"""A file's text or bytes, or a function that makes it."""
MEGABYTE = 2**20


def sized(head: bytes, size: int) -> Callable[[Path], None]:
    """Makes a file that begins with ``head`` and is ``size`` bytes long, without taking their space."""

    def make(path: Path) -> None:
        path.write_bytes(head)
        with path.open("r+b") as file:
            file.truncate(size)

    return make


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def _laughs(leaf: str, form: str) -> str:
    """Nine references to nine references to ...: a few hundred bytes that stand for a billion values."""
    lines = [f"a0: &a0 {leaf}"]
    for level in range(1, 9):
        inner = ", ".join(form.format(n, level - 1) for n in range(9))
        brackets = "{}" if ":" in form else "[]"
        lines.append(f"a{level}: &a{level} {brackets[0]}{inner}{brackets[1]}")
    return "\n".join(lines)


# What can be wrong with any YAML file: its text, and where and what the message says.
YAML: Mapping[str, tuple[str | bytes, str]] = {
    "tab as indentation": ("a:\n\tb: 1\n", ":2: not YAML"),
    "list not closed": ("a: [1, 2\n", ":2: not YAML"),
    "mapping not closed": ("a: {b: 1\n", ":2: not YAML"),
    "quote not closed": ("a: 'b\n", ":2: not YAML"),
    "double quote not closed": ('a: "b\n', ":2: not YAML"),
    "unknown escape": ('a: "\\q"\n', ":1: not YAML"),
    "two colons": ("a: b: c\n", ":1: not YAML"),
    "wrong indentation": ("a:\n    b: 1\n  c: 2\n", ":3: not YAML"),
    "reserved sign at": ("a: @b\n", ":1: not YAML"),
    "reserved sign backquote": ("a: `b`\n", ":1: not YAML"),
    "directive unknown": ("%YAML 9.9\n---\na: 1\n", ":1: not YAML"),
    "control character": ("a: 1\nb: \x01\n", ":2: not YAML"),
    "two documents": ("a: 1\n---\na: 2\n", ":2: not YAML"),
    "key twice": ("a: 1\na: 2\n", ":2: key 'a' is given twice"),
    "inner key twice": ("a:\n  b: 1\n  b: 2\n", ":3: key 'a.b' is given twice"),
    "key twice in a list": ("a:\n- b: 1\n  b: 2\n", ":3: key 'a.0.b' is given twice"),
    "key is a list": ("a: 1\n[b, c]: 2\n", ":2: a key must be one word"),
    "key is a mapping": ("{a: 1}: 2\n", ":1: a key must be one word"),
    "merge key": ("a: &x {b: 1}\nc:\n  <<: *x\n", ":3: a key must be one word"),
    "mapping holds itself": ("a: &x\n  b: *x\n", ":2: &x contains itself"),
    "list holds itself": ("a: &x [1, *x]\n", ":1: &x contains itself"),
    "alias of nothing": ("a: *x\n", ":1: *x stands for nothing"),
    "billion laughs in lists": (_laughs("[x, x, x, x, x, x, x, x, x]", "*a{1}"), "more than 100,000 values"),
    "billion laughs in mappings": (_laughs("{x: 1, y: 2}", "k{0}: *a{1}"), "more than 100,000 values"),
    "many aliases": (f"a: &x 1\nb: [{'*x, ' * 101}]\n", ":2: more than 100 aliases"),
    "many values": (f"a: [{'1,' * 100_001}]\n", ":1: more than 100,000 values"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(50_001)), "more than 100,000 values"),
    "nested 51 deep": (f"a: {'[' * 51}{']' * 51}\n", ":1: nested deeper than 50 levels"),
    "mappings 60 deep": (
        "".join(f"{'  ' * n}a:\n" for n in range(60)) + "  " * 60 + "b: 1\n",
        ":51: nested deeper than 50 levels",
    ),
    "nested 100,000 deep": (f"a: {'[' * 100_000}", ":1: not YAML: exceeded maximum nesting"),
    "tag of a Python object": ("a: !!python/object/apply:os.system [x]\n", ":1: the tag !!python/object"),
    "tag of a Python name": ("a: 1\nb: !!python/name:os.system\n", ":2: the tag !!python/name"),
    "tag of bytes": ("a: !!binary aGk=\n", ":1: the tag !!binary"),
    "tag of a set": ("a: !!set {b, c}\n", ":1: the tag !!set"),
    "tag of one's own": ("a: !include other.yaml\n", ":1: the tag !include"),
    "tag of a number in base 60": (f"a: !!int {'1:' * 1000}1\n", ":1: the tag !!int"),
    "number of 5,000 digits": (f"a: {'9' * 5000}\n", ":1: a number has more than 4300 digits"),
    "number beyond a float": ("a: 1e999\n", ":1: the number 1e999 is too large"),
    "UTF-16": ("a: 1\n".encode("utf-16"), ":1: not UTF-8 but UTF-16"),
    "UTF-16 without a mark": ("a: 1\n".encode("utf-16-le"), ":1: not text: it holds a NUL"),
    "UTF-32": ("a: 1\n".encode("utf-32"), ":1: not UTF-8 but"),
    "byte order mark": ("\ufeffa: 1\n".encode(), ":1: not YAML: it begins with a byte order mark"),
    "Latin-1": ("a: 1\nb: Größe\n".encode("latin-1"), ":2: not UTF-8: byte 0xf6"),
    "surrogate": (b"a: \xed\xa0\x80\n", ":1: not UTF-8"),
    "NUL": ("a: 1\nb: \0\n", ":2: not text: it holds a NUL"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ":1: not UTF-8: byte 0x89"),
    "a list": ("- a\n- b\n", ""),
    "a text": ("just words\n", ""),
    "a number": ("5\n", ""),
}

FILES: Mapping[str, tuple[Content, str]] = {
    "too large": (sized(b"a: 1\n", 60 * MEGABYTE), "it is larger than"),
    "a folder": (lambda path: path.mkdir(), ""),
    "a pipe that nobody fills": (pipe, ""),
    "a link to itself": (loop, ""),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "no such file"),
}
"""What can be wrong with a file before its text."""

JSON: Mapping[str, tuple[Content, str]] = {
    "empty": ("", ":1: not JSON"),
    "cut": ('[{"Name": "x",\n', ":2: not JSON"),
    "trailing comma": ("[1,\n2,]\n", ":2: not JSON"),
    "single quotes": ("[{'Name': 1}]", ":1: not JSON"),
    "comment": ("// ideas\n[]", ":1: not JSON"),
    "two values": ("[]\n[]\n", ":2: not JSON"),
    "line break in a text": ('["a\nb"]', ":1: not JSON"),
    "unknown escape": ('["\\q"]', ":1: not JSON"),
    "NaN": ("[NaN]", "NaN is no JSON number"),
    "infinity": ("[-Infinity]", "-Infinity is no JSON number"),
    "number beyond a float": ("[1e999]", "the number 1e999 is too large"),
    "number of 5,000 digits": (f"[{'9' * 5000}]", "more than 4300 digits"),
    "key twice": ('[{"Name": 1, "Name": 2}]', "key 'Name' is given twice"),
    "nested 101 deep": ("[" * 101 + "]" * 101, "nested deeper than 100 levels"),
    "nested a million deep": ("[" * 1_000_000, "nested deeper than 100 levels"),
    "objects 200 deep": ('{"a":' * 200 + "1" + "}" * 200, "nested deeper than 100 levels"),
    "millions of values": (f"[{'[],' * 5_000_000}[]]", "more than 1,000,000 values"),
    "UTF-16": ("[]".encode("utf-16"), ":1: not UTF-8 but UTF-16"),
    "Latin-1": ('["x",\n"ö"]'.encode("latin-1"), ":2: not UTF-8: byte 0xf6"),
    "NUL": ('["a\0"]', ":1: not text: it holds a NUL"),
    "YAML": ("- Name: x\n", ":1: not JSON"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ":1: not UTF-8"),
}
