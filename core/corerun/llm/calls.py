"""One call at a time through everything that surrounds it: replay, cache, budget, queue, journal, ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

from corerun.errors import CorerunError, ModelError, ProviderBroken, StreamCut, Transient
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Degradation,
    Delta,
    Event,
    Json,
    Provider,
    ToolCall,
    Usage,
)
from corerun.llm.accounts import Accounts, Bill
from corerun.llm.cache import AnswerCache
from corerun.llm.directory import ModelTarget
from corerun.llm.lane import Lane
from corerun.llm.ledger import CHARACTERS_PER_TOKEN
from corerun.llm.messages import call_key, printable, request_bytes
from corerun.llm.replay import reply_from_json, reply_to_json
from corerun.llm.retry import with_retries
from corerun.llm.settings import LlmSettings, Recorder
from corerun.redaction import redact
from corerun.runs import events as records
from corerun.runs import faults


@dataclass(slots=True)
class Question:
    """What stays the same over a question's first call, its fallbacks and its re-asks.

    ``seconds_left`` is what calls may still take, ``retries_left`` how often a call and its fallbacks
    may still be tried again; ``on_delta`` is given pieces of answers as they come.
    """

    role: str
    purpose: str
    node: str | None
    strict: bool
    seconds_left: float
    retries_left: int = 0
    on_delta: Callable[[Delta], None] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one model. ``key`` names it in the journal, ``cached`` in the cache of answers.

    ``dropped`` was left out of the question before the provider saw it.
    """

    target: ModelTarget
    provider: Provider
    request: ChatRequest
    body: bytes
    key: str
    cached: str | None
    dropped: tuple[Degradation, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """A reply, the number of the record that holds it, and whether it was there already."""

    reply: ChatReply
    seq: int
    replayed: bool


class Calls:
    """Makes calls. An answer is in the journal before its caller sees it, and is never paid again."""

    def __init__(
        self,
        *,
        record: Recorder,
        accounts: Accounts,
        settings: LlmSettings,
        cache: AnswerCache | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._record = record
        self._accounts = accounts
        self._settings = settings
        self._cache = cache
        self._seed = seed
        self._clock = clock
        self._sleep = sleep
        self._lanes: dict[str, Lane] = {}
        self._counts: dict[str | None, dict[str, int]] = {}
        self._answered: dict[str, Event] = {}
        self._told: set[tuple[str, str]] = {
            (event.data["model_requested"], feature)
            for event in record.answered.values()
            for feature in event.data.get("degradations", ())
        }

    def forget(self, node: str) -> None:
        """Starts a node's counts again, so that its next attempt is given the answers of the last."""
        self._counts.pop(node, None)

    def prepare(
        self,
        question: Question,
        target: ModelTarget,
        provider: Provider,
        request: ChatRequest,
        dropped: tuple[Degradation, ...] = (),
    ) -> Call:
        """The next call of that request, with its names. Counts it, so it is made once per question."""
        body = request_bytes(request)
        first = call_key(question.node, question.purpose, 0, body)
        counts = self._counts.setdefault(question.node, {})
        n = counts.get(first, 0)
        counts[first] = n + 1
        key = first if n == 0 else call_key(question.node, question.purpose, n, body)
        address = f"{target.provider} {provider.info.address}"
        cached = None if self._cache is None else self._cache.key(address, body)
        return Call(target, provider, request, body, key, cached, dropped)

    def recorded(self, call: Call) -> Answered | None:
        """The answer that the journal holds already, or None."""
        known = self._answered.get(call.key) or self._record.answered.get(call.key)
        return None if known is None else Answered(reply_from_json(known.data), known.seq, True)

    async def make(self, question: Question, call: Call, facts: Mapping[str, Json]) -> Answered:
        """Asks, from the cache or the provider, and writes the answer down.

        Raises `InfrastructureError` when transport failed for good, `BudgetExceeded`, and other
        `ModelError` classes as the provider raised them.
        """
        head = {"key": call.key, "node": question.node, "role": question.role, "purpose": question.purpose}
        kept = None if self._cache is None or call.cached is None else self._cache.find(call.cached)
        if kept is not None and not (question.strict and kept.degradations):
            self._ask(head, call)
            saved = self._bill(call, kept)
            free = replace(kept, usage=Usage(cost_usd=0.0), requests=0)
            bill = Bill(free.usage, "cache", saved.booked)
            extra = {"cache_hit": True, "saved_usd": saved.usage.cost_usd}
            return self._book(call, head, free, bill, attempts=0, latency_s=0.0, **extra)
        lane = self._lane(call.target)
        tokens = len(call.body) // CHARACTERS_PER_TOKEN + (call.request.max_tokens or 0)
        async with lane.place() as ticket:
            self._accounts.reserve(call.key, call.target, call.provider, call.request, len(call.body))
            try:
                await lane.admit(tokens)
                started = self._clock()
                self._ask(head, call)
                try:
                    reply, attempts = await self._send(question, call, facts, head, ticket, tokens)
                finally:
                    latency_s = self._clock() - started
                    question.seconds_left -= latency_s
            finally:
                self._accounts.release(call.key)
        if self._cache is not None and call.cached is not None:
            self._cache.keep(call.cached, replace(reply, **_presentable(reply)))
        if attempts > 1:
            reply = replace(reply, requests=reply.requests + attempts - 1)
        return self._book(call, head, reply, self._bill(call, reply), attempts=attempts, latency_s=latency_s)

    def _ask(self, head: Mapping[str, Json], call: Call) -> None:
        prompt = self._record.blob(call.body)
        self._record.emit(records.CALL_ASKED, **head, model=call.target.name, prompt=prompt)

    def _bill(self, call: Call, reply: ChatReply) -> Bill:
        return self._accounts.bill(call.target, call.provider, reply, len(call.body))

    def _book(
        self,
        call: Call,
        head: Mapping[str, Json],
        reply: ChatReply,
        bill: Bill,
        *,
        attempts: int,
        latency_s: float,
        **extra: Json,
    ) -> Answered:
        """Writes the answer down and adds it to the ledger; the reply as a replay would give it."""
        target = call.target
        reply = replace(
            reply,
            **_presentable(reply),
            model=reply.model or target.model,
            usage=bill.usage,
            degradations=(*call.dropped, *reply.degradations),
        )
        data: dict[str, Any] = {
            **head,
            "provider": target.provider,
            "model_requested": target.name,
            "booked": bill.booked,
            **reply_to_json(reply),
            "cost_usd": bill.usage.cost_usd,
            "price_source": bill.source,
            "latency_s": round(latency_s, 6),
            "attempts": attempts,
            **extra,
        }
        seq = self._record.emit(records.CALL_ANSWERED, **data)
        event = Event(seq, 0.0, records.CALL_ANSWERED, data)
        self._answered[call.key] = event
        self._accounts.ledger.observe(event)
        for dropped in reply.degradations:
            if self._first(target.name, dropped.feature):
                said = {"feature": dropped.feature, "reason": dropped.reason}
                self._record.emit(records.DEGRADED, model=target.name, **said)
        return Answered(reply, seq, False)

    def _first(self, model: str, subject: str) -> bool:
        told = (model, subject) in self._told
        self._told.add((model, subject))
        return not told

    def _lane(self, target: ModelTarget) -> Lane:
        if target.name not in self._lanes:
            pace = replace(target.pace, concurrency=target.pace.concurrency or self._settings.concurrency)
            self._lanes[target.name] = Lane(pace, self._clock, self._sleep)
        return self._lanes[target.name]

    async def _send(
        self,
        question: Question,
        call: Call,
        facts: Mapping[str, Json],
        head: Mapping[str, Json],
        ticket: object,
        tokens: int,
    ) -> tuple[ChatReply, int]:
        seconds = question.seconds_left
        if call.target.timeout_s is not None:
            seconds = min(seconds, call.target.timeout_s)
        context = CallContext(
            question.purpose, facts, question.node, self._clock() + seconds, question.strict
        )
        tries = 0

        async def send() -> ChatReply:
            nonlocal tries
            tries += 1
            try:
                faults.point("call.send")
                reply = await attempt(call.provider, call.request, context, question.on_delta)
                faults.point("call.receive")
            except OSError as error:
                raise Transient(f"the connection broke: {error.strerror}") from error
            return reply

        try:
            return await with_retries(
                send,
                lane=self._lane(call.target),
                ticket=ticket,
                tokens=tokens,
                seed=f"{self._seed}:{call.key}",
                retries=question.retries_left,
                max_wait_s=self._settings.max_wait_s,
                seconds_left=seconds,
                clock=self._clock,
                sleep=self._sleep,
            )
        except CorerunError as error:
            kind = error.kind if isinstance(error, ModelError) else type(error).__name__
            name = call.target.name
            self._record.emit(records.CALL_FAILED, **head, model=name, kind=kind, message=error.message)
            raise
        finally:
            question.retries_left -= max(tries - 1, 0)


async def attempt(
    provider: Provider,
    request: ChatRequest,
    context: CallContext,
    on_delta: Callable[[Delta], None] | None = None,
) -> ChatReply:
    """One answer of ``provider``, in pieces too if somebody wants them and it can.

    What a provider may not raise becomes `ProviderBroken`. Once a piece was handed out nothing is
    tried again: a failure is then `StreamCut` with what had come.
    """
    given: list[Delta] = []
    try:
        stream = getattr(provider, "stream", None)
        if on_delta is None or stream is None:
            return await provider.complete(request, context)
        async with aclosing(stream(request, context)) as deltas:
            async for delta in deltas:
                if delta.reply is not None:
                    return cast(ChatReply, delta.reply)
                given.append(delta)
                on_delta(delta)
        raise Transient(f"the stream of {provider.info.name!r} ended without a reply")
    except Transient as error:
        if not given:
            raise
        partial = "".join(delta.text for delta in given if delta.kind == "text")
        raise StreamCut(error.message, partial=partial, hint=error.hint) from error
    except CorerunError:
        raise
    except Exception as error:
        summary = redact(" ".join(f"{type(error).__name__}: {error}".split()))
        raise ProviderBroken(
            f"the provider {provider.info.name!r} broke: {summary}",
            hint="this is a fault of the provider's plugin",
        ) from error


def _presentable(reply: ChatReply) -> dict[str, Any]:
    """The texts of ``reply`` as files can hold them and as everybody may see them."""
    return {
        "text": redact(printable(reply.text)),
        "reasoning": redact(printable(reply.reasoning)),
        "tool_calls": tuple(
            ToolCall(call.id, call.name, redact(printable(call.arguments))) for call in reply.tool_calls
        ),
    }
