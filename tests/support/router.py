"""One call of the router to a real server, for its tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from corerun.errors import ModelError
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Connection, Message, Part
from corerun_openai_router.asking.request import build
from corerun_openai_router.provider import OpenAIRouter
from tests.support.openai_server import OpenAIServer

KEY = "sk-a-very-secret-key-0123456789"
QUESTION = ChatRequest("test-model", (Message("user", "How deep is the sea?"),))
SCHEMA = {
    "type": "object",
    "description": "The depth.",
    "properties": {"metres": {"type": "number"}},
    "required": ["metres"],
}
STRUCTURED = replace(QUESTION, schema=SCHEMA, schema_name="submit_depth")
CONTEXT = CallContext("test.ask")
IMAGE = Message("user", (Part("text", "Look:"), Part("image", data=b"\x89PNG")))
DIVE = {"name": "dive", "parameters": {"type": "object", "properties": {"metres": {"type": "number"}}}}
EVERYTHING = replace(
    STRUCTURED,
    messages=(Message("system", "Be brief."), IMAGE),
    temperature=0.5,
    top_p=0.9,
    max_tokens=64,
    seed=7,
    stop=("END",),
    reasoning_effort="low",
)
"""A structured question with an image and every parameter."""


def written(request: ChatRequest, *facts: str, **how: bool) -> dict[str, Any]:
    """The body of ``request`` to a server that is known to refuse ``facts``."""
    return build(request, frozenset(facts), **how).body


async def ask(
    answer: Any, request: ChatRequest = QUESTION, **environ: str
) -> tuple[ChatReply, list[dict[str, Any]]]:
    """One call to a server that gives ``answer`` to everything, and the bodies that came.

    The call must be answered, or refused for good, by one request.
    """
    async with OpenAIServer(lambda body: answer) as server:
        router = OpenAIRouter(Connection(environ={**server.environ(KEY), **environ}))
        try:
            return await router.complete(request, CONTEXT), server.bodies
        finally:
            await router.aclose()
            assert server.calls <= 1, "nothing may be sent a second time here"


async def fail(answer: Any, request: ChatRequest = QUESTION) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await ask(answer, request)
    shown = f"{caught.value} {caught.value.hint} {caught.value!r}"
    assert KEY not in shown and "\n" not in shown
    return caught.value
