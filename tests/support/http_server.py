"""A real HTTP server on 127.0.0.1: connections, requests, and bytes in place of answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class Request:
    """What came over the wire; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def page(self) -> str:
        """The path without its query."""
        return self.path.partition("?")[0]


@dataclass(frozen=True)
class Fault:
    """Bytes instead of an answer. ``send``: how many of them before the connection is closed; None: all."""

    status: int = 500
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    send: int | None = None
    silent: bool = False


@dataclass(frozen=True)
class Delay:
    """An answer that comes later."""

    seconds: float
    reply: Any


def fault(status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> Fault:
    """Any status with any body; a body that is neither bytes nor text is written as JSON."""
    if isinstance(body, bytes):
        return Fault(status, body, headers or {})
    kind = "text/plain" if isinstance(body, str) else "application/json"
    data = body if isinstance(body, str) else json.dumps(body)
    return Fault(status, data.encode(), {"content-type": kind, **(headers or {})})


class HttpServer:
    """An asynchronous context manager: the server listens inside the block.

    ``requests`` holds everything that came. What `respond` keeps in ``errors`` is raised at the end of
    the block.
    """

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.requests: list[Request] = []
        self.errors: list[Exception] = []

    async def respond(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Fault | bool:
        """The answer as bytes; or, if it has been written already, whether the connection stays open."""
        raise NotImplementedError

    async def __aenter__(self) -> Any:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        if self.errors:
            raise self.errors[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays open."""
        line = (await reader.readline()).decode("latin-1").split()
        if len(line) < 2:
            return False
        headers: dict[str, str] = {}
        while header := (await reader.readline()).decode("latin-1").strip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(line[0], line[1], headers, json.loads(raw) if raw else None)
        self.requests.append(request)
        answer = await self.respond(request, reader, writer)
        if isinstance(answer, bool):
            return answer
        if answer.silent:
            return False
        head = {"content-type": "application/json", **answer.headers, "content-length": str(len(answer.body))}
        lines = [f"HTTP/1.1 {answer.status} Status", *(f"{name}: {value}" for name, value in head.items())]
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body[: answer.send])
        await writer.drain()
        return answer.send is None and headers.get("connection", "").lower() != "close"


Server = TypeVar("Server", bound=HttpServer)


@contextmanager
def in_thread(server: Server) -> Iterator[Server]:
    """``server`` in a thread of its own, for tests whose clients are other processes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
