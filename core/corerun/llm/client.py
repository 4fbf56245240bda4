"""The client around one provider call: replay, budget, limits, retries, journal, validation, re-asks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from corerun.errors import (
    BadAnswer,
    ContentRefused,
    CorerunError,
    EnvironmentRefused,
    ModelError,
    Unsupported,
)
from corerun.interfaces import (
    Answer,
    CallContext,
    ChatReply,
    ChatRequest,
    Event,
    Json,
    Message,
    Price,
    Provider,
    ProviderInfo,
    Role,
)
from corerun.llm.accounts import Accounts
from corerun.llm.budget import Budget
from corerun.llm.directory import ModelTarget
from corerun.llm.extraction import read_answer
from corerun.llm.ledger import Ledger
from corerun.llm.messages import call_key, has_images, printable, reask, request_bytes
from corerun.llm.prices import load_prices, user_prices_file
from corerun.llm.replay import reply_from_json, reply_to_json
from corerun.llm.retry import Lane, attempt, with_retries
from corerun.llm.settings import LlmSettings, Recorder
from corerun.llm.structured import Problems, json_schema, model_name
from corerun.runs import events as records

__all__ = ["LanguageModels", "LlmSettings", "Recorder"]

WARMER = 0.3
"""Temperature of a re-ask after the same wrong answer came twice at temperature 0."""


class Directory(Protocol):
    """What a model's name means, and who answers for it: `corerun.llm.directory.ModelDirectory`."""

    def target(self, name: str) -> ModelTarget: ...

    def provider(self, name: str) -> Provider: ...


@dataclass(slots=True)
class _Question:
    """What stays the same over a question's first call and its re-asks."""

    role: str
    purpose: str
    node: str | None
    model: ModelTarget
    provider: Provider
    facts: Mapping[str, Json]
    strict: bool
    seconds_left: float


