"""The provider: one question to Anthropic's Messages API, one answer, no retry."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace

from corerun.errors import (
    ModelError,
    ModelNotFound,
    RequestRefused,
    StreamCut,
    Transient,
    UnsupportedParameter,
)
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Connection,
    Degradation,
    Delta,
    Json,
    ProviderInfo,
)
from corerun.llm.models import true_value
from corerun_anthropic.endpoint import DEFAULT_BASE_URL, KEY_VARIABLES, URL_VARIABLES, endpoint_of
from corerun_anthropic.failure import Answer, classify
from corerun_anthropic.features import learn
from corerun_anthropic.reply import MessageBuilder, read_reply
from corerun_anthropic.request import Refusals, build_body
from corerun_anthropic.transport import Refused, SdkTransport

_CLOSEST_MODELS = 5
_PIN = "the configuration says so"
_PINNED = {"vision": "images", "response_format": "json_schema"}


class AnthropicProvider:
    """Reaches Claude models through Anthropic's own API, and servers that speak its language.

    The API asks for ``max_tokens``: 8192 is sent for a request that has none. What a model refuses
    is left out or written in another way, within the same call, and not sent to it again by this
    object.
    """

    def __init__(self, connection: Connection) -> None:
        self._endpoint = endpoint_of(connection)
        self._transport = SdkTransport(self._endpoint)
        self._wording = connection.wording
        pinned = {_PINNED.get(name, name): takes for name, takes in connection.capabilities.items()}
        self._kept = frozenset(feature for feature, takes in pinned.items() if takes)
        self._pins = {feature: _PIN for feature, takes in pinned.items() if not takes}
        for feature, variable in (("tools", "OAIC_DISABLE_TOOLS"), ("images", "OAIC_DISABLE_VISION")):
            if true_value(connection.environ.get(variable)):
                self._pins[feature] = f"{variable} is set"
        self._learned: dict[str, Refusals] = {}

    @property
    def info(self) -> ProviderInfo:
        return ProviderInfo(
            name=self._endpoint.provider,
            env=(*KEY_VARIABLES, *URL_VARIABLES),
            default_base_url=DEFAULT_BASE_URL,
            needs_key=not self._endpoint.is_local,
            is_local=self._endpoint.is_local,
            vision=False if "images" in self._pins else None,
            address=self._endpoint.address,
        )

    def check(self) -> None:
        """Raise `UsageError` for a missing key, `EnvironmentRefused` for a missing package."""
        self._endpoint.check()

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        """Ask once. Raises classes below `ModelError`, or what `check` raises."""
        async with aclosing(self._deltas(request, ctx)) as deltas:
            async for delta in deltas:
                if delta.reply is not None:
                    return delta.reply
        raise AssertionError("a stream of deltas ends with its reply")

    async def stream(self, request: ChatRequest, ctx: CallContext) -> AsyncIterator[Delta]:
        """The answer piece by piece, at last with the reply. Raises `StreamCut` if it breaks off midway."""
        pieces: list[str] = []
        started = False
        async with aclosing(self._deltas(request, ctx)) as deltas:
            try:
                async for delta in deltas:
                    if delta.kind == "text":
                        pieces.append(delta.text)
                    started = True
                    yield delta
            except Transient as error:
                if not started:
                    raise
                raise StreamCut(error.message, partial="".join(pieces), hint=error.hint) from None

    async def list_models(self) -> list[str]:
        """The ids that the server offers. Raises classes below `ModelError`."""
        self.check()
        try:
            return await self._transport.models(math.inf)
        except Refused as refused:
            raise classify(refused.answer, self._endpoint) from None

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._transport.aclose()

    async def _deltas(self, request: ChatRequest, ctx: CallContext) -> AsyncGenerator[Delta]:
        """One answer; sent again only without what was refused, and never twice in the same form."""
        self.check()
        refusals = self._learned.setdefault(request.model, Refusals(dict(self._pins), self._kept))
        sent, previous = 0, None
        while True:
            body, degraded = build_body(request, refusals)
            if degraded and ctx.strict:
                raise self._unsupported(request, degraded[0], 0)
            sent += 1
            try:
                async with aclosing(self._send(body, request, ctx)) as deltas:
                    async for delta in deltas:
                        if delta.reply is not None:
                            reply = replace(delta.reply, degradations=degraded, requests=sent)
                            delta = replace(delta, reply=reply)
                        yield delta
                return
            except Refused as refused:
                answer = refused.answer
            reason = self._endpoint.say(f"HTTP {answer.status}: {answer.message}")
            features = learn(answer, request, body, refusals, self._wording, reason)
            if not features or body == previous:
                raise await self._error(answer, request)
            previous = body
            if ctx.strict:
                raise self._unsupported(request, Degradation(features[0], reason), answer.status)

    async def _send(
        self, body: Mapping[str, Json], request: ChatRequest, ctx: CallContext
    ) -> AsyncGenerator[Delta]:
        builder = MessageBuilder()
        async with self._transport.open(body, ctx.deadline) as stream:
            async for event in stream.events:
                if event.get("type") == "error":
                    raise self._broken(event)
                delta = builder.feed(event)
                if delta is not None:
                    yield delta
        message = builder.message
        if not message.get("stop_reason"):
            raise Transient(self._endpoint.say("the stream ended before its answer was complete"))
        reply = read_reply(message, request, self._endpoint)
        reply = replace(
            reply,
            requests_left=_number(stream.headers.get("anthropic-ratelimit-requests-remaining")),
            tokens_left=_number(stream.headers.get("anthropic-ratelimit-tokens-remaining")),
        )
        yield Delta("reply", reply=reply)

    def _broken(self, event: Json) -> ModelError:
        """The error that an event of a stream tells of; one of no known kind is an upstream that broke."""
        error = classify(Answer(200, {}, json.dumps(event)), self._endpoint)
        return Transient(error.message) if isinstance(error, RequestRefused) else error

    async def _error(self, answer: Answer, request: ChatRequest) -> ModelError:
        error = classify(answer, self._endpoint)
        if isinstance(error, ModelNotFound):
            error.hint = await self._closest(request.model)
        return error

    async def _closest(self, model: str) -> str:
        try:
            known = await self.list_models()
        except ModelError:
            return ""
        closest = difflib.get_close_matches(model, known, n=_CLOSEST_MODELS, cutoff=0.0)
        return f"the server offers {', '.join(closest)}" if closest else ""

    def _unsupported(self, request: ChatRequest, refused: Degradation, status: int) -> UnsupportedParameter:
        return UnsupportedParameter(
            refused.feature,
            provider=self._endpoint.provider,
            model=request.model,
            status=status,
            said=refused.reason,
        )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
