"""Damaged and hostile bytes in everything that is parsed: what comes out is a value or an error of ours.

Each target runs for a moment here and for ``CORERUN_FUZZ_SECONDS`` (default 60) in ``make soak``.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import itertools
import json
import os
import socket
import tarfile
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from corerun import config
from corerun.errors import CorerunError
from corerun.execution.lines import Channel
from corerun.execution.service import Service
from corerun.inputs.archives import extract
from corerun.interfaces import ChatReply, ChatRequest, Connection, Event, Message
from corerun.job.plan import read_models
from corerun.llm.extraction import read_answer
from corerun.llm.structured import Problems
from corerun.plugins import PluginManager
from corerun.report.data import report_data
from corerun.report.page import render_report
from corerun.runs.audit import audit
from corerun.runs.fold import fold
from corerun.runs.journal import encode, read
from corerun_anthropic.endpoint import endpoint_of as anthropic_endpoint
from corerun_anthropic.failure import Answer
from corerun_anthropic.failure import classify as anthropic_classify
from corerun_anthropic.reply import MessageBuilder
from corerun_anthropic.reply import read_reply as read_anthropic
from corerun_anthropic.transport import Lines
from corerun_bfts.programs import extract_program, extract_script
from corerun_openai_router.reading.failure import classify
from corerun_openai_router.reading.reply import read_document
from corerun_openai_router.wire.endpoint import endpoint_of
from corerun_openai_router.wire.stream import read_stream
from corerun_openai_router.wire.transport import Response, Streamed
from tests.support.journal_sample import sample

SECONDS = float(os.environ.get("CORERUN_FUZZ_SECONDS", "60"))
Target = Callable[[bytes, Path], None]

TOKENS = (
    b"",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r\n\r\n",
    b"\t",
    b" ",
    b"\\",
    b"'",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b"{}",
    b"[]",
    b",",
    b":",
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"9" * 5000,
    b"0.1",
    b'"\\ud800"',
    b"\\u0000",
    b"[" * 3000,
    b'{"a":' * 2000,
    b"{{{{",
    b"&a [*a, *a]",
    b"*a",
    b"!!python/object:os.system x",
    b"- ",
    b"? ",
    b"<<: *a",
    b"%YAML 9",
    b"---\n",
    b"...",
    b"data: ",
    b"data:[DONE]",
    b"event: error\n",
    b": x\n",
    b"id: 1",
    b"<think>",
    b"</think>",
    b"```json\n",
    b"```",
    b"<tool_call>",
    b"<parameter=a>",
    b"<|channel|>",
    b'"error"',
    b'"choices"',
    b'"index"',
    b'"seq"',
    b'"crc"',
    b'"data"',
    b'"node"',
)


@st.composite
def damaged(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """A sample with a few changes, or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 5))):
        begin = draw(st.integers(0, len(content)))
        end = min(len(content), begin + draw(st.sampled_from([0, 0, 1, 1, 2, 8, 60, 1000])))
        change = draw(st.sampled_from(["token", "token", "byte", "cut", "again", "moved"]))
        if change == "token":
            content[begin:end] = draw(st.sampled_from(TOKENS))
        elif change == "byte" and begin < len(content):
            content[begin] = draw(st.integers(0, 255))
        elif change == "cut":
            del content[begin:end]
        elif change == "again":
            content[begin:begin] = content[begin:end] * draw(st.integers(1, 3))
        elif change == "moved":
            piece = bytes(content[begin:end])
            del content[begin:end]
            content += piece
    return bytes(content)


# ----------------------------------------------------------------------------------------- targets

JOURNAL = b"".join(itertools.islice(map(encode, sample(hostile=False)), 60))


def journal(data: bytes, folder: Path) -> None:
    path = folder / "events.jsonl"
    path.write_bytes(data)
    for salvage in (False, True):
        try:
            events, _ = read(path, salvage=salvage)
        except CorerunError:
            continue
        _show(events)


def _show(events: list[Event]) -> None:
    fold(events)
    audit(events)
    render_report(report_data(events), title="x")


def journal_with_right_checksums(data: bytes, folder: Path) -> None:
    """Any JSON objects as the data of records whose form is right: a plugin wrote them, say."""
    lines = []
    for number, line in enumerate(data.splitlines()):
        try:
            record = json.loads(line)
            event = Event(number, float(number), str(record["type"]), dict(record["data"]))
            lines.append(encode(event))
        except (ValueError, KeyError, TypeError, RecursionError, CorerunError):
            continue
    journal(b"".join(lines), folder)