class LanguageModels:
    """Answers questions by role; every answer is in the journal before its caller sees it.

    ``directory`` knows what models' names mean; ``environ`` is read for ``CORERUN_OFFLINE``. ``elapsed``
    gives the seconds that the run has taken (default: since this object was made).
    """

    def __init__(
        self,
        *,
        record: Recorder,
        directory: Directory,
        roles: Mapping[str, Role],
        default_model: str,
        settings: LlmSettings,
        environ: Mapping[str, str],
        seed: int = 0,
        budget: Budget | None = None,
        prices: Mapping[str, Price] | None = None,
        elapsed: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        from corerun.llm.models import true_value

        started = clock()
        self.ledger = Ledger.fold(record.answered.values())
        self._record = record
        self._directory = directory
        self._roles = roles
        self._default_model = default_model
        self._settings = settings
        self._offline = true_value(environ.get("CORERUN_OFFLINE"))
        self._seed = seed
        self._clock = clock
        self._sleep = sleep
        self._accounts = Accounts(
            self.ledger,
            budget or Budget(),
            prices=lambda: load_prices(user_prices_file(environ)) if prices is None else prices,
            elapsed=elapsed or (lambda: clock() - started),
            unpriced=self._warn_unpriced,
        )
        self._lanes: dict[str, Lane] = {}
        self._counts: dict[str | None, dict[str, int]] = {}
        self._answered: dict[str, Event] = {}
        self._told: set[tuple[str, str]] = {
            (event.data["model_requested"], feature)
            for event in record.answered.values()
            for feature in event.data["degradations"]
        }

    def provider_info(self, role: str) -> ProviderInfo:
        """Facts about the provider that answers for ``role``, e.g. whether it sees images."""
        return self._directory.provider(self._name(role)).info

    def forget(self, node: str) -> None:
        """Starts a node's counts again, so that its next attempt is given the answers of the last."""
        self._counts.pop(node, None)

    async def ask(
        self,
        role: str,
        purpose: str,
        messages: Sequence[Message],
        *,
        schema: Any = None,
        parse: Callable[[str], Any] | None = None,
        tools: Sequence[Json] = (),
        node: str | None = None,
        facts: Mapping[str, Json] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        strict: bool = False,
        **request_options: Any,
    ) -> Answer[Any]:
        """Asks the model of ``role`` and returns its answer as ``schema``, through ``parse``, or as text.

        ``parse`` takes the text and raises ValueError with one line on what is wrong; either way a
        bad answer is shown to the model and asked again, ``settings.repairs`` times. ``strict``: a
        feature that the server refuses is an error. ``request_options`` are further fields of
        `ChatRequest`: ``top_p``, ``seed``, ``stop``, ``reasoning_effort``, ``extra``.

        Raises `BadAnswer` when no answer fitted; `InfrastructureError` when transport failed for
        good; `BudgetExceeded`; `EnvironmentRefused` when offline; other `ModelError` classes as the
        provider raised them.
        """
        cast = self._roles.get(role, Role())
        model = self._directory.target(self._name(role))
        provider = self._directory.provider(model.name)
        info = provider.info
        if self._offline and not info.is_local:
            raise EnvironmentRefused(
                f"CORERUN_OFFLINE is set and {model.name!r} isn't local",
                hint="choose a local model such as recipes::default, or unset CORERUN_OFFLINE",
            )
        if info.vision is False and has_images(messages):
            raise Unsupported(
                f"{model.name!r} can't see images", hint="ask without images or set another model"
            )
        request = ChatRequest(
            model=model.model,
            messages=tuple(messages),
            schema=None if schema is None else json_schema(schema),
            schema_name="" if schema is None else model_name(schema),
            tools=tuple(tools),
            temperature=cast.temperature if temperature is None else temperature,
            max_tokens=cast.max_tokens if max_tokens is None else max_tokens,
            **{"top_p": cast.top_p, "reasoning_effort": cast.reasoning_effort, **request_options},
        )
        question = _Question(
            role, purpose, node, model, provider, facts or {}, strict, self._settings.deadline_s
        )
        return await self._until_it_fits(question, request, schema, parse)

    def _name(self, role: str) -> str:
        return self._roles.get(role, Role()).model or self._default_model

    async def _until_it_fits(
        self, question: _Question, request: ChatRequest, schema: Any, parse: Callable[[str], Any] | None
    ) -> Answer[Any]:
        previous, attempt = None, 0
        while True:
            facts = {**question.facts, "seed": self._seed, "attempt": attempt}
            reply, seq, replayed = await self._call(question, request, facts)
            if reply.finish in ("filter", "refusal"):
                raise ContentRefused(f"{question.model.name!r} refused to answer {question.purpose}")
            try:
                return Answer(read_answer(reply, schema, parse), reply, replayed, seq)
            except Problems as error:
                attempt += 1
                if attempt > self._settings.repairs:
                    raise BadAnswer(
                        f"{question.model.name!r} gave no usable answer to {question.purpose} "
                        f"in {attempt} tries: {error.lines[0]}",
                        raw=reply.text,
                    ) from error
                request = reask(request, reply, error.lines)
            if reply.text == previous and request.temperature == 0:
                request = replace(request, temperature=WARMER)
            previous = reply.text

    async def _call(
        self, question: _Question, request: ChatRequest, facts: Mapping[str, Json]
    ) -> tuple[ChatReply, int, bool]:
        """One reply, the number of its record, and whether it was in the journal already."""
        body = request_bytes(request)
        key = self._key(question, body)
        known = self._answered.get(key) or self._record.answered.get(key)
        if known is not None:
            return reply_from_json(known.data), known.seq, True
        head = {"key": key, "node": question.node, "role": question.role, "purpose": question.purpose}
        async with self._lane(question.model).place() as ticket:
            self._accounts.reserve(key, question.provider, request, len(body))
            started = self._clock()
            try:
                prompt = self._record.blob(body)
                self._record.emit(records.CALL_ASKED, **head, model=question.model.name, prompt=prompt)
                reply, attempts = await self._send(question, request, facts, head, ticket)
            finally:
                self._accounts.release(key)
                latency_s = self._clock() - started
                question.seconds_left -= latency_s
            reply, seq = self._book(question, head, reply, attempts, len(body), latency_s)
        return reply, seq, False

    def _book(
        self,
        question: _Question,
        head: Mapping[str, Json],
        reply: ChatReply,
        attempts: int,
        characters: int,
        latency_s: float,
    ) -> tuple[ChatReply, int]:
        """Writes the answer down and adds it to the ledger; the reply as a replay would give it."""
        model = question.model
        bill = self._accounts.bill(question.provider, model.model, model.name, reply, characters)
        reply = replace(
            reply,
            text=printable(reply.text),
            reasoning=printable(reply.reasoning),
            model=reply.model or model.model,
            usage=bill.usage,
            requests=reply.requests + attempts - 1,
        )
        data = {
            **head,
            "provider": model.provider,
            "model_requested": model.name,
            "booked": bill.booked,
            **reply_to_json(reply),
            "cost_usd": bill.usage.cost_usd,
            "price_source": bill.source,
            "latency_s": round(latency_s, 6),
            "attempts": attempts,
        }
        seq = self._record.emit(records.CALL_ANSWERED, **data)
        event = Event(seq, 0.0, records.CALL_ANSWERED, data)
        self._answered[head["key"]] = event
        self.ledger.observe(event)
        for dropped in reply.degradations:
            if (model.name, dropped.feature) not in self._told:
                self._told.add((model.name, dropped.feature))
                said = {"feature": dropped.feature, "reason": dropped.reason}
                self._record.emit(records.DEGRADED, model=model.name, **said)
        return reply, seq

    def _lane(self, model: ModelTarget) -> Lane:
        if model.name not in self._lanes:
            self._lanes[model.name] = Lane(self._settings.concurrency)
        return self._lanes[model.name]

    def _key(self, question: _Question, body: bytes) -> str:
        first = call_key(question.node, question.purpose, 0, body)
        counts = self._counts.setdefault(question.node, {})
        n = counts.get(first, 0)
        counts[first] = n + 1
        return first if n == 0 else call_key(question.node, question.purpose, n, body)

    async def _send(
        self,
        question: _Question,
        request: ChatRequest,
        facts: Mapping[str, Json],
        head: Mapping[str, Json],
        ticket: object,
    ) -> tuple[ChatReply, int]:
        deadline = self._clock() + question.seconds_left
        context = CallContext(question.purpose, facts, question.node, deadline, question.strict)
        try:
            return await with_retries(
                lambda: attempt(question.provider, request, context),
                lane=self._lane(question.model),
                ticket=ticket,
                rng=random.Random(f"{self._seed}:{head['key']}"),
                retries=self._settings.retries,
                max_wait_s=self._settings.max_wait_s,
                seconds_left=question.seconds_left,
                clock=self._clock,
                sleep=self._sleep,
            )
        except CorerunError as error:
            kind = error.kind if isinstance(error, ModelError) else type(error).__name__
            model = question.model.name
            self._record.emit(records.CALL_FAILED, **head, model=model, kind=kind, message=error.message)
            raise

    def _warn_unpriced(self, model: str) -> None:
        if (model, "price") not in self._told:
            self._told.add((model, "price"))
            self._record.emit(
                records.WARNING,
                message=f"no price is known for {model!r}, so budget.usd can't count its calls: "
                "give it one in ~/.config/corerun/prices.yaml",
            )
