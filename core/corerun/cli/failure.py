"""Says on stderr, and in JSON if asked, why a command failed; knows the exit code of each error."""

from __future__ import annotations

import sys

import click

from corerun.errors import CorerunError


def report(error: Exception, *, debug: bool, as_json: bool) -> int:
    """Print one line and a hint, with ``debug`` the traceback first. Returns the exit code."""
    if debug:
        import traceback

        sys.stderr.write("".join(traceback.format_exception(error)))
    # A group without a verb: click's message is the whole help, which older releases print themselves.
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        sys.stderr.write(f"{error}\n")
        return 2
    code, message, hint, where = _facts(error)
    line = f"{where}: {message}" if where else message
    sys.stderr.write(f"corerun: {line}\n" + (f"  hint: {hint}\n" if hint else ""))
    if as_json:
        import json

        facts = {"code": code, "message": message, "hint": hint, "where": where}
        sys.stdout.write(json.dumps({"error": facts}) + "\n")
    return code


def _facts(error: Exception) -> tuple[int, str, str, str]:
    if isinstance(error, CorerunError):
        return error.exit_code, error.message, error.hint, error.where
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "corerun"
        return 2, error.format_message(), f"{path} --help", ""
    if isinstance(error, click.ClickException):
        return 2, error.format_message(), "", ""
    text = " ".join(str(error).split())
    return 1, f"internal error: {type(error).__name__}: {text} (run with --debug for the traceback)", "", ""
