"""The cold start: a fresh interpreter becomes the program that its launch describes."""

from __future__ import annotations

import os
import sys

from . import confine, kernel, nanny, program

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Not at run time: typing, json, enum and re would be half of what a start takes.
    from typing import Any

_JSON_NAMES: dict[str, object] = {"__builtins__": {}, "null": None, "true": True, "false": False}


def main() -> Any:
    """Begin the launch that is this process's argument (see `confine`); returns it in the program."""
    # It is our own text, and JSON without escapes beyond ASCII is also Python.
    launch = eval(sys.argv[1], dict(_JSON_NAMES))
    try:
        confine.join_groups(launch)
        if launch["status"] is None:
            kernel.die_with(launch["parent"])
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        else:
            _begin_namespace(launch)
    except Exception as error:
        program.refuse(launch["result"], error)
    return launch


def _begin_namespace(launch: Any) -> None:
    """Stay behind as the first process; returns in the second, which becomes the program."""
    nanny.ignore_stops()
    # The program must not reach the record of its end through /proc.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    child = os.fork()
    if child:
        os.close(launch["result"])
        nanny.watch(child, launch["status"])
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    os.close(launch["status"])
    # Set by bwrap, to where it began.
    os.environ.pop("PWD", None)
    os.setsid()
    nanny.heed_stops()
