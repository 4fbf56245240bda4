"""Text of models, programs and files as a terminal or a log may show it: nothing in it is obeyed."""

from __future__ import annotations

import re

# Escape sequences of ECMA-48, with ESC or as one character of C1. What is to end with a terminator and
# doesn't is not taken for a sequence: it would hide all that follows.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90-\x9f\n]{0,4096}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
# Beside C0 and C1: what turns the direction of a line, ends it in another way, or is half a character.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")


def shown(text: str) -> str:
    """``text`` without escape sequences; each run of other control characters is a space, but for
    newlines and tabs. A carriage return before a newline goes too."""
    if text.isprintable():
        return text
    return _CONTROL.sub(" ", _SEQUENCE.sub("", text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """`shown` on one line: newlines and tabs are spaces too."""
    return text if text.isprintable() else shown(text).replace("\n", " ").replace("\t", " ")
