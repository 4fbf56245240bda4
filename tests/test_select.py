"""The choice of a sandbox: the strongest that is enough, a refusal that helps, weak only on demand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from corerun.errors import InfrastructureError, PluginError, SandboxBroken, SandboxUnavailable
from corerun.execution.select import MODEL_CODE_GUARANTEES, RULES_CODE_GUARANTEES, choose
from corerun.interfaces import GUARANTEES, Component, ExecResult, Policy, Probe
from corerun.job import isolation
from corerun.job.isolation import isolate, probe_all

LOCAL = Probe(True, "no isolation", RULES_CODE_GUARANTEES, 10)
LANDLOCK = Probe(True, "ABI 7", MODEL_CODE_GUARANTEES, 20)
BWRAP = Probe(True, "", GUARANTEES - {"pids"}, 30)
DOCKER = Probe(True, "", GUARANTEES, 40)
NO_BWRAP = Probe(False, "not installed (apt install bubblewrap)", strength=30)
NO_LANDLOCK = Probe(False, "kernel ABI 0", strength=20)


@pytest.mark.parametrize(
    ("probes", "chosen"),
    [
        ({"local": LOCAL, "landlock": LANDLOCK, "bwrap": BWRAP, "docker": DOCKER}, "bwrap"),
        ({"local": LOCAL, "landlock": LANDLOCK, "bwrap": NO_BWRAP, "docker": DOCKER}, "landlock"),
        ({"local": LOCAL, "landlock": LANDLOCK, "bwrap": replace(BWRAP, guarantees=frozenset())}, "landlock"),
    ],
)
def test_auto_takes_the_strongest_of_this_machine_that_is_enough(
    probes: dict[str, Probe], chosen: str
) -> None:
    choice = choose(probes, "auto", MODEL_CODE_GUARANTEES)
    assert (choice.name, choice.weak) == (chosen, frozenset())


def test_what_rules_wrote_runs_under_the_strongest_too() -> None:
    assert choose({"local": LOCAL, "bwrap": BWRAP}, "auto", RULES_CODE_GUARANTEES).name == "bwrap"
    assert choose({"local": LOCAL, "bwrap": NO_BWRAP}, "auto", RULES_CODE_GUARANTEES).name == "local"


def test_a_container_only_when_it_is_named() -> None:
    probes = {"local": LOCAL, "docker": DOCKER}
    with pytest.raises(SandboxUnavailable) as caught:
        choose(probes, "auto", MODEL_CODE_GUARANTEES)
    assert "docker" not in str(caught.value)
    assert choose(probes, "docker", MODEL_CODE_GUARANTEES).name == "docker"


def test_a_refusal_says_what_is_needed_why_not_and_the_way_out() -> None:
    probes = {"local": LOCAL, "landlock": NO_LANDLOCK, "bwrap": NO_BWRAP}
    with pytest.raises(SandboxUnavailable) as caught:
        choose(probes, "auto", MODEL_CODE_GUARANTEES)
    assert str(caught.value) == (
        "sandbox_unavailable: needs fs_read, fs_write, net; bwrap: not installed (apt install bubblewrap); "
        "landlock: kernel ABI 0; local: gives env, tree_kill; "
        "to run without isolation: --sandbox local --i-accept-no-isolation"
    )
    assert caught.value.exit_code == 3


def test_weak_only_on_demand_and_never_a_broken_one() -> None:
    probes = {"local": LOCAL, "bwrap": NO_BWRAP}
    choice = choose(probes, "auto", MODEL_CODE_GUARANTEES, accept_weak=True)
    assert (choice.name, choice.weak) == ("local", {"fs_read", "fs_write", "net"})
    assert {"pids", "fs_read", "unix_sockets"} <= set(choice.missing)
    for require in (MODEL_CODE_GUARANTEES, frozenset[str]()):
        with pytest.raises(SandboxUnavailable, match="not installed"):
            choose(probes, "bwrap", require, accept_weak=True)


# ------------------------------------------------------------------------------- from plugins


class Plugins:
    """A manager with sandboxes; counts how often each is probed."""

    def __init__(self, **probes: Probe | Exception) -> None:
        self.probes = probes
        self.probed: list[str] = []

    def find(self, kind: str, name: str) -> Any:
        if name not in self.probes:
            raise PluginError(f"no component of kind {kind} is named {name}")
        return SimpleNamespace(component=Component(name, f"somewhere:{name}"))

    def components(self, kind: str) -> list[Any]:
        assert kind == "sandboxes"
        return [self.find(kind, name) for name in self.probes]

    def get(self, kind: str, name: str) -> Any:
        def probe() -> Probe:
            self.probed.append(name)
            found = self.probes[name]
            if isinstance(found, Exception):
                raise found
            return found

        return lambda: SimpleNamespace(name=name, probe=probe, only_by_name=name == "docker")


def chosen(plugins: Plugins, wanted: str = "auto", **more: Any) -> isolation.Isolation:
    manager: Any = plugins
    return isolate(manager, wanted, Policy(require=MODEL_CODE_GUARANTEES), **more)


def test_every_candidate_is_probed_once_and_a_named_one_alone() -> None:
    plugins = Plugins(local=LOCAL, landlock=LANDLOCK, bwrap=BWRAP)
    assert chosen(plugins).name == "bwrap"
    assert sorted(plugins.probed) == ["bwrap", "landlock", "local"]
    plugins.probed.clear()
    assert chosen(plugins, "landlock").target == "somewhere:landlock"
    assert plugins.probed == ["landlock"]


def test_a_container_is_not_even_probed_unless_it_is_named() -> None:
    plugins = Plugins(local=LOCAL, landlock=LANDLOCK, docker=DOCKER)
    assert chosen(plugins).name == "landlock"
    assert plugins.probed == ["local", "landlock"]
    assert chosen(plugins, "docker").name == "docker"
    manager: Any = plugins
    assert set(probe_all(manager)) == {"local", "landlock", "docker"}


def test_a_sandbox_that_breaks_while_it_is_probed_is_one_that_can_do_nothing() -> None:
    plugins = Plugins(local=LOCAL, landlock=LANDLOCK, bwrap=RuntimeError("boom"))
    assert chosen(plugins).name == "landlock"
    manager: Any = plugins
    assert probe_all(manager)["bwrap"] == Probe(False, "its probe failed: RuntimeError: boom")
    with pytest.raises(SandboxUnavailable, match="bwrap: its probe failed: RuntimeError: boom"):
        chosen(plugins, "bwrap")


def test_an_unknown_sandbox_is_a_mistake_of_the_person() -> None:
    with pytest.raises(PluginError, match="no component of kind sandboxes is named nope"):
        chosen(Plugins(local=LOCAL), "nope")


def test_what_is_missing_stands_in_the_facts_and_what_was_accepted_in_the_warning() -> None:
    weak = chosen(Plugins(local=LOCAL), accept_weak=True)
    assert weak.facts["name"] == "local"
    assert weak.facts["guarantees"] == ["env", "tree_kill"]
    assert weak.facts["missing"] == sorted(GUARANTEES - RULES_CODE_GUARANTEES)
    assert weak.warning == "weak isolation: programs run under 'local', without fs_read, fs_write, net"
    strong = chosen(Plugins(bwrap=BWRAP))
    assert (strong.facts["missing"], strong.warning) == (["pids"], "")


def test_a_guarantee_that_is_lost_is_no_programs_fault() -> None:
    strong = chosen(Plugins(bwrap=BWRAP))
    strong.check(ExecResult(sandbox={"guarantees": sorted(MODEL_CODE_GUARANTEES)}))
    with pytest.raises(SandboxBroken, match="bwrap no longer gives fs_read, net") as caught:
        strong.check(ExecResult(sandbox={"guarantees": ["env", "tree_kill", "fs_write"]}))
    assert isinstance(caught.value, InfrastructureError)
    weak = chosen(Plugins(local=LOCAL), accept_weak=True)
    weak.check(ExecResult(sandbox={"guarantees": ["env", "tree_kill"]}))
    with pytest.raises(SandboxBroken, match="no longer gives env"):
        weak.check(ExecResult(sandbox={"guarantees": ["tree_kill"]}))
