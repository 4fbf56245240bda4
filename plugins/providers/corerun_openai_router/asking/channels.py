"""Chooses the way in which a server is asked for an answer that fits a schema, and how calls are written."""

from __future__ import annotations

from typing import Final

from corerun.interfaces import ChatRequest, Json
from corerun_openai_router import facts as known
from corerun_openai_router.asking.history import CallForm, most_calls
from corerun_openai_router.asking.schema import is_object
from corerun_openai_router.facts import Refusals

TOOL, SCHEMA, FUNCTION, OBJECT, PROMPT = "tool", "json_schema", "functions", "json_object", "prompt"
CHANNELS: Final = (TOOL, SCHEMA, FUNCTION, OBJECT, PROMPT)
"""Ways to ask for an answer that fits a schema, first choice first."""
OPENAI_CHANNELS: Final = (SCHEMA, TOOL, FUNCTION, OBJECT, PROMPT)


def choose_channel(request: ChatRequest, schema: Json, refusals: Refusals, *, openai: bool) -> str:
    """The first channel that isn't refused. ``schema`` is None if no server could read it.

    After a refusal a channel that is known to be answered goes before those that were never tried.
    """
    order = OPENAI_CHANNELS if openai else CHANNELS
    channel = next(channel for channel in order if _is_open(channel, request, schema, refusals))
    if channel != order[0]:
        for other in order[order.index(channel) + 1 :]:
            if known.PREFER + other in refusals.facts and _is_open(other, request, schema, refusals):
                return other
    return channel


def choose_form(request: ChatRequest, channel: str, refusals: Refusals) -> CallForm:
    """How calls of functions are written. A channel that is one of the forms decides."""
    if channel == TOOL:
        return CallForm.TOOLS
    if channel == FUNCTION:
        return CallForm.FUNCTIONS
    most = most_calls(request.messages)
    if not request.tools and not most:
        return CallForm.TOOLS
    if not refusals.hold(known.TOOLS):
        return CallForm.TOOLS
    # A turn holds one call of a function at most.
    if most <= 1 and not refusals.hold(known.FUNCTIONS):
        return CallForm.FUNCTIONS
    return CallForm.TEXT


def is_thinking(request: ChatRequest) -> bool:
    """Whether the model may think before it answers; only a request that forbids it is sure."""
    return request.extra.get("enable_thinking") is not False


def _is_open(channel: str, request: ChatRequest, schema: Json, refusals: Refusals) -> bool:
    if channel == PROMPT:
        return True
    # A function's arguments and a response format are objects; anything else is asked for in words.
    if not is_object(schema):
        return False
    gates: tuple[str, ...]
    if channel == TOOL:
        gates = (known.TOOLS,)
    elif channel == FUNCTION:
        if most_calls(request.messages) > 1:
            return False
        gates = (known.FUNCTIONS,)
    else:
        gates = (known.RESPONSE_FORMAT, f"{known.RESPONSE_FORMAT}.{channel}")
        if is_thinking(request):
            gates += (known.FORMAT_WHEN_THINKING,)
        if request.tools:
            gates += (known.FORMAT_WITH_TOOLS,)
    return not any(refusals.hold(gate) for gate in (*gates, known.CHANNEL + channel))