CONFIGS = [
    b"model: a\nworkers: 3\nbudget: {usd: 2.5, tokens: 100}\nmodels:\n  a: &x\n    model: openai::gpt-5\n"
    b"    api_key: env:KEY\n    base_url: http://h/v1\n    wording: {seed: ['no .* seed']}\n  b: *x\n",
    b"models_file: models.yaml\nsandbox: {name: local, pass_env: [A]}\nplugins: {disable: [x]}\n",
    json.dumps(
        {"models": {"m": {"model": "x", "prices": {"input": 1, "output": 2}, "caps": {"tools": False}}}}
    ).encode(),
]


def configuration(data: bytes, folder: Path) -> None:
    path = folder / "job.yaml"
    path.write_bytes(data)
    (folder / "models.yaml").write_text("models: {c: {model: openai::gpt-5}}\n")
    layer = config.read_yaml(path)
    config.to_yaml(config.validate(config.Settings, config.merge([layer])))
    read_models(PluginManager(environ={}), {"KEY": "k" * 20}, folder, config_file=path)


class Verdict(BaseModel):
    """A schema with a bit of everything."""

    score: float
    name: str
    tags: list[str] = []
    nested: dict[str, list[int]] = {}


ANSWERS = [
    b'<think>hm {"score": 1}</think>\n```json\n'
    b'{"score": 0.5, "name": "x", "tags": ["a"], "nested": {"a": [1]}}\n```',
    b"{'score': 1, 'name': \"it's\", 'tags': [], }",
    b'<tool_call>{"name": "Verdict", "arguments": "{\\"score\\": 2, \\"name\\": \\"y\\"}"}</tool_call>',
    b"<function=Verdict><parameter=score>3</parameter><parameter=name>z</parameter></function>",
    b"A plan.\n\n```python\nimport numpy\nprint(1)\n```\nand more\n~~~\nx\n~~~",
]


def answers(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for finish in ("stop", "length"):
        reply = ChatReply(text=text, reasoning=text[::-1], finish=finish)
        for schema in (Verdict, None):
            try:
                read_answer(reply, schema, None)
            except Problems as problems:
                assert problems.lines
    for read_program in (extract_program, extract_script):
        try:
            read_program(text)
        except ValueError as error:
            assert type(error) is ValueError


OPENAI = endpoint_of(Connection("openai", {}, base_url="http://127.0.0.1:1/v1", api_key="k" * 20))
ANTHROPIC = anthropic_endpoint(Connection("anthropic", {}, base_url="http://127.0.0.1:1", api_key="k" * 20))
REQUEST = ChatRequest("m", (Message("user", "hi"),))
CHUNKS: list[dict[str, Any]] = [
    {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "he"}}]},
    {"choices": [{"index": 0, "delta": {"content": "llo", "reasoning_content": "hm"}}]},
    {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}]
                },
            }
        ]
    },
    {
        "choices": [
            {
                "index": 0,
                "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
                "finish_reason": "tool_calls",
            }
        ]
    },
    {
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
    },
]
STREAM = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in CHUNKS) + b"data: [DONE]\n\n"
REFUSAL = json.dumps(
    {"error": {"message": "Unknown parameter: 'seed'.", "param": "seed", "code": 400, "type": "x"}}
).encode()
ITEMS = b'{"detail": [{"loc": ["body", "tools", 0], "msg": "Extra inputs", "input": {"a": 1}}]}'


def openai_stream(data: bytes, folder: Path) -> None:
    async def pieces(size: int) -> AsyncIterator[bytes]:
        for begin in range(0, len(data), size):
            yield data[begin : begin + size]

    async def stream(size: int) -> Any:
        return [item async for item in read_stream(Streamed(200, {}, pieces(size)), OPENAI)][-1]

    for size in (7, 100_000):
        try:
            read_document(asyncio.run(stream(size)), OPENAI)
        except CorerunError:
            continue


def openai_failures(data: bytes, folder: Path) -> None:
    for status in (400, 404, 429, 500):
        response = Response(status, {"retry-after": data[:20].decode("latin-1")}, data)
        assert isinstance(classify(response, REQUEST, OPENAI), CorerunError)


MESSAGES: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {"id": "m", "model": "c", "content": [], "usage": {"input_tokens": 3}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'},
    },
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
    {"type": "error", "error": {"type": "overloaded_error", "message": "later"}},
]
EVENTS = b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in MESSAGES)


def anthropic_stream(data: bytes, folder: Path) -> None:
    lines, builder = Lines(), MessageBuilder()
    for begin in range(0, len(data), 9):
        for event in lines.events(data[begin : begin + 9]):
            if event is not None:
                builder.feed(event)
    read_anthropic(builder.message, REQUEST, ANTHROPIC)


