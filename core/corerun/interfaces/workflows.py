"""Operators, rewards, contract stages, benchmarks, agents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from corerun.interfaces.component import Json


class Operator(Protocol):
    """A step of a workflow: declared inputs in, declared keys out."""

    description: str
    interface: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: frozenset[str]

    async def __call__(self, **inputs: Json) -> dict[str, Json]: ...


@dataclass(frozen=True, slots=True)
class Rollout:
    """One workflow run on one problem, as rewards see it."""

    problem: Json
    answer: str | None = None
    text: str = ""
    valid: bool = True
    fallback_level: int = 0
    operators: tuple[str, ...] = ()
    cost_usd: float | None = None
    seconds: float = 0.0
    correct: float | None = None
    group_cost_usd: float | None = None
    error: str = ""


@runtime_checkable
class Reward(Protocol):
    """One part of a reward; None means that it has nothing to say."""

    range: tuple[float, float]
    weight: float

    def score(self, rollout: Rollout) -> float | None: ...


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a contract stage came to."""

    ok: bool
    kind: str = ""
    message: str = ""
    outputs: Mapping[str, Json] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()


class Stage(Protocol):
    """One stage of a repository contract, at a position among the others."""

    name: str
    position: int
    needs: tuple[str, ...]

    async def run(self, ctx: Any) -> StageResult: ...


class Benchmark(Protocol):
    """Problems and how an answer to one is scored, 0 to 1."""

    def load(self, split: str) -> Iterator[Json]: ...

    def score(self, answer: str | None, problem: Json) -> float: ...


class Agent(Protocol):
    """A coding agent: one turn on a task."""

    async def run(self, task: Any) -> Any: ...

    async def close(self) -> None: ...
