"""Two hundred small programs that must come out the same however they are started."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TEXT = (Path(__file__).parent.parent / "data" / "same_programs.txt").read_text()
_PROGRAM = re.compile(r"#### (\w+): (.+)\n((?:(?!####).*\n)+)")


class Sample(NamedTuple):
    """A program, the profile that it is forked with, and what else the request holds."""

    name: str
    profile: str
    code: str
    env: dict[str, str]
    stdin: str


def samples(bare: int = 4, numpy: int = 9, heavy: int = 2) -> Iterator[Sample]:
    """The programs of each profile, so many times, each time with other numbers."""
    turns = {"bare": bare, "numpy": numpy}
    for profile, name, code in _PROGRAM.findall(_TEXT):
        for turn in range(turns.get(profile, heavy)):
            number = 3 + 11 * turn + len(name)
            ready = code.replace("@number@", str(number)).replace("@way@", ("fork", "spawn")[turn % 2])
            env = {"SAMPLE": name, "TZ": ("Asia/Tokyo", "UTC")[turn % 2]}
            yield Sample(f"{profile}: {name} {number}", profile, ready, env, "line\n" * number)
