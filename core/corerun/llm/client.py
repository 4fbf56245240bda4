"""Answers questions by role: which model, which fallback, validation, and re-asks until it fits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from corerun.errors import (
    BadAnswer,
    ContentRefused,
    ContextTooLong,
    CorerunError,
    EnvironmentRefused,
    InfrastructureError,
    ModelUnusable,
    RequestRefused,
    Unsupported,
)
from corerun.interfaces import (
    Answer,
    ChatReply,
    ChatRequest,
    Degradation,
    Delta,
    Json,
    Message,
    Price,
    Provider,
    ProviderInfo,
    Role,
)
from corerun.llm.accounts import Accounts
from corerun.llm.budget import Budget
from corerun.llm.cache import AnswerCache, cache_file
from corerun.llm.calls import Answered, Calls, Question
from corerun.llm.directory import ModelTarget
from corerun.llm.extraction import read_answer
from corerun.llm.ledger import Ledger
from corerun.llm.messages import has_images, reask, without_images
from corerun.llm.prices import load_prices, user_prices_file
from corerun.llm.settings import Directory, LlmSettings, Recorder
from corerun.llm.structured import Problems, json_schema, model_name
from corerun.runs import events as records

__all__ = ["LanguageModels", "LlmSettings", "Recorder"]

WARMER = 0.3
"""Temperature of a re-ask after the same wrong answer came twice at temperature 0."""

AWAY_S = 60.0
"""How long a model that gave no answer is passed over where another one can be asked."""

_NOTHING_SET = Role()
_FALLS_BACK = (InfrastructureError, ModelUnusable, ContextTooLong, Unsupported, RequestRefused)


@dataclass(frozen=True, slots=True)
class _Route:
    """One model that a question may go to, and the request it would get.

    ``dropped`` was left out of the request because the provider is known not to take it.
    """

    target: ModelTarget
    provider: Provider
    request: ChatRequest
    dropped: tuple[Degradation, ...] = ()


class LanguageModels:
    """Answers questions by role; every answer is in the journal before its caller sees it.

    ``directory`` knows what models' names mean; ``environ`` is read for ``CORERUN_OFFLINE`` and the
    place of the cache. ``elapsed`` gives the seconds that the run has taken (default: since this
    object was made).
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
        self._warned: set[str] = set()
        self._away: dict[str, float] = {}
        self._cache = None
        if settings.cache != "off":
            self._cache = AnswerCache(settings.cache, cache_file(environ), self._warn)
        accounts = Accounts(
            self.ledger,
            budget or Budget(),
            prices=lambda: load_prices(user_prices_file(environ)) if prices is None else prices,
            elapsed=elapsed or (lambda: clock() - started),
            unpriced=self._warn_unpriced,
        )
        self._calls = Calls(
            record=record,
            accounts=accounts,
            settings=settings,
            cache=self._cache,
            seed=seed,
            clock=clock,
            sleep=sleep,
        )

    def provider_info(self, role: str) -> ProviderInfo:
        """Facts about the provider that answers for ``role``, e.g. whether it sees images."""
        name = self._roles.get(role, _NOTHING_SET).model or self._default_model
        return self._directory.provider(name).info

    def forget(self, node: str) -> None:
        """Starts a node's counts again, so that its next attempt is given the answers of the last."""
        self._calls.forget(node)

    def close(self) -> None:
        """Closes the cache of answers."""
        if self._cache is not None:
            self._cache.close()

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
        on_delta: Callable[[Delta], None] | None = None,
        **request_options: Any,
    ) -> Answer[Any]:
        """Asks the model of ``role`` and returns its answer as ``schema``, through ``parse``, or as text.

        ``parse`` takes the text and raises ValueError with one line on what is wrong; either way a
        bad answer is shown to the model and asked again, ``settings.repairs`` times. ``strict``: a
        feature that the server refuses is an error. ``on_delta`` is given the pieces of each answer
        as they come, those of re-asks too; an answer from the journal comes in one piece.
        ``request_options`` are further fields of `ChatRequest`: ``top_p``, ``seed``, ``stop``,
        ``reasoning_effort``, ``extra``.

        Raises `BadAnswer` when no answer fitted; `InfrastructureError` when transport failed for
        good; `BudgetExceeded`; `EnvironmentRefused` when offline; other `ModelError` classes as the
        provider raised them.
        """
        asked = {
            "messages": tuple(messages),
            "schema": None if schema is None else json_schema(schema),
            "schema_name": "" if schema is None else model_name(schema),
            "tools": tuple(tools),
            "temperature": temperature,
            "max_tokens": max_tokens,
            **request_options,
        }
        strict = strict or self._settings.strict
        own = self._roles.get(role, _NOTHING_SET)
        routes = self._routes(own.model or self._default_model, own, asked, strict=strict)
        question = Question(role, purpose, node, strict, self._settings.deadline_s, on_delta=on_delta)
        return await self._until_it_fits(question, routes, schema, parse, facts or {})

    def _routes(self, name: str, own: Role, asked: Mapping[str, Any], *, strict: bool) -> list[_Route]:
        """The model of that name and its fallbacks, each once, with the request that each would get.

        Models that aren't there offline are left out, and those that see nothing where another one
        sees; where none does, the images are. Raises the reason when none is left.
        """
        found: list[_Route] = []
        refused: list[str] = []
        waiting, seen = [name], set[str]()
        while waiting:
            target = self._directory.target(waiting.pop(0))
            if target.name in seen:
                continue
            seen.add(target.name)
            waiting += target.fallbacks
            provider = self._directory.provider(target.name)
            if self._offline and not provider.info.is_local:
                refused.append(target.name)
                continue
            found.append(_Route(target, provider, _request(target, own, asked)))
        if not found:
            raise EnvironmentRefused(
                f"CORERUN_OFFLINE is set and {refused[0]!r} isn't local",
                hint="choose a local model such as recipes::default, or unset CORERUN_OFFLINE",
            )
        if not has_images(asked["messages"]):
            return found
        seeing = [route for route in found if route.provider.info.vision is not False]
        return seeing or [_blinded(route, strict=strict) for route in found]

    async def _until_it_fits(
        self,
        question: Question,
        routes: list[_Route],
        schema: Any,
        parse: Callable[[str], Any] | None,
        facts: Mapping[str, Json],
    ) -> Answer[Any]:
        previous, attempt = None, 0
        while True:
            told = {**facts, "seed": self._seed, "attempt": attempt}
            answered, routes = await self._answer(question, routes, told)
            name, reply = routes[0].target.name, answered.reply
            if reply.finish in ("filter", "refusal"):
                raise ContentRefused(f"{name!r} refused to answer {question.purpose}")
            try:
                value = read_answer(reply, schema, parse)
                return Answer(value, reply, answered.replayed, answered.seq)
            except Problems as error:
                attempt += 1
                if attempt > self._settings.repairs:
                    raise BadAnswer(
                        f"{name!r} gave no usable answer to {question.purpose} "
                        f"in {attempt} tries: {error.lines[0]}",
                        raw=reply.text,
                    ) from error
                same = reply.text == previous
                routes = _asked_again(routes, reply, error.lines, warmer=same)
            previous = reply.text

    async def _answer(
        self, question: Question, routes: list[_Route], facts: Mapping[str, Json]
    ) -> tuple[Answered, list[_Route]]:
        """The answer of the first model that has one, and the routes from that model on.

        A recorded answer of any of them comes first: it was paid after the models before it failed.
        """
        calls = [
            self._calls.prepare(question, route.target, route.provider, route.request, route.dropped)
            for route in routes
        ]
        for number, call in enumerate(calls):
            answered = self._calls.recorded(call)
            if answered is not None:
                if question.on_delta is not None:
                    question.on_delta(Delta("text", answered.reply.text))
                return answered, routes[number:]
        question.retries_left = self._settings.retries
        last = len(calls) - 1
        for number, call in enumerate(calls):
            if number < last and self._away.get(call.target.name, 0.0) > self._clock():
                continue
            try:
                return await self._calls.make(question, call, facts), routes[number:]
            except _FALLS_BACK as error:
                if number == last:
                    raise
                self._pass_over(call.target.name, calls[number + 1].target.name, error)
        raise AssertionError("a question has at least one model")

    def _pass_over(self, name: str, other: str, error: CorerunError) -> None:
        if isinstance(error, ModelUnusable):
            self._away[name] = float("inf")
        elif isinstance(error, InfrastructureError):
            self._away[name] = self._clock() + AWAY_S
        self._warn(f"{name!r} gave no answer and {other!r} is asked instead: {error.message}")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._record.emit(records.WARNING, message=message)

    def _warn_unpriced(self, model: str) -> None:
        self._warn(
            f"no price is known for {model!r}, so budget.usd can't count its calls: "
            "give it one in ~/.config/corerun/prices.yaml"
        )


def _request(target: ModelTarget, own: Role, asked: Mapping[str, Any]) -> ChatRequest:
    """The request to ``target``: the caller's options win over the role's, those over the alias's."""
    fields = {**asked, "model": target.model, "extra": {**target.extra, **asked.get("extra", {})}}
    for name in ("temperature", "max_tokens", "top_p", "reasoning_effort"):
        for value in (asked.get(name), getattr(own, name), getattr(target.options, name)):
            if value is not None:
                fields[name] = value
                break
    return ChatRequest(**fields)


def _blinded(route: _Route, *, strict: bool) -> _Route:
    said = f"{route.target.name!r} can't see images"
    if strict:
        raise Unsupported(said, hint="ask without images or set another model")
    request = replace(route.request, messages=without_images(route.request.messages))
    return replace(route, request=request, dropped=(Degradation("images", said),))


def _asked_again(
    routes: Sequence[_Route], reply: ChatReply, problems: list[str], *, warmer: bool
) -> list[_Route]:
    found: list[_Route] = []
    for route in routes:
        request = reask(route.request, reply, problems)
        if warmer and request.temperature == 0:
            request = replace(request, temperature=WARMER)
        found.append(replace(route, request=request))
    return found
