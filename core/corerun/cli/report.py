"""``corerun report``: one self-contained HTML file of a run, finished or not."""

from __future__ import annotations

from pathlib import Path

import click

from corerun.cli.runs import opened
from corerun.errors import EnvironmentRefused, StateError
from corerun.inputs.names import safe_join


@click.command("report")
@click.argument("run", default="")
@click.option(
    "--out_root", "--out-root", type=click.Path(path_type=Path), default=Path(), help="Where runs lie."
)
@click.option("-f", "--file", "target", type=click.Path(path_type=Path), help="Default: RUN/report.html.")
@click.option("--max-mb", type=float, default=20.0, show_default=True, help="Megabytes of pictures.")
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
def command(run: str, out_root: Path, target: Path | None, max_mb: float, show: bool) -> None:
    """Write the report of RUN (default: the newest) and print its path."""
    from corerun.report.data import report_data
    from corerun.report.page import render_report

    path, events = opened(run, out_root)
    page = render_report(report_data(events, run_dir=path, max_mb=max_mb), title=path.name)
    place = target or safe_join(path, "report.html", error=StateError)
    try:
        place.write_text(page, encoding="utf-8")
    except OSError as error:
        raise EnvironmentRefused(f"can't write {place}: {error.strerror or error}") from error
    click.echo(str(place))
    if show:
        click.launch(str(place))
