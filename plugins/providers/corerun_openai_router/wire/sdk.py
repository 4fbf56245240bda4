"""The transport that goes through the OpenAI SDK, for those who must: it costs ten times the CPU time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl
from weakref import WeakKeyDictionary

from corerun.errors import CallFailed, RequestRefused
from corerun.interfaces import Json
from corerun.llm.address import check_name
from corerun_openai_router.wire.endpoint import Endpoint
from corerun_openai_router.wire.transport import (
    BETWEEN_BYTES_S,
    CONNECT_S,
    FIRST_BYTE_S,
    LARGEST_ANSWER,
    Response,
    Streamed,
    broken_connection,
    too_large,
    too_slow,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class SdkTransport:
    """One SDK client per event loop: making one costs as much as a dozen calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncOpenAI] = WeakKeyDictionary()

    async def chat(self, body: Mapping[str, Json]) -> Response:
        # The SDK walks through every field that it is given by name; extra_body goes out as it is.
        call = self._client().chat.completions.with_raw_response.create(
            model=body["model"], messages=[], extra_body=dict(body)
        )
        return await self._whole(call)

    async def models(self) -> Response:
        client = self._client()
        if self._endpoint.api_version:
            client = client.copy(base_url=self._azure_resource)
        return await self._whole(client.models.with_raw_response.list())

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Json]) -> AsyncIterator[Streamed]:
        import openai

        call = self._client().chat.completions.with_streaming_response.create(
            model=body["model"], messages=[], extra_body=dict(body)
        )
        refused: Response | None = None
        try:
            answer = (await call.__aenter__()).http_response
        except openai.APIStatusError as error:
            refused = _response(error.response)
        except Exception as error:
            raise self._failure(error) from None
        if refused is not None:
            yield Streamed(refused.status, refused.headers, _once(refused.content))
            return
        chunks = self._chunks(answer)
        try:
            yield Streamed(answer.status_code, _headers(answer), chunks)
        finally:
            await chunks.aclose()
            await call.__aexit__(None, None, None)

    async def aclose(self) -> None:
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    async def _whole(self, call: Any) -> Response:
        import openai

        try:
            answer = (await call).http_response
        except openai.APIStatusError as error:
            answer = error.response
        except Exception as error:
            raise self._failure(error) from None
        return _response(answer)

    async def _chunks(self, answer: Any) -> AsyncGenerator[bytes]:
        size = 0
        chunks = aiter(answer.aiter_bytes())
        try:
            while True:
                async with asyncio.timeout(BETWEEN_BYTES_S if size else FIRST_BYTE_S):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                size += len(chunk)
                if size > LARGEST_ANSWER:
                    raise too_large(self._endpoint, LARGEST_ANSWER)
                yield chunk
        except TimeoutError:
            raise too_slow(self._endpoint, BETWEEN_BYTES_S if size else FIRST_BYTE_S) from None
        except CallFailed:
            raise
        except Exception as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> CallFailed:
        """The SDK lets errors of its HTTP client through, whose classes differ between its versions."""
        import openai

        if isinstance(error, TypeError | ValueError) and not isinstance(error, UnicodeError):
            return RequestRefused(self._endpoint.say(f"the request is no JSON: {error}"))
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        # On aiohttp the SDK calls a refused connection a timeout; what lies below knows better.
        if isinstance(reason, TimeoutError | openai.APITimeoutError):
            return too_slow(self._endpoint, FIRST_BYTE_S)
        return broken_connection(self._endpoint, f"{type(reason).__name__}: {reason}")

    @property
    def _azure_resource(self) -> str:
        return self._endpoint.models_url.partition("/models?")[0]

    def _client(self) -> AsyncOpenAI:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._new_client()
        return client

    def _new_client(self) -> AsyncOpenAI:
        import openai

        # At a lower level the SDK and its HTTP client log whole requests.
        for name in ("openai", "httpx", "httpx2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        endpoint = self._endpoint
        options: dict[str, Any] = {
            "api_key": endpoint.key,
            "base_url": endpoint.base_url,
            "max_retries": 0,
            "timeout": openai.Timeout(connect=CONNECT_S, read=FIRST_BYTE_S, write=BETWEEN_BYTES_S, pool=None),
            "default_query": dict(parse_qsl(endpoint.query)),
            "http_client": _http_client(),
        }
        client: AsyncOpenAI
        if endpoint.api_version:
            # The SDK adds the deployment's path itself where the address has none.
            if "/deployments/" not in endpoint.base_url:
                options["base_url"] = self._azure_resource
            client = openai.AsyncAzureOpenAI(**options, api_version=endpoint.api_version)
        else:
            client = openai.AsyncOpenAI(**options)
        # Given None, the SDK reads these from the process's environment, for any server.
        client.organization = endpoint.organization
        client.project = endpoint.project
        return client


def _http_client() -> Any:
    """The SDK's HTTP client, on aiohttp where the installed version can: it scales with connections."""
    import openai

    # A redirect would carry the prompt to a host that nobody named.
    options: Any = {"follow_redirects": False, "event_hooks": {"request": [_check_host]}}
    try:
        return openai.DefaultAioHttpClient(**options)
    except (AttributeError, RuntimeError):
        return openai.DefaultAsyncHttpxClient(**options)


async def _check_host(request: Any) -> None:
    await check_name(request.url.host)


def _response(answer: Any) -> Response:
    return Response(answer.status_code, _headers(answer), answer.content)


def _headers(answer: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
