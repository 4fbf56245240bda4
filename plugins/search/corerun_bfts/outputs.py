"""Files that follow from the journal: stage folders, token files, the report, the manifest's part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from corerun.errors import MissingArtifacts, StateError
from corerun.inputs.names import safe_join
from corerun.interfaces import Event, Node, Run
from corerun.llm.ledger import Ledger, interactions, token_tracker
from corerun.report.data import report_data
from corerun.report.page import render_report, render_tree
from corerun.runs import events as kinds
from corerun.runs import io
from corerun.runs.blobs import read_blob
from corerun_bfts.record import RunRecord, StageRecord, first_good, overall_best
from corerun_bfts.settings import BftsSettings
from corerun_bfts.stages import FIRST_GOOD
from corerun_bfts.summaries import NAMES

LOGS = Path("logs") / "0-run"
SAME_NAME = (
    "plan",
    "code",
    "plot_plan",
    "plot_code",
    "exec_time",
    "exc_type",
    "exc_info",
    "exc_stack",
    "plot_exec_time",
    "plot_exc_type",
    "analysis",
    "metric",
    "is_buggy",
    "is_buggy_plots",
    "plots",
    "plot_analyses",
    "vlm_feedback_summary",
    "datasets_successfully_tested",
    "exec_time_feedback",
    "exp_results_dir",
    "op",
    "stage",
    "origin_id",
    "seed",
    "vision",
    "written_by",
)


# --------------------------------------------------------------------------------------- stages


def timings(events: Sequence[Event]) -> dict[str, dict[str, float]]:
    """Seconds per node: waiting for models, running programs, waiting for a place, and in all."""
    asked: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {}
    for event in events:
        node = str(event.data.get("node"))
        if event.type == kinds.NODE_ASKED:
            asked.setdefault(node, event.t)
            found[node] = {"llm_s": 0.0, "exec_s": 0.0, "queue_s": 0.0, "total_s": 0.0}
        elif node not in found:
            continue
        elif event.type == kinds.CALL_ANSWERED:
            found[node]["llm_s"] += event.data["latency_s"]
        elif event.type == kinds.EXECUTION_DONE:
            found[node]["exec_s"] += event.data["result"].get("wall_s", 0.0)
            found[node]["queue_s"] += event.data["result"].get("timing", {}).get("queue_s", 0.0)
        elif event.type == kinds.NODE_DONE:
            found[node]["total_s"] = event.t - asked[node]
    return {node: {key: round(value, 3) for key, value in row.items()} for node, row in found.items()}


def node_json(node: Node, ledger: Ledger, timing: Mapping[str, float]) -> dict[str, Any]:
    """A node as ``journal.json`` holds it, with the field names of AI-Scientist-v2."""
    data = node.data
    spent = ledger.nodes.get(node.id)
    row: dict[str, Any] = {
        "id": node.id,
        "step": node.seq,
        "parent_id": node.parent,
        "children": list(node.children),
        "status": node.status,
        "score": node.score,
        "reason": node.reason,
        "attempt": node.attempt,
        "hint": dict(node.hint),
        **{name: data.get(name) for name in SAME_NAME},
        "_term_out": [data["output"]] if data.get("output") else [],
        "plot_term_out": [data["plot_output"]] if data.get("plot_output") else [],
        "plots_generated": bool(data.get("plots")),
        "plot_paths": list(data.get("plots", [])),
        "is_seed_node": data.get("op") == "seed",
        "is_seed_agg_node": data.get("op") == "aggregate",
        "timing": dict(timing),
        "tokens": spent.to_json() if spent else {"usd": 0.0, "tokens": 0, "calls": 0},
    }
    if data.get("name"):
        row["ablation_name" if data.get("stage") == 4 else "hyperparam_name"] = data["name"]
    return row


def _stage_folder(directory: Path, scope: str) -> Path:
    return safe_join(directory, f"{LOGS}/stage_{scope}", error=StateError)


def write_stage(directory: Path, record: RunRecord, scope: str) -> None:
    """Everything below ``logs/0-run/stage_<scope>/``."""
    stage = next(stage for stage in record.stages if stage.scope == scope)
    ledger = Ledger.fold(record.events)
    folder = _stage_folder(directory, scope)
    nodes = [node for node in stage.tree.nodes.values() if node.done_at is not None and node.status != "void"]
    nodes += record.seeds(scope)
    timing = timings(record.events)
    rows = [node_json(node, ledger, timing[node.id]) for node in nodes]
    parents = {node.id: node.parent for node in nodes if node.parent}
    aggregation = record.state.notes.get(f"aggregation:{scope}")
    if aggregation:
        rows.append(_aggregation_json(aggregation))
    io.replace_json(
        folder / "journal.json", {"nodes": rows, "node2parent": parents, "__version": "2"}, indent=None
    )
    io.replace_json(folder / "tree_data.json", tree_data(stage), indent=None)
    io.replace(folder / "config.yaml", yaml.safe_dump(dict(record.settings), sort_keys=False))
    best = stage.best_node
    if best is not None:
        for old in folder.glob("best_solution_*.py"):
            old.unlink()
        io.replace(folder / f"best_solution_{best.id}.py", best.data.get("code", ""))
        io.replace(folder / "best_node_id.txt", best.id + "\n")
    io.replace_json(
        folder / "notes" / "stage_progress.json",
        {
            "stage": scope,
            "total_nodes": len(stage.nodes),
            "buggy_nodes": len(stage.nodes) - len(stage.good),
            "good_nodes": len(stage.good),
            "best_metric": best.data.get("metric") if best else None,
            "current_findings": best.data.get("analysis", "") if best else "",
        },
    )
    stats = record.seed_stats(scope)
    if stats is not None:
        io.replace_json(folder / "seed_stats.json", stats)


def _aggregation_json(made: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": made["id"],
        "parent_id": made["best"],
        "children": [],
        "op": "aggregate",
        "is_seed_node": True,
        "is_seed_agg_node": True,
        "code": "# the reruns of this node are plotted together",
        "plot_code": made.get("code", ""),
        "plot_paths": list(made["plots"]),
        "plots": list(made["plots"]),
        "exp_results_dir": made.get("exp_results_dir"),
        "is_buggy": not made["plots"],
    }


def tree_data(stage: StageRecord) -> dict[str, Any]:
    """A stage's tree as plain lists, one entry per node, in ask order."""
    nodes = [node for node in stage.tree.nodes.values() if node.done_at is not None and node.status != "void"]
    place = {node.id: index for index, node in enumerate(nodes)}
    return {
        "scope": stage.scope,
        "ids": [node.id for node in nodes],
        "edges": [[place[node.parent], place[node.id]] for node in nodes if node.parent],
        "op": [node.data.get("op", "") for node in nodes],
        "status": [node.status for node in nodes],
        "score": [node.score for node in nodes],
        "plan": [node.data.get("plan", "") for node in nodes],
        "analysis": [node.data.get("analysis", "") for node in nodes],
        "exc_type": [node.data.get("exc_type") for node in nodes],
    }


