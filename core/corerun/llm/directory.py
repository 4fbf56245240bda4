"""The models of a run: what a name in the configuration means, and the provider that reaches it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from corerun.errors import UsageError
from corerun.interfaces import Connection, Json, Price, Provider, ProviderInfo, Role
from corerun.llm.models import DEFAULT_PROVIDER, ModelString, environment_key, parse_model
from corerun.plugins import PluginManager
from corerun.redaction import redact

if TYPE_CHECKING:
    from corerun.config import ModelAlias

ROUTER = "openai_router"
"""The provider component for every name that no plugin offers."""

COMPATIBLE = frozenset(
    (
        "openai",
        "azure",
        "ollama",
        "groq",
        "deepseek",
        "qwen",
        "dashscope",
        "mistral",
        "gemini",
        "moonshot",
        "openrouter",
        "together",
        "fireworks",
        "xai",
        "cerebras",
        "siliconflow",
        "zhipuai",
        "ark",
        "vllm",
        "lmstudio",
        "llamacpp",
        "litellm",
    )
)
"""Values of ``api_type`` that are known to speak OpenAI's protocol."""

_NEAR = 0.8
"""How alike two names are, of 1, so that one may be a slip for the other."""

_log = logging.getLogger("corerun.models")


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
    """Finds models by name and makes their providers when they are first asked for.

    ``aliases`` are the configuration's ``models:``, ``pace`` is that of models without one of their
    own, and ``places`` says where an alias' field was written, by ``(alias, field)``.
    """

    def __init__(
        self,
        manager: PluginManager,
        environ: Mapping[str, str],
        aliases: Mapping[str, ModelAlias] | None = None,
        pace: Pace = Pace(),
        places: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self._manager = manager
        self._environ = environ
        self._aliases = aliases or {}
        self._pace = pace
        self._places = places or {}
        self._targets: dict[str, ModelTarget] = {}
        self._providers: dict[str, Provider] = {}
        self._made: dict[object, Provider] = {}
        self._swapped: dict[str, Provider] = {}
        self._told: set[str] = set()

    @property
    def aliases(self) -> tuple[str, ...]:
        """Names of the configuration's ``models:``."""
        return tuple(self._aliases)

    def target(self, name: str) -> ModelTarget:
        """What ``name`` means: an alias, if there is one of exactly this name, else a model string.

        Raises `UsageError` for a bad model string.
        """
        if name not in self._targets:
            alias = self._aliases.get(name)
            self._targets[name] = self._plain(name) if alias is None else self._of_alias(name, alias)
        return self._targets[name]

    def meaning(self, name: str) -> str:
        """The model string of ``name``, always with its provider."""
        target = self.target(name)
        return f"{target.provider}::{target.model}"

    def provider(self, name: str) -> Provider:
        """The provider that answers for the model ``name``; names with the same connection share it.

        Raises `UsageError` for an alias whose key or address can't be used.
        """
        if name not in self._providers:
            provider = self.target(name).provider
            swapped = self._swapped.get(provider)
            self._providers[name] = swapped or self._connect(self._connection(name, provider))
        return self._providers[name]

    def named(self, provider: str) -> Provider:
        """The provider of this name in a model string, as the environment alone describes it."""
        name = parse_model(f"{provider}::any").provider
        return self._swapped.get(name) or self._connect(Connection(name, self._environ))

    def use(self, provider: str, made: Provider) -> None:
        """Let ``made`` answer for every model of ``provider``: how tests swap in a fake."""
        self._swapped[provider] = made
        self._providers.clear()

    def check(self, name: str) -> ProviderInfo:
        """Facts about a model's provider; raises if keys or addresses are missing, and names an alias or
        provider that was probably meant."""
        provider = self.provider(name)
        check = getattr(provider, "check", None)
        if check is not None:
            try:
                check()
            except UsageError as error:
                meant = self._probably_meant(name)
                error.hint = f"did you mean {meant!r}? Else {error.hint}" if meant else error.hint
                raise
        return provider.info

    def reachable(self, names: Iterable[str]) -> tuple[str, ...]:
        """``names`` and everything that they fall back to, each once."""
        found: dict[str, None] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop(0)
            if name not in found:
                found[name] = None
                waiting += self.target(name).fallbacks
        return tuple(found)

    def check_variables(self, names: Iterable[str]) -> None:
        """Raise `UsageError` if two providers of ``names`` and all aliases read the same variables."""
        seen: dict[str, str] = {}
        for provider in sorted({self.target(name).provider for name in (*names, *self._aliases)}):
            other = seen.setdefault(environment_key(provider), provider)
            if other != provider:
                variable = f"OAIC_{environment_key(provider)}_API_KEY"
                raise UsageError(
                    f"providers {other!r} and {provider!r} both read {variable}", hint="rename one of them"
                )

    async def aclose(self) -> None:
        """Closes the providers that can be closed."""
        made = [*self._made.values(), *self._swapped.values()]
        self._made.clear()
        self._swapped.clear()
        self._providers.clear()
        for provider in made:
            close = getattr(provider, "aclose", None)
            if close is not None:
                await close()

    def _plain(self, name: str) -> ModelTarget:
        parsed = parse_model(name)
        return ModelTarget(name, parsed.provider, parsed.model, pace=self._pace)

    def _of_alias(self, name: str, alias: ModelAlias) -> ModelTarget:
        try:
            parsed = _meaning(alias.model or name, alias.api_type)
        except UsageError as error:
            where = redact(self._place(name, "model"))
            raise UsageError(f"models.{name}: {error.message}", hint=error.hint, where=where) from None
        pace, prices = self._pace, alias.prices
        return ModelTarget(
            name,
            parsed.provider,
            parsed.model,
            Role(
                temperature=alias.temperature,
                max_tokens=alias.max_tokens,
                top_p=alias.top_p,
                reasoning_effort=alias.reasoning_effort,
            ),
            Pace(
                alias.concurrency or pace.concurrency,
                alias.rpm or pace.requests_per_minute,
                alias.tpm or pace.tokens_per_minute,
            ),
            alias.timeout,
            None if prices is None else Price(prices.input, prices.output, prices.cached),
            dict(alias.extra_body),
            tuple(alias.fallbacks),
        )

    def _connection(self, name: str, provider: str) -> Connection:
        alias = self._aliases.get(name)
        if alias is None:
            return Connection(provider, self._environ)
        from corerun.llm import keys

        def given(field: str, value: str | None) -> tuple[str, str, str]:
            return f"models.{name}.{field}", value or "", self._place(name, field)

        keys.check_no_placeholder(*given("model", alias.model or name))
        if alias.api_type:
            self._warn_unknown(alias.api_type, provider, f"models.{name}")
        return Connection(
            provider,
            self._environ,
            keys.resolve(*given("base_url", alias.base_url), self._environ),
            keys.resolve_key(*given("api_key", alias.api_key), provider, self._environ),
            alias.api_version or "",
            dict(alias.caps),
            {feature: tuple(patterns) for feature, patterns in alias.wording.items()},
        )

    def _place(self, name: str, field: str) -> str:
        """Where the field was written, else where anything of the alias was."""
        return self._places.get((name, field)) or next(
            (where for (alias, _), where in self._places.items() if alias == name), ""
        )

    def _warn_unknown(self, api_type: str, provider: str, field_of: str) -> None:
        if provider in COMPATIBLE or self._component(provider) != ROUTER or provider in self._told:
            return
        self._told.add(provider)
        _log.warning("%s: api_type %r is unknown: taken as OpenAI-compatible", field_of, api_type)

    def _component(self, provider: str) -> str:
        plugin = provider.replace("-", "_")
        return plugin if plugin in self._offered() else ROUTER

    def _offered(self) -> set[str]:
        return {item.component.name for item in self._manager.components("providers")}

    def _probably_meant(self, name: str) -> str:
        """The alias, or the model string with a provider's right name, that is nearly ``name``."""
        if name in self._aliases:
            return ""
        target = self.target(name)
        known = (self._offered() | {"ollama", "openai"}) - {ROUTER, target.provider}
        if target.provider == DEFAULT_PROVIDER:
            near = difflib.get_close_matches(name, self._aliases, 1, _NEAR)
            head, mark, rest = name.partition("/" if "/" in name else ":")
            # As other libraries write it.
            written = f"{head.lower()}::{rest}" if mark and head.lower() in known | COMPATIBLE else ""
            return near[0] if near else written
        near = difflib.get_close_matches(target.provider, sorted(known), 1, _NEAR)
        return f"{near[0]}::{target.model}" if near else ""

    def _connect(self, connection: Connection) -> Provider:
        # The environment is the same for all.
        same = (
            connection.provider,
            connection.base_url,
            connection.api_key,
            connection.api_version,
            frozenset(connection.capabilities.items()),
            frozenset(connection.wording.items()),
        )
        if same not in self._made:
            make = self._manager.get("providers", self._component(connection.provider))
            self._made[same] = make(connection)
        return self._made[same]


def _meaning(model: str, api_type: str | None) -> ModelString:
    """Provider and id of an alias. With an ``api_type``, a slash in the model is part of its id."""
    if api_type is None or "::" in model:
        return parse_model(model)
    provider = api_type.strip().lower()
    parsed = parse_model(model)
    return parsed if parsed.provider == provider else parse_model(f"{provider}::{model}")
