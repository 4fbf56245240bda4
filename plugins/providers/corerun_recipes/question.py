"""One question to the book: its facts, its own randomness, and how an answer with a program looks."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass

from corerun.errors import Unsupported
from corerun.interfaces import CallContext, Json

from .book import IDEAS, Idea

LABEL = "[rules]"
"""Opens every plan, review and summary, so that nobody takes it for a language model's."""


class Facts(dict[str, Json]):
    """The facts of one call; one that is needed and missing is a refusal, not a KeyError."""

    def __missing__(self, name: str) -> Json:
        raise Unsupported(
            f"recipes needs the fact {name!r} to answer this", hint="set --model to ask a language model"
        )


@dataclass(frozen=True, slots=True)
class Question:
    """What a purpose's function gets. ``rng`` depends on seed, purpose, node and attempt alone."""

    facts: Facts
    node: str
    idea: Idea
    rng: random.Random
    plant_faults: bool

    @property
    def sets(self) -> int:
        """Data sets of the stage, at most as many as the idea has."""
        return min(int(self.facts["stage_sets"]), len(self.idea.sets))


def question(ctx: CallContext, plant_faults: bool) -> Question:
    """The question behind a call; an idea without a known ``Recipe`` is refused."""
    facts, node = Facts(ctx.facts), ctx.node or ""
    recipe = facts["idea"].get("Recipe")
    if not (isinstance(recipe, str) and recipe in IDEAS):
        raise Unsupported(
            f"recipes does not know the idea's Recipe {recipe!r}; it has {', '.join(IDEAS)}",
            hint="set --model to ask a language model about an idea of your own",
        )
    source = json.dumps([facts["seed"], ctx.purpose, node, facts["attempt"]])
    rng = random.Random(int.from_bytes(hashlib.sha256(source.encode()).digest()))
    return Question(facts, node, IDEAS[recipe], rng, plant_faults)


def with_program(prose: str, code: str) -> str:
    """The form of every answer that holds a program: prose, then one fence."""
    return f"{LABEL} {prose}\n\n```python\n{code.rstrip()}\n```\n"


def number(value: Json) -> str:
    """A number from the facts as text, four significant digits; a missing one is said to be missing."""
    return "none" if value is None else f"{value:.4g}"
