"""What a command imports before it does anything, and that fifty broken plugins stop no command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from corerun.cli.app import COMMANDS
from corerun.testing.plugins import write_plugin

HEAVY = {"pydantic", "openai", "torch", "transformers", "numpy", "ray", "yaml", "rich", "asyncio", "jinja2"}

SPY = """
import json, sys
from corerun.cli import main
try:
    code = main(sys.argv[1:])
finally:
    sys.stderr.write(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""

BROKEN = (
    "import no_such_module_at_all",
    "raise SystemExit(7)",
    "def :",
    "from corerun import hookimpl\n@hookimpl\ndef corerun_jobs(config):\n    return []\n",
)


def environment(path: Path | None = None) -> dict[str, str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CORERUN_")}
    return environ | ({"PYTHONPATH": str(path)} if path else {})


def run(*command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], env=environment(path), capture_output=True, text=True)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fifty broken plugins and one that works and has a verb."""
    folder = tmp_path_factory.mktemp("broken")
    for number in range(50):
        write_plugin(folder, f"broken_{number}", BROKEN[number % len(BROKEN)])
    write_plugin(
        folder,
        "works",
        "import click\nfrom corerun import hookimpl\nfrom corerun.interfaces import Component\n"
        "@hookimpl\ndef corerun_commands():\n    return [Component('greet', __name__ + ':greet')]\n"
        "@click.command()\ndef greet():\n    click.echo('hello')\n",
    )
    return folder


@pytest.mark.parametrize("command", ["--version", "--help", "plugins list", "-p core plugins list --json"])
def test_light_commands_import_nothing_heavy(command: str, broken: Path) -> None:
    done = run("-c", SPY, *command.split(), path=broken)
    modules = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert done.returncode == 0
    assert modules & HEAVY == set()
    assert "pluggy" not in modules
    assert not any(name.startswith(("broken_", "corerun_")) for name in modules), "a plugin was imported"
    if command == "--version":
        assert done.stdout == "corerun 0.1.0\n"
        assert modules & {"click", "dataclasses", "importlib_metadata"} == set()
    if command == "--help":
        assert "importlib_metadata" not in modules


def test_help_lists_every_command_without_importing_it() -> None:
    done = run("-c", SPY, "--help")
    listed = {line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()}
    assert set(COMMANDS) <= listed
    imported = {name for name in json.loads(done.stderr) if name.startswith("corerun.cli.")}
    assert imported == {"corerun.cli.app"}


@pytest.mark.parametrize(
    "command",
    [
        "--version",
        "--help",
        "plugins list",
        "-p broken_1 plugins list",
        "broken_1 plugins list",
        "plugins show core",
    ],
)
def test_broken_plugins_are_silent_where_nobody_asks_for_them(command: str, broken: Path) -> None:
    done = run("-m", "corerun", *command.split(), path=broken)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_all_fifty_are_listed(broken: Path) -> None:
    listed = json.loads(run("-m", "corerun", "plugins", "list", "--format", "json", path=broken).stdout)
    names = {item["name"] for item in listed if item["status"] == "available"}
    assert names >= {f"broken_{number}" for number in range(50)} | {"works", "core", "bfts"}


def test_a_plugin_that_works_works_beside_them(broken: Path) -> None:
    done = run("-m", "corerun", "works", "greet", path=broken)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_check_finds_all_fifty(broken: Path) -> None:
    done = run("-m", "corerun", "plugins", "check", "--json", path=broken)
    assert done.returncode == 1
    states = {item["name"]: item["state"] for item in json.loads(done.stdout)}
    assert sum(state.startswith("broken: ") for state in states.values()) == 50
    assert states["broken_1"] == "broken: SystemExit: 7"
    assert states["works"] == "active"


def test_a_look_up_among_them_tells_of_each_once(broken: Path) -> None:
    done = run("-m", "corerun", "greet", path=broken)
    assert (done.returncode, done.stdout) == (0, "hello\n")
    lines = done.stderr.splitlines()
    assert len(lines) == 50
    assert all(line.startswith("corerun: plugin broken_") for line in lines)


@pytest.mark.parametrize("arguments", [["-p", "broken_1", "run"], ["broken_1", "run"], ["broken-1", "x"]])
def test_asking_for_a_broken_one_is_an_error(arguments: list[str], broken: Path) -> None:
    done = run("-m", "corerun", *arguments, path=broken)
    assert done.returncode == 2
    assert done.stderr == (
        "corerun: plugin broken_1 (corerun-broken_1 0.1) is broken: SystemExit: 7\n"
        "  hint: corerun plugins check broken_1 shows why\n"
    )
