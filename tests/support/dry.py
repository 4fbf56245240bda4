"""``run --dry-run`` in the test's own process, in a chosen folder with a chosen environment."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from corerun.cli import app
from corerun.job import plan
from tests.support import jobs


@dataclass
class Checked:
    """What a ``--dry-run`` said, and the plan behind it."""

    code: int
    stdout: str
    stderr: str
    plan: plan.Plan | None

    @property
    def settings(self) -> Any:
        assert self.plan is not None, self.stderr
        return self.plan.settings


@contextlib.contextmanager
def standing_in(cwd: Path, environ: Mapping[str, str]) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(cwd)
    try:
        with mock.patch.dict(os.environ, environ, clear=True):
            yield
    finally:
        os.chdir(before)


def dry_run(cwd: Path, *arguments: str, **variables: str) -> Checked:
    """``run --dry-run`` in this process, with an empty home and ``variables`` in the environment."""
    made: list[plan.Plan] = []
    describe = plan.describe

    def keep(one: plan.Plan) -> dict[str, Any]:
        made.append(one)
        return describe(one)

    out, err = io.StringIO(), io.StringIO()
    environ = jobs.clean_environ(cwd / "home", **variables)
    with (
        standing_in(cwd, environ),
        mock.patch.object(plan, "describe", keep),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = app.run_command(["--plugin", "bfts", "run", "--dry-run", *arguments])
    return Checked(code, out.getvalue(), err.getvalue(), made[0] if made else None)


def write_job(folder: Path, **job: Any) -> Path:
    """A job file on the packaged ideas; further keys are its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job_config.yaml"
    path.write_text(yaml.safe_dump({"job": {"load_ideas": str(jobs.IDEAS), "idea_idx": 0, **job}}))
    return path
