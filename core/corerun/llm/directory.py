"""The models of a run: what a name in the configuration means, and the provider that reaches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from corerun.interfaces import Connection, Json, Price, Provider, ProviderInfo, Role
from corerun.plugins import PluginManager


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one model may be asked: calls at once, requests and tokens per minute. None: no limit."""

    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """What a name means. ``name`` is as the configuration has it, an alias or a model string.

    ``options`` are what the alias lends to roles that don't set them; ``timeout_s`` is for one call
    with its retries; ``fallbacks`` are names to ask when this one can't answer, in order.
    """

    name: str
    provider: str
    model: str
    options: Role = field(default_factory=Role)
    pace: Pace = Pace()
    timeout_s: float | None = None
    price: Price | None = None
    extra: Mapping[str, Json] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()


class ModelDirectory:
    """Finds models by name and makes their providers when they are first asked for."""

    def __init__(self, manager: PluginManager, environ: Mapping[str, str]) -> None:
        self._manager = manager
        self._environ = environ
        self._made: dict[str, Provider] = {}

    def target(self, name: str) -> ModelTarget:
        """What ``name`` means. Raises `UsageError` for a bad model string."""
        from corerun.llm.models import parse_model

        parsed = parse_model(name)
        return ModelTarget(name, parsed.provider, parsed.model)

    def provider(self, name: str) -> Provider:
        """The provider that answers for the model ``name``; one object per provider or alias."""
        provider = self.target(name).provider
        if provider not in self._made:
            offered = {item.component.name for item in self._manager.components("providers")}
            plugin = provider.replace("-", "_")
            connect = self._manager.get("providers", plugin if plugin in offered else "openai_router")
            self._made[provider] = connect(Connection(provider, self._environ))
        return self._made[provider]

    def use(self, provider: str, made: Provider) -> None:
        """Let ``made`` answer for every model of ``provider``: how tests swap in a fake."""
        self._made[provider] = made

    def check(self, name: str) -> ProviderInfo:
        """Facts about a model's provider; raises if keys or addresses are missing."""
        provider = self.provider(name)
        check = getattr(provider, "check", None)
        if check is not None:
            check()
        return provider.info

    async def aclose(self) -> None:
        """Closes the providers that can be closed."""
        made, self._made = self._made, {}
        for provider in made.values():
            close = getattr(provider, "aclose", None)
            if close is not None:
                await close()
