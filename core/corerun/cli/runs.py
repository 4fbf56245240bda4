"""``corerun runs``: what ran, how it went, and whether its journal holds together."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from corerun.cli.app import State, output_format
from corerun.cli.output import print_table, say
from corerun.interfaces import Event

root_option = click.option(
    "--out_root", "--out-root", type=click.Path(path_type=Path), default=Path(), help="Where runs lie."
)


@click.group()
def group() -> None:
    """List, show, rebuild and audit runs."""


@group.command("list")
@root_option
@output_format
def list_runs(out_root: Path, as_json: bool) -> None:
    """List the runs below a folder, oldest first."""
    from corerun.runs.directory import list_runs as find

    rows = [_row(path) for path in find(out_root)]
    if as_json:
        say(json.dumps(rows, indent=2))
        return
    if not rows:
        say(f"no runs below {out_root.resolve()}", err=True)
        return
    shown = [(row["run"], row["job"], row["status"], f"{row['nodes']} nodes", row["best"]) for row in rows]
    print_table([("RUN", "JOB", "STATUS", "NODES", "BEST"), *shown])


def _row(path: Path) -> dict[str, Any]:
    from corerun.errors import StateError
    from corerun.runs.fold import fold, started
    from corerun.runs.journal import read

    try:
        events, _ = read(path / "events.jsonl")
    except StateError as error:
        return {
            "run": path.name,
            "path": str(path),
            "job": "?",
            "status": f"corrupt: {error.message}",
            "nodes": 0,
            "best": None,
        }
    state = fold(events)
    best = state.ended.data.get("best") if state.ended else None
    # What a job calls its best is the job's own: a node with its score, or a number.
    score = best.get("score") if isinstance(best, Mapping) else best
    return {
        "run": path.name,
        "path": str(path),
        "job": started(state).get("job", "?"),
        "status": state.status,
        "nodes": sum(_counts(event.data) for event in state.done.values()),
        "best": round(score, 6) if isinstance(score, int | float) else None,
    }


def _counts(done: Mapping[str, Any]) -> bool:
    """Whether a finished node is a candidate of the search: no rerun, nothing that was carried over."""
    from corerun.report.fold import secondary

    carried = done["data"].get("op") == "carried"
    return done["status"] in ("good", "failed") and not carried and not secondary(done["scope"])


def opened(run: str, out_root: Path) -> tuple[Path, list[Event]]:
    """The directory that ``run`` names and the records of its journal, read only."""
    from corerun.runs.directory import find_run
    from corerun.runs.journal import read

    path = find_run(run, out_root)
    return path, read(path / "events.jsonl")[0]


@group.command("show")
@click.argument("run", default="")
@root_option
@output_format
def show(run: str, out_root: Path, as_json: bool) -> None:
    """Show one run (default: the newest): status, stages, nodes, cost, warnings."""
    path, events = opened(run, out_root)
    if as_json:
        from corerun.report.data import report_data

        data = report_data(events, run_dir=path, max_mb=0.0)
        nodes = [{key: value for key, value in node.items() if key != "detail"} for node in data["nodes"]]
        say(json.dumps({**data, "nodes": nodes, "path": str(path)}, indent=2, default=str))
        return
    from corerun.report.progress import Progress

    progress = Progress(sys.stdout, "plain")
    for event in events:
        progress.on_event(event)
    progress.close()
    say(f"run directory: {path}")


@group.command("rebuild")
@click.argument("run", default="")
@root_option
@click.pass_obj
def rebuild(state: State, run: str, out_root: Path) -> None:
    """Write every file again that follows from a run's journal; prints the manifest."""
    from corerun.job.manifest import rebuild as rebuild_files
    from corerun.runs.directory import find_run

    manifest = rebuild_files(find_run(run, out_root), state.manager)
    say(json.dumps(manifest, indent=2, sort_keys=True))


@group.command("audit")
@click.argument("run", default="")
@root_option
@output_format
def audit(run: str, out_root: Path, as_json: bool) -> int:
    """Check the chain of executed programs, and list those that ran without full isolation."""
    from corerun.runs.audit import audit as check

    path, events = opened(run, out_root)
    found = check(events)
    if as_json:
        say(json.dumps({"run": path.name, **found}, indent=2))
    else:
        say(f"{found['executions']} programs ran, {found['weak']} of them without full isolation")
        for line in found["findings"]:
            say(line)
    return 1 if found["findings"] else 0
