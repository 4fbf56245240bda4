"""The grammar of the command line, and how errors look from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from corerun.cli import app, main
from corerun.cli.app import State
from corerun.errors import CorerunError, EnvironmentRefused, Stopped
from corerun.testing.plugins import write_plugin

PLUGIN = """
import click
from corerun import hookimpl
from corerun.interfaces import Component

@hookimpl
def corerun_jobs():
    return [Component(name, __name__ + ":Job") for name in JOBS]

@hookimpl
def corerun_commands():
    return [Component(name, __name__ + ":" + name) for name in VERBS]

@click.command()
@click.option("--size", type=int)
@click.pass_obj
def draw_it(state, size):
    click.echo(f"{state.plugin} {state.plugins} {size}")
    return size

@click.command()
def report():
    click.echo("the plugin's own report")

not_click = 3
plugins = draw_it
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """Two plugins on the path and a core command `run` that prints its state; returns its module."""
    monkeypatch.syspath_prepend(tmp_path)
    names = {
        "alpha": ("['alpha', 'beta']", "['draw_it', 'report']"),
        "gamma": ("[]", "['draw_it', 'not_click']"),
    }
    for name, (jobs, verbs) in names.items():
        write_plugin(tmp_path, name, f"JOBS, VERBS = {jobs}, {verbs}\n{PLUGIN}")
    write_plugin(tmp_path, "solo", f"JOBS, VERBS = ['solo'], ['unique']\n{PLUGIN}\nunique = draw_it\n")

    @click.command()
    @click.argument("text", default="")
    @click.pass_obj
    def command(state: State, text: str) -> None:
        click.echo(f"run {state.plugin} {text}".strip())

    module = types.ModuleType("corerun_test_commands")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("run", "report", "runs"):
        monkeypatch.setitem(app.COMMANDS, name, (f"{module.__name__}:command", "A command of the test."))
    for variable in ("CORERUN_LOAD_PLUGINS", "CORERUN_DISABLE_PLUGINS", "CORERUN_STRICT_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    yield module
    for name in (*names, "solo"):
        sys.modules.pop(f"corerun_{name}", None)


@pytest.mark.parametrize(
    ("line", "code", "output"),
    [
        ("--plugin alpha run", 0, "run alpha"),
        ("alpha run hello", 0, "run alpha hello"),
        ("-p beta run", 0, "run beta"),
        ("beta run", 0, "run beta"),
        ("-p gamma -p alpha run", 0, "run alpha"),
        ("run", 0, "run None"),
        ("-p gamma alpha run", 0, "run alpha"),
        ("alpha draw_it --size 3", 3, "alpha ('alpha',) 3"),
        ("alpha draw-it", 0, "alpha ('alpha',) None"),
        ("-p gamma draw_it", 0, "gamma ('gamma',) None"),
        ("unique", 0, "solo () None"),
        ("alpha report", 0, "the plugin's own report"),
        ("gamma report x", 0, "run gamma x"),
        ("-p no:alpha -p alpha run", 0, "run alpha"),
        ("-p no:gamma gamma draw_it", 0, "gamma ('gamma',) None"),
    ],
)
def test_grammar(
    install: types.ModuleType, line: str, code: int, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == code
    captured = capsys.readouterr()
    assert (captured.out.strip(), captured.err) == (output, "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alhpa run", "no command or plugin is named alhpa\n  hint: did you mean alpha"),
        ("-p alhpa run", "no plugin is named alhpa\n  hint: did you mean alpha"),
        ("alpha drow_it", "no command drow_it in corerun or in alpha\n  hint: did you mean draw_it?"),
        ("alpha", "alpha needs a verb\n  hint: one of: run, draw_it, report"),
        ("beta", "beta needs a verb\n  hint: one of: run"),
        ("-p alpha -p solo run", "--plugin: more than one of alpha, solo offers a job"),
        ("-p gamma -p gamma -p core run", "--plugin: none of gamma, core offers a job"),
        ("-p alpha -p gamma draw_it", "alpha and gamma both have the verb draw_it"),
        ("gamma not_click", "commands: the target of gamma/not_click isn't a click command"),
        ("-p no:core run", "the plugin core can't be blocked"),
        ("-p alpha drow_it", "no command or plugin is named drow_it\n  hint: did you mean draw_it?"),
        ("--nonsense", "No such option"),
        ("plugins list --format xml", "Invalid value for '--format'"),
        ("plugins show nobody", "no plugin is named nobody"),
        ("plugins check nobody", "no plugin is named nobody"),
    ],
)
def test_usage_errors(
    install: types.ModuleType, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"corerun: {message}")
    assert len(captured.err.splitlines()) <= 2


