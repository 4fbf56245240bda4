"""The two ways to a server: what goes over the wire, what breaks there, and who closes the connection."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from corerun.errors import RequestRefused, Transient, UsageError
from corerun.interfaces import Connection
from corerun_openai_router.wire import direct, sdk
from corerun_openai_router.wire.choice import make_transport
from corerun_openai_router.wire.direct import proxy_of
from corerun_openai_router.wire.endpoint import Endpoint, endpoint_of
from corerun_openai_router.wire.transport import Transport
from tests.support.openai_server import OpenAIServer, fault

KEY = "sk-a-very-secret-key-0123456789"
BODY = {"model": "test-model", "messages": [{"role": "user", "content": "How deep? \N{GRINNING FACE}"}]}
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
STUCK_S = 20.0
"""Long enough for any machine; only a test that would hang forever waits for it."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def endpoint_at(base_url: str, **environ: str) -> Endpoint:
    return endpoint_of(Connection(environ={"OPENAI_API_KEY": KEY, **environ}, base_url=base_url))


@asynccontextmanager
async def transport_to(name: str, base_url: str, **environ: str) -> AsyncIterator[Transport]:
    transport = make_transport(endpoint_at(base_url, **environ), {"CORERUN_TRANSPORT": name, **environ})
    try:
        async with asyncio.timeout(STUCK_S):
            yield transport
    finally:
        await transport.aclose()


