"""``corerun doctor``: what this machine can do, and what to do about each gap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from corerun.cli.app import State, output_format
from corerun.cli.output import print_json, print_table

if TYPE_CHECKING:
    from corerun.job.checkup import Finding


@click.command("doctor")
@click.option("--online", is_flag=True, help="Ask every model server that can be asked whether it answers.")
@output_format
@click.pass_obj
def command(state: State, online: bool, as_json: bool) -> int:
    """Check sandboxes, packages, GPUs, models and disk, and say what to do about each gap.

    Exit code 1 if a model's programs can't run isolated here by default.
    """
    import os
    from pathlib import Path

    from corerun.job.checkup import examine

    environ = dict(os.environ)
    findings = examine(state.manager, environ, Path.cwd())
    if online:
        findings += _answering(state, environ)
    if as_json:
        rows = [
            {"check": item.check, "ok": item.ok, "detail": item.detail, "hint": item.hint}
            for item in findings
        ]
        print_json(rows)
    else:
        shown = [(item.check, "ok" if item.ok else "no", item.detail) for item in findings]
        print_table([("CHECK", "", "DETAIL"), *shown])
        for item in findings:
            if item.hint:
                click.echo(f"{item.check}: {item.hint}")
    first = next((item for item in findings if item.essential and not item.ok), None)
    if first is None:
        return 0
    click.echo(f"corerun: a model's programs can't run isolated here; first: {first.hint}", err=True)
    return 1


def _answering(state: State, environ: Mapping[str, str]) -> list[Finding]:
    import asyncio
    from pathlib import Path

    from corerun.cli import model_facts
    from corerun.job.checkup import Finding
    from corerun.job.plan import read_models

    _, directory = read_models(state.manager, environ, Path.cwd())
    ready = [
        row["name"]
        for row in model_facts.providers(directory, state.manager, environ)
        if row["status"] == "ready"
    ]

    async def ask() -> dict[str, dict[str, object]]:
        try:
            return await model_facts.all_offered(directory, ready, environ)
        finally:
            await directory.aclose()

    found = []
    for name, offer in asyncio.run(ask()).items():
        models, problem = offer.get("models"), offer.get("problem")
        said = f"answers, {len(models)} models" if isinstance(models, list) else str(problem)
        hint = "" if problem is None else "start the server, or see corerun models list"
        found.append(Finding(f"server {name}", problem is None, said, hint))
    return found
