"""The table: servers that refuse, fail and answer oddly, each asked in two processes one after the other.

The second process has what the first one learned, so it must be right at once.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from corerun.interfaces import ChatRequest
from tests.support.fault_server import Body, Desk, fault_server, images
from tests.support.faults import ROWS, desks
from tests.support.faults.rows import KEY, QUESTION, Row
from tests.support.openai_server import OpenAIServer

ROOT = Path(__file__).parent.parent
OURS = ("OPENAI_", "OAIC_", "CORERUN_", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY")
TIMEOUT_S = 120


@dataclass(frozen=True)
class Pass:
    """What one process got for a row, and what the server saw of it."""

    outcome: Mapping[str, Any]
    log: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Judged:
    """Both passes of a row. ``faults`` are the refused features that requests of the first carried."""

    cold: Pass
    warm: Pass
    faults: frozenset[str]


# ----------------------------------------------------------------------------------------- running


def start(names: Sequence[str], places: Mapping[str, Any], repeat: int = 1) -> subprocess.Popen[str]:
    """A process that asks the questions of these rows."""
    environ = {name: value for name, value in os.environ.items() if not name.upper().startswith(OURS)}
    environ["XDG_CACHE_HOME"] = str(Path(places["caps"]).parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.faults.driver"],
        cwd=ROOT,
        env=environ,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({**places, "rows": list(names), "repeat": repeat}))
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What a process printed, a document per question; no secret is among it."""
    printed, complaints = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, complaints[-2000:]
    assert KEY not in printed + complaints
    return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Judged]]:
    folder = tmp_path_factory.mktemp("caps")
    served = desks()
    caps = folder / "caps.sqlite"
    with socket.socket() as deaf, fault_server(served) as server, closing(sqlite3.connect(caps)) as held:
        deaf.bind(("127.0.0.1", 0))
        held.execute("PRAGMA journal_mode=WAL")  # who closes a file last must wait for the disk
        places = {
            "base_url": server.base_url,
            "dead_url": f"http://127.0.0.1:{deaf.getsockname()[1]}/v1",
            "caps": str(caps),
        }
        passes: list[dict[str, Pass]] = []
        faults: dict[str, frozenset[str]] = {}
        for _ in range(2):
            came = {item["row"]: item for item in finish(start(list(ROWS), places))}
            passes.append({name: Pass(came[name], desk.log) for name, desk in served.items()})
            faults = faults or {name: frozenset(desk.faults()) for name, desk in served.items()}
            for desk in served.values():
                desk.log = []
        for file in folder.rglob("*"):
            assert not file.is_file() or KEY.encode() not in file.read_bytes()
        yield {name: Judged(passes[0][name], passes[1][name], faults[name]) for name in ROWS}


# ----------------------------------------------------------------------------------------- judging

LIMITS = ("max_tokens", "max_completion_tokens")


def base(feature: str) -> set[str]:
    """The parameters that a refusal of ``feature`` may cost."""
    names: set[str] = set()
    for part in feature.split("&"):
        name = part.partition("=")[0].partition(">")[0]
        if name == "parts":
            names |= {"images"}
        elif not name.startswith(("schema.", "tools.", "tool_choice.", "no ")):
            names.add(name.partition(".")[0])
    return names


def wanted(request: ChatRequest) -> dict[str, Any]:
    """The parameters of a request as they go over the wire; token limits go by either name."""
    named = {
        "seed": request.seed,
        "reasoning_effort": request.reasoning_effort,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop": list(request.stop) or None,
        **request.extra,
    }
    return {name: value for name, value in named.items() if value is not None}


def lost(row: Row, body: Body, faults: frozenset[str]) -> set[str]:
    """What a request no longer carries although nobody refused it."""
    refused = set().union(*map(base, faults)) if faults else set()
    gone = {name for name, value in wanted(row.request).items() if body.get(name) != value} - refused
    limits = [body[name] for name in LIMITS if name in body]
    if row.request.max_tokens is not None and not limits and not refused >= set(LIMITS):
        gone.add("max_tokens")
    if any(message.content and isinstance(message.content, tuple) for message in row.request.messages):
        asked = sum(
            part.kind == "image"
            for message in row.request.messages
            if isinstance(message.content, tuple)
            for part in message.content
        )
        if images(body) < asked and "images" not in refused:
            gone.add("images")
    structured = row.request.schema is not None and not row.connection and not row.environ
    if (row.request.tools or structured) and "tools" not in body and "tools" not in refused:
        gone.add("tools")
    return gone


def check_answer(row: Row, outcome: Mapping[str, Any]) -> None:
    if row.error is not None:
        assert outcome["error"] == row.error, outcome
        text = f"{outcome['message']} {outcome.get('hint', '')}"
        assert "\n" not in text
        assert not [word for word in row.says if word not in text], text
    else:
        assert outcome["error"] is None, outcome
        assert outcome["value"] == row.expected
        if row.calls:
            assert outcome["calls"] == list(row.calls)
    for name, expected in row.shows.items():
        found = outcome[name]
        if isinstance(expected, tuple):
            assert found is not None and expected[0] <= found <= expected[1], (name, found)
        else:
            assert found == expected, (name, found)
    if row.error is None:
        assert math.isfinite(outcome["prompt"]) and outcome["prompt"] >= 0
        assert math.isfinite(outcome["completion"]) and outcome["completion"] >= 0


