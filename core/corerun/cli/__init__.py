"""The console script: answers ``--version`` at once and leaves the rest to `corerun.cli.app`."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. ``argv`` is without the program's name."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from corerun import __version__

        sys.stdout.write(f"corerun {__version__}\n")
        return 0
    from corerun.cli.app import run_command

    return run_command(arguments)
