"""What an escape is: a program, what would hold it, and how the outside sees whether it got through."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.escapes.surroundings import Place

Attack = Callable[..., None]
Measure = Callable[[list[int]], float]
Evidence = Callable[["Trace"], bool]

# What a program is held to unless it says otherwise.
LIMITS: Mapping[str, float] = {
    "wall_s": 40.0,
    "grace_s": 0.3,
    "mem_mb": 400,
    "pids": 64,
    "file_mb": 64,
    "disk_mb": 200,
}

_SEEN = """\
def be_seen(token):
    import ctypes

    ctypes.CDLL(None).prctl(15, token.encode(), 0, 0, 0)
"""


@dataclass(frozen=True)
class Escape:
    """One attack. ``covers``: any of these guarantees, where a sandbox gives it, must hold the attack.

    ``second`` is a program that runs after it in a workspace of its own (``order`` "then"), after it in
    the same workspace ("again") or beside it ("beside"). ``alone``: takes so much of the machine that it
    runs by itself; ``last``: may end who runs it. ``rights`` is "root" where an ordinary account can't do
    it even without a sandbox. ``measure`` is asked again and again, with the processes of the program.
    """

    name: str
    attack: Attack
    covers: frozenset[str]
    evidence: Evidence
    second: Attack | None = None
    order: str = "then"
    alone: bool = False
    last: bool = False
    rights: str = ""
    measure: Measure | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    landlock_gap: bool = False

    @property
    def by_command(self) -> bool:
        """Whether `corerun exec` can set all that the attack is about."""
        flags = {"wall_s", "grace_s", "mem_mb", "pids", "file_mb", "disk_mb"}
        return set(self.limits) <= flags and not self.fields

    def all_limits(self) -> dict[str, float]:
        return {**LIMITS, **self.limits}


@dataclass
class Trace:
    """What one escape left: the place it ran in, what came back, and what was seen from outside."""

    escape: Escape
    place: Place
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[float, float]] = field(default_factory=list)
    seen: float | None = None
    ended: float | None = None
    runner_died: bool = False

    @property
    def last(self) -> dict[str, Any]:
        return self.outcomes[-1] if self.outcomes else {"status": "lost", "stdout": ""}


def escape(
    *covers: str, evidence: Evidence, into: list[Escape], **options: Any
) -> Callable[[Attack], Attack]:
    """Adds the function, whose source is the program, to the table ``into``."""

    def add(attack: Attack) -> Attack:
        into.append(Escape(attack.__name__, attack, frozenset(covers), evidence, **options))
        return attack

    return add


def program_text(attack: Attack, values: Mapping[str, Any]) -> str:
    """The function as a program of its own, called with those of ``values`` that it names."""
    source = textwrap.dedent(inspect.getsource(attack))
    source = source[source.index(f"def {attack.__name__}(") :]
    wanted = {name: values[name] for name in inspect.signature(attack).parameters}
    lines: list[str] = []
    if "token" in wanted:
        lines += [_SEEN, f"be_seen({wanted['token']!r})"]
    return "\n".join([*lines, source, f"{attack.__name__}(**{wanted!r})", ""])


# ------------------------------------------------------------------------------------- evidence


def leaks(trace: Trace) -> bool:
    """A secret that no program was given stands in what came back."""
    return any(secret in trace.last.get("stdout", "") for secret in trace.place.secrets())


def changes(trace: Trace) -> bool:
    """Something outside the workspace isn't as it was."""
    return trace.place.changed()


def arrives(trace: Trace) -> bool:
    """A listener outside got the program's token."""
    return trace.place.arrived()


def touches_bystander(trace: Trace) -> bool:
    """A process that has nothing to do with the program is gone, stopped, or has other limits."""
    return trace.place.victim_changed()


def survives(trace: Trace) -> bool:
    """A process of the program lived on a second after the program was reported as ended."""
    return trace.seen is not None and trace.ended is not None and trace.seen > trace.ended + 1.0


def outlasts(trace: Trace) -> bool:
    """The program couldn't be ended at its time limit."""
    return survives(trace) or trace.last["status"] not in {"timeout", "killed"}


def reaches(amount: float) -> Evidence:
    """What is measured went above ``amount``."""
    return lambda trace: any(value > amount for _, value in trace.samples)


def holds(amount: float, seconds: float = 0.7) -> Evidence:
    """What is measured was above ``amount`` for ``seconds``: no peak that a watchdog was about to end."""

    def judge(trace: Trace) -> bool:
        times = [when for when, value in trace.samples if value > amount]
        return len(times) > 1 and times[-1] - times[0] >= seconds

    return judge


def lists(wrong: Callable[[Trace, dict[str, Any]], bool]) -> Evidence:
    """A file that nobody may collect is among the files collected, or collecting never ended."""

    def judge(trace: Trace) -> bool:
        if trace.last["status"] in {"hung", "lost", "infra_error"}:
            return True
        return any(wrong(trace, entry) for entry in trace.last.get("files", ()))

    return judge


def leaves(too_much: Callable[[Path], bool]) -> Evidence:
    """What lies in the workspace afterwards is more than was allowed."""
    return lambda trace: too_much(trace.place.workspace)


def returns(wrong: Callable[[dict[str, Any]], bool]) -> Evidence:
    """What came back is not what the host saw."""
    return lambda trace: trace.last["status"] in {"hung", "lost"} or wrong(trace.last)


def ends_runner(trace: Trace) -> bool:
    """Who ran the program is gone."""
    return trace.runner_died or trace.last["status"] == "lost"
