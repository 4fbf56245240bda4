"""Chooses the sandbox, and refuses where none gives what is needed."""

from __future__ import annotations

from collections.abc import Mapping

from corerun.errors import SandboxUnavailable, UsageError
from corerun.interfaces import Probe, Sandbox

MODEL_CODE_GUARANTEES = frozenset({"env", "tree_kill", "fs_read", "fs_write", "net"})
"""What code that a model wrote needs."""

RULES_CODE_GUARANTEES = frozenset({"env", "tree_kill"})
"""What code of our own needs."""

_OPT_OUT = "--sandbox local --i-accept-no-isolation"


def choose_sandbox(
    candidates: Mapping[str, Sandbox], wanted: str, require: frozenset[str], *, accept_weak: bool
) -> tuple[Sandbox, Probe, frozenset[str]]:
    """The sandbox ``wanted``, or with ``auto`` the strongest one, and the guarantees it lacks.

    The last part is empty unless ``accept_weak`` allowed a weak one. Raises `UsageError` for an
    unknown name and `SandboxUnavailable` when the requirement isn't met.
    """
    if wanted != "auto" and wanted not in candidates:
        raise UsageError(f"unknown sandbox {wanted!r}", hint=f"one of auto, {', '.join(sorted(candidates))}")
    names = sorted(candidates) if wanted == "auto" else [wanted]
    probes = {name: candidates[name].probe() for name in names}
    usable = [name for name in names if probes[name].ok]
    # Enough guarantees before strength: a strong sandbox that lacks one is no use.
    usable.sort(key=lambda name: (require <= probes[name].guarantees, probes[name].strength), reverse=True)
    if not usable:
        raise SandboxUnavailable(_refusal(require, probes), hint=_OPT_OUT)
    best = usable[0]
    missing = require - probes[best].guarantees
    if missing and not accept_weak:
        raise SandboxUnavailable(_refusal(missing, probes))
    return candidates[best], probes[best], missing


def _refusal(missing: frozenset[str], probes: Mapping[str, Probe]) -> str:
    parts = [f"sandbox_unavailable: needs {', '.join(sorted(missing))}"]
    for name, probe in probes.items():
        given = ", ".join(sorted(probe.guarantees)) or "nothing"
        parts.append(f"{name}: gives {given}" if probe.ok else f"{name}: {probe.reason}")
    parts.append(f"to run without isolation: {_OPT_OUT}")
    return "; ".join(parts)
