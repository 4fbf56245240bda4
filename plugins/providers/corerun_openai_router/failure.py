"""Tells what a server's refusal means: bodies and wordings of the vendors into corerun's errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from corerun.errors import (
    AuthFailed,
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelNotFound,
    QuotaExceeded,
    RequestRefused,
    Transient,
    Unsupported,
)
from corerun.interfaces import ChatRequest, Json
from corerun_openai_router.endpoint import Endpoint
from corerun_openai_router.redaction import redact
from corerun_openai_router.retry_after import wished_wait
from corerun_openai_router.transport import Response

_DEEPEST = 6
_SHORTEST_ECHO = 12
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})

_QUOTA = re.compile(
    r"insufficient_quota|exceeded your current quota|insufficient balance"
    r"|credit balance is too low|\bbilling\b",
    re.IGNORECASE,
)
_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size_error|maximum context length"
    r"|exceeds the available context size|prompt is too long|exceeds the maximum number of tokens allowed"
    r"|longer than the model'?s context length|input length and `?max_tokens`? exceed"
    r"|current length is \d+ while limit is \d+|range of input length should be",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content_filter|content_policy_violation|ResponsibleAIPolicyViolation|data_inspection_failed"
    r"|invalid prompt.*usage policy",
    re.IGNORECASE | re.DOTALL,
)
_NO_ENDPOINT = re.compile(r"no endpoints found that support", re.IGNORECASE)
_NO_FEATURE = re.compile(
    r"does not support (?:tools|image|vision)|(?:tool choice|tools param) requires|unsupported param: tools"
    r"|not a multimodal model|image input is not supported|image_url is only supported",
    re.IGNORECASE,
)
_PINNED = re.compile(r"server is pinned to|is not a valid model id", re.IGNORECASE)
_NO_MODEL = re.compile(r"model_not_found|does not exist|not found, try pulling it first", re.IGNORECASE)


@dataclass(slots=True)
class Details:
    """What a body says, whatever its shape: codes and types, and sentences for people."""

    codes: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        return "; ".join(dict.fromkeys(self.messages))

    @property
    def text(self) -> str:
        return " ".join((*self.codes, *self.messages))


def classify(response: Response, request: ChatRequest, endpoint: Endpoint) -> ModelError:
    """The error for ``response``; the first rule that fits decides.

    Money, context and filters are told from words because servers and gateways hide them under
    400, 404, 429 and 500 alike; only then does the status count.
    """
    status = response.status
    details = read_details(response.text, request)
    text = details.text
    said = details.message or "; ".join(details.codes) or "no explanation"
    line = endpoint.say(f"HTTP {status}: {said}")
    if status in (401, 403) or "invalid_api_key" in details.codes or "API key not valid" in text:
        return AuthFailed(line, hint=f"check {_key_variable(endpoint)} and what its account may use")
    # Google and OpenAI speak of quota and billing in limits per minute too, but say when to come back.
    wish = wished_wait(status, {}, response.text, time.time())
    is_rate = wish is not None and "insufficient_quota" not in text
    if status == 402 or (_QUOTA.search(text) and not is_rate):
        return QuotaExceeded(line, hint="the account has no money or quota left; the run can be resumed")
    if status == 413 or (_CONTEXT.search(text) and "string_above_max_length" not in details.codes):
        return ContextTooLong(line)
    if _FILTER.search(text):
        return ContentRefused(line)
    if _NO_ENDPOINT.search(text) or (status >= 400 and _NO_FEATURE.search(text)):
        return Unsupported(line)
    if (
        _PINNED.search(text)
        or "model_not_found" in details.codes
        or (status == 404 and _NO_MODEL.search(text))
    ):
        return ModelNotFound(line)
    should_retry = response.headers.get("x-should-retry", "").lower() != "false"
    # An error under status 200 with nothing recognised is an upstream that broke off.
    if should_retry and (status in _TRANSIENT or response.is_success):
        wish = wished_wait(status, response.headers, response.text, time.time())
        return Transient(line, retry_after=wish)
    hint = ""
    if 300 <= status < 400:
        hint = f"it redirects to {redact(response.headers.get('location', 'nowhere'))}"
    elif status == 404 and '"error"' not in response.text:
        hint = endpoint.version_hint
    return RequestRefused(line, hint=hint)


def _key_variable(endpoint: Endpoint) -> str:
    return next((name for name in endpoint.variables if name.endswith("_API_KEY")), "the key")


def read_details(body: str, request: ChatRequest) -> Details:
    """Collect codes, types and messages from any vendor's body; an echoed prompt is cut out."""
    details = Details()
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
        sentence = " ".join(re.sub(r"<[^>]*>", " ", body).split())
        if sentence:
            details.messages.append(sentence[:1000])
    _collect(parsed, details, 0)
    echoes = sorted(_echoes(request), key=len, reverse=True)
    for number, message in enumerate(details.messages):
        for echo in echoes:
            message = message.replace(echo, "...")
        details.messages[number] = message
    return details


def _collect(value: Json, details: Details, depth: int) -> None:
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for item in value:
            _collect(item, details, depth + 1)
    elif isinstance(value, dict):
        for name in ("code", "type", "status"):
            if isinstance(value.get(name), str | int):
                details.codes.append(str(value[name]))
        for name in ("message", "msg", "detail", "error", "errors", "raw", "metadata"):
            if name in value:
                _collect(value[name], details, depth + 1)
    elif isinstance(value, str):
        _collect_text(value, details, depth)


def _collect_text(text: str, details: Details, depth: int) -> None:
    """A string may be a JSON document itself: gateways wrap what their upstream said."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            _collect(json.loads(text), details, depth + 1)
            return
        except (ValueError, RecursionError):
            pass
    if text.strip():
        details.messages.append(text.strip())


def _echoes(request: ChatRequest) -> Iterator[str]:
    """The prompt's texts as a server may quote them: as they are, or as JSON."""
    for message in request.messages:
        parts = (
            (message.content,)
            if isinstance(message.content, str)
            else [part.text for part in message.content]
        )
        for text in parts:
            if len(text) >= _SHORTEST_ECHO:
                yield text
                yield json.dumps(text)[1:-1]
                yield json.dumps(text, ensure_ascii=False)[1:-1]
