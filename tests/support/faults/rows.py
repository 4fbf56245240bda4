"""One line of the table that judges the router: what is asked, what the server does, what must come."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from corerun.interfaces import ChatRequest, Message, Part
from tests.support.fault_server import ANSWER, PROSE, Body, Vendor
from tests.support.openai_server import Fault, fault

KEY = "sk-not-a-real-key-0123456789"
"""The key that every request of the table carries."""

SCHEMA = {
    "type": "object",
    "properties": {"metres": {"type": "number"}},
    "required": ["metres"],
    "additionalProperties": False,
}
IMAGE = Part("image", data=b"\x89PNG\r\n\x1a\n", media_type="image/png")
QUESTION = "How deep is the sea?"

PLAIN = ChatRequest("", (Message("system", "Be brief."), Message("user", QUESTION)))
SAMPLED = replace(
    PLAIN,
    temperature=0.2,
    top_p=0.9,
    max_tokens=64,
    seed=7,
    stop=("END",),
    reasoning_effort="low",
)
"""Every parameter of a request is set, and nothing else."""
STRUCTURED = replace(SAMPLED, schema=SCHEMA, schema_name="submit_depth")
SEEING = (PLAIN.messages[0], Message("user", (Part("text", QUESTION), IMAGE)))
FULL = replace(STRUCTURED, messages=SEEING)
"""A structured question with an image and every parameter."""

AZURE = {"api_version": "2024-10-21"}
"""Makes any address an Azure endpoint, which is asked in OpenAI's own dialect first."""

NO_TOOLS = {"capabilities": {"tools": False}}
"""The channels after the forced tool, beginning with a strict response format."""

Check = Callable[[Body], bool]


@dataclass(frozen=True)
class Row:
    """``error`` None: an answer must come; else the class of the error that must come.

    ``client``: asked through the core's client, which retries and asks again, or through the router
    alone. ``first``, ``reply``: see `Desk`. ``calls``: names of the tools that the answer calls.
    ``requests``: the exact count of the first pass, or a range; None: at
    most one more than refused features. ``again``: the most requests of the second pass. ``last``:
    checks of the request that was answered. ``shows``: attributes of the error, exact or as a
    range; ``says``: words in its message or hint. ``blind``: the server names nothing, so that other
    parameters may be left out on the way. ``connection``: fields of `Connection`; ``environ``:
    variables beside the address and the key. ``dead``: nobody listens at the address. ``avoidable``: a
    good request need not carry what is refused.
    """

    name: str
    request: ChatRequest
    vendor: Vendor = field(default_factory=lambda: Vendor({}))
    error: str | None = None
    client: bool = True
    first: Sequence[Any] = ()
    reply: Callable[[Body], Any] | None = None
    value: Any = None
    calls: Sequence[str] = ()
    requests: int | tuple[int, int] | None = None
    again: int | None = None
    last: Sequence[Check] = ()
    shows: Mapping[str, Any] = field(default_factory=dict)
    says: Sequence[str] = ()
    blind: bool = False
    connection: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    dead: bool = False
    avoidable: bool = False

    @property
    def expected(self) -> Any:
        """The value of the right answer."""
        if self.value is not None:
            return self.value
        return ANSWER if self.request.schema is not None else PROSE

    @property
    def document(self) -> Any:
        """What the server answers to a structured question."""
        return self.expected if isinstance(self.expected, dict) else ANSWER


def refusal(name: str, request: ChatRequest, refuses: Mapping[str, Fault], **fields: Any) -> Row:
    """A server that refuses features one after the other and answers when they are gone."""
    return Row(name, request, Vendor(refuses, fields.pop("together", None)), **fields)


def failure(name: str, error: str, answer: Fault, request: ChatRequest = FULL, **fields: Any) -> Row:
    """A server that says one thing to everything, which must be known for what it is at once."""
    return Row(name, request, Vendor({"always": answer}), error, **{"client": False, "requests": 1, **fields})


def extra(**parameters: Any) -> ChatRequest:
    """`SAMPLED` with more parameters."""
    return replace(SAMPLED, extra=parameters)


def openai(message: str, status: int = 400, **fields: Any) -> Fault:
    """An error as OpenAI writes it."""
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **fields}
    return fault(status, {"error": body})


def detail(items: Any, status: int = 422) -> Fault:
    """An error as FastAPI writes it."""
    return fault(status, {"detail": items})


def forbidden(*features: str) -> list[dict[str, Any]]:
    """Pydantic's list of fields that are not allowed."""
    return [
        {
            "type": "extra_forbidden",
            "loc": ["body", name],
            "msg": "Extra inputs are not permitted",
            "input": 1,
        }
        for name in features
    ]


def address(base_url: str, connection: Mapping[str, Any]) -> str:
    """A server's base URL, in Azure's form for a connection with an API version."""
    azure = "api_version" in connection
    return f"{base_url.removesuffix('/v1')}/openai/deployments/tiny" if azure else base_url


def carries(name: str, value: Any) -> Check:
    """A check that a parameter was sent with this value."""
    return lambda body: body.get(name) == value


def lacks(*names: str) -> Check:
    """A check that none of these parameters was sent."""
    return lambda body: not set(names) & set(body)


def nested(error: Any, levels: int) -> Any:
    """``error`` as JSON in the message of an error, as JSON in the message of an error, ..."""
    for _ in range(levels):
        error = {"error": {"message": json.dumps(error)}}
    return error
