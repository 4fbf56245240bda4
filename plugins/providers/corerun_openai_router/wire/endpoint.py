"""Where a provider's server is and which key it takes, from the configuration and the environment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from corerun.interfaces import Connection
from corerun.llm.address import (
    ALLOW_INSECURE_HTTP,
    address_problem,
    is_local_url,
    said_by,
    without_login,
)
from corerun.llm.models import environment_key, true_value
from corerun.redaction import redact, remember

OPENAI_BASE_URL = "https://api.openai.com/v1"
OLLAMA_BASE_URL = "http://localhost:11434/v1"
AZURE_API_VERSION = "2024-10-21"
"""Sent to an Azure deployment whose address and configuration name no version."""
KEYLESS = "none"
"""Sent where no key is needed, because the SDK refuses an empty one."""

_OPENAI_HOST = "api.openai.com"
_AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_DEPLOYMENTS = "/openai/deployments"
_QUERY_VERSION = "api-version"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server. ``problem`` says in one line why it can't be called; empty: it can.

    ``base_url`` has no login, no query and no slash at its end. ``api_version`` is set for Azure's
    addresses by deployment alone. ``warnings`` are sentences about settings that were understood
    but should be corrected.
    """

    provider: str
    base_url: str
    key: str = field(repr=False)
    variables: tuple[str, ...] = ()
    default_base_url: str = ""
    needs_key: bool = True
    is_local: bool = False
    query: str = field(default="", repr=False)
    api_version: str = ""
    organization: str | None = None
    project: str | None = None
    problem: str = ""
    hint: str = ""
    warnings: tuple[str, ...] = ()

    def say(self, text: str) -> str:
        """One line about this server for people: shortened, and without keys."""
        return said_by(self.base_url, text)

    @property
    def shown_url(self) -> str:
        """The base URL for people."""
        return redact(self.base_url)

    @property
    def version_hint(self) -> str:
        """What to try when the server's answers are no API answers."""
        if urlsplit(self.base_url).path.strip("/"):
            return f"is {self.shown_url} the address of an OpenAI-compatible API?"
        return f"did you mean {self.shown_url}/v1?"

    @property
    def is_openai(self) -> bool:
        """Whether OpenAI or Azure runs this server, so that its newest words are understood."""
        host = urlsplit(self.base_url).hostname or ""
        return host == _OPENAI_HOST or host.endswith(_AZURE_HOSTS) or bool(self.api_version)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that say who asks."""
        if self.api_version:
            return {"api-key": self.key}
        headers = {"Authorization": f"Bearer {self.key}"}
        if self.organization:
            headers["OpenAI-Organization"] = self.organization
        if self.project:
            headers["OpenAI-Project"] = self.project
        return headers

    def chat_url(self, model: str) -> str:
        """Where a chat with ``model`` goes. Azure's resources have one address for each deployment."""
        base = self.base_url
        if self.api_version and urlsplit(base).path in ("", "/openai"):
            base = f"{base.removesuffix('/openai')}{_DEPLOYMENTS}/{quote(model, safe='')}"
        return self._with_query(f"{base}/chat/completions")

    @property
    def models_url(self) -> str:
        """Where the server lists its models."""
        base = self.base_url
        if self.api_version:
            base = base.partition(_DEPLOYMENTS)[0].removesuffix("/openai") + "/openai"
        return self._with_query(f"{base}/models")

    def _with_query(self, url: str) -> str:
        version = urlencode({_QUERY_VERSION: self.api_version}) if self.api_version else ""
        query = "&".join(part for part in (version, self.query) if part)
        return f"{url}?{query}" if query else url


def endpoint_of(connection: Connection) -> Endpoint:
    """Where ``connection`` leads: its own fields first, then the variables of its provider.

    Never raises; see `Endpoint.problem`. An empty variable counts as missing. ``openai`` is the
    default provider unless a variable ``OAIC_OPENAI_*`` is set; a server on this machine or a
    private network needs no key. Every key that is read is remembered, to be hidden.
    """
    provider = connection.provider.lower()
    environ = connection.environ
    own = f"OAIC_{environment_key(provider)}"
    if provider == "ollama":
        endpoint = _ollama(connection, own)
    elif provider == "default" or (
        provider == "openai" and not (environ.get(f"{own}_API_KEY") or environ.get(f"{own}_BASE_URL"))
    ):
        endpoint = _default(connection)
    else:
        endpoint = _named(connection, own)
    remember(endpoint.key)
    if not endpoint.problem and not (endpoint.key.isascii() and endpoint.key.isprintable()):
        return replace(endpoint, problem=f"the key of provider '{provider}' holds characters that no key has")
    return endpoint


def _key(connection: Connection, *names: str) -> str:
    """The first key that is set. Files that keys are read from end in a newline."""
    found = (connection.api_key, *(connection.environ.get(name, "") for name in names))
    return next((key.strip() for key in found if key.strip()), "")


