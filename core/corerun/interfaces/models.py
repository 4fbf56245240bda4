"""Talking to models: messages, requests, replies, providers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from corerun.interfaces.component import Json

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a message: ``kind`` is ``text`` or ``image``; images carry bytes and a media type."""

    kind: str
    text: str = ""
    data: bytes = b""
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asked for. ``arguments`` is the raw text; the client parses it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``role`` is ``system``, ``user``, ``assistant`` or ``tool``.

    ``reasoning`` is what an assistant thought before its turn, for servers that want it back.
    """

    role: str
    content: str | tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to one model. ``model`` is the provider's own id, without the provider's name.

    ``schema`` is a JSON Schema for the answer; the provider chooses the channel for it (tool,
    response format, prompt) and the core extracts and validates.
    """

    model: str
    messages: tuple[Message, ...]
    schema: Json | None = None
    schema_name: str = ""
    tools: tuple[Json, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    reasoning_effort: str | None = None
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a provider may know of a call beside the request.

    ``facts`` is the structured form of what the messages say; rule-based providers read it.
    ``deadline`` is on the monotonic clock. ``strict``: a refused feature is an error.
    """

    purpose: str
    facts: Mapping[str, Json] = field(default_factory=dict)
    node: str | None = None
    deadline: float = float("inf")
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens. ``reasoning`` is contained in ``completion``, ``cached`` in ``prompt``."""

    prompt: int = 0
    completion: int = 0
    reasoning: int = 0
    cached: int = 0
    estimated: bool = False
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Degradation:
    """A feature of the request that was left out or written in another way, and why.

    ``feature`` is the request's word for it: ``seed``, ``tools``, ``images``, ``reasoning_effort``.
    """

    feature: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One answer. ``finish``: stop, length, tool, filter, refusal or unknown.

    ``requests`` counts what went over the wire. ``created`` is the server's time of the answer in
    unix seconds. ``requests_left`` and ``tokens_left`` are what the server says may still be sent
    in the current minute.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    finish: str = "stop"
    usage: Usage = Usage()
    model: str = ""
    degradations: tuple[Degradation, ...] = ()
    requests: int = 1
    created: int | None = None
    requests_left: int | None = None
    tokens_left: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer that is still being written.

    ``kind`` is ``text``, ``reasoning`` or ``tool_args``; the last one of a stream is ``reply`` and
    carries the whole answer, the same that ``complete`` would give.
    """

    kind: str
    text: str = ""
    reply: ChatReply | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a caller of the client gets. ``seq`` is the number of the journal record that holds it."""

    value: T
    reply: ChatReply
    replayed: bool = False
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float
    cached: float | None = None


@dataclass(frozen=True, slots=True)
class ProviderInfo:
    """Facts about a provider. ``vision``: None means try, degrade, remember.

    ``kind`` is what people are told answers them: ``model`` or ``rules``. ``address`` is where the
    model is reached, without a login: answers of different addresses are never taken for each other.
    """

    name: str
    aliases: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    default_base_url: str = ""
    needs_key: bool = True
    is_local: bool = False
    vision: bool | None = None
    kind: str = "model"
    address: str = ""


@dataclass(frozen=True, slots=True)
class Connection:
    """What a provider is made from: its name in a model string, the environment, and the configuration.

    Fields that the configuration leaves out are empty; the provider then reads ``environ``, its own
    variables first. ``capabilities`` pins what the server takes (``{"tools": False}``) and
    ``wording`` adds regular expressions for its refusals, by feature; neither is ever unlearned.
    """

    provider: str = "default"
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    api_version: str = ""
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    wording: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One line of the matrix of what a server takes.

    ``verdict``: ``honoured``, ``ignored``, ``refused``, ``accepted`` (taken, no sign of either) or
    ``failed`` (the test told nothing); ``evidence`` is what the server did or said.
    """

    feature: str
    verdict: str
    status: int
    evidence: str


class Provider(Protocol):
    """A way to reach models: one answer per call, no retry. A component's target makes it from a
    `Connection`.

    ``complete`` raises classes of `corerun.errors` below ``ModelError``; only ``Transient`` is
    retried, by the core. Optional members:

    - ``check() -> None`` raises `UsageError` naming everything that is missing, before a run starts;
    - ``stream(request, ctx) -> AsyncIterator[Delta]``;
    - ``async list_models() -> list[str]``;
    - ``price(model) -> Price | None``;
    - ``learned(model: str | None) -> Sequence[Mapping]``, what was found out about servers, and
      ``forget(model: str | None) -> int``, which drops it and counts;
    - ``async probe(model) -> Sequence[ProbeRow]``;
    - ``async aclose() -> None``.
    """

    @property
    def info(self) -> ProviderInfo: ...

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply: ...


@dataclass(frozen=True, slots=True)
class Role:
    """Which model plays a role of a job, and how it is asked."""

    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    reasoning_effort: str | None = None
