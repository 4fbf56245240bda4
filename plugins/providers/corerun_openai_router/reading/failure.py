"""Tells what a server's refusal means: statuses and wordings of the vendors into corerun's errors."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

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
from corerun.llm.retry_after import PASSING, TOO_MANY, wished_wait
from corerun.redaction import redact
from corerun_openai_router import facts as known
from corerun_openai_router.reading.details import Details, read_details
from corerun_openai_router.reading.refusals import Alternatives, refused_features
from corerun_openai_router.wire.endpoint import Endpoint
from corerun_openai_router.wire.transport import Response

_NAMES_FEATURES = frozenset({400, 404, 405, 415, 422, 500, 501})
_UNEXPLAINED = _NAMES_FEATURES - {500}
_INTERNAL_ERROR = 500
_LONGEST_EVIDENCE = 300
_ABILITIES = frozenset({known.TOOLS, known.IMAGES, "tool_choice=object"})
"""Facts about what a model or its server can do at all."""

_AUTH = re.compile(r"API key not valid|invalid_api_key|incorrect api key|no_db_connection", re.IGNORECASE)
_QUOTA = re.compile(
    r"insufficient_quota|exceeded your current quota|insufficient balance"
    r"|credit balance is too low|\bbilling\b",
    re.IGNORECASE,
)
_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size_error|maximum context length|ContextWindowExceededError"
    r"|exceeds the available context size|prompt is too long|exceeds the maximum number of tokens allowed"
    r"|longer than the model'?s context length|input length and `?max_tokens`? exceed"
    r"|current length is \d+ while limit is \d+|range of input length should be",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content_filter|content_policy_violation|ResponsibleAIPolicyViolation|data_inspection_failed"
    r"|ContentPolicyViolationError|invalid prompt.*usage policy",
    re.IGNORECASE | re.DOTALL,
)
_PASSING = re.compile(
    r"try again|please retry|retry your|overloaded|temporar|(?:service|currently) unavailable|at capacity"
    r"|timed out|had an error while",
    re.IGNORECASE,
)
_NO_ENDPOINT = re.compile(r"no endpoints found that support", re.IGNORECASE)
_PINNED = re.compile(r"server is pinned to|is not a valid model id|invalid model name passed", re.IGNORECASE)
_NO_MODEL = re.compile(r"model_not_found|does not exist|not found, try pulling it first", re.IGNORECASE)

_COUNT = r"([\d,]+)"
_LIMITS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"maximum context length (?:is|of) (?P<limit>{_COUNT})"
        rf"(?:.{{0,80}}?(?:requested|resulted in|has|contains|is|are)"
        rf" (?:about |at least )?(?P<used>{_COUNT}))?",
        rf"(?P<used>{_COUNT}) tokens > (?P<limit>{_COUNT})",
        rf"current length is (?P<used>{_COUNT}) while limit is (?P<limit>{_COUNT})",
        rf"\((?P<used>{_COUNT})(?: tokens)?\) exceeds the (?:available context size|maximum number of tokens"
        rf" allowed) \((?P<limit>{_COUNT})",
        rf"input length should be \[\d+, ?(?P<limit>{_COUNT})\]",
        rf"exceed context limit: (?P<used>{_COUNT}).*?> (?P<limit>{_COUNT})",
        rf"\((?P<used>{_COUNT})(?: tokens)?\).{{0,40}}longer than the model'?s context length"
        rf" \((?P<limit>{_COUNT})",
        rf"(?P<used>{_COUNT}).{{0,40}}longer than the model'?s context length.{{0,10}}?(?P<limit>{_COUNT})",
    )
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer that isn't a success means.

    ``error`` is to be raised unless a request without the ``named`` features helps. ``unexplained``:
    the server refuses the request and doesn't say why. ``said`` is its sentence, redacted.
    """

    error: ModelError
    said: str
    status: int
    named: tuple[Alternatives, ...] = ()
    unexplained: bool = False


def classify(response: Response, request: ChatRequest, endpoint: Endpoint) -> ModelError:
    """The error for ``response`` where nothing is sent again."""
    return judge(response, request, {}, endpoint, {}).error