def _default(connection: Connection) -> Endpoint:
    environ = connection.environ
    warnings: tuple[str, ...] = ()
    url_name = "OPENAI_BASE_URL"
    if not connection.base_url and not environ.get(url_name) and environ.get("OPENAI_API_BASE"):
        url_name = "OPENAI_API_BASE"
        warnings = ("OPENAI_API_BASE is the old name of OPENAI_BASE_URL",)
    address = _Address.read(connection, url_name, "OPENAI_API_VERSION", OPENAI_BASE_URL)
    key = _key(connection, "OPENAI_API_KEY")
    problem = address.problem
    hint = address.hint or "set OPENAI_BASE_URL to the server's address, such as https://host/v1"
    if not key and not address.is_local:
        problem = "Missing OPENAI_API_KEY for default provider."
        hint = (
            "set OPENAI_API_KEY, or api_key under models: in the configuration, "
            "or OPENAI_BASE_URL to a server on this machine, or name another --model"
        )
    return Endpoint(
        connection.provider.lower(),
        address.base_url,
        key or KEYLESS,
        variables=("OPENAI_API_KEY", "OPENAI_BASE_URL"),
        default_base_url=OPENAI_BASE_URL,
        needs_key=not address.is_local,
        is_local=address.is_local,
        query=address.query,
        api_version=address.api_version,
        organization=environ.get("OPENAI_ORG_ID") or None,
        project=environ.get("OPENAI_PROJECT_ID") or None,
        problem=problem,
        hint=hint,
        warnings=warnings + address.warnings,
    )


def _ollama(connection: Connection, own: str) -> Endpoint:
    names = (f"{own}_BASE_URL", f"{own}_API_KEY", "OLLAMA_API_KEY")
    address = _Address.read(connection, names[0], f"{own}_API_VERSION", OLLAMA_BASE_URL)
    key = _key(connection, *names[1:]) or "ollama"
    return Endpoint(
        connection.provider.lower(),
        address.base_url,
        key,
        variables=names,
        default_base_url=OLLAMA_BASE_URL,
        needs_key=False,
        is_local=address.is_local,
        query=address.query,
        problem=address.problem,
        hint=address.hint or f"set {names[0]} to the server's address, such as {OLLAMA_BASE_URL}",
        warnings=address.warnings,
    )


def _named(connection: Connection, own: str) -> Endpoint:
    provider = connection.provider.lower()
    url_name, key_name = f"{own}_BASE_URL", f"{own}_API_KEY"
    address = _Address.read(connection, url_name, f"{own}_API_VERSION")
    key = _key(connection, key_name)
    missing = [] if address.base_url else [url_name]
    if not key and not address.is_local:
        missing.append(key_name)
    problem = address.problem
    hint = address.hint or f"set {url_name} to the server's address, such as https://host/v1"
    if missing:
        problem = f"Missing {', '.join(missing)} for provider '{provider}'."
        hint = (
            f"set {url_name} to the server's address, such as https://host/v1, and {key_name} to its key, "
            "or base_url and api_key under models: in the configuration"
        )
    return Endpoint(
        provider,
        address.base_url,
        key or KEYLESS,
        variables=(url_name, key_name),
        needs_key=not address.is_local,
        is_local=address.is_local,
        query=address.query,
        api_version=address.api_version,
        problem=problem,
        hint=hint,
        warnings=address.warnings,
    )


@dataclass(frozen=True, slots=True)
class _Address:
    """A base URL taken apart, and what is wrong with it."""

    base_url: str
    query: str = ""
    api_version: str = ""
    is_local: bool = False
    problem: str = ""
    hint: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, connection: Connection, url_name: str, version_name: str, default: str = "") -> _Address:
        """The address of ``connection``, else that of variable ``url_name``, else ``default``."""
        environ = connection.environ
        configured = connection.base_url.strip()
        name = "base_url" if configured else url_name
        text = configured or environ.get(url_name, "").strip() or default
        if not text:
            return cls("")
        warnings: list[str] = []
        if text != (text := without_login(text)):
            warnings.append(f"{name} holds a login, which isn't sent: give the key as a key")
        allow_insecure = true_value(environ.get(ALLOW_INSECURE_HTTP))
        problem = address_problem(text, allow_insecure=allow_insecure)
        if problem:
            hint = f"use https, or set {ALLOW_INSECURE_HTTP}=1" if problem.endswith("public host") else ""
            return cls(text, problem=f"{name} {problem}: {redact(text)!r}", hint=hint)
        parts = urlsplit(text)
        whole_path = parts.path.rstrip("/")
        path = whole_path.removesuffix("/chat/completions").rstrip("/")
        base_url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        if path != whole_path:
            warnings.append(f"{name} should end before /chat/completions: using {redact(base_url)}")
        query = dict(parse_qsl(parts.query))
        version = connection.api_version or query.pop(_QUERY_VERSION, "")
        if _DEPLOYMENTS in path or (parts.hostname or "").endswith(_AZURE_HOSTS):
            version = version or environ.get(version_name) or AZURE_API_VERSION
        if path.endswith("/v1"):
            version = ""  # Azure's newer form is the plain one
        return cls(base_url, urlencode(query), version, is_local_url(base_url), warnings=tuple(warnings))
