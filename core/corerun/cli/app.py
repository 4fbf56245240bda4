"""The command group: finds commands without importing the others, and turns errors into exit codes."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import click

from corerun import __version__
from corerun.errors import PluginError, UsageError
from corerun.plugins import PluginManager
from corerun.plugins.discovery import typed

COMMANDS = {
    "config": ("corerun.cli.config:group", "Show and describe the configuration."),
    "doctor": ("corerun.cli.doctor:command", "Say what this machine can do and what to do about each gap."),
    "exec": ("corerun.cli.execute:command", "Run one program isolated, as jobs run theirs."),
    "models": ("corerun.cli.models:group", "List and test models, what was learned and what they cost."),
    "plugins": ("corerun.cli.plugins:group", "List, show and check the installed plugins."),
    "report": ("corerun.cli.report:command", "Write the report of a run."),
    "run": ("corerun.cli.run:command", "Start or resume the job of a plugin: corerun --plugin NAME run."),
    "runs": ("corerun.cli.runs:group", "List, show, rebuild and audit runs."),
}
"""Every command of the core, with its help: `--help` must not import them."""

UNCONDITIONAL = ("run", "plugins")
"""Commands that no plugin can replace by a verb of its own."""


@dataclass(frozen=True)
class State:
    """What every command gets as ``ctx.obj``.

    ``plugin`` is the plugin (or job) that the command is about: the first word, or the one that
    ``--plugin`` names. ``plugins`` are all that were named, ``argv`` is what was typed.
    """

    manager: PluginManager
    plugin: str | None = None
    plugins: tuple[str, ...] = ()
    debug: bool = False
    argv: tuple[str, ...] = ()


class Corerun(click.Group):
    """A group whose commands come from a table, and then from plugins."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj = _state(ctx)
        return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word, rest = args[0], args[1:]
        command = self._verb(ctx, word) or self._first_word(ctx, word)
        if command is None:
            manager: PluginManager = ctx.obj.manager
            if not rest:
                verbs = ", ".join(_verbs(manager, word))
                raise UsageError(f"{word} needs a verb", hint=f"one of: {verbs}")
            word, rest = rest[0], rest[1:]
            command = self._verb(ctx, word)
            if command is None:
                hint = _near(word, [*COMMANDS, *_verbs(manager, args[0])])
                raise UsageError(f"no command {word} in corerun or in {args[0]}", hint=hint)
        return word, command, rest

    def _verb(self, ctx: click.Context, verb: str) -> click.Command | None:
        """The command of a named plugin, else the core's."""
        state: State = ctx.obj
        if verb != "plugins":  # what lists and checks plugins must work with a broken one
            state.manager.load_asked()
        if verb == "run":
            ctx.obj = replace(state, plugin=_job(state))
        elif verb not in UNCONDITIONAL:
            named = [name for name in state.plugins if state.manager.has(name)]
            owners = [name for name in named if state.manager.offers("commands", verb, name)]
            if len(owners) > 1:
                raise UsageError(f"{' and '.join(owners)} both have the verb {verb}", hint="name one of them")
            if owners:
                ctx.obj = replace(state, plugin=owners[0])
                return _plugin_command(state.manager, f"{owners[0]}/{verb}")
        return self.get_command(ctx, verb)

    def _first_word(self, ctx: click.Context, word: str) -> click.Command | None:
        """Take the word as a plugin or a job (None is returned) or as a command of some plugin."""
        state: State = ctx.obj
        manager = state.manager
        if manager.has(word) or manager.offers("jobs", word):
            manager.ask(word)
            ctx.obj = replace(state, plugin=typed(word), plugins=(*state.plugins, typed(word)))
            return None
        if manager.offers("commands", word):
            ctx.obj = replace(state, plugin=manager.find("commands", word).plugin.name)
            return _plugin_command(manager, word)
        verbs = [verb for name in state.plugins for verb in _verbs(manager, name)]
        known = [*COMMANDS, *verbs, *(entry.name for entry in manager.list())]
        raise UsageError(f"no command or plugin is named {word}", hint=_near(word, known))


@click.group(
    cls=Corerun,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`corerun NAME VERB` is short for `corerun --plugin NAME VERB`; "
    "`corerun plugins list` shows the names.",
)
@click.option("-p", "--plugin", multiple=True, metavar="NAME", help="Use this plugin; no:NAME blocks it.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="corerun", message="%(prog)s %(version)s")
def application(plugin: tuple[str, ...], debug: bool) -> None:
    """Automated research on one small core: each kind of research is a plugin."""


def output_format(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--format json|text`` and ``--json`` to a command, which gets ``as_json: bool``.

    Without them it is text on a terminal and JSON elsewhere.
    """
    import functools

    @click.option(
        "--format", "format_", type=click.Choice(["json", "text"]), help="Default: text on a terminal."
    )
    @click.option("--json", "json_", is_flag=True, help="Same as --format json.")
    @functools.wraps(command)
    def wrapped(*args: Any, format_: str | None, json_: bool, **kwargs: Any) -> Any:
        as_json = json_ or (format_ == "json" if format_ else not sys.stdout.isatty())
        return command(*args, as_json=as_json, **kwargs)

    return wrapped


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit code; an integer that a command returns is its code."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader left, as `head` does. The interpreter would flush once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # It ends; once more would only show where it was.
        sys.stderr.write("corerun: interrupted\n")
        return 130
    except Exception as error:
        from corerun.cli.failure import report

        return report(error, debug="--debug" in own, as_json=_asked_for_json(own), arguments=own)


def _invoke(arguments: Sequence[str]) -> int:
    # Not through click's own `main`, which turns a broken pipe into exit code 1.
    try:
        with application.make_context("corerun", list(arguments), obj=tuple(arguments)) as ctx:
            result = application.invoke(ctx)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return result if isinstance(result, int) else 0


def _asked_for_json(arguments: Sequence[str]) -> bool:
    pairs = itertools.pairwise(arguments)
    return bool({"--json", "--format=json"} & set(arguments)) or ("--format", "json") in pairs


def _state(ctx: click.Context) -> State:
    named, blocked = _selection(ctx.params["plugin"])
    manager = PluginManager(load=named, block=blocked)
    return State(manager, named[0] if named else None, named, ctx.params["debug"], ctx.obj)


def _selection(values: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    named = tuple(dict.fromkeys(typed(value) for value in values if not value.startswith("no:")))
    return named, tuple(value.removeprefix("no:") for value in values if value.startswith("no:"))


def _job(state: State) -> str | None:
    """Which of the named plugins `run` is about: the only one with a job."""
    if len(state.plugins) < 2:
        return state.plugin
    manager = state.manager
    owners = [
        name for name in state.plugins if not manager.has(name) or manager.components("jobs", plugin=name)
    ]
    if len(owners) != 1:
        among = ", ".join(owners or state.plugins)
        count = "more than one" if owners else "none"
        raise UsageError(
            f"{count} of {among} offers a job",
            where="--plugin",
            hint="name exactly one plugin that has a job",
        )
    return owners[0]


def _verbs(manager: PluginManager, plugin: str) -> list[str]:
    if not manager.has(plugin):
        return ["run"]
    return ["run", *(item.component.name for item in manager.components("commands", plugin=plugin))]


def _plugin_command(manager: PluginManager, name: str) -> click.Command:
    command = manager.get("commands", name)
    if not isinstance(command, click.Command):
        raise PluginError(f"commands: the target of {name} isn't a click command")
    return command


def _near(word: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(typed(word), known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else "see corerun --help and corerun plugins list"