# ------------------------------------------------------------------------------------------ run


def write_run(directory: Path, record: RunRecord) -> None:
    """All derived files of the run: stages, token files, the report."""
    for stage in record.stages:
        write_stage(directory, record, stage.scope)
    write_tokens(directory, record)
    data = report_data(record.events, run_dir=directory)
    title = str(record.idea.get("Title") or directory.name)
    io.replace(
        safe_join(directory, f"{LOGS}/unified_tree_viz.html", error=StateError),
        render_report(data, title=title),
    )
    slim = report_data(record.events, run_dir=directory, max_mb=0.0)
    for stage in record.stages:
        page = render_tree(slim, stage.scope)
        io.replace(_stage_folder(directory, stage.scope) / "tree_plot.html", page)


def write_tokens(directory: Path, record: RunRecord) -> None:
    """The two token files: what models were paid, and what they were asked and answered."""
    blobs = directory / "blobs"
    io.replace_json(directory / "token_tracker.json", token_tracker(record.events))
    io.replace_json(
        directory / "token_tracker_interactions.json",
        interactions(record.events, lambda name: read_blob(blobs, name)),
        indent=None,
    )


def missing_artifacts(directory: Path) -> list[str]:
    """Codes of expected files that aren't there."""
    codes = [f"summary:{name}" for name in NAMES if not (directory / LOGS / f"{name}_summary.json").is_file()]
    figures = directory / "figures"
    if not figures.is_dir():
        codes.append("figures_dir")
    elif not any(figures.iterdir()):
        codes.append("figures_dir_empty")
    return codes


