"""The manifest: a view of the journal that says what a run was, what it made and what it came to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corerun import __version__
from corerun.errors import CorerunError, StateError
from corerun.interfaces import Event
from corerun.llm.ledger import Ledger
from corerun.plugins import PluginManager
from corerun.redaction import redact_value
from corerun.report.results import disclosure
from corerun.runs import events as kinds
from corerun.runs import io
from corerun.runs.directory import refuse_links
from corerun.runs.fold import fold, started
from corerun.runs.journal import read
from corerun.runs.lock import RunLock


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def build_manifest(directory: Path, events: Sequence[Event], part: Mapping[str, Any]) -> dict[str, Any]:
    """The whole manifest; ``part`` is the job's own and wins, its paths and warnings are added.

    ``degradations`` says what models had to do without. ``reproducible`` is false if one of them was
    the seed; it says nothing of a scheduler's order or of models that don't heed their seed.
    """
    state = fold(events)
    begun = started(state)
    ledger = Ledger.fold(events)
    end = state.ended.data if state.ended else {"status": "interrupted", "exit_code": None, "error": None}
    models = dict(begun.get("models", {}))
    sandbox = begun.get("sandbox", {})
    for event in state.resumed:
        models |= event.data.get("models", {})
        sandbox = event.data.get("sandbox", sandbox)
    first, last = (events[0].t, events[-1].t) if events else (0.0, 0.0)
    degradations = [
        {name: event.data.get(name, "") for name in ("model", "feature", "reason")}
        for event in events
        if event.type == kinds.DEGRADED
    ]
    common = {
        "status": end["status"],
        "exit_code": end["exit_code"],
        "error": end["error"],
        "job": begun.get("job"),
        "plugin": begun.get("plugin"),
        "corerun_version": __version__,
        "versions": begun.get("versions", {}),
        "argv": begun.get("argv", []),
        "seed": begun.get("seed"),
        "strategy": begun.get("settings", {}).get("strategy"),
        "inputs": begun.get("inputs", {}),
        "started_at": _timestamp(first),
        "ended_at": _timestamp(last),
        "wall_s": round(last - first - state.clock_steps_s, 3),
        "models": models,
        "sandbox": sandbox,
        "cost": ledger.totals.to_json(),
        "degradations": degradations,
        "reproducible": all(row["feature"] != "seed" for row in degradations),
        "possibly_double_paid": state.double_paid,
        "resumed_from": state.resumed[-1].seq if state.resumed else None,
        "disclosure": disclosure(models),
    }
    paths = {
        "run_dir": str(directory),
        "events": str(directory / "events.jsonl"),
        "run_manifest": str(directory / "run_manifest.json"),
    }
    warnings = dict.fromkeys([*state.warnings, *part.get("warnings", [])])
    paths |= part.get("paths", {})
    manifest: dict[str, Any] = redact_value({**common, **part, "paths": paths, "warnings": list(warnings)})
    return manifest


def rebuild(directory: Path, manager: PluginManager) -> dict[str, Any]:
    """Write a run's derived files and its manifest again, from the journal alone."""
    refuse_links(directory)
    lock = RunLock(directory)
    try:
        events, _ = read(directory / "events.jsonl")
        job = started(fold(events)).get("job")
        if job is None:
            raise StateError("the journal has no beginning", where=str(directory / "events.jsonl"))
        try:
            part = manager.get("jobs", job)().derive(directory, events)
        except CorerunError:
            raise
        except Exception as error:
            raise StateError(
                f"the records don't fit together: {type(error).__name__}: {error}",
                where=str(directory / "events.jsonl"),
                hint="--debug shows what couldn't be made of them",
            ) from error
        manifest = build_manifest(directory, events, part)
        io.replace_json(directory / "run_manifest.json", manifest, sort_keys=True)
    finally:
        lock.release()
    return manifest
