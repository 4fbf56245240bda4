"""Writes docs/cli.md from the real --help of every command; with --check it only compares."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click

from corerun.cli.app import COMMANDS

PAGE = Path(__file__).with_name("cli.md")
JOB_COMMANDS = ("--plugin bfts run", "--plugin bfts plots")
HEAD = """# Commands

Written by `make docs` from the commands' own help.

`corerun NAME VERB` is short for `corerun --plugin NAME VERB`. Flags may be spelled with `-` or `_`.

## Streams and exit codes

`run` prints its manifest as one JSON document on stdout, and nothing else; progress and messages go to
stderr. Other commands print text on a terminal and JSON elsewhere (`--format json|text`).

| code | meaning |
|---|---|
| 0 | done |
| 1 | the run failed, or a check has findings |
| 2 | usage, configuration or bad input; a wrong key or model; missing artifacts under `--strict_artifacts` |
| 3 | the environment refuses: no sandbox, a missing package, a lock that is held |
| 4 | corrupt state, or an I/O error |
| 5 | stopped at a limit of money, tokens, time or disk, or an empty account; can be resumed |
| 130 | interrupted; can be resumed |
"""


def commands() -> Iterator[str]:
    """Every command line that has a help page."""
    yield from ("", *JOB_COMMANDS)
    for name, (target, _) in sorted(COMMANDS.items()):
        if name == "run":  # shown for a job: its flags follow from the job
            continue
        yield name
        module, _, attribute = target.partition(":")
        command = getattr(import_module(module), attribute)
        if isinstance(command, click.Group):
            yield from (f"{name} {verb}" for verb in command.commands)


def help_text(command: str) -> str:
    """What ``corerun COMMAND --help`` prints, at a width that doesn't depend on the terminal."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "corerun", *command.split(), "--help"],
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for command in commands():
        title = f"corerun {command}".strip()
        parts.append(f"## `{title}`\n\n```text\n{help_text(command)}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """0, or 1 if ``--check`` finds the page out of date."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write("docs/cli.md is out of date: run `make docs`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