def missing_warning(directory: Path) -> list[str]:
    """The warning that names what is missing, if anything is."""
    codes = missing_artifacts(directory)
    return [f"Missing artifacts: {', '.join(codes)}"] if codes else []


def check_artifacts(run: Run, settings: BftsSettings) -> None:
    """Warn of missing artifacts; with ``strict_artifacts`` they are an error."""
    for text in missing_warning(run.dir):
        if settings.strict_artifacts:
            raise MissingArtifacts(text, hint="look at run.log, or run without --strict_artifacts")
        run.warn(text)


# ------------------------------------------------------------------------------------- manifest


def result(record: RunRecord, directory: Path) -> dict[str, Any]:
    """``best`` and ``first_good``, measured on the same data sets and seeds."""
    best, first = overall_best(record), first_good(record)
    if best is None:
        return {"best": None, "first_good": None}
    stage = next(stage for stage in record.stages if stage.best == best.id or stage.best_node is best)
    widened = record.trees.get(FIRST_GOOD.scope)
    if widened is not None:
        first = next((node for node in widened.good.values() if node.counted), first)
    return {
        "best": _measured(best, record, stage.scope, directory),
        "first_good": _measured(first, record, FIRST_GOOD.scope, directory) if first else None,
    }


def _measured(node: Node, record: RunRecord, scope: str, directory: Path) -> dict[str, Any]:
    stats = record.seed_stats(scope)
    place = node.data.get("exp_results_dir")
    return {
        "id": node.id,
        "origin_id": node.data.get("origin_id", node.id),
        "score": node.score,
        "metric": node.data["metric"],
        "code_path": str(directory / place / "experiment_code.py") if place else None,
        "seeds": {"val": _brief(stats), "test": _brief(stats["test"])} if stats else None,
    }


def _brief(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {"mean": stats["mean"], "sd": stats["std"], "n": stats["n"]} if stats else None


def manifest_part(directory: Path, record: RunRecord) -> dict[str, Any]:
    """The manifest's own part of this job, under the key names of the job's contract."""
    figures = directory / "figures"
    shown = {
        "idea_md": directory / "idea.md",
        "idea_json": directory / "idea.json",
        "bfts_config_run": directory / "bfts_config.yaml",
        "unified_tree_viz_html": directory / LOGS / "unified_tree_viz.html",
        "auto_plot_aggregator_py": directory / "auto_plot_aggregator.py",
        "plot_agg_manifest": directory / "plot_agg_manifest.json",
        "token_tracker": directory / "token_tracker.json",
        "token_tracker_interactions": directory / "token_tracker_interactions.json",
    }
    paths: dict[str, Any] = {name: _existing(path) for name, path in shown.items()}
    paths |= {
        "idea_dir": str(directory),
        "logs_run_dir": str(directory / LOGS),
        "summaries": {name: _existing(directory / LOGS / f"{name}_summary.json") for name in NAMES},
        "figures_dir": str(figures) if figures.is_dir() else None,
    }
    return {
        "schema_version": "1.0",
        "warnings": missing_warning(directory),
        "paths": paths,
        "artifacts": {"figure_files": [str(path) for path in _files(figures)]},
        "strategy": record.settings.get("strategy") or "bfts",
        "metric": dict(record.metric),
        "stages": [_stage_row(stage) for stage in record.stages],
        **result(record, directory),
    }


def _stage_row(stage: StageRecord) -> dict[str, Any]:
    best = stage.best_node
    good = len(stage.good)
    planted = [node for node in stage.nodes if node.status == "failed" and node.data.get("faults")]
    return {
        "name": stage.scope,
        "number": stage.number,
        "nodes": len(stage.nodes),
        "good": good,
        "buggy": len(stage.nodes) - good,
        "planted": len(planted),
        "best_id": best.id if best else None,
        "best_score": best.score if best else None,
        "wall_s": round(stage.ended - stage.started, 3) if stage.ended else None,
    }


def _existing(path: Path) -> str | None:
    return str(path) if path.is_file() else None


def _files(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
