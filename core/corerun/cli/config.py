"""``corerun config``: the settings that a job would run with, and the schema of its file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from corerun.cli.app import State


@click.group()
def group() -> None:
    """Show and describe the configuration."""


@group.command("show")
@click.argument("job")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="job file to read")
@click.option("-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE")
@click.option("--origin", is_flag=True, help="Only what is set, with the place where it is set.")
@click.pass_obj
def show(state: State, job: str, config_file: Path | None, overrides: tuple[str, ...], origin: bool) -> None:
    """Print the settings that JOB would run with, as YAML."""
    from corerun import config
    from corerun.job.plan import read_settings
    from corerun.redaction import redact

    flags: config.Layer = {}
    for text in overrides:
        flags |= config.parse_override(text)
    settings, layer = read_settings(job, state.manager, flags=flags, cwd=Path.cwd(), config_file=config_file)
    if origin:
        for key, entry in sorted(layer.items()):
            click.echo(redact(f"{'.'.join(key)}: {json.dumps(entry.value, default=str)}  # {entry.where}"))
        return
    click.echo(redact(config.to_yaml(settings)), nl=False)


@group.command("schema")
@click.argument("job")
@click.pass_obj
def schema(state: State, job: str) -> None:
    """Print the JSON Schema of JOB's settings, for editors."""
    from corerun import config

    name = state.manager.find("jobs", job).component.name
    model = config.settings_model(name, state.manager.get("jobs", job)().config_model)
    click.echo(json.dumps(model.model_json_schema(), indent=2))
