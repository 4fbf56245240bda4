"""The provider: one question to one OpenAI-compatible server and one answer, whatever the server refuses."""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from corerun.errors import ModelError, ModelNotFound, Transient, UsageError
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Connection,
    Delta,
    Json,
    ProbeRow,
    ProviderInfo,
)
from corerun.llm.models import true_value
from corerun_openai_router import facts as known
from corerun_openai_router.asking.channels import OBJECT
from corerun_openai_router.exchange import Exchange, Manners
from corerun_openai_router.learning.caps import CapsStore
from corerun_openai_router.learning.knowledge import Knowledge, fact_of, pins_of, probably_meant
from corerun_openai_router.reading.failure import classify
from corerun_openai_router.wire.choice import make_transport
from corerun_openai_router.wire.endpoint import Endpoint, endpoint_of

_log = logging.getLogger("corerun.openai_router")
_CLOSEST_MODELS = 5
_CLOSEST_S = 5.0
_DISABLED = (
    ("OAIC_DISABLE_TOOLS", (known.TOOLS, known.FUNCTIONS, known.PREFER + OBJECT)),
    ("OAIC_DISABLE_VISION", (known.IMAGES,)),
)


class OpenAIRouter:
    """Reaches the server that ``connection`` names, in the way in which that server can be spoken to.

    ``default`` and ``openai`` read ``OPENAI_*``, ``ollama`` has a default address, every other name
    reads ``OAIC_<NAME>_BASE_URL`` and ``OAIC_<NAME>_API_KEY``. Features that a server refuses are
    left out, remembered in the file that ``CORERUN_CAPS_PATH`` names, and tried again after a week.
    ``wall_clock`` gives Unix time.
    """

    def __init__(self, connection: Connection, *, wall_clock: Callable[[], float] = time.time) -> None:
        environ = connection.environ
        self._endpoint = endpoint_of(connection)
        pins, accepted = pins_of(connection.capabilities)
        for variable, facts in _DISABLED:
            if true_value(environ.get(variable)):
                pins.update(dict.fromkeys(facts, f"{variable} is set"))
                accepted.difference_update(facts)
        debug = true_value(environ.get("OAIC_DEBUG"))
        vision = False if known.IMAGES in pins else None
        self._wall_clock = wall_clock
        self._store = CapsStore.of(environ)
        self._knowledge = Knowledge(
            self._endpoint.base_url,
            self._store,
            pins=pins,
            accepted=accepted,
            debug=debug,
            wall_clock=wall_clock,
        )
        self._transport = make_transport(self._endpoint, environ)
        manners = Manners(
            wording={fact_of(name): patterns for name, patterns in connection.wording.items()},
            can_call=not true_value(environ.get("OAIC_DISABLE_TOOLS")),
            sees=vision is not False,
            debug=debug,
        )
        self._exchange = Exchange(self._endpoint, self._transport, self._knowledge, manners)
        self.info = _info(self._endpoint, vision)
        for warning in self._endpoint.warnings:
            _log.warning("%s", warning)
        for name in dict.fromkeys((*connection.capabilities, *connection.wording)):
            meant = probably_meant(name)
            if meant:
                _log.warning("caps and wording: did you mean %r instead of %r?", meant, name)

    def check(self) -> None:
        """Raise `UsageError` naming everything that is missing, before anything is made or sent."""
        if self._endpoint.problem:
            raise UsageError(self._endpoint.problem, hint=self._endpoint.hint)

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        """One answer. Sends again only without a feature that was refused.

        Raises classes below `ModelError`, or `UsageError` from `check`.
        """
        self.check()
        try:
            return await self._exchange.complete(request, ctx)
        except ModelNotFound as error:
            error.hint = await self._closest(request.model)
            raise

    async def stream(self, request: ChatRequest, ctx: CallContext) -> AsyncIterator[Delta]:
        """The same answer in pieces as they come, and last as a whole.

        Raises what `complete` raises, and `StreamCut` if it breaks off after the first piece.
        """
        self.check()
        try:
            async for delta in self._exchange.stream(request, ctx):
                yield delta
        except ModelNotFound as error:
            error.hint = await self._closest(request.model)
            raise

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

    def learned(self, model: str | None = None) -> Sequence[Mapping[str, Json]]:
        """What is known of ``model``: declared, refused, ignored and honoured features. None: of all
        models, those of other servers too."""
        if model is not None:
            return self._knowledge.rows(model)
        return [row for knowledge in self._all_knowledge() for row in knowledge.rows(None)]

    def forget(self, model: str | None = None) -> int:
        """Drop what was learned of ``model``, or as `learned` of all, for this and other processes. How
        many facts there were."""
        if model is not None:
            return self._knowledge.forget(model)
        return sum(knowledge.forget(None) for knowledge in self._all_knowledge())

    async def probe(self, model: str) -> Sequence[ProbeRow]:
        """Ask the server for everything that it may take or not, and report. Nothing is learned."""
        from corerun_openai_router.probing.probe import probe

        self.check()
        return await probe(self._transport, self._endpoint, model)

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self._transport.aclose()

    def _all_knowledge(self) -> list[Knowledge]:
        others = [url for url in self._store.servers() if url != self._endpoint.base_url]
        clock = self._wall_clock
        return [
            self._knowledge,
            *(Knowledge(url, self._store, pins={}, accepted=(), wall_clock=clock) for url in others),
        ]

    async def _closest(self, model: str) -> str:
        try:
            async with asyncio.timeout(_CLOSEST_S):
                offered = await self.list_models()
        except (ModelError, TimeoutError):
            return ""
        closest = difflib.get_close_matches(model, offered, n=_CLOSEST_MODELS, cutoff=0.0)
        return f"the server offers {', '.join(closest)}" if closest else ""


def _info(endpoint: Endpoint, vision: bool | None) -> ProviderInfo:
    return ProviderInfo(
        name=endpoint.provider,
        env=endpoint.variables,
        default_base_url=endpoint.default_base_url,
        needs_key=endpoint.needs_key,
        is_local=endpoint.is_local,
        vision=vision,
        address=endpoint.base_url,
    )
