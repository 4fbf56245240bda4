"""``corerun exec``: one program, run as jobs run theirs."""

from __future__ import annotations

import math
from pathlib import Path

import click

from corerun.cli.app import State

_COUNT = click.IntRange(min=1)


def _seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise click.BadParameter("must be a number of seconds above 0")
    return value


@click.command("exec")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--timeout", type=float, default=3600, show_default=True, callback=_seconds, help="seconds of time"
)
@click.option("--memory-mb", type=_COUNT, help="memory of all its processes  [default: 3/4 of what is free]")
@click.option("--pids", type=_COUNT, default=512, show_default=True, help="processes and threads at once")
@click.option("--file-mb", type=_COUNT, default=4096, show_default=True, help="size of one file")
@click.option("--disk-mb", type=_COUNT, default=10240, show_default=True, help="size of all files in DIR")
@click.option(
    "--cwd",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path(),
    help="folder that it runs in and may change  [default: the current one]",
)
@click.option("--sandbox", default="auto", show_default=True, help="inside what it runs, a component name")
@click.option("--preload", metavar="PROFILE", help="fork it from a process that has imported PROFILE")
@click.option("--pass-env", "pass_env", multiple=True, metavar="NAME", help="let it see this variable")
@click.option("--i-accept-no-isolation", "accept_weak", is_flag=True, help="run it without isolation")
@click.pass_obj
def command(
    state: State,
    file: Path,
    timeout: float,
    memory_mb: int | None,
    pids: int,
    file_mb: int,
    disk_mb: int,
    folder: Path,
    sandbox: str,
    preload: str | None,
    pass_env: tuple[str, ...],
    accept_weak: bool,
) -> int:
    """Run FILE (.py under Python, .sh under /bin/sh) isolated in DIR, pass its output through and exit
    with its code: 124 at the time limit, 128 + n for signal n. A sandbox named by hand may be weak."""
    import asyncio

    from corerun.execution.environment import check_names
    from corerun.execution.select import MODEL_CODE_GUARANTEES
    from corerun.interfaces import Limits, Policy
    from corerun.job import program
    from corerun.job.isolation import isolate

    check_names(pass_env)
    limits = Limits(
        wall_s=timeout,
        mem_mb=memory_mb,
        pids=pids,
        file_mb=file_mb,
        disk_mb=disk_mb,
        stdout_store_mb=program.STORE_MB,
    )
    ready = program.read_program(file, folder, limits, preload)
    policy = Policy(require=MODEL_CODE_GUARANTEES, pass_env=pass_env)
    isolation = isolate(state.manager, sandbox, policy, accept_weak=accept_weak or sandbox != "auto")
    if isolation.missing:
        warning = f"runs under {isolation.name}, without {', '.join(isolation.missing)}"
        click.echo(f"corerun: warning: {file.name} {warning}", err=True)

    result = asyncio.run(program.run_file(ready, isolation))
    if why := program.why_stopped(result):
        click.echo(f"corerun: {why}", err=True)
    return program.exit_code(result)
