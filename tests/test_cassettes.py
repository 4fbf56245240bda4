"""Exchanges on file: what is written, how they are found again, and what an unknown request is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import RequestRefused, Transient, UsageError
from corerun.interfaces import Connection, Json
from corerun.redaction import remember
from corerun_openai_router.wire.cassette import CassetteTransport
from corerun_openai_router.wire.choice import make_transport
from corerun_openai_router.wire.endpoint import endpoint_of
from corerun_openai_router.wire.transport import Response, Streamed
from tests.support.openai_server import OpenAIServer

KEY = "sk-a-very-secret-key-0123456789"
ASK = {"model": "m", "messages": [{"role": "user", "content": "How deep is the sea?"}], "seed": 1}


class Server:
    """Counts what it is asked and answers with the number, or breaks off where ``broken`` says so."""

    def __init__(self, content: bytes | None = None, *, broken: str = "") -> None:
        self.asked = 0
        self.closed = False
        self._content = content
        self._broken = broken
        self._headers = {"content-type": "application/json", "retry-after": "3", "set-cookie": f"k={KEY}"}

    def _next(self) -> bytes:
        self.asked += 1
        return f"answer {self.asked}".encode() if self._content is None else self._content

    async def chat(self, body: Mapping[str, Json]) -> Response:
        content = self._next()
        if self._broken:
            raise Transient(self._broken)
        return Response(200, self._headers, content)

    async def models(self) -> Response:
        return Response(200, self._headers, self._next())

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Json]) -> AsyncIterator[Streamed]:
        async def chunks() -> AsyncIterator[bytes]:
            content = self._next()
            for start in range(0, len(content), 4):
                yield content[start : start + 4]
            if self._broken:
                raise Transient(self._broken)

        yield Streamed(200, self._headers, chunks())

    async def aclose(self) -> None:
        self.closed = True


async def streamed(cassette: CassetteTransport, body: Mapping[str, Json] = ASK) -> list[bytes]:
    async with cassette.stream(body) as answer:
        return [chunk async for chunk in answer.chunks]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


async def test_equal_requests_get_their_answers_in_the_order_of_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cassette.jsonl"
    recorder = CassetteTransport(Server(), path, "record")
    other = {**ASK, "seed": 2}
    for body in (ASK, other, ASK):
        await recorder.chat(body)
    assert await streamed(recorder) == [b"answ", b"er 4"]
    assert (await recorder.models()).content == b"answer 5"

    player = CassetteTransport(None, path, "replay")
    reordered = dict(reversed(list(ASK.items())))
    assert [(await player.chat(body)).content for body in (reordered, ASK, other)] == [
        b"answer 1",
        b"answer 3",
        b"answer 2",
    ]
    assert await streamed(player) == [b"answ", b"er 4"]
    answer = await player.models()
    assert (answer.status, answer.content) == (200, b"answer 5")
    assert answer.headers == {"content-type": "application/json", "retry-after": "3"}
    await player.aclose()


async def test_a_recording_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    for _ in range(2):
        await CassetteTransport(Server(), path, "record").chat(ASK)
    assert [line["n"] for line in lines(path)] == [0, 1]
    assert list(lines(path)[0]["request"]) == ["method", "path", "body_sha", "body"]
    assert lines(path)[0]["request"]["body"] == ASK


async def test_passing_through_writes_nothing(tmp_path: Path) -> None:
    server = Server()
    cassette = CassetteTransport(server, tmp_path / "c.jsonl", "passthrough")
    assert (await cassette.chat(ASK)).content == b"answer 1"
    assert await streamed(cassette) == [b"answ", b"er 2"]
    assert (await cassette.models()).content == b"answer 3"
    await cassette.aclose()
    assert server.closed and not (tmp_path / "c.jsonl").exists()


async def test_no_key_is_written(tmp_path: Path) -> None:
    remember("my-own-password")
    path = tmp_path / "c.jsonl"
    body = {**ASK, "messages": [{"role": "user", "content": f'the keys "{KEY}" and my-own-password'}]}
    recorder = CassetteTransport(Server(f"I saw {KEY} and my-own-password".encode()), path, "record")
    await recorder.chat(body)
    await streamed(recorder, body)
    written = path.read_text("utf-8")
    assert KEY not in written and "password" not in written and "cookie" not in written
    player = CassetteTransport(None, path, "replay")
    assert b"I saw" in (await player.chat(body)).content
    assert b"I saw" in b"".join(await streamed(player, body))


async def test_answers_of_any_bytes_come_back(tmp_path: Path) -> None:
    for number, content in enumerate((b"\xff\xfe\x00", "深い".encode(), b"")):
        path = tmp_path / f"{number}.jsonl"
        recorder = CassetteTransport(Server(content), path, "record")
        await recorder.chat(ASK)
        chunks = await streamed(recorder)
        player = CassetteTransport(None, path, "replay")
        assert (await player.chat(ASK)).content == content
        assert await streamed(player) == chunks


async def test_a_broken_answer_breaks_again_at_the_same_place(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    recorder = CassetteTransport(Server(b"12345678", broken="the answer was cut"), path, "record")
    with pytest.raises(Transient, match="was cut"):
        await recorder.chat(ASK)
    with pytest.raises(Transient, match="was cut"):
        await streamed(recorder)
    chunks: list[bytes] = []
    player = CassetteTransport(None, path, "replay")
    with pytest.raises(Transient, match="was cut"):
        await player.chat(ASK)
    with pytest.raises(Transient, match="was cut"):
        async with player.stream(ASK) as answer:
            async for chunk in answer.chunks:
                chunks.append(chunk)
    assert chunks == [b"1234", b"5678"]


async def test_a_stream_is_recorded_as_far_as_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    recorder = CassetteTransport(Server(b"12345678"), path, "record")
    async with recorder.stream(ASK) as answer:
        await anext(answer.chunks)
    assert [line["response"]["stream"] for line in lines(path)] == [["1234"]]
    with pytest.raises(KeyError):
        async with recorder.stream(ASK) as answer:
            await anext(answer.chunks)
            raise KeyError("the caller had enough")
    assert len(lines(path)) == 1


async def test_an_unknown_request_is_told_how_the_nearest_one_differs(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    recorder = CassetteTransport(Server(), path, "record")
    await recorder.chat(ASK)
    await recorder.chat({"model": "far", "messages": [], "n": 1, "stop": ["x"], "top_p": 1})
    player = CassetteTransport(None, path, "replay")
    asked = {
        "model": "m",
        "messages": [{"role": "user", "content": "How deep is the lake?"}],
        "temperature": 0.5,
    }
    with pytest.raises(RequestRefused) as caught:
        await player.chat(asked)
    assert caught.value.message == (
        "c.jsonl holds no answer to this request: "
        'messages[0].content: recorded "How deep is the sea?", asked "How deep is the lake?"; '
        "seed: recorded 1, not asked; temperature: asked 0.5, not recorded"
    )
    assert str(path) in caught.value.hint
    with pytest.raises(RequestRefused, match="holds no GET /models"):
        await player.models()
    await player.chat(ASK)
    with pytest.raises(RequestRefused, match="asked 2 times, recorded 1 times"):
        async with player.stream(ASK):
            pass


async def test_a_long_difference_is_shortened(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    await CassetteTransport(Server(), path, "record").chat(
        {f"field{number}": "x" * 500 for number in range(20)}
    )
    with pytest.raises(RequestRefused, match="and 12 more") as caught:
        await CassetteTransport(None, path, "replay").chat({f"field{number}": "y" for number in range(20)})
    assert len(caught.value.message) < 1200


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        '{"request": {}, "response": {}, "n": 0}',
        '{"request": 1, "response": 2, "n": 3}',
        '{"request": {"body_sha": "a", "body": 1, "path": "/"}, "response": {"status": "200"}, "n": 0}',
    ],
)
def test_a_line_that_is_no_exchange_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.jsonl"
    good = '{"request": {"body_sha": "a", "body": 1, "path": "/"}, "response": {"broken": "x"}, "n": 0}'
    path.write_text(f"{good}\n{line}\n", "utf-8")
    with pytest.raises(UsageError) as caught:
        CassetteTransport(None, path, "replay")
    assert caught.value.where == f"{path}:2"


def test_a_cassette_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        CassetteTransport(None, tmp_path / "none.jsonl", "replay")


# ------------------------------------------------------------------------------------ by a variable


async def test_a_variable_puts_a_cassette_before_the_server(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    async with OpenAIServer(lambda body: "Eleven km") as server:
        endpoint = endpoint_of(Connection(environ=server.environ(KEY)))
        recorder = make_transport(endpoint, {"CORERUN_CASSETTE": f"record:{path}"})
        answer = await recorder.chat(ASK)
        await recorder.aclose()
    player = make_transport(endpoint, {"CORERUN_CASSETTE": f"replay:{path}"})
    assert (await player.chat(ASK)).content == answer.content
    await player.aclose()
    for bad in ("record:", "rewind:x", str(path)):
        with pytest.raises(UsageError, match="CORERUN_CASSETTE"):
            make_transport(endpoint, {"CORERUN_CASSETTE": bad})