def check_requests(row: Row, log: Sequence[Body]) -> None:
    """No request carries a null or an empty turn; only after status 500 is one sent again."""
    for body in log:
        assert None not in body.values()
        assert all(message.get("content") != [] for message in body["messages"])
    refused = [json.dumps(body, sort_keys=True) for body in log[len(row.first) :] if row.vendor.refused(body)]
    if all(answer.status != 500 for answer in row.vendor.refuses.values()) or not row.blind:
        assert len(refused) == len(set(refused)), "the same request was refused twice"


def check_degradations(row: Row, side: Pass, faults: frozenset[str]) -> None:
    told = {feature for feature, _ in side.outcome["degradations"]}
    for feature in faults:
        if feature in (
            "seed",
            "reasoning_effort",
            "temperature",
            "top_p",
            "tools",
            "images",
            *row.request.extra,
        ):
            assert feature in told, (feature, told)
    visible = {feature for feature in faults if not feature.startswith(("null", "no "))}
    assert not visible or told, "something was left out and nobody was told"
    assert all(reason for _, reason in side.outcome["degradations"])


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, judged: dict[str, Judged]) -> None:
    row, seen = ROWS[name], judged[name]
    cold, warm = seen.cold, seen.warm
    check_answer(row, cold.outcome)
    check_answer(row, warm.outcome)
    count, again = len(cold.log), len(warm.log)
    exact = row.requests if row.requests is not None else (1, 1 + len(seen.faults))
    low, high = exact if isinstance(exact, tuple) else (exact, exact)
    assert low <= count <= high, (count, [sorted(body) for body in cold.log])
    if row.error is not None:
        assert again <= count
        return
    assert seen.faults or row.avoidable or row.requests == 1 or not row.vendor.refuses, "nothing was refused"
    assert again <= (row.again or 1), [sorted(body) for body in warm.log]
    for side in (cold, warm):
        check_requests(row, side.log)
        check_degradations(row, side, seen.faults)
        if not (row.blind and side is cold):
            assert lost(row, side.log[-1], seen.faults) == set()
        for number, check in enumerate(row.last):
            assert check(side.log[-1]), (number, side.log[-1])
    if not row.first:
        assert cold.outcome["requests"] == count


# ------------------------------------------------------------------------------- other processes

SEED = "unsupported-parameter-seed"


@pytest.fixture
def seedless() -> Iterator[tuple[Desk, OpenAIServer]]:
    """A server that refuses ``seed``."""
    desk = Desk(ROWS[SEED].vendor)
    with fault_server({SEED: desk}) as server:
        yield desk, server


def spent(desk: Desk, places: Mapping[str, Any]) -> int:
    """How many requests a new process needs for one question."""
    desk.log = []
    (item,) = finish(start([SEED], places))
    assert item["error"] is None
    return len(desk.log)


def age(caps: str, days: float) -> None:
    """Makes everything that was learned so many days older."""
    with closing(sqlite3.connect(caps)) as store:
        rows = store.execute("SELECT key, last_seen FROM caps").fetchall()
        assert rows
        for key, seen in rows:
            store.execute("UPDATE caps SET last_seen = ? WHERE key = ?", (seen - days * 86_400, key))
        store.commit()


def test_two_processes_of_a_hundred_calls_pay_for_two_refusals_and_later_for_none(
    tmp_path: Path, seedless: tuple[Desk, OpenAIServer]
) -> None:
    desk, server = seedless
    places = {"base_url": server.base_url, "caps": str(tmp_path / "caps.sqlite")}
    for most in (2, 0):
        desk.log = []
        processes = [start([SEED], places, 100) for _ in range(2)]
        answers = [item for process in processes for item in finish(process)]
        assert len(answers) == 200 and all(item["error"] is None for item in answers)
        assert len(desk.refused()) <= most
        assert len(desk.log) == 200 + len(desk.refused())


def test_what_was_learned_of_a_local_server_is_tried_again_after_a_day(
    tmp_path: Path, seedless: tuple[Desk, OpenAIServer]
) -> None:
    desk, server = seedless
    places = {"base_url": server.base_url, "caps": str(tmp_path / "caps.sqlite")}
    assert spent(desk, places) == 2
    age(places["caps"], 0.9)
    assert spent(desk, places) == 1
    age(str(places["caps"]), 0.2)
    assert [spent(desk, places), spent(desk, places)] == [2, 1]


def test_what_was_learned_of_a_remote_server_is_tried_again_after_a_week(
    tmp_path: Path, seedless: tuple[Desk, OpenAIServer]
) -> None:
    """The remote server's address is in a private network; a proxy leads to the server here."""
    desk, server = seedless
    places = {
        "base_url": "http://10.11.12.13/v1",
        "caps": str(tmp_path / "caps.sqlite"),
        "environ": {"HTTP_PROXY": server.base_url.removesuffix("/v1")},
    }
    assert spent(desk, places) == 2
    age(str(places["caps"]), 6.9)
    assert spent(desk, places) == 1
    age(str(places["caps"]), 0.2)
    assert [spent(desk, places), spent(desk, places)] == [2, 1]


def test_a_capability_file_holds_neither_keys_nor_prompts(
    tmp_path: Path, seedless: tuple[Desk, OpenAIServer]
) -> None:
    desk, server = seedless
    places = {"base_url": server.base_url, "caps": str(tmp_path / "caps.sqlite")}
    assert spent(desk, places) == 2
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    assert b"seed" in written and KEY.encode() not in written and QUESTION.encode() not in written
