"""The provider: one question to one OpenAI-compatible server, one answer, no retry."""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import math
import time
from dataclasses import replace

from corerun.errors import ModelError, ModelNotFound, Transient, Unsupported, UsageError
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Connection, Degradation, ProviderInfo
from corerun.llm.models import true_value
from corerun_openai_router.endpoint import endpoint_of
from corerun_openai_router.failure import classify
from corerun_openai_router.history import has_images
from corerun_openai_router.reply import read_reply
from corerun_openai_router.request import Features, build_body
from corerun_openai_router.transport import SdkTransport

IMAGES_DROPPED = "images"
"""In `ChatReply.degradations`: the images of the request were left out."""

_log = logging.getLogger("corerun.openai_router")
_CLOSEST_MODELS = 5


class OpenAIRouter:
    """Reaches the server that the environment names for ``provider``.

    ``default`` and ``openai`` read ``OPENAI_*``, ``ollama`` has a default address, every other name
    reads ``OAIC_<NAME>_BASE_URL`` and ``OAIC_<NAME>_API_KEY``.
    """

    def __init__(self, connection: Connection) -> None:
        environ = connection.environ
        self._endpoint = endpoint_of(connection.provider.lower(), environ)
        self._features = Features(
            tools=not true_value(environ.get("OAIC_DISABLE_TOOLS")),
            images=not true_value(environ.get("OAIC_DISABLE_VISION")),
        )
        self._transport = SdkTransport(self._endpoint)
        for warning in self._endpoint.warnings:
            _log.warning("%s", warning)

    @property
    def info(self) -> ProviderInfo:
        endpoint = self._endpoint
        return ProviderInfo(
            name=endpoint.provider,
            env=endpoint.variables,
            default_base_url=endpoint.default_base_url,
            needs_key=endpoint.needs_key,
            is_local=endpoint.is_local,
            vision=None if self._features.images else False,
        )

    def check(self) -> None:
        """Raise `UsageError` naming everything that is missing, before anything is made or sent."""
        if self._endpoint.problem:
            raise UsageError(self._endpoint.problem, hint=self._endpoint.hint)

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        """Ask once. Raises classes below `ModelError`, or `UsageError` from `check`."""
        self.check()
        try:
            left = ctx.deadline - time.monotonic()
            async with asyncio.timeout(None if math.isinf(left) else left):
                return await self._ask(request, ctx)
        except TimeoutError:
            raise Transient(self._endpoint.say("no answer before the call's deadline")) from None

    async def list_models(self) -> list[str]:
        """The ids that the server offers. Raises classes below `ModelError`."""
        self.check()
        response = await self._transport.models()
        if not response.is_success:
            raise classify(response, ChatRequest("", ()), self._endpoint)
        try:
            data = json.loads(response.text)
        except (ValueError, RecursionError):
            raise Transient(self._endpoint.say("the list of models is no JSON")) from None
        items = data.get("data") if isinstance(data, dict) else data
        items = items if isinstance(items, list) else []
        return [item["id"] for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)]

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._transport.aclose()

    async def _ask(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        dropped: tuple[Degradation, ...] = ()
        if has_images(request) and not self._features.images:
            dropped = (Degradation(IMAGES_DROPPED, "OAIC_DISABLE_VISION is set"),)
        if dropped and ctx.strict:
            raise Unsupported("images are asked for but OAIC_DISABLE_VISION is set")
        response = await self._transport.chat(build_body(request, self._features))
        if response.is_success:
            return replace(read_reply(response, request, self._endpoint), degradations=dropped)
        error = classify(response, request, self._endpoint)
        if isinstance(error, ModelNotFound):
            error.hint = await self._closest(request.model)
        raise error

    async def _closest(self, model: str) -> str:
        try:
            known = await self.list_models()
        except ModelError:
            return ""
        closest = difflib.get_close_matches(model, known, n=_CLOSEST_MODELS, cutoff=0.0)
        return f"the server offers {', '.join(closest)}" if closest else ""
