"""What the client is given: the journal as it sees it, and the limits of one question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from corerun.interfaces import Event, Json


class Recorder(Protocol):
    """The journal as the client sees it.

    ``emit`` writes one durable record and returns its number; ``blob`` keeps bytes and returns
    their sha256; ``answered`` maps call keys to the ``call_answered`` records of earlier processes.
    """

    @property
    def answered(self) -> Mapping[str, Event]: ...

    def emit(self, type: str, **data: Json) -> int: ...

    def blob(self, data: bytes) -> str: ...


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """Limits of one question: ``deadline_s`` is for its calls, waits, retries and re-asks together.

    ``concurrency``: calls to one model at once. ``max_wait_s``: the longest wait that a server may
    ask for.
    """

    retries: int = 5
    repairs: int = 2
    deadline_s: float = 600.0
    max_wait_s: float = 120.0
    concurrency: int = 8
