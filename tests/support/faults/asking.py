"""One server with one desk, and routers that reach it, for tests inside the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from corerun.interfaces import CallContext, ChatReply, ChatRequest, Connection
from corerun.llm.extraction import read_answer
from corerun_openai_router.provider import OpenAIRouter
from tests.support.fault_server import Desk, Vendor, desk_server
from tests.support.faults.driver import Depth
from tests.support.faults.rows import KEY, address, openai
from tests.support.openai_server import fault

MODEL = "tiny"
CONTEXT = CallContext("test.ask")
BARE = fault(400)
"""A refusal without a word."""
NO_SEED = openai("Unsupported parameter: 'seed' is not supported with this model.", param="seed")
NO_TOOLS = openai("this model does not support tools")
NO_IMAGES = openai("this model does not support image input")


def named(*features: str) -> Vendor:
    """A vendor that refuses these and names what it refuses."""
    return Vendor({feature: openai(f"Unsupported parameter: '{feature}'") for feature in features})


class Asked:
    """A server with one desk, and routers that reach it; what they learn goes to ``folder``."""

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self._folder = folder
        self._server = desk_server(desk)
        self._routers: list[OpenAIRouter] = []

    async def __aenter__(self) -> Asked:
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for router in self._routers:
            await router.aclose()
        await self._server.__aexit__()

    def router(self, environ: Mapping[str, str] | None = None, **connection: Any) -> OpenAIRouter:
        caps = {"CORERUN_CAPS_PATH": str(self._folder / "caps.sqlite")}
        base_url = {"OPENAI_BASE_URL": address(self._server.base_url, connection)}
        variables = {**self._server.environ(KEY), **base_url, **caps, **(environ or {})}
        self._routers.append(OpenAIRouter(Connection(environ=variables, **connection)))
        return self._routers[-1]

    async def ask(self, request: ChatRequest, environ: Mapping[str, str] | None = None) -> ChatReply:
        """One call through a new router."""
        return await self.router(environ).complete(replace(request, model=MODEL), CONTEXT)


def depth(reply: ChatReply) -> Any:
    """The structured value of a reply."""
    return read_answer(reply, Depth, None).model_dump()


def told(reply: ChatReply) -> set[str]:
    """The features that a reply says were left out."""
    return {item.feature for item in reply.degradations}
