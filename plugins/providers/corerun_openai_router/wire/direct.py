"""The transport that speaks HTTP itself, through aiohttp: a tenth of the SDK's CPU time per call."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from corerun.errors import RequestRefused, Transient, UsageError
from corerun.interfaces import Json
from corerun.llm.address import forbidden_name, ip_address, is_forbidden, is_loopback_url
from corerun_openai_router.wire.endpoint import Endpoint
from corerun_openai_router.wire.transport import (
    BETWEEN_BYTES_S,
    CONNECT_S,
    FIRST_BYTE_S,
    LARGEST_ANSWER,
    MOST_CONNECTIONS,
    Response,
    Streamed,
    broken_connection,
    too_large,
    too_slow,
)

_LONGEST_HEADER = 64 * 1024
# Above this, aiohttp wants a file, to write it piece by piece.
_LARGEST_BYTES = 1024 * 1024
_BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError)

# ASCII alone, so that no text can stop a request; NaN is no JSON.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class DirectTransport:
    """One session per event loop, with everything prepared that all requests have in common."""

    def __init__(self, endpoint: Endpoint, environ: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        self._environ = environ
        self._proxy: URL | None = None
        self._chat_urls: dict[str, URL] = {}
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = (
            WeakKeyDictionary()
        )

    async def chat(self, body: Mapping[str, Json]) -> Response:
        return await self._whole("POST", self._chat_url(body), self._content(body))

    async def models(self) -> Response:
        return await self._whole("GET", URL(self._endpoint.models_url, encoded=True), None)

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Json]) -> AsyncIterator[Streamed]:
        response = await self._send("POST", self._chat_url(body), self._content(body))
        chunks = self._chunks(response.content)
        try:
            yield Streamed(response.status, _headers(response), chunks)
        finally:
            await chunks.aclose()
            response.close()

    async def aclose(self) -> None:
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    # --------------------------------------------------------------------------------- one request

    async def _whole(self, method: str, url: URL, content: bytes | io.BytesIO | None) -> Response:
        response = await self._send(method, url, content)
        body = response.content
        try:
            if body.is_eof():  # a short answer comes in one packet with its headers
                whole = body.read_nowait()
            else:
                whole = b"".join([chunk async for chunk in self._chunks(body)])
        except _BROKEN as error:
            raise self._failure(error) from None
        finally:
            response.close()  # does nothing to a connection whose answer was read to its end
        return Response(response.status, _headers(response), whole)

    async def _send(
        self, method: str, url: URL, content: bytes | io.BytesIO | None
    ) -> aiohttp.ClientResponse:
        session = self._session()
        try:
            # A redirect would carry the prompt to a host that nobody named.
            return await session.request(method, url, data=content, allow_redirects=False, proxy=self._proxy)
        except _BROKEN as error:
            raise self._failure(error) from None

    async def _chunks(self, content: aiohttp.StreamReader) -> AsyncGenerator[bytes]:
        size = 0
        try:
            chunk = await content.readany()
            while chunk:
                size += len(chunk)
                if size > LARGEST_ANSWER:
                    raise too_large(self._endpoint, LARGEST_ANSWER)
                yield chunk
                if content.at_eof():
                    return
                async with asyncio.timeout(BETWEEN_BYTES_S):
                    chunk = await content.readany()
        except TimeoutError:
            raise too_slow(self._endpoint, BETWEEN_BYTES_S if size else FIRST_BYTE_S) from None
        except _BROKEN as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Transient:
        """What a broken exchange is called, in the words of the one who waits for an answer."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return broken_connection(self._endpoint, f"no connection within {CONNECT_S:g} s")
        if isinstance(error, TimeoutError):
            return too_slow(self._endpoint, FIRST_BYTE_S)
        if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
            return broken_connection(self._endpoint, _plain(error), was_reached=False)
        # Without a number, aiohttp couldn't write to a kept connection that the server had closed.
        is_closed = isinstance(error, aiohttp.ClientOSError) and error.errno is None
        if is_closed or isinstance(error, aiohttp.ServerDisconnectedError):
            return broken_connection(self._endpoint, "closed before an answer came")
        if isinstance(error, aiohttp.ClientPayloadError):
            return broken_connection(self._endpoint, "the answer was cut")
        return broken_connection(self._endpoint, f"{type(error).__name__}: {error}")

    # ------------------------------------------------------------------------- what requests share

    def _chat_url(self, body: Mapping[str, Json]) -> URL:
        model = body["model"]
        url = self._chat_urls.get(model)
        if url is None:
            url = self._chat_urls[model] = URL(self._endpoint.chat_url(model), encoded=True)
        return url

    def _content(self, body: Mapping[str, Json]) -> bytes | io.BytesIO:
        try:
            content = _encode(body).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestRefused(self._endpoint.say(f"the request is no JSON: {error}")) from None
        return content if len(content) <= _LARGEST_BYTES else io.BytesIO(content)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = self._new_session()
        return session

    def _new_session(self) -> aiohttp.ClientSession:
        self._proxy = proxy_of(self._endpoint.base_url, self._environ)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS, resolver=_GuardedResolver()),
            headers={
                **self._endpoint.headers,
                "Content-Type": "application/json",
                "User-Agent": "corerun",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=FIRST_BYTE_S),
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )


class _GuardedResolver(aiohttp.ThreadedResolver):
    """The system's resolver, without the addresses that no name may lead to."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        if any(is_forbidden(ip_address(result["host"])) for result in found):
            raise forbidden_name(host)
        return found


def proxy_of(base_url: str, environ: Mapping[str, str]) -> URL | None:
    """The proxy that ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` name for an address.

    aiohttp would read them anew, in a thread, for every request. A proxy can't reach this machine's
    loopback, so none is used there. Raises `UsageError` for a proxy that isn't http(s).
    """
    url = URL(base_url, encoded=True)
    named = {name.lower(): value for name, value in environ.items() if value.strip()}
    address = named.get(f"{url.scheme}_proxy") or named.get("all_proxy")
    if not address or is_loopback_url(base_url):
        return None
    host = f".{url.host}"
    for entry in named.get("no_proxy", "").lower().split(","):
        excepted = entry.strip().lstrip(".").removesuffix(f":{url.port}")
        if excepted == "*" or (excepted and host.endswith(f".{excepted}")):
            return None
    proxy = URL(address if "://" in address else f"http://{address}")
    if proxy.scheme not in ("http", "https"):
        raise UsageError(
            f"proxies by {proxy.scheme} aren't supported",
            where=f"{url.scheme.upper()}_PROXY",
            hint="name an http proxy, or list the server's host in NO_PROXY",
        )
    return proxy


def _plain(error: aiohttp.ClientConnectorError) -> str:
    """The system's words for why there is no connection, such as ``Connection refused``."""
    cause = error.os_error
    words = cause.strerror or str(cause)
    if cause.errno and words.startswith("Connect call failed"):
        words = os.strerror(cause.errno)
    return f"by the proxy: {words}" if isinstance(error, aiohttp.ClientProxyConnectionError) else words


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
