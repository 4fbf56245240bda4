"""Gives many command lines to the command in one process, and prints what came of each."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import time

from corerun.cli.app import run_command


def main() -> None:
    """Reads ``[{folder, arguments}]`` from stdin, prints ``{results, peak_kb}`` as JSON."""
    results = []
    for given in json.load(sys.stdin):
        os.chdir(given["folder"])
        os.environ["HOME"] = os.path.join(given["folder"], "home")
        out, err = io.StringIO(), io.StringIO()
        begun = time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(given["arguments"])
        cpu_s = time.process_time() - begun
        results.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "cpu_s": cpu_s})
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"results": results, "peak_kb": peak_kb}))


if __name__ == "__main__":
    main()
