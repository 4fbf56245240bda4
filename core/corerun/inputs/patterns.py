"""Regular expressions that people write: refused when matching them could take for ever."""

from __future__ import annotations

import math
import re
import warnings
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

LONGEST_TEXT = 1000
"""Characters of a text that such an expression is matched against."""

_LONGEST_PATTERN = 500
_MOST_STEPS = 1_000_000_000
_REPEATS = frozenset({_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT})


def check_pattern(pattern: str) -> None:
    """Raises ValueError with a sentence on what is wrong with ``pattern``.

    Refused is what backtracks without end, judged by its form alone: a repetition of something that is
    itself of no fixed form, as ``(a+)+`` or ``(a|ab)*``, and more free choices in a row than can be tried
    on `LONGEST_TEXT` characters. That is stricter than it need be, and holds for every text.
    """
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"is longer than {_LONGEST_PATTERN} characters")
    try:
        with warnings.catch_warnings():
            # What future versions may read otherwise is no fault today.
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(pattern)
            parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression: {error}") from None
    unbounded, choices = _choices(parsed, inside=False)
    # Each start in the text, and each way to share the text among what can take any part of it.
    steps = LONGEST_TEXT ** (unbounded + 1) / math.factorial(unbounded + 1) * choices
    if steps > _MOST_STEPS:
        raise ValueError("could take for ever: it holds too many of * + ? {m,n} and | at once")


def found_in(pattern: str, text: str) -> bool:
    """Whether a checked ``pattern`` is in the first `LONGEST_TEXT` characters of ``text``, in any case."""
    return re.search(pattern, text[:LONGEST_TEXT], re.IGNORECASE | re.DOTALL) is not None


def _choices(parsed: Any, *, inside: bool) -> tuple[int, int]:
    """How many repetitions take any number of characters, and the product of all bounded choices.

    ``inside`` a repetition nothing may vary.
    """
    unbounded, choices = 0, 1
    for operation, argument in parsed:
        bodies: list[Any] = []
        repeated = False
        if operation in _REPEATS:
            least, most, body = argument
            bodies, repeated = [body], most > 1
            if least != most:
                if inside:
                    raise ValueError("could take for ever: it repeats what can be of several lengths")
                if most - least < LONGEST_TEXT:
                    choices *= int(most - least) + 1
                else:
                    unbounded += 1
        elif operation is _constants.BRANCH:
            if inside:
                raise ValueError("could take for ever: it repeats a choice (|)")
            bodies = argument[1]
            choices *= len(bodies)
        elif operation in (_constants.GROUPREF, _constants.GROUPREF_EXISTS):
            raise ValueError("refers to what it matched before, which could take for ever")
        elif operation is _constants.SUBPATTERN:
            bodies = [argument[-1]]
        elif operation in (_constants.ASSERT, _constants.ASSERT_NOT):
            bodies = [argument[1]]
        elif operation is _constants.ATOMIC_GROUP:
            bodies = [argument]
        for body in bodies:
            more, times = _choices(body, inside=inside or repeated)
            unbounded += more
            choices *= times
    return unbounded, choices
