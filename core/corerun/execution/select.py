"""Chooses the sandbox by what each one's probe gave, and refuses where none gives what is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from corerun.errors import SandboxUnavailable
from corerun.interfaces import GUARANTEES, Probe

MODEL_CODE_GUARANTEES = frozenset({"env", "tree_kill", "fs_read", "fs_write", "net"})
"""What code that a model wrote needs."""

RULES_CODE_GUARANTEES = frozenset({"env", "tree_kill"})
"""What code of our own needs."""

CONTAINER_STRENGTH = 40
"""From here on a sandbox is a machine of its own, with its own software: only taken when it is named."""

OPT_OUT = "--sandbox local --i-accept-no-isolation"


@dataclass(frozen=True, slots=True)
class Choice:
    """The sandbox that was chosen. ``weak``: what was required and accepted not to have."""

    name: str
    probe: Probe
    weak: frozenset[str]

    @property
    def missing(self) -> list[str]:
        """All that it doesn't guarantee, required or not."""
        return sorted(GUARANTEES - self.probe.guarantees)


def choose(
    probes: Mapping[str, Probe], wanted: str, require: frozenset[str], *, accept_weak: bool = False
) -> Choice:
    """The sandbox ``wanted``, or with ``auto`` the strongest one on this machine that is enough.

    Raises `SandboxUnavailable` when none meets the requirement, unless ``accept_weak`` allows it; one
    that doesn't work is never chosen.
    """
    considered = {
        name: probe
        for name, probe in sorted(probes.items(), key=lambda item: (-item[1].strength, item[0]))
        if name == wanted or (wanted == "auto" and probe.strength < CONTAINER_STRENGTH)
    }
    usable = [name for name, probe in considered.items() if probe.ok]
    # Enough guarantees before strength: a strong sandbox that lacks one is no use.
    usable.sort(key=lambda name: require <= considered[name].guarantees, reverse=True)
    if not usable:
        raise SandboxUnavailable(_refusal(require, considered))
    best = usable[0]
    weak = require - considered[best].guarantees
    if weak and not accept_weak:
        raise SandboxUnavailable(_refusal(weak, considered))
    return Choice(best, considered[best], weak)


def _refusal(needed: frozenset[str], considered: Mapping[str, Probe]) -> str:
    parts = [f"sandbox_unavailable: needs {', '.join(sorted(needed)) or 'a sandbox that works'}"]
    for name, probe in considered.items():
        given = ", ".join(sorted(probe.guarantees)) or "nothing"
        parts.append(f"{name}: gives {given}" if probe.ok else f"{name}: {probe.reason}")
    parts.append(f"to run without isolation: {OPT_OUT}")
    return "; ".join(parts)
