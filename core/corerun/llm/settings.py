"""What the client is given: the journal as it sees it, and how models are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from corerun.interfaces import Event, Json, Provider
from corerun.llm.directory import ModelTarget


class Recorder(Protocol):
    """The journal as the client sees it.

    ``emit`` writes one durable record and returns its number; ``blob`` keeps bytes and returns
    their sha256; ``answered`` maps call keys to the ``call_answered`` records of earlier processes.
    """

    @property
    def answered(self) -> Mapping[str, Event]: ...

    def emit(self, type: str, **data: Json) -> int: ...

    def blob(self, data: bytes) -> str: ...


class Directory(Protocol):
    """What a model's name means and who answers for it: `corerun.llm.directory.ModelDirectory`."""

    def target(self, name: str) -> ModelTarget: ...

    def provider(self, name: str) -> Provider: ...


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """Limits of one question: ``deadline_s`` is for its calls, waits, retries, fallbacks and re-asks
    together.

    ``concurrency``: calls at once to a model that sets no number of its own. ``max_wait_s``: the
    longest wait that a server may ask for. ``cache``: ``off``, ``read`` or ``write``. ``strict``: a
    feature that a server refuses is an error.
    """

    retries: int = 5
    repairs: int = 2
    deadline_s: float = 600.0
    max_wait_s: float = 120.0
    concurrency: int = 8
    cache: str = "off"
    strict: bool = False
