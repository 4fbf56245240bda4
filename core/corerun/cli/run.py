"""``run``: the one verb that starts or resumes a job; its flags follow from the job's settings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from corerun.cli.output import say
from corerun.errors import EnvironmentRefused, Interrupted, UsageError

COMMON: tuple[tuple[str, str, str], ...] = (
    ("model", "model", "model for every role without one: ID, PROVIDER::ID or ollama/ID"),
    ("models_file", "models_file", "file whose `models:` are read as aliases"),
    ("strict_params", "llm.strict_params", "a parameter that a server refuses is an error"),
    ("strategy", "strategy", "search strategy, a component name"),
    ("workers", "workers", "programs at once"),
    ("in_flight", "in_flight", "expansions under way"),
    ("scheduler", "scheduler", "async, or batch for the reproducible mode"),
    ("seed", "seed", "seed of every random choice"),
    ("executor", "executor", "where programs run, a component name"),
    ("sandbox", "sandbox.name", "inside what programs run, a component name or auto"),
    ("out_root", "out_root", "folder below which runs are made"),
    ("run_id", "run_id", "name of the run; the same name resumes it"),
    ("max_cost_usd", "budget.usd", "stop in order at this cost"),
    ("max_tokens_total", "budget.tokens", "stop in order at this many tokens"),
    ("max_wall_s", "budget.seconds", "stop in order after this many seconds"),
)


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _switches(name: str) -> list[str]:
    dashed = name.replace("_", "-")
    return [f"--{name}/--no-{dashed}", *([f"--{dashed}/--no-{name}"] if "_" in name else [])]


def _is_bool(annotation: Any) -> bool:
    return annotation is bool or bool in typing.get_args(annotation)


def _is_scalar(annotation: Any) -> bool:
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return all(kind in (str, int, float, bool, Path, type(None)) for kind in kinds)


class RunCommand(click.Command):
    """A command whose parameters are the common settings plus the fields of the job's section."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if "corerun.params" not in ctx.meta:
            ctx.meta["corerun.params"] = [*self.params, *_job_options(ctx), self.get_help_option(ctx)]
        return [param for param in ctx.meta["corerun.params"] if param is not None]


def _job_name(ctx: click.Context) -> str | None:
    name: str | None = getattr(ctx.obj, "plugin", None)
    return name


def _job_options(ctx: click.Context) -> list[click.Parameter]:
    from corerun import config

    options: list[click.Parameter] = []
    for name, key, text in COMMON:
        field = _field(config.Settings, key.split("."))
        if field.annotation is bool:
            options.append(click.Option([*_switches(name), f"common__{name}"], default=None, help=text))
            continue
        default = "" if field.default in (None, "") or key == "out_root" else f"  [default: {field.default}]"
        options.append(click.Option([*_spellings(name), f"common__{name}"], help=text + default))
    job = _job_name(ctx)
    if job is None:
        return options
    model = ctx.obj.manager.get("jobs", job)().config_model
    for name, field in model.model_fields.items():
        if not _is_scalar(field.annotation):
            continue
        text = field.description or name.replace("_", " ")
        if field.default is not None:
            text += f"  [default: {field.default}]"
        if _is_bool(field.annotation):
            options.append(click.Option([*_switches(name), f"job__{name}"], default=None, help=text))
        else:
            options.append(click.Option([*_spellings(name), f"job__{name}"], help=text))
    return options


def _field(model: Any, path: list[str]) -> Any:
    for part in path[:-1]:
        model = type(model.model_fields[part].default)
    return model.model_fields[path[-1]]


def _flag_layer(job: str, values: dict[str, Any], overrides: tuple[str, ...]) -> Any:
    from corerun import config

    keys = {name: tuple(key.split(".")) for name, key, _ in COMMON}
    layer: config.Layer = {}
    for name, value in values.items():
        scope, _, field = name.partition("__")
        if value is None or scope not in ("common", "job"):
            continue
        key = keys[field] if scope == "common" else (job, field)
        layer[key] = config.Entry(value, f"--{field}")
    for text in overrides:
        layer |= config.parse_override(text)
    return layer


