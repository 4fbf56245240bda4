"""Regular expressions of a configuration: what could match for ever is refused when it is read."""

from __future__ import annotations

import string
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.config.settings import ModelAlias
from corerun.inputs.patterns import LONGEST_TEXT, check_pattern, found_in

ENDLESS = [
    *(
        "(a+)+$",
        "(a|a)*b",
        "(a|ab)*$",
        "(.*)*x",
        "(a{1,30}){1,30}$",
        "(?:x+x+)+y",
        r"(\w+\s?)+$",
        "([a-z]+)*$",
    ),
    *(
        "(a*)*",
        "((ab)*)*",
        "(?=(a+)+$)x",
        r"^(\d+)+$",
        r"(a)\1",
        "(?i:(a+)+)",
        "(?P<x>a+)+b",
        "(a??)*b",
        "(a+?)+?b",
    ),
    *(
        "a?" * 30 + "a" * 30,
        ".*.*.*x",
        "x*" * 4,
        "(a|b|aa){0,20}" * 2,
        "(?!(a+)+b)",
        "(?<!a)(b+)+c",
        "(a){2,}(b+c){2}",
    ),
    *("(?:a|b(?:c|d)?)+", "(" * 200, "[", "a" * 501, "a{1,99999999999999999999}", "(?P<n>x)(?(n)a+|b)"),
]
HARMLESS = [
    *(
        "unsupported parameter",
        "(temperature|top_p) is not supported",
        r"unknown field: ['\"]?seed",
        "no .* images?",
    ),
    *(
        r"\bjson[ _]schema\b",
        "(?i)strict",
        r"does(n't| not) support (\w+)",
        "(?:ab)+c",
        "[a-z]+: [0-9]+",
        "x{3}",
        "(ab){2,5}",
    ),
]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_what_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        check_pattern(pattern)
    with pytest.raises(ValueError, match=r"wording\n.*seed: "):
        ModelAlias.model_validate({"wording": {"seed": [pattern]}})


@pytest.mark.parametrize("pattern", HARMLESS)
def test_what_people_write_is_taken(pattern: str) -> None:
    check_pattern(pattern)


def test_a_text_is_looked_at_up_to_its_limit() -> None:
    assert found_in("SEED", "the seed\nx") and found_in("a.b", "a\nb")
    assert found_in("x$", "x" * LONGEST_TEXT + "y") and not found_in("y", "x" * LONGEST_TEXT + "y")


PIECES = st.recursive(
    st.sampled_from(["a", "b", "[ab]", ".", r"\w", "^", "$", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{0,9}", "{2,}"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
    ),
    max_leaves=12,
)

MATCH_ALL = """
import sys
from corerun.inputs.patterns import check_pattern, found_in
for pattern in sys.stdin.read().splitlines():
    try:
        check_pattern(pattern)
    except ValueError:
        continue
    for text in ("a" * 2000, "ab" * 1000, "aab" * 700 + "c", "b" * 999 + "c"):
        found_in(pattern, text)
"""


def test_every_pattern_that_is_taken_comes_to_an_end() -> None:
    """In a process of its own: a match that doesn't end can't be interrupted."""
    taken: list[str] = []

    @given(PIECES)
    def collect(pattern: str) -> None:
        taken.append(pattern)

    collect()
    assert len(taken) >= 100
    patterns = "\n".join([*taken, *(f"{pattern}c" for pattern in taken)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MATCH_ALL)], input=patterns, text=True, timeout=120
    )
    assert done.returncode == 0


@given(st.text(string.ascii_letters + r"()[]{}*+?|\.^$0123456789,:=!<>P", max_size=40))
def test_any_text_is_judged(text: str) -> None:
    try:
        check_pattern(text)
    except ValueError as error:
        assert "\n" not in str(error)
