"""What every provider and every plugin must do: checks for plugin authors to call from their tests."""

from __future__ import annotations

import asyncio
import math
import re
from types import ModuleType
from typing import Any

from corerun.errors import CorerunError, Unsupported
from corerun.hookspecs import KINDS
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Component,
    Message,
    Provider,
    ProviderInfo,
)

FINISHES = frozenset({"stop", "length", "tool", "filter", "refusal", "unknown"})
MEMBERS: dict[str, tuple[str, ...]] = {
    "providers": ("complete",),
    "operators": ("description", "interface", "inputs", "outputs", "__call__"),
    "rewards": ("range", "weight", "score"),
    "strategies": ("ask", "tell"),
    "stages": ("name", "position", "needs", "run"),
    "jobs": ("config_model", "prepare", "run"),
    "sandboxes": ("probe", "open"),
    "executors": ("submit", "close"),
    "benchmarks": ("load", "score"),
    "agents": ("run", "close"),
    "observers": ("on_event", "close"),
    "commands": ("invoke",),
}
"""Members that a component's target has, by kind."""

CANCELLATION_S = 5.0

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string"}},
    "required": ["word"],
    "additionalProperties": False,
}


async def provider_contract(provider: Provider, model: str, *, purpose: str = "contract") -> None:
    """Raises AssertionError, with a sentence, where ``provider`` breaks the rules of `Provider`.

    Asks ``model`` for a text, for JSON, several times side by side, and cancels one call. A provider
    may refuse by raising `Unsupported`; what it answers is checked.
    """
    info = provider.info
    assert isinstance(info, ProviderInfo), "info must be a ProviderInfo"
    assert info.name and info.kind in ("model", "rules"), "info needs a name, and kind model or rules"
    plain = ChatRequest(model, (Message("user", "Answer with the word yes."),), max_tokens=64)
    structured = ChatRequest(
        model,
        (Message("user", "Answer with JSON: an object with the key word."),),
        schema=_SCHEMA,
        schema_name="Answer",
        max_tokens=256,
    )
    context = CallContext(purpose, {"seed": 0, "attempt": 0})
    _check_reply(await _ask(provider, plain, context))
    reply = await _ask(provider, structured, context)
    _check_reply(reply)
    if reply is not None:
        from corerun.llm.extraction import candidates

        assert next(iter(candidates(reply)), None) is not None, (
            "no JSON was found in the answer to a request with a schema: the provider must pass the schema on"
        )
    for reply in await asyncio.gather(*(_ask(provider, plain, context) for _ in range(4))):
        _check_reply(reply)
    await _check_cancellation(provider, plain, context)


def plugin_contract(module: ModuleType) -> list[Component]:
    """Raises AssertionError, with a sentence, where a plugin's module breaks the rules of hooks.

    Calls each hook of ``module``, imports every target and looks at its members. Returns the
    components found.
    """
    found: list[Component] = []
    for attribute in dir(module):
        if not attribute.startswith("corerun_") or not callable(getattr(module, attribute)):
            continue
        hook = getattr(module, attribute)
        kind = attribute.removeprefix("corerun_")
        assert kind in KINDS, f"{attribute} is no hook; there are: " + ", ".join(
            f"corerun_{k}" for k in KINDS
        )
        assert hasattr(hook, "corerun_impl"), f"{attribute} isn't marked with @corerun.hookimpl"
        components = tuple(hook())
        for component in components:
            _check_component(attribute, kind, component)
        names = [component.name for component in components]
        assert len(names) == len(set(names)), f"{attribute} offers the same name twice: {names}"
        found += components
    assert found, f"{module.__name__} has no hook that offers a component"
    return found


def load_target(component: Component) -> Any:
    """What ``component.target`` names; raises AssertionError if it can't be imported."""
    import importlib

    module, _, attribute = component.target.partition(":")
    assert module and attribute, f"the target of {component.name!r} must be 'module:attribute'"
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise AssertionError(f"the target {component.target!r} can't be imported: {error}") from error


def _check_component(hook: str, kind: str, component: Any) -> None:
    assert isinstance(component, Component), f"{hook} must offer Component objects, not {component!r}"
    assert _NAME.fullmatch(component.name), (
        f"the name {component.name!r} must begin with a small letter and have at most 32 of a-z, 0-9 and _"
    )
    target = load_target(component)
    missing = [member for member in MEMBERS[kind] if not _has(target, member)]
    assert not missing, f"{component.target} lacks {', '.join(missing)}"


def _has(target: Any, member: str) -> bool:
    # An annotation counts: a class may set the member only in its constructor.
    annotated = any(
        member in vars(base).get("__annotations__", {}) for base in getattr(target, "__mro__", ())
    )
    return annotated or hasattr(target, member)


async def _ask(provider: Provider, request: ChatRequest, context: CallContext) -> ChatReply | None:
    try:
        return await provider.complete(request, context)
    except Unsupported:
        return None
    except CorerunError as error:
        raise AssertionError(f"a plain request failed: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise AssertionError(
            f"complete may raise only classes of corerun.errors, not {type(error).__name__}: {error}"
        ) from error


def _check_reply(reply: ChatReply | None) -> None:
    if reply is None:
        return
    assert isinstance(reply, ChatReply), f"complete must return a ChatReply, not {type(reply).__name__}"
    assert isinstance(reply.text, str), "the reply's text must be a str"
    assert reply.finish in FINISHES, f"finish {reply.finish!r} must be one of {', '.join(sorted(FINISHES))}"
    assert reply.text.strip() or reply.tool_calls or reply.reasoning or reply.finish != "stop", (
        "an empty answer must be raised as Transient"
    )
    usage = reply.usage
    counts = (usage.prompt, usage.completion, usage.reasoning, usage.cached)
    assert all(isinstance(count, int) and count >= 0 for count in counts), (
        "token counts must be integers >= 0"
    )
    assert usage.reasoning <= usage.completion, "reasoning tokens are contained in completion"
    assert usage.cached <= usage.prompt, "cached tokens are contained in prompt"
    cost = usage.cost_usd
    assert cost is None or (math.isfinite(cost) and cost >= 0), "cost_usd must be None or a number >= 0"
    assert reply.requests >= 0, "requests can't be negative"


async def _check_cancellation(provider: Provider, request: ChatRequest, context: CallContext) -> None:
    call = asyncio.ensure_future(provider.complete(request, context))
    await asyncio.sleep(0)
    waiting = not call.done()
    call.cancel()
    done, _ = await asyncio.wait({call}, timeout=CANCELLATION_S)
    assert done, f"a cancelled call must end within {CANCELLATION_S:g} s"
    cancelled = call.cancelled() or call.exception() is not None
    assert cancelled or not waiting, "a cancelled call must not be answered: let CancelledError through"
