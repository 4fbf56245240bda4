"""The words for what a server is known not to take; a request is built from a set of them.

A fact is a string. ``seed`` is a parameter that is refused, ``reasoning_effort=none`` a value of it,
``max_tokens<=4096`` a limit for it, ``reasoning_effort&tools`` two things that are refused together.
``response_format.json_schema``, ``tools.strict`` and ``schema.minItems`` are parts of a parameter,
``messages.system`` and its like are ways to write messages. ``channel.tool`` says that answers ignored
this way to ask for JSON, ``prefer.functions`` that this way was answered when others were refused.
"""

from __future__ import annotations

import re

from corerun.interfaces import Json

Facts = frozenset[str]
NOTHING: Facts = frozenset()

IMAGES = "images"
TOOLS = "tools"
FUNCTIONS = "functions"
RESPONSE_FORMAT = "response_format"
JSON_SCHEMA = "response_format.json_schema"
JSON_OBJECT = "response_format.json_object"
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
CAP = "max_tokens<="
TOOLS_STRICT = "tools.strict"
FORMAT_STRICT = "response_format.strict"
PLAIN_SCHEMA = "schema.plain"
"""Only the commonest words of JSON Schema are understood."""
OPEN_OBJECTS = "schema.additionalProperties"
STREAM_OPTIONS = "stream_options"

EFFORT_WITH_TOOLS = "reasoning_effort&tools"
FORMAT_WITH_TOOLS = "response_format&tools"
CHOICE_WHEN_THINKING = "tool_choice&thinking"
FORMAT_WHEN_THINKING = "response_format&thinking"

SYSTEM_ROLE = "messages.system"
DEVELOPER_ROLE = "messages.developer"
NO_USER_TURN = "messages.no_user_turn"
NO_JSON_WORD = "messages.no_json_word"
REASONING_BACK = "needs_reasoning_back"
"""A request is refused unless past thinking is sent back."""

CHANNEL = "channel."
PREFER = "prefer."

_ONE_WORD = re.compile(r"[=<&]")


class Refusals:
    """The facts under which one body is built, and those of them that made a difference."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._applied: dict[str, None] = {}

    def hold(self, fact: str | None) -> bool:
        """Whether something that would now be sent is refused; if so the fact counts as applied."""
        if fact is None or fact not in self.facts:
            return False
        self._applied[fact] = None
        return True

    @property
    def applied(self) -> tuple[str, ...]:
        return tuple(self._applied)


def feature_of(fact: str) -> str:
    """The request's word for what a fact is about, as in `Degradation.feature`."""
    if fact.startswith(CHANNEL):
        return {"tool": TOOLS, "functions": FUNCTIONS}.get(fact.removeprefix(CHANNEL), RESPONSE_FORMAT)
    word = _ONE_WORD.split(fact)[0]
    return RESPONSE_FORMAT if word.startswith(RESPONSE_FORMAT) else word


def split(fact: str) -> tuple[str, str]:
    """A fact as a feature and what is said of it: a value, a limit such as ``<=4096``, or nothing."""
    if "<=" in fact:
        feature, _, limit = fact.partition("<=")
        return feature, f"<={limit}"
    feature, _, value = fact.partition("=")
    return feature, value


def joined(feature: str, value: str) -> str:
    """The fact that `split` took apart."""
    return f"{feature}{value}" if value.startswith("<=") else f"{feature}={value}" if value else feature


def value_fact(name: str, value: Json) -> str | None:
    """The fact that ``value`` of ``name`` is refused; None for a value that is no single word."""
    if name == "tool_choice" or name == "function_call":
        return f"{name}={'object' if isinstance(value, dict) else value}"
    if isinstance(value, bool | int | float | str):
        return f"{name}={value}"
    return None


def cap_of(facts: Facts) -> int | None:
    """The largest number of tokens that may be asked for, if one is known."""
    caps = [int(fact.removeprefix(CAP)) for fact in facts if fact.startswith(CAP)]
    return min(caps, default=None)
