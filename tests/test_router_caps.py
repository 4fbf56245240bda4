"""What is learned about servers: where it is kept, who shares it, when it is doubted."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corerun.interfaces import ChatReply, Connection
from corerun_openai_router.learning.caps import GUESSED, CapsStore
from corerun_openai_router.learning.gate import LONGEST_WAIT_S, Gate
from corerun_openai_router.learning.knowledge import Knowledge
from corerun_openai_router.provider import OpenAIRouter
from tests.support.openai_server import OpenAIServer, fault, serve_in_thread, text
from tests.support.router import CONTEXT, KEY, QUESTION

DAY_S = 86_400.0
REMOTE, LOCAL = "https://api.example.com/v1", "http://127.0.0.1:9/v1"
SEEDED = replace(QUESTION, seed=7, max_tokens=64)
REFUSED = {"error": {"message": "Unknown parameter: 'seed'.", "param": "seed"}}


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def knowledge(folder: Path, base_url: str = REMOTE, clock: Clock | None = None, **fields: Any) -> Knowledge:
    store = CapsStore(folder / "caps.sqlite")
    fields = {"pins": {}, "accepted": (), **fields}
    return Knowledge(base_url, store, wall_clock=clock or Clock(), **fields)


def learn(known: Knowledge, *facts: str, model: str = "m") -> None:
    known.facts(model)
    known.learn(model, facts, "HTTP 400: no", 400)


# ---------------------------------------------------------------------------------------- store


def test_facts_are_shared_by_server_and_model(tmp_path: Path) -> None:
    learn(knowledge(tmp_path), "seed", "temperature=0.5", "max_tokens<=16")
    assert knowledge(tmp_path).facts("m") == {"seed", "temperature=0.5", "max_tokens<=16"}
    assert knowledge(tmp_path).facts("other") == frozenset()
    assert knowledge(tmp_path, LOCAL).facts("m") == frozenset()


def test_the_file_says_what_was_seen(tmp_path: Path) -> None:
    clock = Clock()
    learn(knowledge(tmp_path, clock=clock), "seed")
    clock.now += DAY_S
    learn(knowledge(tmp_path, clock=clock), "seed", "max_tokens<=16")
    path = tmp_path / "caps.sqlite"
    rows = (
        sqlite3.connect(path)
        .execute(
            "SELECT base_url, model, feature, value, state, evidence, status, last_seen - first_seen, hits"
            " FROM caps ORDER BY feature"
        )
        .fetchall()
    )
    assert rows == [
        (REMOTE, "m", "max_tokens", "<=16", "no", "HTTP 400: no", 400, 0.0, 1),
        (REMOTE, "m", "seed", "", "no", "HTTP 400: no", 400, DAY_S, 2),
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("column", ["last_seen", "evidence", "hits", "state"])
def test_a_damaged_row_is_asked_again(tmp_path: Path, column: str) -> None:
    learn(knowledge(tmp_path), "seed", "n")
    with sqlite3.connect(tmp_path / "caps.sqlite") as file:
        file.execute(f"UPDATE caps SET {column} = x'00ff' WHERE feature = 'seed'")
    file.close()
    assert knowledge(tmp_path).facts("m") == {"n"}


def test_the_path_comes_from_the_environment(tmp_path: Path) -> None:
    for environ in ({"CORERUN_CAPS_PATH": str(tmp_path / "own.sqlite")}, {"XDG_CACHE_HOME": str(tmp_path)}):
        CapsStore.of(environ).load("u", "m")
    assert (tmp_path / "own.sqlite").is_file() and (tmp_path / "corerun" / "caps.sqlite").is_file()


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_a_file_that_can_not_be_used_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    path = tmp_path / "caps.sqlite"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    known = knowledge(tmp_path)
    learn(known, "seed")
    learn(known, "stop")
    assert known.facts("m") == {"seed", "stop"}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# ---------------------------------------------------------------------------------------- doubt


@pytest.mark.parametrize(("base_url", "days"), [(REMOTE, 7), (LOCAL, 1), ("http://localhost:1/v1", 1)])
def test_what_was_learned_is_doubted_after_a_while(tmp_path: Path, base_url: str, days: int) -> None:
    clock = Clock()
    known = knowledge(tmp_path, base_url, clock)
    learn(known, "seed")
    clock.now += 1
    learn(known, "stop")
    clock.now += days * DAY_S - 1.5
    assert known.facts("m") == {"seed", "stop"}
    clock.now += 1
    assert known.facts("m") == knowledge(tmp_path, base_url, clock).facts("m") == {"stop"}


def test_a_guess_is_doubted_within_the_hour(tmp_path: Path) -> None:
    clock = Clock()
    known = knowledge(tmp_path, REMOTE, clock)
    known.facts("m")
    known.learn("m", ["seed"], "HTTP 500: no explanation", 500, GUESSED)
    learn(known, "stop")
    clock.now += 3500
    assert known.facts("m") == knowledge(tmp_path, REMOTE, clock).facts("m") == {"seed", "stop"}
    clock.now += 101
    assert known.facts("m") == knowledge(tmp_path, REMOTE, clock).facts("m") == {"stop"}


def test_what_was_learned_in_the_future_is_asked_again(tmp_path: Path) -> None:
    clock = Clock()
    clock.now += 1e12
    learn(knowledge(tmp_path, REMOTE, clock), "seed")
    clock.now -= 1e12 - DAY_S / 2
    learn(knowledge(tmp_path, REMOTE, clock), "stop")
    clock.now -= DAY_S
    known = knowledge(tmp_path, REMOTE, clock)
    assert known.facts("m") == {"stop"}, "clocks of two machines differ a little"
    assert [row["feature"] for row in knowledge(tmp_path, REMOTE, clock).rows(None)] == ["stop"]


def test_another_version_of_the_server_is_asked_again(tmp_path: Path) -> None:
    known = knowledge(tmp_path)
    learn(known, "seed")
    for identity, facts in (("a", {"seed"}), ("", {"seed"}), ("a", {"seed"}), ("b", set())):
        known.answered("m", identity)
        assert known.facts("m") == facts
    assert knowledge(tmp_path).facts("m") == frozenset()


def test_a_server_that_flips_between_versions_is_asked_once_for_each(tmp_path: Path) -> None:
    known = knowledge(tmp_path)
    learn(known, "seed")
    known.answered("m", "a")
    known.answered("m", "b")
    learn(known, "seed")
    for identity in "abab":
        known.answered("m", identity)
        assert known.facts("m") == {"seed"}


def test_declarations_are_neither_written_nor_forgotten(tmp_path: Path) -> None:
    learn(knowledge(tmp_path), "seed", "stop")
    known = knowledge(tmp_path, pins={"tools": "declared"}, accepted=("seed",))
    assert known.facts("m") == {"tools", "stop"} and not known.may_learn("seed=7")
    known.learn("m", ["tools"], "HTTP 400: no", 400)
    assert known.reason("m", "tools") == "declared"
    assert known.forget("m") == 2 and known.facts("m") == {"tools"}
    assert knowledge(tmp_path).facts("m") == frozenset()


def test_forgetting_goes_for_one_model_or_for_all(tmp_path: Path) -> None:
    known = knowledge(tmp_path)
    learn(known, "seed", "stop", model="one")
    learn(known, "seed", model="two")
    assert [(row["model"], row["feature"]) for row in known.rows(None)] == [
        ("one", "seed"),
        ("one", "stop"),
        ("two", "seed"),
    ]
    assert (known.forget("one"), known.forget(None), known.rows(None)) == (2, 1, [])


# ----------------------------------------------------------------------------------- many calls


def refusing_seed(sent: dict[str, Any]) -> Any:
    return fault(400, REFUSED) if "seed" in sent else "10,935 m"


async def ask_at_once(server: OpenAIServer, folder: Path, count: int) -> list[ChatReply]:
    environ = {**server.environ(KEY), "CORERUN_CAPS_PATH": str(folder / "caps.sqlite")}
    router = OpenAIRouter(Connection(environ=environ))
    try:
        return await asyncio.gather(*(router.complete(SEEDED, CONTEXT) for _ in range(count)))
    finally:
        await router.aclose()


async def test_parallel_first_calls_meet_one_refusal(tmp_path: Path) -> None:
    async with OpenAIServer(refusing_seed) as server:
        replies = await ask_at_once(server, tmp_path, 256)
        assert server.calls == 257 and sorted(reply.requests for reply in replies)[-2:] == [1, 2]
        assert all(reply.degradations for reply in replies)
        await ask_at_once(server, tmp_path, 10)
        assert server.calls == 267


async def test_a_loop_that_was_held_up_gives_the_refusal_time_to_be_read() -> None:
    gate = Gate()
    leader, follower = gate.passage(), gate.passage()
    assert not await leader.waited(("kind",))
    waiting = asyncio.ensure_future(follower.waited(("kind",)))
    await asyncio.sleep(0)
    time.sleep(LONGEST_WAIT_S * 2)  # what holds the loop up: a disk, a collection of garbage
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done(), "the leader's refusal takes a few turns of the loop to be read"
    leader.close()
    assert await waiting


async def test_parallel_first_calls_wait_for_one_that_guesses(tmp_path: Path) -> None:
    async with OpenAIServer(lambda sent: fault(400) if "seed" in sent else "10,935 m") as server:
        await ask_at_once(server, tmp_path, 50)
        assert sum("seed" in body for body in server.bodies) == 1


async def test_nobody_waits_for_one_that_was_cancelled_or_failed(tmp_path: Path) -> None:
    gate = Gate()
    leader, follower = gate.passage(), gate.passage()
    assert not await leader.waited(("kind",))
    waiting = asyncio.ensure_future(follower.waited(("kind",)))
    await asyncio.sleep(0)
    assert not waiting.done()
    leader.close()
    assert await waiting and not await follower.waited(("kind",))


async def test_one_of_those_who_wait_takes_over_from_a_leader_that_was_cancelled(tmp_path: Path) -> None:
    first = asyncio.Event()

    async def answer(sent: dict[str, Any]) -> Any:
        if not first.is_set():
            first.set()
            await asyncio.Event().wait()
        return refusing_seed(sent)

    async with OpenAIServer(answer) as server:
        environ = {**server.environ(KEY), "CORERUN_CAPS_PATH": str(tmp_path / "caps.sqlite")}
        router = OpenAIRouter(Connection(environ=environ))
        calls = [asyncio.create_task(router.complete(SEEDED, CONTEXT)) for _ in range(64)]
        await first.wait()
        calls[0].cancel()
        await asyncio.gather(*calls[1:])
        assert sum("seed" in body for body in server.bodies) == 2
        await router.aclose()


async def test_a_refusal_that_was_slow_gives_the_next_request_as_much_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)

    async def later(seconds: float) -> None:
        nonlocal now
        now += seconds
        for _ in range(5):
            await asyncio.sleep(0)

    gate = Gate()
    leader, patient, late = gate.passage(), gate.passage(), gate.passage()
    assert not await leader.waited(("kind",))
    waiting = asyncio.create_task(patient.waited(("kind",)))
    await later(LONGEST_WAIT_S * 0.8)
    leader.refused(is_guessing=True)
    await later(LONGEST_WAIT_S * 1.5)
    assert not waiting.done(), "the next refusal may take as long"
    await later(LONGEST_WAIT_S * 0.2)
    assert await waiting and not await patient.waited(("kind",))
    assert not await late.waited(("kind",)), "nobody waits for a request that takes longer"


async def test_a_kind_that_was_answered_is_let_through(tmp_path: Path) -> None:
    gate = Gate()
    leader = gate.passage()
    assert not await leader.waited(("kind",))
    leader.answered(("kind",))
    assert not await gate.passage().waited(("kind",)) and not await gate.passage().waited(("kind",))


async def test_a_call_does_not_wait_for_itself() -> None:
    passage = Gate().passage()
    assert not await passage.waited(("kind",)) and not await passage.waited(("kind",))


def test_another_process_sends_no_refused_request(tmp_path: Path) -> None:
    program = (
        "import asyncio, os\n"
        "from corerun.interfaces import *\n"
        "from corerun_openai_router.provider import OpenAIRouter\n"
        "router = OpenAIRouter(Connection(environ=os.environ))\n"
        "request = ChatRequest('m', (Message('user', 'hi'),), seed=7)\n"
        "print(asyncio.run(router.complete(request, CallContext('x'))).requests)\n"
    )
    with serve_in_thread(refusing_seed) as server:
        spent = [
            subprocess.run(
                [sys.executable, "-c", program],
                env={**server.environ(KEY), "CORERUN_CAPS_PATH": str(tmp_path / "caps.sqlite")},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for _ in range(2)
        ]
    assert spent == ["2\n", "1\n"]


async def test_a_router_tells_and_forgets_what_it_learned(tmp_path: Path) -> None:
    async with OpenAIServer(refusing_seed) as server:
        router = OpenAIRouter(Connection(environ=server.environ(KEY)), wall_clock=Clock())
        await router.complete(SEEDED, CONTEXT)
        (row,) = router.learned()
        assert row == {
            "base_url": server.base_url,
            "model": "test-model",
            "feature": "seed",
            "value": "",
            "state": "no",
            "evidence": "HTTP 400: Unknown parameter: 'seed'.",
            "last_seen": 1_800_000_000.0,
            "expires": 1_800_000_000.0 + DAY_S,
        }
        assert router.forget("test-model") == 1
        assert (await router.complete(SEEDED, CONTEXT)).requests == 2
        await router.aclose()


async def test_a_new_fingerprint_brings_the_parameter_back(tmp_path: Path) -> None:
    version: list[str] = ["fp_1"]

    def answer(sent: dict[str, Any]) -> Any:
        if "seed" in sent and version[0] == "fp_1":
            return fault(400, REFUSED)
        return text("10,935 m", top={"system_fingerprint": version[0]})

    async with OpenAIServer(answer) as server:
        router = OpenAIRouter(Connection(environ=server.environ(KEY)))
        spent: list[int] = []
        for fingerprint in ("fp_1", "fp_1", "fp_2", "fp_2"):
            version[0] = fingerprint
            spent.append((await router.complete(SEEDED, CONTEXT)).requests)
        assert spent == [2, 1, 1, 1]
        assert ["seed" in body for body in server.bodies] == [True, False, False, False, True]
        await router.aclose()
