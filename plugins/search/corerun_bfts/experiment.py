"""Takes one experiment program through its steps: run, review, metric, plots, results on disk."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corerun.errors import CallFailed, StateError
from corerun.execution.collect import collect
from corerun.inputs.names import safe_join
from corerun.interfaces import ExecResult, Node, Outcome
from corerun.runs import io
from corerun_bfts import plotting
from corerun_bfts.answers import parse_metrics
from corerun_bfts.laboratory import Laboratory, exception, output
from corerun_bfts.metric import Reading, chosen_metric, values_of
from corerun_bfts.prompts import Prompts

DATA = "working/experiment_data.npy"


@dataclass(slots=True)
class Record:
    """A program on its way: what it is, and what it builds on."""

    op: str
    stage: int
    plan: str = ""
    code: str = ""
    name: str = ""
    description: str = ""
    setting: Mapping[str, Any] = field(default_factory=dict)
    plot_base: str = ""
    """The plot program to start from."""
    extra: dict[str, Any] = field(default_factory=dict)

    def take(self, idea: Mapping[str, Any]) -> None:
        """The name, description and setting of an idea, or of the node that is mended."""
        self.name = idea.get("name", "")
        self.description = idea.get("description", "")
        self.setting = idea.get("setting", {})

    def to_json(self) -> dict[str, Any]:
        """As the node's data begins."""
        return {
            "op": self.op,
            "stage": self.stage,
            "plan": self.plan,
            "code": self.code,
            "name": self.name,
            "description": self.description,
            "setting": dict(self.setting),
            **self.extra,
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """The primary metric per data set, or why there is none."""

    values: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    lower_is_better: bool | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of an experiment program."""

    result: ExecResult
    reading: Reading
    has_data: bool
    finite: bool
    rows: list[dict[str, Any]]
    shown: str
    """Its output, as prompts and reports show it."""


async def examine(lab: Laboratory, node: Node, prompts: Prompts, record: Record) -> Outcome:
    """All steps after a program was written."""
    ran = await _run(lab, node, record.code, None)
    data = _data(lab, record, ran)
    try:
        review, measured = await _both(
            lab.ask(prompts.review(record.code, _run_facts(ran)), node.id),
            _measure(lab, node, prompts, record.code, ran),
        )
    except CallFailed as error:
        return _failed(lab, node, data, f"{type(error).__name__}: {error.message}")
    data["analysis"] = review.summary
    reason = _fault(ran, measured) or ("review: judged to be a bug" if review.is_bug else "")
    if reason:
        return _failed(lab, node, data, reason)
    data |= _measured_data(lab, measured, ran.reading)
    data |= await plotting.draw(lab, node, prompts, record.code, record.plot_base, ran.reading)
    return _good(lab, node, data, measured)


async def rerun(lab: Laboratory, node: Node, record: Record, seed: int, plot_code: str) -> Outcome:
    """The same steps for a rerun with another seed: no model is asked."""
    ran = await _run(lab, node, record.code, seed)
    data = _data(lab, record, ran) | {"seed": seed}
    measured = Measured({row["set"]: row["final"] for row in ran.rows})
    reason = _fault(ran, measured)
    if reason:
        return _failed(lab, node, data, reason)
    data |= _measured_data(lab, measured, ran.reading)
    data |= await plotting.redraw(lab, node, plot_code, ran.reading)
    return _good(lab, node, data, measured)


async def _run(lab: Laboratory, node: Node, code: str, seed: int | None) -> Ran:
    result = await lab.run_experiment(node, code, seed)
    has_data = any(item["path"] == DATA for item in result.files)
    reading = await lab.read_data(node) if has_data else Reading(finite=False)
    rows = reading.rows(lab.metric)
    finite = reading.finite and all(math.isfinite(row["final"]) for row in rows)
    return Ran(result, reading, has_data, finite, rows, lab.shown(node, output(result)))


def _run_facts(ran: Ran) -> dict[str, Any]:
    return {
        "exc_type": exception(ran.result),
        "timed_out": ran.result.status == "timeout",
        "has_data": ran.has_data,
        "finite": ran.finite,
        "output_tail": ran.shown,
    }


def _data(lab: Laboratory, record: Record, ran: Ran) -> dict[str, Any]:
    result = ran.result
    stack = [[Path(t["file"]).name, t.get("line"), t.get("func"), t.get("text")] for t in result.exc_trace]
    return record.to_json() | {
        "written_by": lab.written_by,
        "output": ran.shown,
        "exec_time": round(result.wall_s, 3),
        "exc_type": exception(result),
        "exc_info": {"message": result.exc_msg} if result.exc_msg else None,
        "exc_stack": stack,
        "status": result.status,
    }


async def _measure(lab: Laboratory, node: Node, prompts: Prompts, code: str, ran: Ran) -> Measured:
    """The primary metric per data set, as the feedback model reports what was read."""
    if not ran.has_data or ran.result.status != "ok":
        return Measured()
    printed = ""
    if not ran.rows:
        _, reader = await lab.ask(prompts.read_metric(code, ran.reading.structure), node.id)
        result = await lab.execute(node, "metric_reader", reader)
        if result.status != "ok":
            return Measured()
        printed = lab.shown(node, result.stdout)
    parsed: parse_metrics = await lab.ask(prompts.parse_metric(ran.rows, printed), node.id)
    if not parsed.valid_metrics_received or not parsed.metric_names:
        return Measured()
    aliases = lab.run.noted("metric_aliases", [])
    entry = chosen_metric(parsed, lab.metric, aliases)
    if entry is None:
        names = ", ".join(item.metric_name for item in parsed.metric_names)
        return Measured(problem=f"metric_mismatch: {lab.metric.name} is wanted, {names} came")
    if not lab.metric.means(entry.metric_name, aliases):
        lab.run.note("metric_aliases", [*aliases, entry.metric_name])
    values = values_of(entry, ran.rows, best_value=lab.settings.best_value)
    return Measured(values, lower_is_better=entry.lower_is_better)


def _fault(ran: Ran, measured: Measured) -> str:
    """Why the node is a failure, in one line; empty if it is none."""
    if ran.result.status != "ok":
        return " ".join(f"{exception(ran.result)}: {ran.result.exc_msg}".split())[:300]
    if not ran.has_data:
        return f"no data: {DATA} was not saved"
    if not ran.finite:
        return "not finite: the saved values hold NaN or infinity"
    if not measured.values:
        return measured.problem or "no valid metric"
    return ""


def _measured_data(lab: Laboratory, measured: Measured, reading: Reading) -> dict[str, Any]:
    values = measured.values
    metric = {
        **lab.metric.to_json(),
        "value": math.fsum(values.values()) / len(values),
        "sets": dict(values),
        "test": reading.test(),
        "lower_is_better": measured.lower_is_better,
    }
    return {"metric": metric, "structure": reading.structure}


def _failed(lab: Laboratory, node: Node, data: dict[str, Any], reason: str) -> Outcome:
    data |= {"is_buggy": True, "is_buggy_plots": None, "metric": None}
    return Outcome("failed", None, reason, data=data | store(lab, node, data))


def _good(lab: Laboratory, node: Node, data: dict[str, Any], measured: Measured) -> Outcome:
    data |= {"is_buggy": False}
    data |= store(lab, node, data)
    del data["plot_files"]
    if data["is_buggy_plots"]:
        return Outcome("failed", None, "no valid plots", data=data)
    return Outcome("good", lab.metric.score(measured.values), data=data)


def store(lab: Laboratory, node: Node, data: Mapping[str, Any]) -> dict[str, Any]:
    """Copy what a node made to its folder of results; returns the places, relative to the run."""
    place = f"logs/0-run/experiment_results/experiment_{node.id}"
    folder = safe_join(lab.run.dir, place, error=StateError)
    io.replace(folder / "experiment_code.py", data["code"], sync=False)
    io.replace(folder / "output.txt", data["output"], sync=False)
    if data["is_buggy"]:
        return {"exp_results_dir": place}
    if data["plot_code"]:
        io.replace(folder / "plotting_code.py", data["plot_code"], sync=False)
    kept: list[str] = []
    workspace, limits = lab.workspace(node), lab.settings.exec.program_limits()
    # Collected anew: every program that ran here may have put links where files were.
    for item in collect(str(workspace), ("working/*.npy", "working/*.png"), limits).files:
        source = workspace / item["path"]
        io.copy_file(source, folder / source.name)
        kept.append(f"{place}/{source.name}")
    places: dict[str, Any] = {
        "exp_results_dir": place,
        "plots": [path for path in kept if path.endswith(".png")],
        "npy_files": [path for path in kept if path.endswith(".npy")],
    }
    if "plot_analyses" in data:
        places["plot_analyses"] = [
            item | {"plot_path": f"{place}/{Path(item['plot_path']).name}"} for item in data["plot_analyses"]
        ]
    return places


async def _both(one: Awaitable[Any], other: Awaitable[Any]) -> tuple[Any, Any]:
    """Both results; an error of one is raised when the other is through as well."""
    results = await asyncio.gather(one, other, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results[0], results[1]
