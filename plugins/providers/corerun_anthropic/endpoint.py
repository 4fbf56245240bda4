"""Where Anthropic's API is and which key it takes, from the configuration and the environment."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field

from corerun.errors import EnvironmentRefused, UsageError
from corerun.interfaces import Connection
from corerun.llm.address import (
    ALLOW_INSECURE_HTTP,
    address_problem,
    is_local_url,
    said_by,
    without_login,
)
from corerun.llm.models import true_value
from corerun.redaction import redact, remember

DEFAULT_BASE_URL = "https://api.anthropic.com"
KEY_VARIABLES = ("ANTHROPIC_API_KEY", "OAIC_ANTHROPIC_API_KEY")
URL_VARIABLES = ("ANTHROPIC_BASE_URL", "OAIC_ANTHROPIC_BASE_URL")

_KEYLESS = "none"
_INSTALL = "pip install 'corerun[anthropic]'"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server. ``problem`` says in one line why it can't be called; empty: it can.

    ``base_url`` is without a login and without the path ``/v1`` that the SDK adds.
    """

    provider: str
    base_url: str
    key: str = field(repr=False)
    is_local: bool
    problem: str = ""

    def check(self) -> None:
        """Raises `UsageError` for a missing key or a bad address, `EnvironmentRefused` without the SDK."""
        is_installed = importlib.util.find_spec("anthropic") is not None
        if self.problem:
            hint = f"set {KEY_VARIABLES[0]}, or {URL_VARIABLES[0]} to a server on this machine"
            raise UsageError(self.problem, hint=hint if is_installed else f"{hint}; then {_INSTALL}")
        if not is_installed:
            raise EnvironmentRefused(
                f"the provider {self.provider!r} needs the package anthropic, which isn't installed",
                hint=_INSTALL,
            )

    @property
    def address(self) -> str:
        """The base URL; empty for one that is no address."""
        return "" if address_problem(self.base_url, allow_insecure=True) else self.base_url

    def say(self, text: str) -> str:
        """One line about this server for people: shortened, and without secrets."""
        return said_by(self.address, text)


def endpoint_of(connection: Connection) -> Endpoint:
    """The server that ``connection`` names: its own fields first, then ``ANTHROPIC_*``, then ``OAIC_*``.

    Never raises; see `Endpoint.problem`. A server on this machine or a private network needs no key.
    """
    environ = connection.environ
    given_url = connection.base_url or next(filter(None, map(environ.get, URL_VARIABLES)), "")
    key = connection.api_key or next(filter(None, map(environ.get, KEY_VARIABLES)), "")
    remember(key)
    url = without_login((given_url or DEFAULT_BASE_URL).strip()).rstrip("/")
    url = url.removesuffix("/messages").removesuffix("/v1").rstrip("/")
    is_local = is_local_url(url)
    problem = address_problem(url, allow_insecure=true_value(environ.get(ALLOW_INSECURE_HTTP)))
    if problem:
        problem = f"{URL_VARIABLES[0]} {problem}: {redact(url)!r}"
    elif not key and not is_local:
        problem = f"Missing {KEY_VARIABLES[0]} for provider {connection.provider!r}."
    return Endpoint(connection.provider, url, key or _KEYLESS, is_local, problem)