def anthropic_failures(data: bytes, folder: Path) -> None:
    answer = Answer(400, {"retry-after": "x"}, data.decode("utf-8", "replace"))
    assert isinstance(anthropic_classify(answer, ANTHROPIC), CorerunError)


def packed(way: str) -> bytes:
    file = io.BytesIO()
    if way == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/b.txt", "text" * 20)
            archive.writestr("c", b"x")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a/b.txt", "ä" * 90):
            info = tarfile.TarInfo(name)
            info.size = 9
            tar.addfile(info, io.BytesIO(b"123456789"))
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, "a/b.txt"
        tar.addfile(link)
    return file.getvalue() if way == "tar" else gzip.compress(file.getvalue())


def archives(data: bytes, folder: Path) -> None:
    (folder / "archive").write_bytes(data)
    target = folder / "target"
    try:
        extract(folder / "archive", target)
    except CorerunError:
        assert not target.exists()
    assert {path.name for path in folder.iterdir()} <= {"archive", "target"}


REQUESTS = b"".join(
    json.dumps(message).encode() + b"\n"
    for message in ({"i": 1, "p": "x", "op": "llm", "inputs": {"a": 1}}, {"i": 2, "op": "fail"}, {"i": 3})
)


def service_lines(data: bytes, folder: Path) -> None:
    """What a program writes to its socket; everything that it is answered must be lines of JSON."""

    async def serve() -> bytes:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        broken = asyncio.Event()

        async def handler(message: Any) -> Any:
            if message.get("op") == "fail":
                raise ValueError("no")
            return message

        service = Service(handler, lambda reason: broken.set())
        theirs = socket.socket(fileno=os.dup(service.descriptor))
        service.release()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        answered = b""
        try:
            await loop.sock_sendall(theirs, data)
            theirs.shutdown(socket.SHUT_WR)
            while more := await loop.sock_recv(theirs, 65536):
                answered += more
        except OSError:
            pass  # the other side hung up on us
        finally:
            await service.close()
            theirs.close()
        assert unhandled == []
        return answered

    for line in asyncio.run(serve()).splitlines():
        assert set(json.loads(line)) <= {"i", "r", "e"}


def worker_lines(data: bytes, folder: Path) -> None:
    async def receive() -> list[Any]:
        got: list[Any] = []
        over = asyncio.Event()
        reading, writing = os.pipe()
        channel = Channel(reading, os.dup(reading), got.append, lambda reason: over.set(), line_bytes=4096)
        await asyncio.to_thread(_write_all, writing, data)
        await over.wait()
        channel.close()
        return got

    assert all(isinstance(message, dict) for message in asyncio.run(receive()))


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        try:
            file.write(data)
        except BrokenPipeError:
            return


TARGETS: dict[Target, Sequence[bytes]] = {
    journal: [JOURNAL, JOURNAL[:2000], JOURNAL[:900]],
    journal_with_right_checksums: [JOURNAL, JOURNAL[:6000]],
    configuration: CONFIGS,
    answers: ANSWERS,
    openai_stream: [STREAM, STREAM[:300], REFUSAL],
    openai_failures: [REFUSAL, ITEMS],
    anthropic_stream: [EVENTS, EVENTS[:400]],
    anthropic_failures: [REFUSAL, EVENTS[-90:]],
    archives: [packed("zip"), packed("tar"), packed("tar.gz")],
    service_lines: [REQUESTS],
    worker_lines: [REQUESTS],
}


def fuzz(target: Target, examples: int, number: int) -> None:
    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(TARGETS[target]))
    def run(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                target(data, Path(folder))
            except CorerunError as error:
                assert error.message and "\n" not in str(error)

    run()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_what_is_parsed_raises_only_errors_of_ours(target: Target) -> None:
    for content in TARGETS[target]:
        with tempfile.TemporaryDirectory() as folder:
            target(content, Path(folder))
    fuzz(target, 40, 0)


@pytest.mark.parametrize(
    "piece", ["```python\n", "<think>", "{", '{"', "[{'a':", "\\", '"', "<parameter=a>", "1h", "a."]
)
def test_a_long_text_of_one_piece_comes_to_an_end(piece: str, tmp_path: Path) -> None:
    """What took time in the square of the length would take hours."""
    data = (piece * 400_000)[:400_000].encode()
    answers(data, tmp_path)
    openai_failures(data, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_what_is_parsed_raises_only_errors_of_ours_for_long(target: Target) -> None:
    end = time.monotonic() + SECONDS
    for number in itertools.count(1):
        fuzz(target, 500, number)
        if time.monotonic() > end:
            break
