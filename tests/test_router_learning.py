"""What a router remembers of a server's refusals, what it forgets, and what it never sends."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import CorerunError, Transient
from corerun.interfaces import ChatRequest, Connection
from corerun_openai_router.learning import gate
from corerun_openai_router.provider import OpenAIRouter
from tests.support.fault_server import (
    ANSWER,
    Body,
    Desk,
    Vendor,
    functions,
    good_answer,
    images,
)
from tests.support.faults.asking import (
    BARE,
    CONTEXT,
    MODEL,
    NO_SEED,
    NO_TOOLS,
    Asked,
    depth,
    told,
)
from tests.support.faults.rows import FULL, KEY, PLAIN, SAMPLED, STRUCTURED, openai
from tests.support.openai_server import Fault, text

# ----------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("refuses", [{"seed": NO_SEED}, {"seed": BARE}], ids=["named", "blind"])
async def test_256_parallel_first_calls_are_not_256_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Mapping[str, Fault]
) -> None:
    """All but the one that learns are under way at once, or the server would never answer them."""
    # How patient the others are is another test's business: here a busy machine must not matter.
    monkeypatch.setattr(gate, "LONGEST_WAIT_S", 30.0)
    monkeypatch.setattr(gate, "LONGEST_WAIT_FOR_REFUSALS_S", 30.0)
    calls, waiting, together = 256, 0, asyncio.Event()

    async def reply(body: Body) -> Any:
        nonlocal waiting
        waiting += 1
        if waiting == calls:
            together.set()
        if waiting > 1:
            await together.wait()
        return good_answer(body)

    desk = Desk(Vendor(refuses), reply=reply)
    async with Asked(desk, tmp_path) as asked, asyncio.timeout(60):
        router = asked.router()
        request = replace(STRUCTURED, model=MODEL)
        replies = await asyncio.gather(*(router.complete(request, CONTEXT) for _ in range(calls)))
        assert all(depth(reply) == ANSWER and told(reply) == {"seed"} for reply in replies)
        assert len(desk.refused()) <= 2 and len(desk.log) == calls + len(desk.refused())


async def test_a_new_server_behind_an_address_is_tried_again(tmp_path: Path) -> None:
    def build(name: str) -> Any:
        return lambda body: replace(good_answer(body), top={"system_fingerprint": name})

    desk = Desk(Vendor({"seed": NO_SEED}), reply=build("build-1"))
    async with Asked(desk, tmp_path) as asked:
        router = asked.router()
        request = replace(SAMPLED, model=MODEL)
        for _ in range(3):
            await router.complete(request, CONTEXT)
        assert ["seed" in body for body in desk.log] == [True, False, False, False]
        desk.vendor, desk.reply, desk.log = Vendor({}), build("build-2"), []
        for _ in range(3):
            await router.complete(request, CONTEXT)
        assert ["seed" in body for body in desk.log] == [False, True, True]


async def test_a_refused_value_is_not_a_refused_parameter(tmp_path: Path) -> None:
    said = "Unsupported value: 'temperature' does not support 0.2 with this model."
    refused = openai(said, param="temperature", code="unsupported_value")
    async with Asked(Desk(Vendor({"temperature=0.2": refused})), tmp_path) as asked:
        for temperature in (0.2, 0.2, 1.0):
            await asked.ask(replace(PLAIN, temperature=temperature))
        assert [body.get("temperature") for body in asked.desk.log] == [0.2, None, None, 1.0]


async def test_a_refused_pair_is_not_two_refused_parameters(tmp_path: Path) -> None:
    refused = openai("Function tools with reasoning_effort are not supported with this model.")
    async with Asked(Desk(Vendor({"reasoning_effort&tools": refused})), tmp_path) as asked:
        assert depth(await asked.ask(STRUCTURED)) == ANSWER
        await asked.ask(SAMPLED)
        assert asked.desk.log[-1]["reasoning_effort"] == "low"
        assert depth(await asked.ask(replace(STRUCTURED, reasoning_effort=None))) == ANSWER
        assert "tools" in asked.desk.log[-1] and len(asked.desk.log) == 4


async def test_a_server_without_tools_keeps_every_parameter(tmp_path: Path) -> None:
    async with Asked(Desk(Vendor({"tools": NO_TOOLS, "functions": NO_TOOLS})), tmp_path) as asked:
        assert depth(await asked.ask(FULL)) == ANSWER
        first, last = asked.desk.log[0], asked.desk.log[-1]
        same = ("seed", "reasoning_effort", "temperature", "top_p", "max_tokens", "stop")
        assert [first[name] for name in same] == [last[name] for name in same] and images(last) == 1


async def test_a_pinned_feature_is_never_sent_and_is_reported(tmp_path: Path) -> None:
    async with Asked(Desk(), tmp_path) as asked:
        router = asked.router(capabilities={"seed": False})
        reply = await router.complete(replace(SAMPLED, model=MODEL), CONTEXT)
        assert "seed" not in asked.desk.log[0] and told(reply) == {"seed"}


async def test_a_channel_that_is_ignored_three_times_gives_way(tmp_path: Path) -> None:
    def prose_for_tools(body: Body) -> Any:
        return text("I would rather chat.") if functions(body) else good_answer(body)

    async with Asked(Desk(reply=prose_for_tools), tmp_path) as asked:
        router = asked.router()
        request = replace(STRUCTURED, model=MODEL)
        replies = [await router.complete(request, CONTEXT) for _ in range(4)]
        assert ["tools" in body for body in asked.desk.log] == [True, True, True, False]
        assert depth(replies[-1]) == ANSWER


async def test_a_capability_file_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "caps.sqlite").mkdir()
    async with Asked(Desk(Vendor({"seed": NO_SEED})), tmp_path) as asked:
        router = asked.router()
        for _ in range(2):
            assert (await router.complete(replace(SAMPLED, model=MODEL), CONTEXT)).text
        assert ["seed" in body for body in asked.desk.log] == [True, False, False]


async def test_damaged_capability_files_stop_nobody(tmp_path: Path) -> None:
    (tmp_path / "caps.sqlite").write_bytes(random.Random(1).randbytes(5000))
    async with Asked(Desk(), tmp_path) as asked:
        assert (await asked.ask(SAMPLED)).text


# -------------------------------------------------------------------------------------- connection


async def test_a_reset_connection_is_worth_another_try(tmp_path: Path) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        environ = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": KEY}
        router = OpenAIRouter(
            Connection(environ={**environ, "CORERUN_CAPS_PATH": str(tmp_path / "caps.sqlite")})
        )
        with pytest.raises(Transient):
            await router.complete(replace(PLAIN, model=MODEL), CONTEXT)
        await router.aclose()


@pytest.mark.parametrize(
    "request_", [replace(PLAIN, max_tokens=0), replace(PLAIN, messages=())], ids=["no tokens", "no messages"]
)
async def test_nonsense_is_refused_before_it_is_sent(tmp_path: Path, request_: ChatRequest) -> None:
    async with Asked(Desk(), tmp_path) as asked:
        with pytest.raises(CorerunError):
            await asked.ask(request_)
        assert not asked.desk.log
