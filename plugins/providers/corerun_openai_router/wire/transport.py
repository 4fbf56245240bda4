"""How one request reaches a server: the two ways, and what both hand back, unread and without a retry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

from corerun.errors import RequestRefused, Transient
from corerun.interfaces import Json
from corerun_openai_router.wire.endpoint import Endpoint

CONNECT_S = 5.0
FIRST_BYTE_S = 300.0
"""A server may think that long before the first byte of its answer's body."""
BETWEEN_BYTES_S = 60.0
MOST_CONNECTIONS = 1024
"""Per event loop; the calls beyond wait, and no clock but the caller's deadline runs meanwhile."""
LARGEST_ANSWER = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer of any status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def text(self) -> str:
        return self.content.decode("utf-8-sig", "replace")

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def with_error(self, error: Json) -> Response:
        """This answer with an ``error`` object found under a success status as its whole body.

        Its status is the error's own code, if that is an HTTP status.
        """
        code = str(error.get("code", "")) if isinstance(error, dict) else ""
        status = int(code) if code.isdecimal() and 400 <= int(code) < 600 else self.status
        return replace(self, status=status, content=json.dumps({"error": error}).encode())


@dataclass(frozen=True, slots=True)
class Streamed:
    """An HTTP answer of any status whose body is still coming. Header names are in lower case.

    ``chunks`` raises `Transient` where the body breaks off.
    """

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Transport(Protocol):
    """Sends requests to one server.

    Every method raises `Transient` with one line, without keys, if no whole answer came. Cancelling
    closes the connection, which tells the server to stop.
    """

    async def chat(self, body: Mapping[str, Json]) -> Response:
        """``POST /chat/completions``."""
        ...

    async def models(self) -> Response:
        """``GET /models``."""
        ...

    def stream(self, body: Mapping[str, Json]) -> AbstractAsyncContextManager[Streamed]:
        """``POST /chat/completions``, handed out as it comes; leaving the block ends the answer."""
        ...

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        ...


def broken_connection(endpoint: Endpoint, reason: str, *, was_reached: bool = True) -> Transient:
    """The error for a connection that failed or broke; ``reason`` says how. ``was_reached``: the server
    may have been there."""
    hint = "" if was_reached else f"is {endpoint.shown_url} right, and this machine online?"
    if endpoint.is_local:
        hint = f"is a server running at {endpoint.shown_url}?"
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        hint = "set SSL_CERT_FILE to the certificate of the server's authority"
    return Transient(endpoint.say(f"connection failed: {reason}"), hint=hint)


def too_large(endpoint: Endpoint, limit: int) -> RequestRefused:
    """The error for a body without end; ``limit`` is in bytes."""
    return RequestRefused(endpoint.say(f"the answer is larger than {limit} bytes"))


def too_slow(endpoint: Endpoint, seconds: float) -> Transient:
    """The error for a server that went silent."""
    return Transient(endpoint.say(f"no answer in time: silent for {seconds:g} s"))
