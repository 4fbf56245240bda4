"""A client with a journal in memory and a clock that only sleeping moves."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from corerun.interfaces import Event, ProviderInfo
from corerun.llm.client import LanguageModels, LlmSettings
from corerun.llm.directory import ModelTarget
from corerun.llm.messages import system, user
from corerun.llm.models import parse_model
from corerun.testing.fake import FakeProvider

REMOTE = ProviderInfo("fake", is_local=False)


class Journal:
    """A recorder in memory."""

    def __init__(self, answered: dict[str, Event] | None = None) -> None:
        self.answered = answered or {}
        self.events: list[Event] = []
        self.blobs: dict[str, bytes] = {}

    def emit(self, type: str, **data: Any) -> int:
        self.events.append(Event(len(self.events), 0.0, type, json.loads(json.dumps(data))))
        return len(self.events) - 1

    def blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def types(self) -> list[str]:
        return [event.type for event in self.events]

    def of(self, type: str) -> list[dict[str, Any]]:
        return [dict(event.data) for event in self.events if event.type == type]

    def resumed(self) -> Journal:
        """The journal as the next process finds it."""
        return Journal({e.data["key"]: e for e in self.events if e.type == "call_answered"})


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Models:
    """A directory of one provider, or of providers by their names; ``targets`` are its aliases."""

    def __init__(self, provider: Any, targets: Sequence[ModelTarget]) -> None:
        self._provider = provider
        self._targets = {target.name: target for target in targets}

    def target(self, name: str) -> ModelTarget:
        parsed = parse_model(name)
        return self._targets.get(name) or ModelTarget(name, parsed.provider, parsed.model)

    def provider(self, name: str) -> Any:
        if isinstance(self._provider, dict):
            return self._provider[self.target(name).provider]
        return self._provider


ASK = (system("You are terse."), user("Where?"))


def client(
    provider: Any = None,
    *,
    journal: Journal | None = None,
    clock: Clock | None = None,
    settings: LlmSettings | None = None,
    environ: dict[str, str] | None = None,
    model: str = "fake::echo",
    targets: Sequence[ModelTarget] = (),
    **options: Any,
) -> LanguageModels:
    clock = clock or Clock()
    options.setdefault("roles", {})
    options.setdefault("prices", {})
    return LanguageModels(
        record=journal or Journal(),
        directory=Models(provider if provider is not None else FakeProvider(), targets),
        default_model=model,
        settings=settings or LlmSettings(),
        environ=environ or {},
        clock=clock,
        sleep=clock.sleep,
        **options,
    )