@asynccontextmanager
async def raw_server(handle: Handler) -> AsyncIterator[str]:
    """A server that reads one request of each connection and leaves everything else to ``handle``."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or b"0"))
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await server.wait_closed()


def sending(data: bytes, *, reset: bool = False) -> Handler:
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    return handle


async def everything(transport: Transport) -> bytes:
    async with transport.stream({**BODY, "stream": True}) as streamed:
        return b"".join([chunk async for chunk in streamed.chunks])


@pytest.fixture(params=["direct", "sdk"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ------------------------------------------------------------------------------------- what is sent


async def test_the_body_goes_out_as_it_is_and_the_answer_comes_unread(name: str) -> None:
    async with OpenAIServer(lambda body: "hi") as server, transport_to(name, server.base_url) as transport:
        response = await transport.chat({**BODY, "x": {"deep": [1, "é"]}})
        models = await transport.models()
        sent = server.requests[0]
        assert sent.path == "/v1/chat/completions" and sent.headers["authorization"] == f"Bearer {KEY}"
        assert sent.headers["content-type"] == "application/json"
        assert sent.body == {**BODY, "x": {"deep": [1, "é"]}}
        assert json.loads(response.content)["choices"][0]["message"]["content"] == "hi"
        assert response.headers["content-type"] == "application/json" and response.status == 200
        assert json.loads(models.content)["data"] == [{"id": "test-model"}]


@pytest.mark.parametrize("status", [201, 302, 400, 401, 429, 500, 503])
async def test_every_status_is_an_answer_and_is_asked_for_once(name: str, status: int) -> None:
    answer = fault(status, {"error": "no"}, {"Retry-After": "7", "Location": "http://127.0.0.1:1/"})
    async with OpenAIServer(lambda body: answer) as server, transport_to(name, server.base_url) as transport:
        response = await transport.chat(BODY)
        assert (response.status, response.content) == (status, b'{"error": "no"}')
        assert response.headers["retry-after"] == "7"
        async with transport.stream(BODY) as streamed:
            assert streamed.status == status
            assert b"".join([chunk async for chunk in streamed.chunks]) == b'{"error": "no"}'
        assert server.calls == 2


async def test_compressed_and_chunked_answers_are_unpacked(name: str) -> None:
    packed = gzip.compress(b'{"a": 1}')
    for head, body in (
        (b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed), packed),
        (b"transfer-encoding: chunked\r\n\r\n", b'3\r\n{"a\r\n5\r\n": 1}\r\n0\r\n\r\n'),
        (b"\r\n", b'{"a": 1}'),
    ):
        answer = OK + b"connection: close\r\n" + head + body
        async with raw_server(sending(answer)) as url, transport_to(name, url) as transport:
            assert (await transport.chat(BODY)).content == b'{"a": 1}'
            assert await everything(transport) == b'{"a": 1}'


async def test_azure_gets_its_own_header_and_version(name: str) -> None:
    async with OpenAIServer(lambda body: "x") as server:
        root = server.base_url.removesuffix("/v1")
        for base_url, model in ((f"{root}/openai/deployments/dep", "dep"), (root, "test-model")):
            endpoint = endpoint_of(Connection(base_url=base_url, api_key=KEY, api_version="7"))
            transport = make_transport(endpoint, {"CORERUN_TRANSPORT": name})
            await transport.chat(BODY)
            await transport.models()
            await transport.aclose()
            chat, models = server.requests[-2:]
            assert chat.path == f"/openai/deployments/{model}/chat/completions?api-version=7"
            assert models.path == "/openai/models?api-version=7"
            assert chat.headers["api-key"] == models.headers["api-key"] == KEY
            assert KEY not in chat.headers.get("authorization", "")


async def test_other_parts_of_a_query_stay(name: str) -> None:
    async with OpenAIServer(lambda body: "x") as server:
        async with transport_to(name, f"{server.base_url}?tenant=a%20b") as transport:
            await transport.chat(BODY)
        assert server.requests[0].path.replace("+", "%20") == "/v1/chat/completions?tenant=a%20b"


async def test_images_of_many_megabytes_go_through() -> None:
    large = {**BODY, "image": "x" * (3 * 1024 * 1024)}
    async with OpenAIServer(lambda body: "x") as server, transport_to("direct", server.base_url) as transport:
        assert (await transport.chat(large)).status == 200
        assert server.requests[0].body == large


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
async def test_what_is_no_json_is_refused_before_anything_is_sent(name: str, value: Any) -> None:
    async with OpenAIServer(lambda body: "x") as server, transport_to(name, server.base_url) as transport:
        with pytest.raises(RequestRefused, match="no JSON"):
            await transport.chat({**BODY, "x": value})
        assert not server.requests


async def test_the_sdk_never_logs_a_prompt_or_a_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with OpenAIServer(lambda body: "x") as server, transport_to("sdk", server.base_url) as transport:
        await transport.chat(BODY)
    assert "How deep" not in caplog.text and KEY not in caplog.text


def test_the_transport_is_picked_by_one_variable() -> None:
    endpoint = endpoint_at("http://127.0.0.1:1/v1")
    assert isinstance(make_transport(endpoint, {}), direct.DirectTransport)
    assert isinstance(make_transport(endpoint, {"CORERUN_TRANSPORT": "SDK"}), sdk.SdkTransport)
    with pytest.raises(UsageError, match="CORERUN_TRANSPORT: unknown transport 'pigeon'"):
        make_transport(endpoint, {"CORERUN_TRANSPORT": "pigeon"})


def test_a_transport_for_an_address_that_is_wrong_can_be_made(name: str) -> None:
    for url in ("http://[::1", "h/v1", " "):
        make_transport(endpoint_at(url), {"CORERUN_TRANSPORT": name})


# ------------------------------------------------------------------------------------- what breaks


BROKEN: Mapping[str, Handler] = {
    "hung up": sending(b""),
    "reset": sending(b"", reset=True),
    "cut head": sending(b"HTTP/1.1 200 OK\r\ncontent-"),
    "no http": sending(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "cut body": sending(OK + b"content-length: 900\r\n\r\n{}"),
    "reset body": sending(OK + b"content-length: 900\r\n\r\n{}", reset=True),
    "cut chunk": sending(CHUNKED + b"ff\r\n{}"),
    "no last chunk": sending(CHUNKED + b"2\r\n{}\r\n"),
    "no gzip": sending(OK + b"content-encoding: gzip\r\ncontent-length: 20\r\n\r\n{not compressed at all"),
    "bad chunk": sending(CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_answer_is_worth_another_try(name: str, case: str) -> None:
    async with raw_server(BROKEN[case]) as url, transport_to(name, url) as transport:
        for ask in (transport.chat(BODY), everything(transport)):
            with pytest.raises(Transient) as caught:
                await ask
            assert caught.value.message.startswith(url.split("/")[2]) and "\n" not in caught.value.message
            assert caught.value.__suppress_context__


async def test_nobody_at_the_door(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with transport_to(name, f"http://127.0.0.1:{port}/v1") as transport:
        for ask in (transport.chat(BODY), transport.models(), everything(transport)):
            with pytest.raises(Transient, match="connection failed") as caught:
                await ask
            assert caught.value.hint == f"is a server running at http://127.0.0.1:{port}/v1?"


async def test_the_direct_transport_says_in_plain_words_why_there_is_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with transport_to("direct", f"http://127.0.0.1:{port}/v1") as transport:
        with pytest.raises(Transient) as caught:
            await transport.chat(BODY)
        assert caught.value.message == f"127.0.0.1:{port}: connection failed: Connection refused"
    async with transport_to("direct", "https://nowhere.invalid/v1") as transport:
        with pytest.raises(Transient) as caught:
            await transport.chat(BODY)
        assert caught.value.hint == "is https://nowhere.invalid/v1 right, and this machine online?"


async def test_a_server_that_speaks_no_tls(name: str) -> None:
    async def answer_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer_at_once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with transport_to(name, f"https://127.0.0.1:{port}/v1") as transport:
            with pytest.raises(Transient, match="connection failed"):
                await transport.chat(BODY)


async def test_a_name_that_leads_to_a_link_local_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(socket, "getaddrinfo", lie)
    async with transport_to("direct", "https://innocent.example/v1") as transport:
        with pytest.raises(Transient, match=r"innocent\.example is the name of a link-local address"):
            await transport.chat(BODY)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"content-length: 900\r\n\r\n{")
    await reader.read()


async def test_a_server_that_says_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (direct, sdk):
        monkeypatch.setattr(module, "FIRST_BYTE_S", 0.05)
    async with raw_server(silence) as url, transport_to(name, url) as transport:
        for ask in (transport.chat(BODY), everything(transport)):
            with pytest.raises(Transient, match="no answer in time"):
                await ask


async def test_a_server_that_falls_silent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "BETWEEN_BYTES_S", 0.05)
    monkeypatch.setattr(sdk, "BETWEEN_BYTES_S", 0.05)
    async with raw_server(half_an_answer) as url, transport_to(name, url) as transport:
        with pytest.raises(Transient, match=r"silent for 0\.05 s"):
            await everything(transport)
        if name == "direct":  # the SDK reads a plain answer with one clock for all of it
            with pytest.raises(Transient, match=r"silent for 0\.05 s"):
                await transport.chat(BODY)


async def test_a_handshake_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "CONNECT_S", 0.05)
    async with (
        raw_server(silence) as url,
        transport_to("direct", url.replace("http:", "https:")) as transport,
    ):
        with pytest.raises(Transient, match=r"no connection within 0\.05 s"):
            await transport.chat(BODY)


async def test_an_answer_without_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (direct, sdk):
        monkeypatch.setattr(module, "LARGEST_ANSWER", 1000)

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while True:
            writer.write(b"64\r\n" + b"x" * 100 + b"\r\n")
            await writer.drain()

    async with raw_server(endless) as url, transport_to(name, url) as transport:
        with pytest.raises(RequestRefused, match="larger than 1000 bytes"):
            await everything(transport)


# ----------------------------------------------------------------------------- connections and loops


@pytest.mark.parametrize("answer", [b"", OK + b"content-length: 900\r\n\r\n{"])
async def test_cancelling_a_call_closes_its_connection(name: str, answer: bytes) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        asked.set()
        await reader.read()
        left.set()

    async with raw_server(handle) as url, transport_to(name, url) as transport:
        for ask in (transport.chat(BODY), everything(transport)):
            asked.clear()
            left.clear()
            task = asyncio.ensure_future(ask)
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await left.wait()


async def test_leaving_a_stream_closes_its_connection(name: str) -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"2\r\nhi\r\n")
        await reader.read()
        left.set()

    async with raw_server(handle) as url, transport_to(name, url) as transport:
        async with transport.stream(BODY) as streamed:
            assert await anext(streamed.chunks) == b"hi"
        await left.wait()


async def test_256_calls_are_under_way_at_once(name: str) -> None:
    everyone = asyncio.Event()

    async def answer(_: Any) -> str:
        if server.calls == 256:
            everyone.set()
        await everyone.wait()
        return "x"

    async with OpenAIServer(answer) as server, transport_to(name, server.base_url) as transport:
        await asyncio.gather(*(transport.chat(BODY) for _ in range(256)))
        assert server.peak == 256


async def test_one_call_after_another_uses_one_connection(name: str) -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            writer.write(OK + b"content-length: 2\r\n\r\n{}")
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))

    async with raw_server(handle) as url, transport_to(name, url) as transport:
        for _ in range(3):
            assert (await transport.chat(BODY)).content == b"{}"
            assert await everything(transport) == b"{}"
    assert connections == 1


def test_each_event_loop_has_its_own_client(name: str) -> None:
    transports: list[Transport] = []

    async def run() -> None:
        async with OpenAIServer(lambda body: "x") as server:
            if not transports:
                transports.append(make_transport(endpoint_at(server.base_url), {"CORERUN_TRANSPORT": name}))
                await transports[0].chat(BODY)
            else:
                with pytest.raises(Transient):  # the first loop's server is gone
                    await transports[0].chat(BODY)
            await transports[0].aclose()

    asyncio.run(run())
    asyncio.run(run())


# ------------------------------------------------------------------------------------------ proxies


async def test_a_proxy_is_asked_with_its_login() -> None:
    async with OpenAIServer(lambda body: "x") as server:
        proxy = f"http://me:open-sesame@127.0.0.1:{server.port}"
        async with transport_to("direct", "http://models.internal/v1", HTTP_PROXY=proxy) as transport:
            assert (await transport.chat(BODY)).status == 200
        (sent,) = server.requests
        assert sent.path == "http://models.internal/v1/chat/completions"
        assert sent.headers["proxy-authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ({"https_proxy": "p:1"}, "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "x, .example.com"}, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "api.example.com:443"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "ample.com,,api.example.com:444"}, "http://p:1"),
    ],
)
def test_which_proxy_stands_before_a_server(environ: dict[str, str], proxy: str | None) -> None:
    found = proxy_of("https://api.example.com/v1", environ)
    assert (None if found is None else str(found)) == proxy
    assert proxy_of("https://127.0.0.1:8000/v1", environ) is None


def test_a_kind_of_proxy_that_is_not_supported() -> None:
    with pytest.raises(UsageError, match="HTTPS_PROXY: proxies by socks5 aren't supported"):
        proxy_of("https://api.example.com/v1", {"ALL_PROXY": "socks5://p:1"})
