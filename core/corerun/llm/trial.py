"""A few small calls that show whether a model can be used, and what its server takes of a request."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from corerun.errors import EnvironmentRefused
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Degradation, Json, Message, Part, Provider
from corerun.llm.accounts import Accounts
from corerun.llm.directory import ModelDirectory, ModelTarget
from corerun.llm.extraction import read_answer
from corerun.llm.structured import Problems, json_schema

SECONDS = 120.0
"""For one call to a model whose alias sets no timeout."""

MAX_TOKENS = 512

RUNGS: Mapping[str, tuple[str, ...]] = {
    "seed": ("seed",),
    "reasoning_effort": ("reasoning_effort",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "response_format": ("response_format", "schema"),
    "stop": ("stop",),
    "tools": ("tools", "tool_choice", "functions", "function_call", "strict"),
    "images": ("images", "image", "vision"),
}
"""Features in the order in which they are given up, each with the words that facts about it begin with."""

# A gray square of 32 x 32 pixels: some servers refuse smaller pictures.
_PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAABWESUoAAAAFklEQVR42mNoIAAYRhWMKhhVMFIVAABCAAAfN5c2AAAAAABJ"
    "RU5ErkJggg=="
)


@dataclass(frozen=True, slots=True)
class Word:
    """What the structured call asks for."""

    word: str


@dataclass(frozen=True, slots=True)
class Tried:
    """One call that was answered. ``problem`` says what is wrong with the answer; empty: nothing."""

    call: str
    answered_by: str
    finish: str
    latency_s: float
    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    cost_usd: float | None
    price_source: str
    degradations: tuple[Degradation, ...]
    problem: str = ""

    def to_json(self) -> Json:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rung:
    """What is known of one feature. ``state``: ``left out`` of a call just made; ``known`` to be refused;
    ``not sent``; ``not refused``, which proves no support. ``evidence`` is what the server said."""

    feature: str
    state: str
    evidence: str


async def try_model(
    directory: ModelDirectory, name: str, accounts: Accounts, *, offline: bool, everything: bool = False
) -> list[Tried]:
    """Ask the model ``name`` for a word, then for the same as JSON; ``everything`` adds a call that uses
    every feature a request can have.

    Raises what the provider raises, and `EnvironmentRefused` if ``offline`` and the model isn't local.
    """
    target, provider = directory.target(name), directory.provider(name)
    info = directory.check(name)
    if offline and not info.is_local:
        raise EnvironmentRefused(f"CORERUN_OFFLINE is set and {name!r} isn't local", hint="unset it to test")
    ask = "Answer with the word ready."
    options = target.options
    plain = ChatRequest(
        target.model,
        (Message("user", ask),),
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens or MAX_TOKENS,
        reasoning_effort=options.reasoning_effort,
        extra=target.extra,
    )
    structured = replace(plain, schema=json_schema(Word), schema_name="Word")
    requests = {"text": plain, "structured": structured}
    if everything:
        content = (Part("text", ask), Part("image", data=_PICTURE, media_type="image/png"))
        requests["everything"] = replace(
            structured,
            messages=(Message("user", ask if info.vision is False else content),),
            temperature=0.0 if options.temperature is None else options.temperature,
            seed=1,
            stop=("END OF THE TEST",),
            reasoning_effort=options.reasoning_effort or "low",
        )
    return [await _try(call, target, provider, request, accounts) for call, request in requests.items()]


async def _try(
    call: str, target: ModelTarget, provider: Provider, request: ChatRequest, accounts: Accounts
) -> Tried:
    started = time.monotonic()
    context = CallContext("test", deadline=started + (target.timeout_s or SECONDS))
    reply = await provider.complete(request, context)
    latency_s = round(time.monotonic() - started, 3)
    characters = len(str(request.messages[0].content)) + len(str(request.schema or ""))
    bill = accounts.bill(target, provider, reply, characters)
    return Tried(
        call,
        reply.model or target.model,
        reply.finish,
        latency_s,
        reply.requests,
        bill.usage.prompt,
        bill.usage.completion,
        bill.usage.estimated,
        bill.usage.cost_usd,
        bill.source,
        reply.degradations,
        _problem(reply, request),
    )


def _problem(reply: ChatReply, request: ChatRequest) -> str:
    if reply.finish in ("filter", "refusal"):
        return "the model refused to answer"
    try:
        value = read_answer(reply, Word if request.schema is not None else None, None)
    except Problems as error:
        return error.lines[0]
    return "" if value else f"the answer is empty (finish: {reply.finish})"


def ladder(tried: Iterable[Tried], learned: Sequence[Mapping[str, Json]], *, images: bool) -> list[Rung]:
    """Every feature in the order in which it is given up, then what else was learned, with its evidence.

    ``images``: whether one was sent.
    """
    dropped = {drop.feature: drop.reason for one in tried for drop in one.degradations}
    known = {
        str(row.get("feature", "")): f"{row.get('state', '')}: {row.get('evidence', '')}".rstrip(": ")
        for row in learned
    }
    rungs: list[Rung] = []
    for feature, words in RUNGS.items():
        gone = [reason for name, reason in dropped.items() if _first_word(name) in words]
        facts = [
            f"{name} {fact}"
            for name, fact in known.items()
            if _first_word(name) in words and name not in dropped
        ]
        silent = "not refused" if images or feature != "images" else "not sent"
        state = "left out" if gone else "known" if facts else silent
        rungs.append(Rung(feature, state, "; ".join(dict.fromkeys([*gone, *facts]))))
    listed = {word for words in RUNGS.values() for word in words}
    rungs += [Rung(n, "left out", reason) for n, reason in dropped.items() if _first_word(n) not in listed]
    rungs += [
        Rung(name, "known", fact)
        for name, fact in known.items()
        if _first_word(name) not in listed and name not in dropped
    ]
    return rungs


def _first_word(feature: str) -> str:
    """``tool_choice`` of ``tool_choice=required``, ``seed`` of ``seed&tools``."""
    for mark in "&=.":
        feature = feature.partition(mark)[0]
    return feature