def judge(
    response: Response,
    request: ChatRequest,
    body: Mapping[str, Json],
    endpoint: Endpoint,
    wording: Mapping[str, tuple[str, ...]],
) -> Verdict:
    """What ``response`` to ``body`` means; the first rule that fits decides.

    Money, context and filters are told from words because servers and gateways hide them under
    400, 404, 429 and 500 alike; only then does the status count.
    """
    status = response.status
    details = read_details(response.text, request)
    said = redact(f"HTTP {status}: {' '.join(details.said.split())}")[:_LONGEST_EVIDENCE]
    line = endpoint.say(f"HTTP {status}: {details.said}")
    final = _final(response, details, line, endpoint)
    if final is not None:
        return Verdict(final, said, status)
    if _is_unknown_model(status, details):
        return Verdict(ModelNotFound(line), said, status)
    named: tuple[Alternatives, ...] = ()
    if status in _NAMES_FEATURES:
        named = tuple(refused_features(details, body, wording))
    if any(facts[0] in _ABILITIES for facts in named):
        return Verdict(Unsupported(line), said, status, named)
    should_retry = response.headers.get("x-should-retry", "").lower() != "false"
    # An error under status 200 with nothing recognised is an upstream that broke off.
    if should_retry and (status in PASSING or response.is_success):
        wish = wished_wait(status, response.headers, response.text, time.time())
        is_unexplained = status == _INTERNAL_ERROR and not _PASSING.search(details.text)
        error = Transient(line, retry_after=wish, limited=status in TOO_MANY)
        return Verdict(error, said, status, named, is_unexplained)
    hint = _hint(response, endpoint)
    # A wrong address refuses every request alike.
    is_unexplained = should_retry and not named and not hint and status in _UNEXPLAINED
    refused = RequestRefused(line, hint=hint)
    return Verdict(refused, said, status, named, is_unexplained)


def _final(response: Response, details: Details, line: str, endpoint: Endpoint) -> ModelError | None:
    """The errors that no other request to this server can avoid."""
    status, text = response.status, details.text
    if status in (401, 403) or _AUTH.search(text):
        return AuthFailed(line, hint=f"check {_key_variable(endpoint)} and what its account may use")
    # Google and OpenAI speak of quota and billing in limits per minute too, but say when to come back.
    wish = wished_wait(status, {}, response.text, time.time())
    is_rate = wish is not None and "insufficient_quota" not in text
    if status == 402 or (_QUOTA.search(text) and not is_rate):
        return QuotaExceeded(line, hint="the account has no money or quota left; the run can be resumed")
    if status == 413 or (_CONTEXT.search(text) and "string_above_max_length" not in details.codes):
        limit, used = _lengths(details)
        return ContextTooLong(line, limit=limit, used=used)
    return ContentRefused(line) if _FILTER.search(text) else None


def _is_unknown_model(status: int, details: Details) -> bool:
    if _NO_ENDPOINT.search(details.text):
        return False
    if _PINNED.search(details.text) or "model_not_found" in details.codes:
        return True
    return status == 404 and _NO_MODEL.search(details.text) is not None


def _lengths(details: Details) -> tuple[int | None, int | None]:
    """The context window and what was asked of it, in tokens, where the server says them."""
    limit, used = details.counts.get("n_ctx"), details.counts.get("n_prompt_tokens")
    for pattern in _LIMITS:
        match = pattern.search(details.message)
        if match:
            counts = {name: int(text.replace(",", "")) for name, text in match.groupdict().items() if text}
            return limit or counts.get("limit"), used or counts.get("used")
    return limit, used


def _hint(response: Response, endpoint: Endpoint) -> str:
    if 300 <= response.status < 400:
        return f"it redirects to {redact(response.headers.get('location', 'nowhere'))}"
    return endpoint.version_hint if response.status == 404 and '"error"' not in response.text else ""


def _key_variable(endpoint: Endpoint) -> str:
    return next((name for name in endpoint.variables if name.endswith("_API_KEY")), "the key")
