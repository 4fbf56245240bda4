"""Rows for every class of error: what is told apart, after how many requests, with which figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

from tests.support.fault_server import Vendor
from tests.support.faults.rows import (
    FULL,
    KEY,
    PLAIN,
    SAMPLED,
    STRUCTURED,
    Row,
    failure,
    openai,
    refusal,
)
from tests.support.openai_server import fault, text

CONTEXTS: tuple[tuple[str, str, int | None, int | None], ...] = (
    (
        "openai",
        "This model's maximum context length is 8192 tokens. However, you requested 10020 tokens "
        "(9956 in the messages, 64 in the completion). Please reduce the length of the messages.",
        8192,
        10020,
    ),
    ("llama-cpp", "the request exceeds the available context size, try increasing it", None, None),
    ("anthropic", "prompt is too long: 208310 tokens > 200000 maximum", 200000, 208310),
    (
        "gemini",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        1048576,
        1200000,
    ),
    ("together", "The prompt (length 5000) is longer than the model's context length (4096).", 4096, 5000),
    (
        "bedrock",
        "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000, decrease input length",
        200000,
        None,
    ),
    ("cerebras", "Please reduce the length. Current length is 9000 while limit is 8192", 8192, 9000),
    (
        "qwen",
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
        30720,
        None,
    ),
)

WISHES: tuple[tuple[str, dict[str, str], str, float, float], ...] = (
    ("milliseconds", {"retry-after-ms": "1500"}, "slow down", 1.5, 1.7),
    ("seconds", {"retry-after": "7"}, "slow down", 7.0, 7.8),
    ("fraction", {"retry-after": "2.5"}, "slow down", 2.5, 2.8),
    ("reset-requests", {"x-ratelimit-reset-requests": "6m0s"}, "slow down", 360.0, 397.0),
    ("reset-tokens", {"x-ratelimit-reset-tokens": "250ms"}, "slow down", 0.25, 0.3),
    ("text-seconds", {}, "Rate limit reached. Please try again in 46.72s.", 46.72, 51.5),
    ("text-minutes", {}, "Rate limit reached. Please try again in 1m3s.", 63.0, 69.5),
    ("text-milliseconds", {}, "Rate limit reached. Please try again in 120ms.", 0.12, 0.14),
    ("first-that-parses", {"retry-after-ms": "soon", "retry-after": "9"}, "slow down", 9.0, 10.0),
)
"""Name, headers, message, and the range of seconds that may be read, with up to a tenth on top."""


def rows() -> Iterator[Row]:
    yield from _auth()
    yield from _quota()
    yield from _context()
    yield from _content()
    yield from _model()
    yield from _transient()
    yield from _wishes()
    yield from _unknown()


def _auth() -> Iterator[Row]:
    echoed = f"Incorrect API key provided: {KEY}. You can find yours at the usual place."
    yield failure("auth-401", "AuthFailed", openai(echoed, 401, code="invalid_api_key"))
    yield failure("auth-401-empty", "AuthFailed", fault(401))
    yield failure("auth-403", "AuthFailed", fault(403, {"error": "not for you"}))
    yield failure(
        "auth-403-page", "AuthFailed", fault(403, "<html>Forbidden</html>", {"content-type": "text/html"})
    )
    yield failure("auth-400-code", "AuthFailed", openai("no", code="invalid_api_key"))
    said = "API key not valid. Please pass a valid API key."
    gemini = [{"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}]
    yield failure("auth-400-gemini", "AuthFailed", fault(400, gemini))


def _quota() -> Iterator[Row]:
    said = "You exceeded your current quota, please check your plan and billing details."
    yield failure("quota-402", "QuotaExceeded", fault(402, {"error": {"message": "Insufficient Balance"}}))
    yield failure("quota-402-empty", "QuotaExceeded", fault(402))
    code = {"type": "insufficient_quota", "code": "insufficient_quota"}
    yield failure("quota-429-code", "QuotaExceeded", openai("x", 429, **code))
    yield failure("quota-429-type", "QuotaExceeded", openai("x", 429, type="insufficient_quota"))
    yield failure("quota-429-words", "QuotaExceeded", openai(said, 429))
    yield failure("quota-400-balance", "QuotaExceeded", openai("Insufficient Balance"))
    credit = "Your credit balance is too low to access the API. Please go to Plans & Billing."
    yield failure("quota-400-credit", "QuotaExceeded", openai(credit))
    hard = openai("Billing hard limit has been reached", code="billing_hard_limit_reached")
    yield failure("quota-400-billing", "QuotaExceeded", hard)


def _context() -> Iterator[Row]:
    for name, said, limit, used in CONTEXTS:
        shows = {key: value for key, value in {"limit": limit, "used": used}.items() if value}
        yield failure(f"context-{name}", "ContextTooLong", openai(said), shows=shows)
    yield failure("context-code", "ContextTooLong", openai("Too much.", code="context_length_exceeded"))
    error = {
        "code": 400,
        "message": "the request exceeds the available context size",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 600,
        "n_ctx": 512,
    }
    figures = {"limit": 512, "used": 600}
    yield failure("context-llama-cpp-figures", "ContextTooLong", fault(400, {"error": error}), shows=figures)
    yield failure("context-413", "ContextTooLong", fault(413, "<html>Payload Too Large</html>"))
    yield failure("context-413-empty", "ContextTooLong", fault(413))
    both = "max_tokens is too large: 8000. This model's maximum context length is 4096 tokens."
    wins = openai(both, param="max_tokens")
    yield failure("context-before-parameters", "ContextTooLong", wins, shows={"limit": 4096})
    long = openai(
        "Invalid 'messages[0].content': string too long. Expected a string with maximum length 1048576.",
        param="messages[0].content",
        code="string_above_max_length",
    )
    yield failure("context-not-a-long-string", "RequestRefused", long, request=PLAIN)


def _content() -> Iterator[Row]:
    azure = openai(
        "The response was filtered due to the prompt triggering Azure's content management policy.",
        code="content_filter",
        innererror={"code": "ResponsibleAIPolicyViolation"},
    )
    yield failure("content-azure", "ContentRefused", azure)
    inner = openai("no", innererror={"code": "ResponsibleAIPolicyViolation"})
    yield failure("content-azure-inner", "ContentRefused", inner)
    yield failure("content-openai", "ContentRefused", openai("no", code="content_policy_violation"))
    qwen = openai("Input data may contain inappropriate content.", code="data_inspection_failed")
    yield failure("content-qwen", "ContentRefused", qwen)
    said = "Invalid prompt: your prompt was flagged as potentially violating our usage policy."
    yield failure("content-prompt", "ContentRefused", openai(said))
    filtered = text("I", finish="content_filter")
    refusing = text("", message={"refusal": "I won't say."})
    for name, reply in {"finish": filtered, "refusal": refusing}.items():
        yield Row(f"content-{name}", PLAIN, Vendor({}), "ContentRefused", reply=_say(reply), requests=1)


def _say(reply: Any) -> Any:
    return lambda body: reply


def _model() -> Iterator[Row]:
    gone = openai("no such thing", 404, code="model_not_found")
    near = ("model-exactly-here",)
    yield failure("model-exactly-herr", "ModelNotFound", gone, says=near)
    yield Row("model-exactly-here", PLAIN)
    said = "The model `x` does not exist or you do not have access to it."
    yield failure("model-words", "ModelNotFound", openai(said, 404))
    ollama = fault(404, {"error": 'model "x" not found, try pulling it first'})
    yield failure("model-ollama", "ModelNotFound", ollama)
    yield failure(
        "model-ollama-object", "ModelNotFound", openai('model "x" not found, try pulling it first', 404)
    )


def _transient() -> Iterator[Row]:
    for status in (408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529):
        yield failure(f"transient-{status}", "Transient", openai("try later", status))
        yield Row(
            f"transient-{status}-then-an-answer",
            FULL,
            first=(openai("try later", status),),
            requests=2,
            again=2,
        )
    html = fault(502, "<html>Bad Gateway</html>", {"content-type": "text/html"})
    yield failure("transient-page", "Transient", html)
    yield failure("transient-empty", "Transient", fault(503))
    for status in (429, 500, 503):
        final = fault(status, {"error": {"message": "no"}}, {"x-should-retry": "false"})
        yield failure(f"final-{status}", "RequestRefused", final)
        yield failure(f"final-{status}-through-the-client", "RequestRefused", final, client=True)
    yield Row(
        "refused-after-a-fault",
        FULL,
        Vendor(
            {
                "seed": openai("Unsupported parameter: 'seed'"),
                "images": openai("does not support image input"),
            }
        ),
        first=(openai("overloaded", 503),),
        requests=4,
        again=2,
    )


def _wishes() -> Iterator[Row]:
    for name, headers, message, low, high in WISHES:
        limited = fault(429, {"error": {"message": message}}, headers)
        yield failure(f"wish-{name}", "Transient", limited, shows={"retry_after": (low, high)})
    delay = [{"@type": "type.example/RetryInfo", "retryDelay": "37s"}]
    gemini = fault(429, [{"error": {"code": 429, "message": "slow down", "details": delay}}])
    yield failure("wish-gemini", "Transient", gemini, shows={"retry_after": (37.0, 40.8)})
    date = fault(429, {"error": "slow down"}, {"retry-after": formatdate(time.time() + 3600, usegmt=True)})
    yield failure("wish-date", "Transient", date, shows={"retry_after": (600.0, 3961.0)})
    epoch = str(int((time.time() + 3600) * 1000))
    router = fault(429, {"error": "slow down"}, {"x-ratelimit-reset": epoch})
    yield failure("wish-epoch", "Transient", router, shows={"retry_after": (600.0, 3961.0)})
    short = fault(429, {"error": "slow down"}, {"retry-after": "30"})
    yield Row("wish-granted", STRUCTURED, first=(short,), requests=2, again=2)
    for name, headers in {"long": {"retry-after": "3600"}, "long-ms": {"retry-after-ms": "121000"}}.items():
        limited = fault(429, {"error": "slow down"}, headers)
        yield Row(
            f"wish-too-{name}", STRUCTURED, Vendor({"always": limited}), "InfrastructureError", requests=1
        )


def _unknown() -> Iterator[Row]:
    for status in (400, 404, 405, 415, 422, 501):
        refused = fault(status, {"error": {"message": "Bad Request"}})
        yield refusal(f"unknown-{status}", SAMPLED, {"seed": refused}, requests=2, blind=True)
    yield Row(
        "unknown-and-nothing-to-leave-out",
        PLAIN,
        Vendor({"always": openai("Bad Request")}),
        "RequestRefused",
        client=False,
        requests=1,
    )
    for name, request, most in (("sampled", SAMPLED, (4, 5)), ("full", FULL, (7, 9))):
        yield Row(
            f"unknown-for-good-{name}",
            request,
            Vendor({"always": openai("Bad Request")}),
            "RequestRefused",
            client=False,
            requests=most,
        )
    for status in (418, 307, 451):
        yield failure(f"unknown-{status}", "RequestRefused", fault(status, {"error": "no"}))
