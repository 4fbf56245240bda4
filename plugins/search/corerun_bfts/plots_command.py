"""``corerun --plugin bfts plots``: the figures of a finished run, drawn again."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import click

from corerun.cli.output import say
from corerun.config import Entry, Key, Layer
from corerun.job import environment, plan, start
from corerun.report.progress import Progress


@click.command("plots", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--folder", required=True, type=click.Path(path_type=Path), help="run directory")
@click.option("--model", help="model that writes the script")
@click.option("--reflections", type=int, default=5, show_default=True, help="rounds after the first script")
@click.option(
    "--max_figures", "--max-figures", type=int, default=12, show_default=True, help="target number of figures"
)
@click.option("--max_tokens", "--max-tokens", type=int, help="output tokens of the model; <= 0: no cap")
@click.option("--sandbox", help="inside what the script runs, a component name or auto")
@click.option("--i-accept-no-isolation", "accept_weak", is_flag=True, help="run the script without isolation")
@click.option("--display", default="auto", help="progress on stderr: auto, rich, plain, log, none")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    folder: Path,
    model: str | None,
    reflections: int,
    max_figures: int,
    max_tokens: int | None,
    sandbox: str | None,
    accept_weak: bool,
    display: str,
) -> None:
    """Write auto_plot_aggregator.py and figures/ of a finished run again; prints a manifest as JSON."""
    values: dict[Key, object] = {
        ("plots", "folder"): str(folder),
        ("plots", "reflections"): reflections,
        ("plots", "max_figures"): max_figures,
        ("plots", "max_tokens"): max_tokens,
        ("model",): model,
        ("sandbox", "name"): sandbox,
    }
    flags: Layer = {key: Entry(value, f"--{key[-1]}") for key, value in values.items() if value is not None}
    environ = dict(os.environ)
    for line in environment.read_env_file(Path(".env"), environ):
        say(f"corerun: {line}", err=True)
    made = plan.make_plan(
        "bfts/plots", ctx.obj.manager, flags=flags, cwd=Path.cwd(), argv=ctx.obj.argv, environ=environ
    )
    if made.why_model:
        say(made.why_model, err=True)
    progress = Progress(sys.stderr, display)
    try:
        finished = asyncio.run(
            start.run_plan(made, ctx.obj.manager, listeners=[progress.on_event], accept_weak=accept_weak)
        )
    finally:
        progress.close()
    click.echo(json.dumps(finished.manifest, indent=2, sort_keys=True))
    problem = finished.manifest.get("error")
    if problem:
        say(f"corerun: {problem['type']}: {problem['message']}", err=True)
    ctx.exit(finished.exit_code)
