"""Inside what the programs of a job run: every sandbox probed once, one chosen, and what it lacks."""

from __future__ import annotations

from dataclasses import dataclass

from corerun.errors import CorerunError, SandboxBroken
from corerun.execution import select
from corerun.interfaces import ExecResult, Json, Policy, Probe, Sandbox
from corerun.plugins import PluginManager


@dataclass(frozen=True, slots=True)
class Isolation:
    """A chosen sandbox, ready for `corerun.execution.worker.program_spec`.

    ``missing`` is all that it doesn't guarantee; ``weak`` what was required of that, and accepted.
    """

    name: str
    target: str
    guarantees: tuple[str, ...]
    missing: tuple[str, ...]
    weak: tuple[str, ...]
    policy: Policy

    @property
    def facts(self) -> dict[str, Json]:
        """As records and manifests hold it."""
        return {"name": self.name, "guarantees": list(self.guarantees), "missing": list(self.missing)}

    @property
    def warning(self) -> str:
        """What a person must know about programs that run weaker than they should; empty if none do."""
        if not self.weak:
            return ""
        return f"weak isolation: programs run under {self.name!r}, without {', '.join(self.weak)}"

    def check(self, result: ExecResult) -> None:
        """Raise `SandboxBroken` for a program that ran with less than the sandbox was chosen for."""
        given = result.sandbox.get("guarantees", self.guarantees)
        lost = self.policy.require - set(given) - set(self.weak)
        if lost:
            raise SandboxBroken(
                f"the sandbox {self.name} no longer gives {', '.join(sorted(lost))}",
                hint="corerun doctor says why",
            )


def isolate(manager: PluginManager, wanted: str, policy: Policy, *, accept_weak: bool = False) -> Isolation:
    """Choose the sandbox for programs under ``policy``; see `corerun.execution.select.choose`.

    A sandbox whose class says ``only_by_name`` isn't even probed for ``auto``.
    """
    if wanted == "auto":
        targets = _installed(manager)
    else:
        targets = {wanted: manager.find("sandboxes", wanted).component.target}
    probes = {name: _probe(manager, name, automatic=wanted == "auto") for name in targets}
    choice = select.choose(probes, wanted, policy.require, accept_weak=accept_weak)
    return Isolation(
        choice.name,
        targets[choice.name],
        tuple(sorted(choice.probe.guarantees)),
        tuple(choice.missing),
        tuple(sorted(choice.weak)),
        policy,
    )


def probe_all(manager: PluginManager) -> dict[str, Probe]:
    """What every installed sandbox can do here."""
    return {name: _probe(manager, name) for name in _installed(manager)}


def _installed(manager: PluginManager) -> dict[str, str]:
    """Names of the sandboxes, with what to import."""
    return {item.component.name: item.component.target for item in manager.components("sandboxes")}


def _probe(manager: PluginManager, name: str, *, automatic: bool = False) -> Probe:
    """What a sandbox can do here. One that is broken can do nothing."""
    try:
        sandbox: Sandbox = manager.get("sandboxes", name)()
        if automatic and getattr(sandbox, "only_by_name", False):
            return Probe(False, "only taken when it is named", strength=select.CONTAINER_STRENGTH)
        return sandbox.probe()
    except CorerunError as error:
        return Probe(ok=False, reason=str(error))
    except Exception as error:
        return Probe(ok=False, reason=f"its probe failed: {type(error).__name__}: {error}")
