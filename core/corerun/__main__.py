"""Runs corerun as ``python -m corerun``, without trusting the folder it is started in."""

from __future__ import annotations

import os
import sys


def _leave_current_folder() -> None:
    # `python -m` puts the current folder first on the path: a `*.dist-info` in a repository that
    # somebody else wrote would be found as an installed plugin, before the real ones.
    here = os.path.realpath(os.getcwd())
    sys.path[:] = [entry for entry in sys.path if entry and os.path.realpath(entry) != here]


if __name__ == "__main__":
    _leave_current_folder()
    from corerun.cli import main

    sys.exit(main())
