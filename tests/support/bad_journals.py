"""Journals that don't hold together, each named by what is wrong with it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from corerun.interfaces import Event
from corerun.runs import events as kinds
from corerun.runs.journal import encode

FILE = "runs/bfts/one/events.jsonl"
COMMANDS = (
    "runs show runs/bfts/one",
    "runs rebuild runs/bfts/one",
    "runs audit runs/bfts/one",
    "report runs/bfts/one",
    "--plugin bfts run --sandbox local --resume runs/bfts/one",
)

SCOPE = "1_initial_implementation_1_preliminary"
ASKED = {
    **{"scope": SCOPE, "node": "a" * 16, "parent": None, "seq": 1, "hint": {}},
    **{"attempt": 0, "counted": True, "batch": None},
}
DONE = {
    **{"scope": SCOPE, "node": "a" * 16, "seq": 1, "attempt": 0, "status": "failed"},
    **{"score": None, "reason": "no", "open": False, "data": {}},
}
BEGIN = (kinds.RUN_STARTED, {"job": "bfts", "settings": {}, "identity": {}, "models": {}})


def journal(*records: tuple[str, Any]) -> bytes:
    """The lines of a journal that begins as one of bfts does."""
    whole = (BEGIN, *records)
    return b"".join(encode(Event(n, 1.0, kind, data)) for n, (kind, data) in enumerate(whole, 1))


def line(record: str) -> bytes:
    """A line with the checksum that fits ``record``, whatever that is."""
    body = record.encode()
    return b'%s,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body))


def _without(data: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != field}


GOOD = journal((kinds.WARNING, {"message": "x"}))
SECOND = GOOD.splitlines(keepends=True)[1]

PROGRAM = {"key": "k", "node": "a", "attempt": 0}
ANSWERED = {
    **{"key": "k", "node": None, "role": "code", "purpose": "x", "provider": "fake", "finish": "stop"},
    **{"model_requested": "fake::json", "model_answered": "json", "text": "x", "latency_s": 1.0},
    **{"usage": {"prompt": 1, "completion": 1}, "cost_usd": 0.0, "attempts": 1, "booked": "json"},
}
NODE = (kinds.NODE_ASKED, ASKED)
STAGE = (kinds.STAGE_STARTED, {"scope": SCOPE, "number": 1, "title": "x", "goals": "", "max_nodes": 1})


def searched(**data: Any) -> bytes:
    """A journal with one good node that holds ``data``."""
    done = DONE | {"status": "good", "score": 1.0, "data": data}
    return journal(
        STAGE, NODE, (kinds.NODE_DONE, done), (kinds.STAGE_DONE, {"scope": SCOPE, "best": "a" * 16})
    )


MISFITS: Mapping[str, tuple[bytes, str]] = {
    "no beginning": (line('{"seq":1,"t":1.0,"type":"x","data":{}}'), "has no beginning"),
    "metric is a number": (searched(metric=5), ""),
    "metric without sets": (searched(metric={"name": "x"}), ""),
    "program is a number": (searched(code=5), ""),
    "plots are a number": (searched(plots=5), ""),
    "idea is a list": (journal((kinds.NOTED, {"name": "idea", "value": [1]})), ""),
    "stage without a number": (journal((kinds.STAGE_STARTED, {"scope": SCOPE})), ""),
    "node without its stage": (journal((kinds.NODE_DONE, DONE)), ""),
    "parent unknown": (journal((kinds.NODE_ASKED, ASKED | {"parent": "b" * 16})), "parent that is unknown"),
    "answer without its question": (journal((kinds.CALL_ANSWERED, ANSWERED)), ""),
    "prompt that is lost": (
        journal((kinds.CALL_ASKED, {"key": "k", "prompt": "0" * 64}), (kinds.CALL_ANSWERED, ANSWERED)),
        "no such file",
    ),
}
"""Records that are each whole and don't fit together."""

