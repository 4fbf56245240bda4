"""What keys of well-known kinds look like, whoever they belong to."""

from __future__ import annotations

import functools
import re

from corerun.redaction.known import HIDDEN

# A word may begin after anything that isn't part of one, and after an escape of JSON.
_START = r"(?:(?<![A-Za-z0-9_{more}-]{word})|(?<=\\[bfnrt]{word})|(?<=\\u[0-9a-f]{{4}}{word}))"
# Words that hyphens join are no key: five capitals, digits or stars are, or one long run.
_RANDOM = r"(?=(?:[a-z_-]*[A-Z0-9*]){{5}}|[A-Za-z0-9_-]*?[A-Za-z0-9]{{{run}}})"
_NO_WORD = r"(?=[a-z]*[A-Z0-9])"

_BREAK = r"(?:\s|\\+[nrt])+"
_PEM = (
    r"(?<=PRIVATE KEY-----)(?:(?:[\sA-Za-z0-9+/=:,]|-(?!----)|\\+[nrt]){1,20000}+(?=-----END)"
    # Cut off before its end.
    rf"|(?:{_BREAK}[A-Za-z0-9+/=]{{40,}})+(?:{_BREAK}[A-Za-z0-9+/=]+)?)"
)
_TOKEN = r"[A-Za-z0-9._~+/*-]"
_LIKELY = r"(?=(?:[A-Za-z._~+/*-]*[0-9]){5}|(?=[A-Za-z]*[0-9])[A-Za-z0-9]{20})"
_HEADERS = ("uthorization: ", 'uthorization": "', "uthorization': '", 'uthorization":"', "uthorization=")
_NAMES = r"(?:api[_-]?key|key|(?:access_|auth_|id_)?token|(?:client_)?secret|password|signature|sig)"
_VALUE = r"[^&\s\"'\\{}\[\](),;<>#|`$*]{8,}"
_LOGIN = r"[^\s\"'\\{}\[\],<>/?#()|`$]"


def hide_shapes(text: str) -> str:
    """``text`` without anything that has the shape of a key; what says its kind stays."""
    for sign, pattern, replacement in _patterns():
        if sign in text:
            text = pattern.sub(replacement, text)
    return text


@functools.cache
def _patterns() -> tuple[tuple[str, re.Pattern[str], str], ...]:
    """A character without which there is no match, the pattern, and what stands in its place.

    A pattern begins with one literal character, which `re` finds as fast as it reads; the rest of a
    prefix is a look-behind. No match holds a quote, a backslash, a brace, a comma or a blank, line
    breaks of a PEM block apart, so JSON stays JSON.
    """
    dash = "|".join(
        (
            rf"{_after('sk-')}{_RANDOM.format(run=12)}[A-Za-z0-9_*-]{{8,}}",
            rf"{_after('xai-')}{_RANDOM.format(run=16)}[A-Za-z0-9_*-]{{16,}}",
            rf"{_after('xox[abceprs]-')}{_RANDOM.format(run=16)}[A-Za-z0-9*-]{{10,}}",
            rf"{_after('glpat-')}{_NO_WORD}[A-Za-z0-9_*-]{{16,}}",
            _PEM,
        )
    )
    score = "|".join(
        (
            rf"(?:{_after('gsk_')}|{_after('hf_')}|{_after('gh[opsur]_')}){_NO_WORD}[A-Za-z0-9*]{{16,}}",
            rf"{_after('github_pat_')}{_NO_WORD}[A-Za-z0-9_*]{{16,}}",
        )
    )
    # Four letters may come by chance in the base64 of a picture, in the middle of a long run.
    run = _START.format(word="A", more="+/")
    google = rf"(?=Iza){run}(?=...[0-9A-Za-z_*-]{{20,}}(?![0-9A-Za-z_+/=-]))"
    amazon = rf"(?=[KS]IA){_START.format(word='A', more='')}(?=...[0-9A-Z*]{{16}}(?![0-9A-Za-z]))"
    capital = rf"(A(?:{google}|{amazon})...)[0-9A-Za-z_*-]+"
    # After the header's name any token is one; elsewhere ordinary words may follow.
    headers = "|".join(f"(?<={header}B)" for header in _HEADERS)
    certain = rf"(?:{headers})[a-z]+ +(?={_TOKEN}{{8}})"
    likely = rf"[a-z]+ +{_LIKELY}(?={_TOKEN}{{12}})"
    scheme = rf"(B(?=earer |asic )(?:{certain}|{likely})){_TOKEN}+=*"
    name = rf"(?:amp;)?{_NAMES}="
    return (
        ("-", re.compile(rf"-(?:{dash})"), f"-{HIDDEN}"),
        ("_", re.compile(rf"_(?<=[ahs][fkoprstu]_)(?:{score})"), f"_{HIDDEN}"),
        ("A", re.compile(capital), rf"\1{HIDDEN}"),
        ("B", re.compile(scheme), rf"\1{HIDDEN}"),
        ("?", re.compile(rf"(?i:(\?{name}){_VALUE})"), rf"\1{HIDDEN}"),
        ("&", re.compile(rf"(?i:(&{name}){_VALUE})"), rf"\1{HIDDEN}"),
        ("@", re.compile(rf"(:\\?/\\?/){_LOGIN}*:{_LOGIN}*@"), rf"\1{HIDDEN}@"),
    )


def _after(prefix: str) -> str:
    """A look-behind: ``prefix`` has just been read, and a word began with it."""
    return f"(?<={prefix}){_START.format(word=prefix, more='')}"