@click.command(
    "run",
    cls=RunCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a job (name it with --plugin NAME), or go on with a run. Prints the manifest as JSON.",
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="job file to read")
@click.option(
    "-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help="set any key; KEY! sets null"
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[RUN]",
    help="go on with a run: its folder or name; without a value the newest",
)
@click.option("--salvage", is_flag=True, help="with --resume: go on without the bad lines of a journal")
@click.option(
    "--force-unlock",
    "--force_unlock",
    is_flag=True,
    help="take over at once a run on a network file system whose process on this host has ended",
)
@click.option("--dry-run", "--dry_run", is_flag=True, help="say what a run would take; write nothing")
@click.option(
    "--i-accept-no-isolation", "accept_weak", is_flag=True, help="run a model's programs without isolation"
)
@click.option(
    "--display",
    type=click.Choice(["auto", "rich", "plain", "log", "none"]),
    default="auto",
    show_default=True,
    help="progress on stderr",
)
@click.option("--events", "events_file", type=click.Path(path_type=Path), help="copy every event to a file")
@click.option("--env-file", "--env_file", type=click.Path(path_type=Path), help="variables to read")
@click.option("--no-env-file", "--no_env_file", is_flag=True, help="don't read .env beside the job file")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    config_file: Path | None,
    overrides: tuple[str, ...],
    resume: str | None,
    salvage: bool,
    force_unlock: bool,
    dry_run: bool,
    accept_weak: bool,
    display: str,
    events_file: Path | None,
    env_file: Path | None,
    no_env_file: bool,
    **values: Any,
) -> None:
    import os

    from corerun.job import environment, plan, start
    from corerun.redaction import redact, redact_value
    from corerun.redaction.logs import clean_last_words
    from corerun.report.progress import Progress

    clean_last_words()

    job = _job_name(ctx)
    if job is None:
        raise UsageError(
            "run needs a job", hint="corerun --plugin NAME run; corerun plugins list shows names"
        )
    if resume is None and config_file is not None and not config_file.is_file():
        raise UsageError(f"no such file: {config_file}", where="--config")
    environ = dict(os.environ)
    if not no_env_file:
        beside = (config_file.parent if config_file else Path()) / ".env"
        for line in environment.read_env_file(env_file or beside, environ, required=env_file is not None):
            say(f"corerun: {line}", err=True)
    flags = _flag_layer(job, values, overrides)
    made = plan.make_plan(
        job,
        ctx.obj.manager,
        flags=flags,
        cwd=Path.cwd(),
        config_file=config_file,
        argv=ctx.obj.argv,
        resume=resume,
        environ=environ,
    )
    for notice in (made.why_model, *made.prepared.notices):
        if notice:
            say(redact(notice), err=True)
    if dry_run:
        click.echo(json.dumps(redact_value(plan.describe(made)), indent=2, sort_keys=True))
        return
    progress = Progress(sys.stderr, display)
    listeners: list[Callable[[Any], None]] = [progress.on_event]
    stream = None
    if events_file is not None:
        try:
            stream = events_file.open("a", encoding="utf-8")
        except OSError as error:
            raise EnvironmentRefused(f"can't write {events_file}: {error.strerror}") from error
        listeners.append(environment.event_writer(stream))
    try:
        finished = asyncio.run(
            start.run_plan(
                made,
                ctx.obj.manager,
                listeners=listeners,
                restore=progress.restore,
                accept_weak=accept_weak,
                salvage=salvage,
                force_unlock=force_unlock,
            )
        )
    finally:
        progress.close()
        if stream is not None:
            with contextlib.suppress(OSError):  # what the reader that went away didn't take
                stream.close()
    if finished.exit_code == Interrupted.exit_code:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # What is left to do takes no time.
    click.echo(json.dumps(finished.manifest, indent=2, sort_keys=True))
    problem = finished.manifest.get("error")
    if problem:
        say(f"corerun: {problem['type']}: {problem['message']}", err=True)
        if problem.get("hint"):
            say(f"  hint: {problem['hint']}", err=True)
    ctx.exit(finished.exit_code)
