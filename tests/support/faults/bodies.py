"""Rows for answers under status 200 that are broken, odd or empty, and for connections that fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.fault_server import ANSWER, PROSE
from tests.support.faults.rows import PLAIN, STRUCTURED, Row, failure
from tests.support.openai_server import (
    Fault,
    Reply,
    cut_body,
    cut_json,
    fault,
    hang_up,
    text,
    tool,
)

JSON = {"content-type": "application/json"}
PAGE = fault(
    200, "<html><body>Welcome to the router's login page</body></html>", {"content-type": "text/html"}
)


def document(content: Any, **fields: Any) -> dict[str, Any]:
    """A whole chat completion with this content."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "x",
        "choices": [choice],
        "usage": usage,
        **fields,
    }


BROKEN: dict[str, Fault | Reply] = {
    "premature-end": cut_body(),
    "hang-up": hang_up(),
    "cut-json": cut_json(),
    "empty-body": fault(200, b"", JSON),
    "blanks": fault(200, b"  \n", JSON),
    "no-choices": fault(200, {"id": "x", "object": "chat.completion"}),
    "null-choices": fault(200, document("x", choices=None)),
    "empty-choices": fault(200, document("x", choices=[])),
    "null-message": fault(
        200, document("x", choices=[{"index": 0, "message": None, "finish_reason": "stop"}])
    ),
    "list": fault(200, "[]", JSON),
    "null": fault(200, "null", JSON),
    "error-under-200": fault(200, {"error": {"message": "upstream broke off", "code": 502}}),
    "error-under-200-without-code": fault(200, {"error": {"message": "Internal server error"}}),
    "error-text-under-200": fault(200, {"error": "upstream broke off"}),
    "empty-stop": text(""),
    "null-stop": Reply(content=None),
}
"""What is worth another try."""


def rows() -> Iterator[Row]:
    for name, broken in BROKEN.items():
        yield failure(f"broken-{name}", "Transient", broken)  # type: ignore[arg-type]
        yield Row(f"broken-{name}-then-an-answer", STRUCTURED, first=(broken,), requests=2, again=2)
    says = ("text/html", "login page")
    yield failure("page-under-200", "RequestRefused", PAGE, says=says)
    yield failure("page-under-200-through-the-client", "RequestRefused", PAGE, client=True, says=says)
    quota = fault(200, {"error": {"message": "x", "code": "insufficient_quota"}})
    yield failure("error-under-200-of-quota", "QuotaExceeded", quota)
    yield Row("nobody-listens", PLAIN, error="Transient", client=False, requests=0, dead=True)
    yield from _content()
    yield from _usage()
    yield from _arguments()
    yield from _structured_text()


def _answered(name: str, reply: Any, **fields: Any) -> Row:
    """A server that always answers like this, which is good enough at once."""
    return Row(name, fields.pop("request", PLAIN), reply=lambda body: reply, **{"requests": 1, **fields})


def _content() -> Iterator[Row]:
    listed = [{"type": "text", "text": "It is deep"}, {"type": "text", "text": ", very."}]
    yield _answered("content-list", Reply(content=listed), value="It is deep, very.")
    yield _answered("content-number", Reply(content=10935), value="10935")
    yield _answered("content-object", Reply(content=ANSWER), request=STRUCTURED)
    invalid = json.dumps(document("It is @ deep.")).encode().replace(b"@", b"\xff\xfe")
    yield _answered("content-invalid-utf-8", fault(200, invalid, JSON), value="It is \ufffd\ufffd deep.")
    lone = json.dumps(document("It is @ deep.")).encode().replace(b"@", rb"\ud83d")
    yield _answered(
        "content-lone-surrogate", fault(200, lone, JSON), value="It is \ufffd deep.", client=False
    )
    pair = json.dumps(document("It is @ deep.")).encode().replace(b"@", rb"\ud83d\ude00")
    yield _answered("content-surrogate-pair", fault(200, pair, JSON), value="It is \U0001f600 deep.")


def _usage() -> Iterator[Row]:
    bad: dict[str, Any] = {
        "nan": float("nan"),
        "infinite": float("inf"),
        "null": None,
        "negative": -1,
        "text": "nine",
        "object": {},
    }
    for name, usage in bad.items():
        counts = {"prompt_tokens": usage, "completion_tokens": usage, "total_tokens": usage}
        yield _answered(f"usage-{name}", text(PROSE, usage=counts), shows={"estimated": True})
    yield _answered("usage-missing", text(PROSE, usage=None), shows={"estimated": True})
    without = document(PROSE)
    del without["usage"]
    yield _answered("usage-absent", fault(200, without), shows={"estimated": True})
    yield _answered("usage-list", text(PROSE, usage=[]), shows={"estimated": True})
    good = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    yield _answered(
        "usage-good", text(PROSE, usage=good), shows={"estimated": False, "prompt": 9, "completion": 3}
    )


def _arguments() -> Iterator[Row]:
    right = json.dumps(ANSWER)
    for name, arguments in {
        "fenced": f"```json\n{right}\n```",
        "double-encoded": json.dumps(right),
        "with-words": f"Here you are: {right}",
        "number-as-text": '{"metres": "10935"}',
    }.items():
        yield _answered(f"arguments-{name}", tool("submit_depth", arguments), request=STRUCTURED)
    call = {"id": "c", "type": "function", "function": {"name": "submit_depth", "arguments": ANSWER}}
    as_object = Reply(message={"tool_calls": [call]}, finish="tool_calls")
    yield _answered("arguments-object", as_object, request=STRUCTURED)
    for name, arguments in {
        "empty": "",
        "null": "null",
        "wrong": '{"meters": 1}',
    }.items():
        yield Row(
            f"arguments-{name}-then-an-answer",
            STRUCTURED,
            first=(tool("submit_depth", arguments),),
            requests=2,
            again=2,
        )
    cut = tool("submit_depth", '{"metres": 10', finish="length")
    yield Row("arguments-cut-then-an-answer", STRUCTURED, first=(cut,), requests=2, again=2)
    yield failure(
        "arguments-wrong-for-good",
        "BadAnswer",
        tool("submit_depth", '{"meters": 1}'),  # type: ignore[arg-type]
        request=STRUCTURED,
        client=True,
        requests=3,
        again=3,
    )


def _structured_text() -> Iterator[Row]:
    right = json.dumps(ANSWER)
    for name, said in {
        "prose-around": f"Sure! {right} Anything else?",
        "fence": f"```json\n{right}\n```",
        "thinking": f"<think>Is it {{deep}}?</think>{right}",
        "thinking-without-start": f"Is it deep?</think>{right}",
        "trailing-comma": '{"metres": 10935,}',
        "wrapped": json.dumps({"name": "submit_depth", "arguments": ANSWER}),
        "python": "{'metres': 10935}",
    }.items():
        yield _answered(f"text-{name}", text(said), request=STRUCTURED)
    thought = text("", message={"reasoning_content": right})
    yield _answered("reasoning-only", thought, request=STRUCTURED)
    yield _answered("reasoning-only-null-content", Reply(message={"reasoning": right}), request=STRUCTURED)
