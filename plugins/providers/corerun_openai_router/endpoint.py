"""Where a provider's server is and which key it takes, read from environment variables."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from corerun.llm.models import environment_key
from corerun_openai_router.redaction import redact

OPENAI_BASE_URL = "https://api.openai.com/v1"
OLLAMA_BASE_URL = "http://localhost:11434/v1"
KEYLESS = "none"
"""Sent where no key is needed, because the SDK refuses an empty one."""

_LONGEST_MESSAGE = 400


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server. ``problem`` says in one line why it can't be called; empty: it can.

    ``warnings`` are sentences about settings that were understood but should be corrected.
    """

    provider: str
    base_url: str
    key: str = field(repr=False)
    variables: tuple[str, ...]
    default_base_url: str
    needs_key: bool
    is_local: bool
    organization: str | None = None
    project: str | None = None
    problem: str = ""
    hint: str = ""
    warnings: tuple[str, ...] = ()

    def say(self, text: str) -> str:
        """One line about this server for people: shortened, and without keys."""
        line = " ".join(redact(text, (self.key,)).split())
        if len(line) > _LONGEST_MESSAGE:
            line = line[: _LONGEST_MESSAGE - 4] + " ..."
        host = urlsplit(self.base_url).netloc.rpartition("@")[2]
        return f"{host}: {line}"

    @property
    def shown_url(self) -> str:
        """The base URL for people: a name and password in it are hidden."""
        return redact(self.base_url, (self.key,))

    @property
    def version_hint(self) -> str:
        """What to try when the server's answers are no API answers."""
        if urlsplit(self.base_url).path.strip("/"):
            return f"is {self.shown_url} the address of an OpenAI-compatible API?"
        return f"did you mean {self.shown_url}/v1?"


def endpoint_of(provider: str, environ: Mapping[str, str]) -> Endpoint:
    """Read the variables of ``provider``. Never raises; see `Endpoint.problem`.

    An empty variable counts as missing. ``openai`` is the default provider unless a variable
    ``OAIC_OPENAI_*`` is set; a server on this machine or a private network needs no key.
    """
    folded = environment_key(provider)
    key_name, url_name = f"OAIC_{folded}_API_KEY", f"OAIC_{folded}_BASE_URL"
    if provider == "ollama":
        return _ollama(provider, environ, key_name, url_name)
    is_own = bool(environ.get(key_name) or environ.get(url_name))
    if provider == "default" or (provider == "openai" and not is_own):
        return _default(provider, environ)
    base_url, warnings = _clean_url(environ.get(url_name, ""), url_name)
    is_local = is_local_url(base_url)
    key = environ.get(key_name, "")
    missing = [] if base_url else [url_name]
    if not key and not is_local:
        missing.append(key_name)
    problem = (
        f"Missing {', '.join(missing)} for provider '{provider}'."
        if missing
        else _bad_url(base_url, url_name)
    )
    return Endpoint(
        provider,
        base_url,
        key or KEYLESS,
        variables=(url_name, key_name),
        default_base_url="",
        needs_key=not is_local,
        is_local=is_local,
        problem=problem,
        hint=f"set {url_name} to the server's address, such as https://host/v1, and {key_name} to its key",
        warnings=warnings,
    )


def _default(provider: str, environ: Mapping[str, str]) -> Endpoint:
    url_name = "OPENAI_BASE_URL"
    warnings: tuple[str, ...] = ()
    if not environ.get(url_name) and environ.get("OPENAI_API_BASE"):
        url_name = "OPENAI_API_BASE"
        warnings = ("OPENAI_API_BASE is the old name of OPENAI_BASE_URL",)
    base_url, url_warnings = _clean_url(environ.get(url_name) or OPENAI_BASE_URL, url_name)
    is_local = is_local_url(base_url)
    key = environ.get("OPENAI_API_KEY", "")
    problem = _bad_url(base_url, url_name)
    if not key and not is_local:
        problem = "Missing OPENAI_API_KEY for default provider."
    return Endpoint(
        provider,
        base_url,
        key or KEYLESS,
        variables=("OPENAI_API_KEY", "OPENAI_BASE_URL"),
        default_base_url=OPENAI_BASE_URL,
        needs_key=not is_local,
        is_local=is_local,
        organization=environ.get("OPENAI_ORG_ID") or None,
        project=environ.get("OPENAI_PROJECT_ID") or None,
        problem=problem,
        hint="set OPENAI_API_KEY, or OPENAI_BASE_URL to a server on this machine, or name another --model",
        warnings=warnings + url_warnings,
    )


def _ollama(provider: str, environ: Mapping[str, str], key_name: str, url_name: str) -> Endpoint:
    base_url, warnings = _clean_url(environ.get(url_name) or OLLAMA_BASE_URL, url_name)
    return Endpoint(
        provider,
        base_url,
        environ.get(key_name) or environ.get("OLLAMA_API_KEY") or "ollama",
        variables=(url_name, key_name, "OLLAMA_API_KEY"),
        default_base_url=OLLAMA_BASE_URL,
        needs_key=False,
        is_local=is_local_url(base_url),
        problem=_bad_url(base_url, url_name),
        hint=f"set {url_name} to the server's address, such as {OLLAMA_BASE_URL}",
        warnings=warnings,
    )


def _clean_url(url: str, name: str) -> tuple[str, tuple[str, ...]]:
    url = url.strip().rstrip("/")
    if not url.endswith("/chat/completions"):
        return url, ()
    url = url.removesuffix("/chat/completions").rstrip("/")
    return url, (f"{name} should end before /chat/completions: using {redact(url)}",)


def _bad_url(base_url: str, name: str) -> str:
    try:
        parts = urlsplit(base_url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    return "" if is_good else f"{name} is not an http(s) address: {redact(base_url)!r}"


def is_local_url(url: str) -> bool:
    """Whether the host is this machine or, by its number or name, one of a private network."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("localhost", "host.docker.internal") or host.endswith((".localhost", ".local"))
    return address.is_loopback or address.is_private or address.is_link_local
