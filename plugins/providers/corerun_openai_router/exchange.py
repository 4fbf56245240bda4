"""One question, its requests and its answer: goes down the ladder, and notes what an answer shows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial

from corerun.errors import StreamCut, Transient, Unsupported
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Delta, Json
from corerun.llm.messages import has_images
from corerun_openai_router import facts as known
from corerun_openai_router.asking.channels import PROMPT
from corerun_openai_router.asking.request import Built, build
from corerun_openai_router.learning.caps import IGNORED
from corerun_openai_router.learning.gate import Gate, Kind, Passage, kind_of
from corerun_openai_router.learning.knowledge import Knowledge
from corerun_openai_router.learning.ladder import Descent
from corerun_openai_router.reading.failure import Verdict, judge
from corerun_openai_router.reading.reply import came_as_asked, hidden_error, read_document, read_reply
from corerun_openai_router.wire.endpoint import Endpoint
from corerun_openai_router.wire.stream import read_stream
from corerun_openai_router.wire.transport import Response, Transport

_log = logging.getLogger("corerun.openai_router")

_SLACK = 1.1
"""Servers count tokens a little differently; more than this times the limit is no limit."""
_MOST_FAILURES = 4096
_INTERNAL_ERROR = 500


@dataclass(frozen=True, slots=True)
class Manners:
    """How a server is dealt with. ``wording`` are regular expressions for its refusals, by feature.

    ``can_call``: tools may be offered; ``sees``: images may be sent; ``debug``: refusals are logged.
    """

    wording: Mapping[str, tuple[str, ...]]
    can_call: bool = True
    sees: bool = True
    debug: bool = False


class _Call:
    """One question on its way."""

    def __init__(self, request: ChatRequest, descent: Descent, passage: Passage) -> None:
        self.request = request
        self.descent = descent
        self.passage = passage
        self._has_images = has_images(request.messages)

    async def next_body(self) -> dict[str, Json]:
        """What is to be sent now, after others that may learn something from the same."""
        while await self.passage.waited(self.kind):
            self.descent.renew()
        self.descent.sending()
        return self.descent.built.body

    @property
    def kind(self) -> Kind:
        built = self.descent.built
        return kind_of(built.body, images=self._has_images and known.IMAGES not in built.applied)


class Exchange:
    """Questions to one server, with what is known of it."""

    def __init__(
        self, endpoint: Endpoint, transport: Transport, knowledge: Knowledge, manners: Manners
    ) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._knowledge = knowledge
        self._manners = manners
        self._is_openai = endpoint.is_openai
        self._gate = Gate()
        self._failed: set[str] = set()
        self._warned: set[tuple[str, str]] = set()

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        """One answer. Sends again only without a feature that was refused."""
        call = self._call(request, ctx)
        try:
            async with _until(ctx.deadline):
                while True:
                    response = await self._transport.chat(await call.next_body())
                    reply = self._read(response, call)
                    if reply is not None:
                        return reply
        except TimeoutError:
            raise self._too_late() from None
        finally:
            call.passage.close()

    async def stream(self, request: ChatRequest, ctx: CallContext) -> AsyncIterator[Delta]:
        """The same, in pieces as they come; after the first piece nothing is sent again.

        ``ctx.deadline`` ends the wait for a piece: with `Transient` before the first one, with
        `StreamCut` afterwards.
        """
        call = self._call(request, ctx, stream=True)
        handed_out: list[Delta] = []
        reply = None
        try:
            while reply is None:
                async with AsyncExitStack() as stack:
                    async with _until(ctx.deadline):
                        answer = self._transport.stream(await call.next_body())
                        streamed = await stack.enter_async_context(answer)
                        reader = aclosing(read_stream(streamed, self._endpoint))
                        pieces = await stack.enter_async_context(reader)
                        piece = await anext(pieces)
                    while isinstance(piece, Delta):
                        handed_out.append(piece)
                        yield piece
                        async with _until(ctx.deadline):
                            piece = await anext(pieces)
                reply = self._read(piece, call)
            yield Delta("reply", reply=reply)
        except TimeoutError:
            late = self._too_late()
            if not handed_out:
                raise late from None
            partial = "".join(delta.text for delta in handed_out if delta.kind == "text")
            raise StreamCut(late.message, partial=partial) from None
        finally:
            call.passage.close()

    def _call(self, request: ChatRequest, ctx: CallContext, *, stream: bool = False) -> _Call:
        manners = self._manners
        if request.tools and not manners.can_call:
            raise Unsupported(
                "tools are asked for but OAIC_DISABLE_TOOLS is set", hint="unset OAIC_DISABLE_TOOLS"
            )
        if not manners.sees and has_images(request.messages):
            self._warn_once(request.model, "images are left out", "it was declared that it can't see them")
        descent = Descent(
            request,
            ctx,
            self._knowledge,
            partial(build, request, openai=self._is_openai, stream=stream),
            provider=self._endpoint.provider,
            debug=manners.debug,
        )
        return _Call(request, descent, self._gate.passage())

    def _too_late(self) -> Transient:
        return Transient(self._endpoint.say("no answer before the call's deadline"))

    # ------------------------------------------------------------------------------------- answers

    def _read(self, response: Response, call: _Call) -> ChatReply | None:
        """The reply in ``response``; None: the call has another request to make. Raises where it hasn't."""
        if response.is_success:
            document = read_document(response, self._endpoint)
            error = hidden_error(document)
            if error is None:
                return self._answer(document, response, call)
            response = response.with_error(error)
        body = call.descent.built.body
        verdict = judge(response, call.request, body, self._endpoint, self._manners.wording)
        call.descent.refused(verdict, again=self._failed_before(verdict, body))
        call.passage.refused(is_guessing=call.descent.is_blind)
        return None

    def _failed_before(self, verdict: Verdict, body: Mapping[str, Json]) -> bool:
        """Whether this request met an internal error before and no answer since."""
        if verdict.status != _INTERNAL_ERROR:
            return False
        fingerprint = _fingerprint(body)
        if fingerprint in self._failed:
            return True
        if len(self._failed) >= _MOST_FAILURES:
            self._failed.clear()
        self._failed.add(fingerprint)
        return False

    def _answer(self, document: Mapping[str, Json], response: Response, call: _Call) -> ChatReply:
        """The reply in a good answer; notes what its coming shows."""
        request, descent = call.request, call.descent
        model, built = request.model, descent.built
        reply = read_reply(document, request, self._endpoint, built)
        degradations = descent.answered()
        call.passage.answered(call.kind)
        if self._failed:
            self._failed.difference_update(map(_fingerprint, descent.sent))
        self._knowledge.answered(model, _identity(document, response))
        if built.channel not in ("", PROMPT) and reply.finish != "length":
            honoured = came_as_asked(reply, built.channel)
            self._knowledge.channel_answered(model, built.channel, honoured=honoured)
        self._check_limit(reply, model, built)
        return replace(
            reply,
            degradations=degradations,
            requests=descent.requests,
            requests_left=_left(response, "requests"),
            tokens_left=_left(response, "tokens"),
        )

    def _check_limit(self, reply: ChatReply, model: str, built: Built) -> None:
        """Some servers ignore a limit under the name that they don't know: the other is tried next."""
        name = next((name for name in known.LIMIT_NAMES if name in built.body), None)
        if name is None or reply.usage.estimated:
            return
        written = reply.usage.completion - reply.usage.reasoning
        if written <= built.body[name] * _SLACK:
            return
        said = f"{written} tokens came for a limit of {built.body[name]}"
        self._warn_once(model, f"{name} is ignored", said)
        (other,) = set(known.LIMIT_NAMES) - {name}
        if other not in self._knowledge.facts(model) and self._knowledge.may_learn(name):
            self._knowledge.learn(model, [name], said, 200, IGNORED)

    def _warn_once(self, model: str, what: str, why: str) -> None:
        if (model, what) not in self._warned:
            self._warned.add((model, what))
            _log.warning("%s::%s: %s: %s", self._endpoint.provider, model, what, why)


def _until(deadline: float) -> asyncio.Timeout:
    """A scope that ends at ``deadline`` on the monotonic clock."""
    return asyncio.timeout(None if math.isinf(deadline) else deadline - time.monotonic())


def _identity(document: Mapping[str, Json], response: Response) -> str:
    """What tells one version of a server from the next."""
    fingerprint = document.get("system_fingerprint")
    server = response.headers.get("server", "")
    return f"{server} {fingerprint}".strip() if isinstance(fingerprint, str) else server


def _fingerprint(body: Mapping[str, Json]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _left(response: Response, what: str) -> int | None:
    """What the server says may still be sent in this minute."""
    text = response.headers.get(f"x-ratelimit-remaining-{what}", "")
    return int(text) if text.isdecimal() else None
