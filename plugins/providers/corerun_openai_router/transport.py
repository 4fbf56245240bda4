"""Sends one request through the OpenAI SDK and hands back what came, unread. No retry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from corerun.errors import Transient
from corerun.interfaces import Json
from corerun_openai_router.endpoint import Endpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_CONNECT_S = 5.0
_READ_S = 300.0
_WRITE_S = 60.0


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer of any status. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

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


class SdkTransport:
    """One SDK client per event loop: making one costs as much as a dozen calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = WeakKeyDictionary()

    async def chat(self, body: Mapping[str, Json]) -> Response:
        """``POST /chat/completions``. Raises `Transient` if no whole answer came."""
        client = self._client()
        # The SDK walks through every field that it is given by name; extra_body goes out as it is.
        return await self._send(
            lambda: client.chat.completions.with_raw_response.create(
                model=body["model"], messages=[], extra_body=dict(body)
            )
        )

    async def models(self) -> Response:
        """``GET /models``. Raises `Transient` if no whole answer came."""
        return await self._send(self._client().models.with_raw_response.list)

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _send(self, call: Callable[[], Awaitable[Any]]) -> Response:
        import openai

        try:
            answer = (await call()).http_response
        except openai.APIStatusError as error:
            answer = error.response
        except openai.APITimeoutError:
            raise Transient(self._endpoint.say("no answer in time")) from None
        except openai.APIConnectionError as error:
            reason = error.__cause__ or error
            raise Transient(
                self._endpoint.say(f"connection failed: {type(reason).__name__}: {reason}"),
                hint=f"is a server running at {self._endpoint.shown_url}?" if self._endpoint.is_local else "",
            ) from None
        return Response(answer.status_code, dict(answer.headers), answer.content)

    def _client(self) -> AsyncOpenAI:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._new_client()
        return client

    def _new_client(self) -> AsyncOpenAI:
        import openai

        client = openai.AsyncOpenAI(
            api_key=self._endpoint.key,
            base_url=self._endpoint.base_url,
            max_retries=0,
            timeout=openai.Timeout(connect=_CONNECT_S, read=_READ_S, write=_WRITE_S, pool=None),
            # A redirect would carry the prompt to a host that nobody named.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        # Given None, the SDK reads these from the process's environment, for any server.
        client.organization = self._endpoint.organization
        client.project = self._endpoint.project
        return client
