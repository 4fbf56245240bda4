"""A transport that writes exchanges with a server to a file, and plays them back without the server."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from corerun.errors import RequestRefused, Transient, UsageError
from corerun.inputs.documents import read_json_lines
from corerun.interfaces import Json
from corerun.redaction import redact
from corerun_openai_router.wire.transport import Response, Streamed, Transport

MODES = ("record", "replay", "passthrough")

_CHAT = ("POST", "/chat/completions")
_MODELS = ("GET", "/models")
# What an answer's meaning can hang on. No other header is written, no login and no cookie among them.
_KEPT_HEADERS = ("content-type", "location", "server", "x-should-retry")
_KEPT_PREFIXES = ("retry-after", "llm_provider-retry-after", "x-ratelimit-")
_MOST_DIFFERENCES = 8
_LONGEST_VALUE = 60


class CassetteTransport:
    """Puts a cassette between the router and ``inner``, which ``replay`` doesn't need.

    A cassette is JSON Lines: ``{"request": {method, path, body_sha, body}, "response": {status,
    headers, body | stream}, "n"}``, keys redacted. A request finds its answers by the hash of its
    body, in the order ``n`` in which they were recorded. ``mode`` is one of `MODES`; ``record`` adds
    to a file that exists. Raises `UsageError` for a file that can't be read.
    """

    def __init__(self, inner: Transport | None, path: Path, mode: str) -> None:
        self._inner = inner
        self._path = path
        self._mode = mode
        self._exchanges: dict[str, list[Json]] = defaultdict(list)
        self._asked: dict[str, int] = defaultdict(int)
        if mode != "passthrough" and (mode == "replay" or path.exists()):
            for exchange in _load(path):
                self._exchanges[exchange["request"]["body_sha"]].append(exchange)
        for sha, exchanges in self._exchanges.items():
            exchanges.sort(key=lambda exchange: int(exchange["n"]))
            if mode == "record":
                self._asked[sha] = len(exchanges)

    async def chat(self, body: Mapping[str, Json]) -> Response:
        request = _request(_CHAT, body)
        if self._mode == "replay":
            return _play_whole(self._answer(request))
        if self._mode == "passthrough":
            return await self._server.chat(body)
        number = self._number(request)
        try:
            response = await self._server.chat(body)
        except Transient as error:
            self._write(request, number, {"broken": error.message})
            raise
        self._write(request, number, _described(response.status, response.headers, response.content))
        return response

    async def models(self) -> Response:
        request = _request(_MODELS, None)
        if self._mode == "replay":
            return _play_whole(self._answer(request))
        response = await self._server.models()
        if self._mode == "record":
            described = _described(response.status, response.headers, response.content)
            self._write(request, self._number(request), described)
        return response

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Json]) -> AsyncIterator[Streamed]:
        request = _request(_CHAT, body)
        if self._mode == "replay":
            response = self._answer(request)
            _raise_if_broken(response, "stream")
            yield Streamed(response["status"], response["headers"], _play(response))
            return
        if self._mode == "passthrough":
            async with self._server.stream(body) as streamed:
                yield streamed
            return
        number = self._number(request)
        async with self._server.stream(body) as streamed:
            copy = _Copy(streamed.chunks)
            chunks = copy.chunks()
            try:
                yield Streamed(streamed.status, streamed.headers, chunks)
                copy.is_whole = True
            finally:
                await chunks.aclose()
                # A caller that was cancelled has seen no answer that could be played back.
                if copy.is_whole:
                    described = _described(streamed.status, streamed.headers, copy.pieces)
                    self._write(request, number, described | copy.end)

    async def aclose(self) -> None:
        if self._inner is not None:
            await self._inner.aclose()

    @property
    def _server(self) -> Transport:
        if self._inner is None:
            raise UsageError(f"mode {self._mode} of a cassette needs a server", where=str(self._path))
        return self._inner

    def _number(self, request: Json) -> int:
        """How often this request was asked before; counted when it is asked, not when it is answered."""
        number = self._asked[request["body_sha"]]
        self._asked[request["body_sha"]] += 1
        return number

    def _write(self, request: Json, number: int, response: Json) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"request": request, "response": response, "n": number}, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(line + "\n")

    def _answer(self, request: Json) -> Json:
        number = self._number(request)
        found = self._exchanges.get(request["body_sha"], [])
        if number < len(found):
            return found[number]["response"]
        times = f"asked {number + 1} times, recorded {len(found)} times"
        said = times if found else self._nearest(request)
        raise RequestRefused(
            redact(f"{self._path.name} holds no answer to this request: {said}"),
            hint=f"record {self._path} again",
        )

    def _nearest(self, request: Json) -> str:
        """How the recorded request that differs least differs."""
        recorded = [
            exchanges[0]["request"]
            for exchanges in self._exchanges.values()
            if exchanges[0]["request"]["path"] == request["path"]
        ]
        differences = [list(_differences(old["body"], request["body"], "")) for old in recorded]
        if not differences:
            return f"it holds no {request['method']} {request['path']}"
        nearest = min(differences, key=len)
        more = f"; and {len(nearest) - _MOST_DIFFERENCES} more" if len(nearest) > _MOST_DIFFERENCES else ""
        return "; ".join(nearest[:_MOST_DIFFERENCES]) + more


# -------------------------------------------------------------------------------------------- lines


def _request(call: tuple[str, str], body: Mapping[str, Json] | None) -> Json:
    """A request as it is recorded. The hash is that of the body without keys, which is all that stays."""
    canonical = redact(json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")))
    digest = hashlib.sha256(f"{' '.join(call)}\n{canonical}".encode("utf-8", "replace")).hexdigest()
    return {"method": call[0], "path": call[1], "body_sha": digest, "body": json.loads(canonical)}


def _described(status: int, headers: Mapping[str, str], content: bytes | Sequence[bytes]) -> Json:
    pieces = [content] if isinstance(content, bytes) else list(content)
    encoding = "utf-8"
    try:
        texts = [piece.decode() for piece in pieces]
    except UnicodeDecodeError:
        encoding = "latin-1"  # it can hold any bytes
        texts = [piece.decode(encoding) for piece in pieces]
    whole = "".join(texts)
    shown = redact(whole)
    if shown != whole:
        texts = [shown]  # a key may lie across pieces
    kept = {
        name: redact(value)
        for name, value in headers.items()
        if name in _KEPT_HEADERS or name.startswith(_KEPT_PREFIXES)
    }
    described: dict[str, Json] = {"status": status, "headers": kept}
    described |= {"body": shown} if isinstance(content, bytes) else {"stream": texts}
    return described if encoding == "utf-8" else described | {"encoding": encoding}


def _load(path: Path) -> Iterator[Json]:
    for where, exchange in read_json_lines(path):
        try:
            request, response = exchange["request"], exchange["response"]
            is_good = (
                isinstance(request["body_sha"], str)
                and "body" in request
                and isinstance(request["path"], str)
                and isinstance(exchange["n"], int)
                and ("broken" in response or isinstance(response["status"], int))
            )
        except (KeyError, TypeError):
            is_good = False
        if not is_good:
            raise UsageError("this line is no recorded exchange", where=where)
        yield exchange


# ------------------------------------------------------------------------------------------- replay


def _play_whole(response: Json) -> Response:
    _raise_if_broken(response, "body")
    return Response(response["status"], response["headers"], b"".join(_pieces(response)))


async def _play(response: Json) -> AsyncIterator[bytes]:
    for piece in _pieces(response):
        yield piece
    _raise_if_broken(response, "")


def _pieces(response: Json) -> list[bytes]:
    encoding = response.get("encoding", "utf-8")
    texts = response["stream"] if "stream" in response else [response["body"]]
    return [text.encode(encoding) for text in texts]


def _raise_if_broken(response: Json, content: str) -> None:
    """Raise what the transport raised, unless ``content`` came before it."""
    if "broken" in response and content not in response:
        raise Transient(response["broken"])


class _Copy:
    """What came of a body so far. It is whole if it ended, or if its reader needed no more."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self.pieces: list[bytes] = []
        self.end: dict[str, Json] = {}
        self.is_whole = False

    async def chunks(self) -> AsyncGenerator[bytes]:
        try:
            async for chunk in self._source:
                self.pieces.append(chunk)
                yield chunk
        except Transient as error:
            self.end = {"broken": error.message}
            self.is_whole = True
            raise
        self.is_whole = True


# -------------------------------------------------------------------------------------- differences


def _differences(recorded: Json, asked: Json, place: str) -> Iterator[str]:
    """What differs, field by field: ``messages[1].content: recorded "a", asked "b"``."""
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for name in dict.fromkeys((*recorded, *asked)):
            where = f"{place}.{name}" if place else str(name)
            if name not in asked:
                yield f"{where}: recorded {_shown(recorded[name])}, not asked"
            elif name not in recorded:
                yield f"{where}: asked {_shown(asked[name])}, not recorded"
            else:
                yield from _differences(recorded[name], asked[name], where)
    elif isinstance(recorded, list) and isinstance(asked, list) and len(recorded) == len(asked):
        for number, (old, new) in enumerate(zip(recorded, asked, strict=True)):
            yield from _differences(old, new, f"{place}[{number}]")
    elif recorded != asked:
        yield f"{place}: recorded {_shown(recorded)}, asked {_shown(asked)}"


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 4]} ..."
