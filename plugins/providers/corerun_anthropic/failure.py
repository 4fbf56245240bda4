"""Tells what a refusal of Anthropic's API means, in corerun's errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
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
from corerun.interfaces import Json
from corerun.llm.retry_after import PASSING, TOO_MANY, wished_wait
from corerun_anthropic.endpoint import KEY_VARIABLES, Endpoint

_LARGEST_BODY = 2000
_TRANSIENT_TYPES = frozenset({"rate_limit_error", "overloaded_error", "api_error", "timeout_error"})
_TOO_MANY_TYPES = frozenset({"rate_limit_error", "overloaded_error"})
_QUOTA = re.compile(
    r"credit balance is too low|(?:spend|usage) limits?\b.*reached|reached your .*(?:spend|usage) limit"
    r"|spend_limit_reached",
    re.IGNORECASE | re.DOTALL,
)
_CONTEXT = re.compile(
    r"prompt is too long(?:: (?P<used>\d+) tokens > (?P<limit>\d+))?"
    r"|input length and `?max_tokens`? exceed context limit(?:: (?P<input>\d+) \+ \d+ > (?P<window>\d+))?",
    re.IGNORECASE,
)
_FILTER = re.compile(r"blocked by content filter|content filtering policy", re.IGNORECASE)
_IMAGE_SIZE = re.compile(r"image exceeds|image dimensions exceed|could not process image", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """A refusal as it came: HTTP status, headers with names in lower case, and the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""

    @property
    def document(self) -> Mapping[str, Json]:
        """The body as a JSON object; empty if it is none."""
        try:
            data = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}

    @property
    def error(self) -> Mapping[str, Json]:
        """``{type, message, details}`` of the API's error object; empty if the body has none."""
        error = self.document.get("error")
        return error if isinstance(error, dict) else {}

    @property
    def is_page(self) -> bool:
        """Whether this was written for a browser."""
        return "html" in self.headers.get("content-type", "") or self.body.lstrip()[:1] == "<"

    @property
    def message(self) -> str:
        """What the server says, for people."""
        said = self.error.get("message")
        plain = " ".join(re.sub(r"<[^>]*>", " ", self.body[:_LARGEST_BODY]).split())
        return said if isinstance(said, str) and said else plain or "no explanation"


def classify(answer: Answer, endpoint: Endpoint) -> ModelError:
    """The error that ``answer`` is. Types count before the status: an error within a stream has 200."""
    kind, message, status = str(answer.error.get("type", "")), answer.message, answer.status
    line = endpoint.say(f"HTTP {status}: {message}" if status >= 400 else message)
    if status in (401, 403) or kind in ("authentication_error", "permission_error"):
        return AuthFailed(line, hint=f"check {KEY_VARIABLES[0]} and what its account may use")
    details = answer.error.get("details")
    code = str(details.get("error_code", "")) if isinstance(details, dict) else ""
    if status == 402 or kind == "billing_error" or _QUOTA.search(f"{code} {message}"):
        return QuotaExceeded(line, hint="the account has no money or quota left; the run can be resumed")
    if kind == "not_found_error" and "model" in message.lower():
        return ModelNotFound(line)
    context = _CONTEXT.search(message)
    if status == 413 or kind == "request_too_large" or context:
        numbers = context.groupdict() if context else {}
        limit, used = (
            numbers.get("limit") or numbers.get("window"),
            numbers.get("used") or numbers.get("input"),
        )
        return ContextTooLong(line, limit=int(limit) if limit else None, used=int(used) if used else None)
    if _FILTER.search(message):
        return ContentRefused(line)
    if _IMAGE_SIZE.search(message):
        return Unsupported(line)
    is_cut = status < 300 and not answer.error and not answer.is_page
    may_pass = kind in _TRANSIENT_TYPES or status in PASSING or is_cut
    if may_pass and answer.headers.get("x-should-retry", "").lower() != "false":
        wish = wished_wait(status, answer.headers, "", time.time())
        is_limited = status in TOO_MANY or kind in _TOO_MANY_TYPES
        return Transient(line, retry_after=wish, limited=is_limited)
    hint = ""
    if not answer.error:
        hint = f"is {endpoint.address} the address of an API that speaks Anthropic's Messages?"
    return RequestRefused(line, hint=hint)
