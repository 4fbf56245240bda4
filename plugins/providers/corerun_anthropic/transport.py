"""Sends one request through Anthropic's SDK and hands on the events of the answer, unread. No retry."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from corerun.errors import Transient
from corerun.interfaces import Json
from corerun.llm.address import check_name
from corerun_anthropic.endpoint import Endpoint
from corerun_anthropic.failure import Answer

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

API_VERSION = "2023-06-01"
"""Later versions of the API refuse ``temperature`` for every model; this one leaves it to the model."""

_CONNECT_S = 5.0
_FIRST_BYTE_S = 300.0
_BETWEEN_BYTES_S = 60.0
_SENT_HEADERS = frozenset(
    {
        "host",
        "accept",
        "accept-encoding",
        "anthropic-version",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "transfer-encoding",
        "user-agent",
        "x-api-key",
        "x-stainless-raw-response",  # the SDK looks there for what it was asked
    }
)


class Refused(Exception):
    """The server's answer is no message; ``answer`` is what it is."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that is coming in: its headers, names in lower case, and its events, JSON objects."""

    headers: Mapping[str, str]
    events: AsyncIterator[Json]


class SdkTransport:
    """One SDK client per event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncAnthropic] = WeakKeyDictionary()

    @asynccontextmanager
    async def open(self, body: Mapping[str, Json], deadline: float) -> AsyncIterator[Stream]:
        """``POST /v1/messages``; the answer stays open inside the block.

        ``deadline`` is on the monotonic clock, for all of the answer. Raises `Refused` for an answer
        that is no message, `Transient` if the connection fails or is silent for too long.
        """
        # The SDK walks through every field that it is given by name; extra_body goes out as it is.
        call = self._client().messages.with_streaming_response.create(
            model=body["model"],
            max_tokens=body["max_tokens"],
            messages=[],
            stream=True,
            extra_body=dict(body),
        )
        async with AsyncExitStack() as stack:
            async with self._waiting(_FIRST_BYTE_S, deadline), self._connected():
                response = await stack.enter_async_context(call)
            headers = _lower(response.headers)
            chunks = self._chunks(response.iter_bytes(), deadline)
            if "event-stream" in headers.get("content-type", ""):
                yield Stream(headers, self._events(chunks))
                return
            # A server that doesn't stream gives its whole message as the only event.
            whole = b"".join([chunk async for chunk in chunks]).decode("utf-8", "replace")
            answer = Answer(response.status_code, headers, whole)
            if answer.document.get("type") != "message":
                raise Refused(answer)
            yield Stream(headers, _only(answer.document))

    async def models(self, deadline: float) -> list[str]:
        """``GET /v1/models``, all pages. Raises `Refused` or `Transient`."""
        async with self._waiting(_FIRST_BYTE_S, deadline), self._connected():
            return [model.id async for model in self._client().models.list(limit=1000)]

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _chunks(self, chunks: AsyncIterator[bytes], deadline: float) -> AsyncIterator[bytes]:
        while True:
            async with self._waiting(_BETWEEN_BYTES_S, deadline), self._connected():
                chunk = await anext(chunks, b"")
            if not chunk:
                return
            yield chunk

    async def _events(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[Json]:
        lines = Lines()
        async for chunk in chunks:
            for event in lines.events(chunk):
                if event is None:
                    raise Transient(self._endpoint.say("an event of the stream is no JSON object"))
                yield event

    @asynccontextmanager
    async def _waiting(self, seconds: float, deadline: float) -> AsyncIterator[None]:
        left = deadline - time.monotonic()
        try:
            async with asyncio.timeout(min(seconds, left)):
                yield
        except TimeoutError:
            what = "no answer before the call's deadline" if left < seconds else f"silent for {seconds:.0f} s"
            raise Transient(self._endpoint.say(what)) from None

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """What the SDK and the HTTP library under it raise, as our own errors."""
        import anthropic

        try:
            yield
        except anthropic.APIStatusError as error:
            body = error.body if isinstance(error.body, str) else json.dumps(error.body)
            raise Refused(Answer(error.status_code, _lower(error.response.headers), body)) from None
        except anthropic.APITimeoutError:
            raise Transient(self._endpoint.say("no answer in time")) from None
        except (TimeoutError, Transient):
            raise
        except Exception as error:
            # Which library that is, and so which classes it raises, depends on the SDK's version.
            reason = error.__cause__ or error
            raise Transient(
                self._endpoint.say(f"connection failed: {type(reason).__name__}: {reason}"),
                hint=f"is a server running at {self._endpoint.address}?" if self._endpoint.is_local else "",
            ) from None

    def _client(self) -> AsyncAnthropic:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._new_client()
        return client

    def _new_client(self) -> AsyncAnthropic:
        import anthropic

        # With ANTHROPIC_LOG set, the SDK would log whole requests.
        logging.getLogger("anthropic").setLevel(logging.WARNING)
        key = self._endpoint.key
        return anthropic.AsyncAnthropic(
            api_key=key,
            base_url=self._endpoint.base_url,
            max_retries=0,
            timeout=anthropic.Timeout(_FIRST_BYTE_S, connect=_CONNECT_S, pool=None),
            # The API reads the first, some servers that speak its language only the second.
            default_headers={
                "X-Api-Key": key,
                "Authorization": f"Bearer {key}",
                "anthropic-version": API_VERSION,
            },
            http_client=anthropic.DefaultAsyncHttpxClient(
                # A redirect would carry the prompt to a host that nobody named.
                follow_redirects=False,
                event_hooks={"request": [_check_host, _keep_known_headers]},
            ),
        )


async def _only(event: Json) -> AsyncIterator[Json]:
    yield event


async def _check_host(request: Any) -> None:
    await check_name(request.url.host)


async def _keep_known_headers(request: Any) -> None:
    # The SDK adds facts about this machine, and whatever the process's own variables name.
    for name in [name for name in request.headers if name.lower() not in _SENT_HEADERS]:
        del request.headers[name]


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class Lines:
    """Cuts bytes into the events of a stream; a character or a line may lie in two chunks."""

    def __init__(self) -> None:
        self._rest = b""

    def events(self, chunk: bytes) -> Iterator[Json | None]:
        """The JSON objects that end in ``chunk``; None for one that can't be read.

        The name of an event stands in its data too, so other lines tell nothing.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                try:
                    event = json.loads(line[5:].decode("utf-8", "replace"))
                except (ValueError, RecursionError):
                    event = None
                yield event if isinstance(event, dict) else None