JOURNALS: Mapping[str, tuple[bytes, str]] = {
    "changed byte": (GOOD.replace(b"run_started", b"run_startet") + SECOND, ":1: "),
    "line of words": (b"hello\n" + GOOD, ":1: "),
    "line cut in the middle": (GOOD[:40] + b"\n" + SECOND, ":1: "),
    "empty line": (b"\n" + GOOD, ":1: "),
    "record twice": (GOOD + SECOND, ":3: "),
    "record missing": (
        journal(*[(kinds.WARNING, {"message": "x"})] * 2).replace(SECOND, b"") + SECOND,
        ":2: ",
    ),
    "records swapped": (b"".join(reversed(GOOD.splitlines(keepends=True))), ":1: "),
    "NUL bytes": (b"\0" * 4096 + b"\n" + GOOD, ":1: "),
    "UTF-16": ("{}\n".encode("utf-16") + GOOD, ":1: "),
    "record is a list": (line("[1]") + GOOD, ":1: "),
    "record lacks its data": (line('{"seq":1,"t":1.0,"type":"warning"}') + SECOND, ":1: "),
    "number is a text": (line('{"seq":"1","t":1.0,"type":"x","data":{}}') + SECOND, ":1: "),
    "time is NaN": (line('{"seq":1,"t":NaN,"type":"x","data":{}}') + SECOND, ":1: "),
    "data are a list": (line('{"seq":1,"t":1.0,"type":"x","data":[]}') + SECOND, ":1: "),
    "nested 100,000 deep": (
        line('{"seq":1,"t":1.0,"type":"x","data":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}") + SECOND,
        ":1: ",
    ),
    "nested 300 deep": (
        line('{"seq":1,"t":1.0,"type":"x","data":{"a":' + "[" * 300 + "]" * 300 + "}}") + SECOND,
        "nested deeper than 200 levels",
    ),
    "number of 5,000 digits": (
        line('{"seq":1,"t":1.0,"type":"x","data":{"a":' + "9" * 5000 + "}}") + SECOND,
        ":1: ",
    ),
    "blob missing": (journal(("x", {"$blob": "0" * 64})), ":2: "),
    "blob that is a path": (journal(("x", {"$blob": "../../../../../../etc/passwd"})), "is no name of one"),
    "blob that never ends": (journal(("x", {"$blob": "/dev/zero"})), ":2: "),
    "blob is a number": (journal(("x", {"$blob": 5})), ":2: "),
    "node without a name": (journal((kinds.NODE_ASKED, _without(ASKED, "node"))), "lacks 'node'"),
    "node that is a path": (journal((kinds.NODE_ASKED, ASKED | {"node": "../../x"})), "'node'"),
    "stage that is a path": (journal((kinds.STAGE_STARTED, {"scope": "../../../x"})), "'scope'"),
    "stage with a NUL": (journal((kinds.STAGE_STARTED, {"scope": "a\0b"})), "'scope'"),
    "score in words": (
        journal((kinds.NODE_ASKED, ASKED), (kinds.NODE_DONE, DONE | {"score": "x"})),
        "'score'",
    ),
    "node done without data": (
        journal((kinds.NODE_ASKED, ASKED), (kinds.NODE_DONE, _without(DONE, "data"))),
        ":3: ",
    ),
    "attempt below zero": (journal((kinds.NODE_ASKED, ASKED | {"attempt": -1})), "'attempt'"),
    "answer without usage": (
        journal((kinds.CALL_ANSWERED, {"key": "k", "text": "x", "cost_usd": None})),
        "lacks 'usage'",
    ),
    "prompt that is a path": (journal((kinds.CALL_ASKED, {"key": "k", "prompt": "/etc/passwd"})), "'prompt'"),
    "program without a result": (
        journal((kinds.EXECUTION_DONE, PROGRAM)),
        "lacks 'result'",
    ),
    "program's files are words": (
        journal((kinds.EXECUTION_DONE, PROGRAM | {"result": {"files": ["x"]}})),
        "'result'",
    ),
    "program's file without a hash": (
        journal((kinds.EXECUTION_DONE, PROGRAM | {"result": {"files": [{"path": "x"}]}})),
        "'result'",
    ),
    "counted in words": (journal((kinds.NODE_ASKED, ASKED | {"counted": "yes"})), "'counted'"),
    "warning without words": (journal((kinds.WARNING, {})), "lacks 'message'"),
    "note without a name": (journal((kinds.NOTED, {"value": 1})), "lacks 'name'"),
    "end without a status": (journal((kinds.RUN_DONE, {})), "lacks 'status'"),
}
