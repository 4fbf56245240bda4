"""Finding, blocking, loading and checking plugins; the real ones are found in child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun import hookspecs
from corerun.errors import ConfigError, EnvironmentRefused, PluginError, UsageError
from corerun.plugins import PluginEntry, PluginManager
from corerun.plugins.checks import check
from corerun.plugins.discovery import discover
from corerun.testing.plugins import write_plugin

ROOT = Path(__file__).parent.parent

REWARD = """
from corerun import hookimpl
from corerun.interfaces import Component

@hookimpl
def corerun_rewards():
    return [Component("length", __name__ + ":Length"), Component("other", __name__ + ":Length")]

class Length:
    def score(self, rollout):
        return 1.0
"""

Write = Callable[..., PluginEntry]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes the module of a plugin on the path of this process and returns its entry."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def write_entry(name: str, source: str = REWARD, *, builtin: bool = False, dist: str = "") -> PluginEntry:
        module = f"{tmp_path.name.replace('-', '_')}_{dist.replace('-', '_')}_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        modules.append(module)
        distribution = dist or ("corerun" if builtin else f"corerun-{name}")
        return PluginEntry(name, module, distribution, "0.1", str(tmp_path), builtin)

    yield write_entry
    for module in modules:
        sys.modules.pop(module, None)


def manager(*entries: PluginEntry, env: dict[str, str] | None = None, **options: object) -> PluginManager:
    return PluginManager(entries=entries, environ=env or {}, **options)  # type: ignore[arg-type]


def statuses(found: PluginManager) -> dict[str, str]:
    return {f"{entry.name}:{entry.distribution}": entry.status for entry in found.list()}


def loaded(*entries: PluginEntry) -> list[str]:
    return [entry.name for entry in entries if entry.target in sys.modules]


def entry(name: str, dist: str = "", builtin: bool = False) -> PluginEntry:
    distribution = dist or ("corerun" if builtin else f"corerun-{name}")
    return PluginEntry(name, f"no_such_module_{name}", distribution, "1.0", "", builtin)


# ------------------------------------------------------------------------------------- statuses


@pytest.mark.parametrize(
    ("switch", "expected"),
    [(None, {"a", "b", "core", "own"}), ("", {"core", "own"}), ("a", {"a", "core", "own"})],
)
def test_load_switch_narrows_third_parties(switch: str | None, expected: set[str]) -> None:
    env = {} if switch is None else {"CORERUN_LOAD_PLUGINS": switch}
    entries = [entry("core", builtin=True), entry("own", builtin=True), entry("a"), entry("b")]
    listed = manager(*entries, env=env).list()
    assert {item.name for item in listed if item.status == "available"} == expected
    assert {item.status for item in listed} <= {"available", "disabled"}


def test_blocks_add_up_and_asking_lifts_one() -> None:
    entries = [entry(name) for name in ("a", "b", "c", "d_e")]
    found = manager(*entries, env={"CORERUN_DISABLE_PLUGINS": "b, d-e"}, block=("a",), load=("b",))
    found.block(["c"])
    assert [item.status for item in found.list()] == ["disabled", "available", "disabled", "disabled"]
    found.ask("d-e")
    assert statuses(found)["d_e:corerun-d_e"] == "available"


def test_asking_lifts_the_load_switch() -> None:
    found = manager(entry("a"), env={"CORERUN_LOAD_PLUGINS": ""}, load=("a",))
    assert found.list()[0].status == "available"


@pytest.mark.parametrize("how", ["flag", "environment", "config"])
def test_core_cannot_be_blocked(how: str) -> None:
    with pytest.raises(UsageError, match="core can't be blocked"):
        if how == "flag":
            manager(block=("core",))
        elif how == "environment":
            manager(env={"CORERUN_DISABLE_PLUGINS": "core"})
        else:
            manager().block(["core"])


def test_two_third_parties_of_one_name_are_both_refused() -> None:
    found = manager(entry("x", "one"), entry("x", "two"))
    assert statuses(found) == {"x:one": "shadowed by two", "x:two": "shadowed by one"}
    with pytest.raises(PluginError, match=r"one 1\.0 and two 1\.0"):
        found.load("x")


def test_a_built_in_wins_over_a_third_party_of_its_name() -> None:
    found = manager(entry("bfts", "evil"), entry("bfts", builtin=True))
    assert statuses(found) == {"bfts:corerun": "available", "bfts:evil": "shadowed by corerun"}


@pytest.mark.parametrize("name", ["Upper", "my-reward", "9lives", "a" * 33, ""])
def test_names_that_are_refused(name: str) -> None:
    found = manager(entry(name, "some-dist"))
    assert found.list()[0].status == "invalid name"


def test_worker_sees_the_same_plugins() -> None:
    entries = [entry("core", builtin=True), entry("own", builtin=True), entry("a"), entry("b"), entry("c")]
    here = manager(*entries, env={"CORERUN_LOAD_PLUGINS": "a,b"}, load=("c",), block=("b", "own"))
    there = manager(*entries, env=here.worker_environment())
    assert statuses(there) == statuses(here)


@given(st.text(), st.sets(st.sampled_from(["a", "b", "own"])))
def test_any_switch_keeps_core_and_lists_everything(switch: str, blocked: set[str]) -> None:
    entries = [entry("core", builtin=True), entry("own", builtin=True), entry("a"), entry("b")]
    found = manager(*entries, env={"CORERUN_LOAD_PLUGINS": switch}, block=tuple(blocked))
    assert [item.name for item in found.list()] == ["a", "b", "core", "own"]
    assert statuses(found)["core:corerun"] == "available"
    assert all(item.status == "disabled" for item in found.list() if item.name in blocked)


# -------------------------------------------------------------------------------------- look-up


def test_a_plugin_of_the_name_is_the_only_one_loaded(write: Write) -> None:
    job = REWARD.replace('"length"', '"bfts"')
    entries = [write("bfts", job), write("other"), write("own", builtin=True)]
    assert manager(*entries).get("rewards", "bfts").__name__ == "Length"
    assert loaded(*entries) == ["bfts"]


def test_plugin_slash_component_loads_that_plugin_alone(write: Write) -> None:
    entries = [write("a"), write("my_b")]
    found = manager(*entries).find("rewards", "my-b/length")
    assert (found.plugin.name, found.component.name, found.label) == ("my_b", "length", "my_b/length")
    assert loaded(*entries) == ["my_b"]


def test_corerun_goes_before_third_parties(write: Write) -> None:
    entries = [write("a"), write("own", builtin=True)]
    assert manager(*entries).find("rewards", "length").plugin.name == "own"
    assert loaded(*entries) == ["own"]


def test_two_hits_in_one_tier_name_both(write: Write) -> None:
    found = manager(write("a"), write("b"))
    with pytest.raises(PluginError, match=r"a/length \(corerun-a 0\.1\) and b/length \(corerun-b 0\.1\)"):
        found.find("rewards", "length")


def test_unknown_names_come_with_near_ones(write: Write) -> None:
    found = manager(write("alpha"))
    for call, near in (
        (lambda: found.find("rewards", "lenght"), "length"),
        (lambda: found.find("rewards", "alpha/lenght"), "length"),
        (lambda: found.find("reward", "length"), "rewards"),
        (lambda: found.load("alhpa"), "alpha"),
    ):
        with pytest.raises(PluginError) as caught:
            call()
        assert near in caught.value.hint


def test_a_disabled_plugin_is_not_called_unknown(write: Write) -> None:
    found = manager(write("alpha"), block=("alpha",))
    for call in (lambda: found.find("rewards", "alpha"), lambda: found.load("alpha")):
        with pytest.raises(PluginError, match="alpha is disabled"):
            call()


def test_components_are_sorted_and_filtered(write: Write) -> None:
    found = manager(write("b"), write("a"))
    labels = [item.label for item in found.components("rewards")]
    assert labels == ["a/length", "a/other", "b/length", "b/other"]
    assert [item.label for item in found.components(plugin="b")] == ["b/length", "b/other"]
    assert found.components("jobs") == []


def test_a_target_that_needs_a_missing_package_is_the_environments_fault(write: Write) -> None:
    source = REWARD.replace('__name__ + ":Length"', '__name__ + "_target:Length"')
    item = write("a", source)
    Path(item.location, item.target + "_target.py").write_text("import no_such_package_at_all")
    with pytest.raises(EnvironmentRefused, match="a/length needs the package no_such_package_at_all"):
        manager(item).get("rewards", "a/length")


def test_a_target_that_is_not_there_is_the_plugins_fault(write: Write) -> None:
    found = manager(write("a", REWARD.replace(":Length", ":Lenght")))
    with pytest.raises(PluginError, match="Lenght doesn't import: AttributeError"):
        found.get("rewards", "a/length")


# ------------------------------------------------------------------------------------ isolation

BROKEN = {
    "import": ("import no_such_module_here", "ModuleNotFoundError: No module named"),
    "exit": ("raise SystemExit(7)", "SystemExit: 7"),
    "syntax": ("def :", "SyntaxError: invalid syntax"),
    "signature": (REWARD.replace("corerun_rewards()", "corerun_rewards(config)"), "takes no parameters"),
    "default": (REWARD.replace("corerun_rewards()", "corerun_rewards(config=1)"), "takes no parameters"),
    "unknown_hook": (REWARD.replace("corerun_rewards", "corerun_reward"), "did you mean corerun_rewards?"),
    "wrapper": (REWARD.replace("@hookimpl", "@hookimpl(wrapper=True)"), "generator|wrapper"),
    "items": (REWARD.replace("return [", "return ['x'] + ["), "TypeError: corerun_rewards returned 'x'"),
    "no_items": (REWARD.replace("return [", "return 3 #"), "TypeError: 'int'"),
    "raises": (REWARD.replace("return [", "raise KeyError('gone') #"), "KeyError: 'gone'"),
    "new_api": ("corerun_api = 99", "incompatible: needs API 99"),
    "odd_api": ("corerun_api = 'x'", "TypeError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_harms_nobody_else(
    write: Write, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, reason = BROKEN[case]
    bad, good = write("bad", source), write("good")
    found = manager(bad, good)
    assert found.find("rewards", "length").plugin.name == "good"
    assert [item.plugin.name for item in found.components("rewards")] == ["good", "good"]
    told = capsys.readouterr().err
    assert told.count("\n") == 1, "told once, in one line"
    assert told.startswith("corerun: plugin bad (corerun-bad 0.1) not loaded: ")
    assert told.endswith("; corerun plugins check bad shows why\n")
    with pytest.raises(PluginError, match=reason) as caught:
        found.load("bad")
    assert caught.value.exit_code == 2
    assert check("bad", found)
    assert check("good", found) == []


def test_a_broken_plugin_is_called_broken_not_unknown(write: Write) -> None:
    found = manager(write("bad", "raise SystemExit(7)"), write("good"))
    for name in ("bad", "bad/length"):
        with pytest.raises(PluginError, match=r"plugin bad .* is broken: SystemExit: 7"):
            found.find("rewards", name)
    with pytest.raises(PluginError) as caught:
        found.find("rewards", "nothing_like_it")
    assert "not loaded: bad" in caught.value.hint


def test_nothing_of_a_broken_plugin_stays_registered(write: Write) -> None:
    source = REWARD + "\n@hookimpl\ndef corerun_jobs():\n    raise RuntimeError('late')\n"
    found = manager(write("bad", source))
    assert found.components() == []
    assert found.relay._pluggy.list_name_plugin() == []


def test_a_plugin_that_prints_leaves_stdout_alone(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    manager(write("loud", "print('hello')" + REWARD)).load("loud")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_strict_raises_what_the_plugin_raised(write: Write) -> None:
    found = manager(write("bad", "1 / 0"), env={"CORERUN_STRICT_PLUGINS": "1"})
    with pytest.raises(ZeroDivisionError):
        found.components()


def test_a_keyboard_interrupt_is_not_swallowed(write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        manager(write("bad", "raise KeyboardInterrupt")).components()


def test_asked_names_must_load_or_be_jobs(write: Write) -> None:
    job = REWARD.replace("corerun_rewards", "corerun_jobs")
    manager(write("a", job), load=("length",)).load_asked()
    with pytest.raises(PluginError, match="no plugin is named lenght"):
        manager(write("b", job), load=("lenght",)).load_asked()
    with pytest.raises(PluginError, match="is broken"):
        manager(write("c", "1 / 0"), load=("c",)).load_asked()


# ---------------------------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("@hookimpl", "@hookimpl(tryfirst=True)", "corerun_rewards: tryfirst has no effect"),
        ("@hookimpl", "@hookimpl(trylast=True)", "corerun_rewards: trylast has no effect"),
        ("@hookimpl", "", "corerun_rewards: not marked with @corerun.hookimpl"),
        ('"other"', '"my-other"', "rewards: my-other: invalid name"),
        ('"other"', '"length"', "rewards: length is offered 2 times"),
        ('":Length")]', '".Length")]', "isn't of the form module:attribute"),
        ('":Length")]', '":Gone")]', "Gone doesn't import: AttributeError"),
        ("def score", "def skore", "rewards: length: Length has no method score"),
        ("corerun_rewards", "corerun_operators", "operators: length: Length has no method __call__"),
        ("corerun_rewards", "corerun_commands", "commands: length: the target isn't a click command"),
        ('__name__ + ":Length")]', '"os:sep")]', "rewards: other: the target isn't a class"),
    ],
)
def test_check_finds(write: Write, old: str, new: str, finding: str) -> None:
    assert old in REWARD
    found = check("a", manager(write("a", REWARD.replace(old, new))))
    assert any(finding in line for line in found), found


def test_check_says_where_a_plugin_broke(write: Write) -> None:
    item = write("bad", "\n1 / 0")
    assert check("bad", manager(item)) == [
        f"broken: ZeroDivisionError: division by zero, {item.location}/{item.target}.py:2"
    ]


def test_check_loads_nothing_that_may_not_load(write: Write) -> None:
    entries = [write("twice", dist="one"), write("twice", dist="two"), write("Bad", dist="three")]
    found = manager(*entries)
    assert check("twice", found) == [
        "shadowed by two (one 0.1), not loaded",
        "shadowed by one (two 0.1), not loaded",
    ]
    assert check("Bad", found) == ["invalid name (three 0.1), not loaded"]
    assert loaded(*entries) == []


def test_check_accepts_a_function_that_makes_the_component(write: Write) -> None:
    source = REWARD.replace('":Length")]', '":make")]') + "\ndef make():\n    return Length()\n"
    assert check("a", manager(write("a", source))) == []


def test_check_of_an_unknown_name() -> None:
    with pytest.raises(PluginError, match="no plugin is named nobody"):
        check("nobody", manager())


# -------------------------------------------------------------------------------------- require


def test_required_distributions() -> None:
    found = manager(entry("a", "corerun-My.Reward"), entry("b"), block=("b",))
    found.require(["corerun_my_reward", "corerun-my-reward>=0.9,<2"])
    with pytest.raises(PluginError) as caught:
        found.require(["corerun-my-reward>=2", "corerun-gone", "corerun-b", "corerun-my-reward"])
    assert caught.value.where == "plugins.required"
    assert caught.value.message == (
        "required plugins are missing: corerun-my-reward>=2 (installed: 1.0); "
        "corerun-gone (not installed); corerun-b (b is disabled)"
    )
    manager(PluginEntry("a", "a", "a", "1.1rc1", "", False)).require(["a>=1"])
    with pytest.raises(ConfigError, match="is no requirement"):
        found.require([">=3"])


# ------------------------------------------------------------------------------------ discovery


def child(*arguments: str, path: Path | None = None, cwd: Path | None = None, **env: str) -> str:
    """Run corerun in a fresh process; its exit code must be 0."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CORERUN_")}
    environ |= {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(
        [sys.executable, "-m", "corerun", *arguments],
        env=environ | env,
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_real_discovery_from_metadata(tmp_path: Path) -> None:
    write_plugin(tmp_path, "good", REWARD, version="1.2")
    write_plugin(tmp_path, "odd-name", REWARD)
    write_plugin(tmp_path, "bfts", REWARD, distribution="evil")
    (tmp_path / "latin-1.dist-info").mkdir()
    (tmp_path / "latin-1.dist-info/entry_points.txt").write_bytes(b"[corerun.plugins]\n\xff = \xff\n")
    listed = json.loads(child("plugins", "list", "--format", "json", path=tmp_path))
    by_name = {item["name"]: item for item in listed if item["distribution"] != "corerun"}
    assert by_name["good"] == {
        "name": "good",
        "status": "available",
        "distribution": "corerun-good",
        "version": "1.2",
        "target": "corerun_good",
        "location": str(tmp_path),
        "builtin": False,
    }
    assert by_name["odd-name"]["status"] == "invalid name"
    assert by_name["bfts"]["status"] == "shadowed by corerun"
    shown = json.loads(child("plugins", "show", "good", "--json", path=tmp_path))
    assert [item["name"] for item in shown["components"]] == ["length", "other"]


def test_entry_point_files_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(tmp_path, "one", "")
    (tmp_path / "corerun_one-0.1.dist-info/entry_points.txt").write_text(
        "[console_scripts]\nx = y:z\n# corerun.plugins\n[corerun.plugins]\n; no\n\n"
        "one=corerun_one\n two = corerun_one:obj [extra]\n[other]\nthree = nope\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = [item for item in discover() if item.distribution == "corerun-one"]
    assert [(item.name, item.target) for item in found] == [
        ("one", "corerun_one"),
        ("two", "corerun_one:obj"),
    ]


def test_a_distribution_found_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, version in (("second", "1"), ("first", "2")):
        write_plugin(tmp_path / folder, "twice", "", version=version)
        monkeypatch.syspath_prepend(tmp_path / folder)
    found = [item for item in discover() if item.name == "twice"]
    assert [item.version for item in found] == ["2"]


def test_what_lies_in_a_target_repository_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(tmp_path / "repo" / "lib", "planted", "")
    write_plugin(tmp_path / "repository", "mine", "")
    monkeypatch.syspath_prepend(tmp_path / "repo" / "lib")
    monkeypatch.syspath_prepend(tmp_path / "repository")
    names = {item.name for item in discover(tmp_path / "repo")}
    assert "planted" not in names
    assert {"mine", "core"} <= names
    # The environment that corerun runs in may lie in the repository too.
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "repo" / "lib"))
    assert "planted" in {item.name for item in discover(tmp_path / "repo")}


@pytest.mark.parametrize("flags", [[], ["-P"]])
def test_the_current_folder_is_never_a_source_of_plugins(tmp_path: Path, flags: list[str]) -> None:
    write_plugin(tmp_path, "planted", REWARD, distribution="x")
    done = subprocess.run(
        [sys.executable, *flags, "-m", "corerun", "plugins", "list", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {item["name"] for item in json.loads(done.stdout)}
    assert "core" in names
    assert "planted" not in names


# -------------------------------------------------------------------- the example, and the docs


def test_the_example_installs_from_a_wheel(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    # Built from a copy: a build may leave files behind.
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(ROOT / "examples" / "corerun-myreward"), str(source)], check=True)
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "target"
    subprocess.run(
        [*pip, "install", "--no-index", "--no-deps", "--target", str(target), str(wheel)], check=True
    )
    rows = child("plugins", "list", "--format", "text", path=target).splitlines()
    assert rows[0].split() == ["NAME", "STATUS", "DISTRIBUTION", "VERSION", "TARGET"]
    assert ["myreward", "available", "corerun-myreward", "0.3.0", "corerun_myreward"] in [
        row.split() for row in rows
    ]
    assert child("plugins", "check", "myreward", "--format", "text", path=target) == "myreward: active\n"
    assert "rewards" in child("plugins", "show", "myreward", "--format", "text", path=target)


def test_the_example_s_own_test_passes() -> None:
    folder = ROOT / "examples" / "corerun-myreward"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_hook_is_documented() -> None:
    text = (ROOT / "docs" / "hooks.md").read_text()
    headings = [line[3:].strip("` ") for line in text.splitlines() if line.startswith("## ")]
    hooks = [name for name in vars(hookspecs) if name.startswith("corerun_")]
    assert sorted(headings) == sorted(hooks)
    assert sorted(hooks) == sorted(f"corerun_{kind}" for kind in hookspecs.KINDS)
    for section in text.split("\n## ")[1:]:
        name = section.split("`")[1]
        assert f"def {name}(" in section, f"the example of {name} implements another hook"


def test_the_examples_of_the_hooks_load(write: Write) -> None:
    text = (ROOT / "docs" / "hooks.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert len(blocks) >= len(hookspecs.KINDS)
    found = manager(*(write(f"doc_{number}", block) for number, block in enumerate(blocks)))
    for item in found.list():
        found.load(item.name)
    assert {item.kind for item in found.components()} == set(hookspecs.KINDS)
