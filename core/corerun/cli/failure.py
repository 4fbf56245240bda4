"""Says on stderr, and in JSON if asked, why a command failed; knows the exit code of each error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from corerun.errors import CorerunError, DiskFull
from corerun.redaction import redact, redact_value, remember_arguments, remember_environment
from corerun.redaction.terminal import one_line, shown


def report(error: Exception, *, debug: bool, as_json: bool, arguments: Sequence[str] = ()) -> int:
    """Print one line and a hint, with ``debug`` the traceback first. Returns the exit code.

    ``arguments`` are what was typed: no secret among them is repeated, nor one of the environment.
    """
    remember_environment(os.environ)
    remember_arguments(arguments)
    if debug:
        from corerun.redaction.logs import clean_traceback

        sys.stderr.write(clean_traceback(error))
    # A group without a verb: click's message is the whole help, which older releases print themselves.
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        sys.stderr.write(redact(f"{error}\n"))
        return 2
    code, message, hint, where = _facts(error)
    line = f"{where}: {message}" if where else message
    sys.stderr.write(shown(redact(f"corerun: {line}\n" + (f"  hint: {hint}\n" if hint else ""))))
    if as_json:
        import json

        facts = {"code": code, "message": message, "hint": hint, "where": where}
        sys.stdout.write(json.dumps({"error": redact_value(facts)}) + "\n")
    return code


def _facts(error: Exception) -> tuple[int, str, str, str]:
    if isinstance(error, CorerunError):
        return error.exit_code, one_line(error.message), one_line(error.hint), one_line(error.where)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "corerun"
        return 2, error.format_message(), f"{path} --help", ""
    if isinstance(error, click.ClickException):
        return 2, error.format_message(), "", ""
    if isinstance(error, OSError):
        from corerun.runs.io import FULL

        if error.errno in FULL:
            place = f" to write {error.filename}" if error.filename else ""
            return DiskFull.exit_code, f"no space left{place}", "free some space, then try again", ""
    text = " ".join(str(error).split())
    return 1, f"internal error: {type(error).__name__}: {text} (run with --debug for the traceback)", "", ""