def test_no_plugin_replaces_the_command_plugins(
    install: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gamma", "plugins", "list", "--json"]) == 0
    assert "core" in {item["name"] for item in json.loads(capsys.readouterr().out)}
    assert "corerun_gamma" not in sys.modules


def test_verbs_that_come_with_a_plugin_load_no_other(install: types.ModuleType) -> None:
    main(["alpha", "draw_it"])
    assert "corerun_alpha" in sys.modules
    assert "corerun_gamma" not in sys.modules


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (
            CorerunError("bad", hint="do this", where="a.yaml:3"),
            1,
            "corerun: a.yaml:3: bad\n  hint: do this\n",
        ),
        (EnvironmentRefused("no GPU"), 3, "corerun: no GPU\n"),
        (Stopped("out of money"), 5, "corerun: out of money\n"),
        (KeyboardInterrupt(), 130, "corerun: interrupted\n"),
        (click.ClickException("odd"), 2, "corerun: odd\n"),
        (
            KeyError("x\ny"),
            1,
            "corerun: internal error: KeyError: 'x\\ny' (run with --debug for the traceback)\n",
        ),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    install: types.ModuleType,
    error: BaseException,
    code: int,
    lines: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def fails() -> None:
        raise error

    install.command = fails  # type: ignore[attr-defined]
    assert main(["run"]) == code
    assert capsys.readouterr().err == lines


def test_debug_shows_the_traceback(install: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def fails() -> None:
        raise CorerunError("bad")

    install.command = fails  # type: ignore[attr-defined]
    assert main(["--debug", "run"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert "in fails" in told
    assert told.endswith("corerun: bad\n")


@pytest.mark.parametrize("flags", [["--json"], ["--format", "json"], ["--format=json"]])
def test_errors_in_json(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "nobody", *flags]) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert set(error) == {"code", "message", "hint", "where"}
    assert (error["code"], error["message"]) == (2, "no plugin is named nobody")
    assert captured.err.startswith("corerun: no plugin is named nobody\n")


def test_words_after_the_separator_ask_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "nobody", "--", "--json", "--debug"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("corerun: ")


def test_a_group_without_a_verb_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["plugins"]):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert (captured.out + captured.err).startswith("Usage: corerun")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert "--plugin NAME" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["plugins", "show", "core"], ["--help"], ["printer", "speak"]])
def test_a_reader_that_leaves_is_no_error(tmp_path: Path, command: list[str]) -> None:
    speak = "speak = click.command()(lambda: print('unflushed'))\n"
    write_plugin(tmp_path, "printer", f"JOBS, VERBS = [], ['speak']\n{PLUGIN}\n{speak}")
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "corerun", *command],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_check_with_debug_shows_why_a_plugin_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write_plugin(tmp_path, "bad", "\n\nraise ValueError('deep')")
    assert main(["--debug", "plugins", "check", "bad", "--format", "text"]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"bad: broken: ValueError: deep, {tmp_path}/corerun_bad.py:3\n"
    assert "Traceback" in captured.err


def test_check_of_a_disabled_plugin_does_not_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write_plugin(tmp_path, "off", "raise ValueError")
    assert main(["-p", "no:off", "plugins", "check", "off", "--format", "text"]) == 0
    assert capsys.readouterr().out == "off: disabled\n"
