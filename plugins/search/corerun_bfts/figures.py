"""Draws a run's final figures with a script that a model writes and improves, in the run or alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corerun.errors import CallFailed, StateError, UsageError
from corerun.execution.collect import remove_tree
from corerun.inputs.documents import read_json
from corerun.inputs.names import safe_join
from corerun.interfaces import ExecResult, Node, Run
from corerun.runs import io
from corerun_bfts import judgements
from corerun_bfts.laboratory import run_script
from corerun_bfts.programs import READER, extract_script, trimmed
from corerun_bfts.questions import Section
from corerun_bfts.record import RunRecord, first_good, overall_best
from corerun_bfts.settings import BftsSettings

SCRIPT = "auto_plot_aggregator.py"
MANIFEST = "plot_agg_manifest.json"
IMAGES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
SUMMARIES = ("baseline", "research", "ablation")
KEPT = (
    "overall_plan",
    "analysis",
    "plot_plan",
    "plot_code",
    "plot_analyses",
    "vlm_feedback_summary",
    "exp_results_npy_files",
)
SUMMARY_CHARS = 24_000
DONE = "i am done"


async def aggregate_figures(
    run: Run, settings: BftsSettings, record: RunRecord, *, folder: Path | None = None
) -> int:
    """Make ``auto_plot_aggregator.py`` and ``figures/`` in ``folder`` (default: the run's own).

    Never raises for what the model or its script does; what is missing shows as missing artifacts.
    Returns the number of figures.
    """
    place = folder or run.dir
    if folder is None and run.noted("figures") is not None:
        return int(run.noted("figures"))
    link_results(place)
    aside = _move_aside(place)
    try:
        studio = _Studio(run, settings, record, place)
        count = await studio.draw()
    except CallFailed as error:
        run.warn(f"plot aggregation stopped: {error.message}")
        count = len(figure_files(place))
    finally:
        _restore(place, aside)
    if not settings.keep_experiment_results and folder is None:
        _unlink_results(place)
    run.note("figures", count)
    return count


class _Studio:
    """Rounds of one aggregation, with the best script and its figures so far."""

    def __init__(self, run: Run, settings: BftsSettings, record: RunRecord, place: Path) -> None:
        self._run = run
        self._settings = settings
        self._record = record
        self._place = place
        self._known = (
            record.context(0) if record.idea else [Section("Research idea", "idea", _idea_text(place))]
        )
        self._data_files: list[str] = []
        self._best = 0
        self._ran = False

    async def draw(self) -> int:
        facts = await self._facts()
        script: str | None = None
        for number in range(self._settings.plot_agg_reflections + 1):
            facts |= {"round": number, "figures": facts.get("figures", 0), "best_figures": self._best}
            try:
                script = await self._ask(facts, number)
            except CallFailed as error:
                self._run.warn(f"plot aggregation, round {number}: {error.message}")
                break
            if script is None:
                if self._ran or number:
                    break
                continue
            figures, output = await self._execute(script, number)
            facts |= {"figures": figures, "output": output, "script": script}
        return self._best

    async def _ask(self, facts: Mapping[str, Any], number: int) -> str | None:
        question = judgements.aggregate_plots(self._known, facts)

        def parse(text: str) -> str | None:
            if DONE in text.lower() and "```" not in text:
                return None
            return extract_script(text)

        answer = await self._run.ask(
            question.role,
            question.purpose,
            question.messages,
            parse=parse,
            node=f"figures.{number}",
            facts=question.facts,
        )
        value: str | None = answer.value
        return value

    async def _execute(self, script: str, number: int) -> tuple[int, str]:
        """Run a script in an empty workspace; keep its figures if they aren't fewer than the best."""
        result, workspace = await self._script(
            f"figures-{number}", script, label="figures", file_name=SCRIPT, collect=("figures/*",)
        )
        output = trimmed(result.stdout + result.stderr)
        if result.status != "ok":
            output = f"{result.status} {result.exc_type}: {result.exc_msg}\n{output}"
        self._ran = self._ran or result.status == "ok"
        made = [workspace / item["path"] for item in result.files if item["path"].lower().endswith(IMAGES)]
        if made and len(made) >= self._best:
            remove_tree(str(self._place / "figures"))
            for source in made:
                self._keep(f"figures/{source.name}", source.read_bytes())
            self._keep(SCRIPT, script)
            self._best = len(made)
        return len(made), output

    async def _script(self, name: str, code: str, **how: Any) -> tuple[ExecResult, Path]:
        manifest = {MANIFEST: str(self._place / MANIFEST)}
        return await run_script(
            self._run, self._settings, name, code, files=manifest, read=self._data_files, **how
        )

    def _keep(self, name: str, content: str | bytes) -> None:
        if self._place == self._run.dir:
            self._run.write(name, content)
        else:
            io.replace(safe_join(self._place, name, error=StateError), content)

    async def _facts(self) -> dict[str, Any]:
        record, place = self._record, self._place
        summaries = _summaries(place)
        files = _npy_files(place, summaries)
        manifest = {"base_dir": str(place), "npy_files": files}
        self._data_files = files
        io.replace_json(place / MANIFEST, manifest)
        structures = await self._structures()
        io.replace_json(place / MANIFEST, manifest | {"structure": structures})
        nodes = [node for stage in record.stages for node in stage.good]
        return {
            "summaries": json.dumps(summaries)[:SUMMARY_CHARS],
            "manifest": MANIFEST,
            "structure": _distinct(structures),
            "metric": dict(record.metric),
            "scores": [
                {
                    "stage": node.data["stage"],
                    "op": node.data["op"],
                    "score": node.score,
                    "name": node.data.get("name", ""),
                }
                for node in nodes
            ],
            "files": _files_by_role(record, place),
            "seed_stats": [
                {"stage": stage.number, **{key: stats[key] for key in stats if key != "test"}}
                for stage in record.stages
                if (stats := record.seed_stats(stage.scope))
            ],
            "max_figures": self._settings.plot_agg_max_figures,
        }

    async def _structures(self) -> Mapping[str, Any]:
        _, workspace = await self._script(
            "figures-structure",
            READER,
            label="structure",
            file_name="reader.py",
            collect=("reading.json",),
        )
        try:
            return dict(read_json(workspace / "reading.json"))
        except (UsageError, TypeError, ValueError):
            return {}


# ------------------------------------------------------------------------------------ the folder


def link_results(place: Path) -> None:
    """Make ``experiment_results`` at the top of a run: a link to the logs', or a copy."""
    top, logs = place / "experiment_results", place / "logs" / "0-run" / "experiment_results"
    if not logs.is_dir() or (top.exists() and top.is_dir()):
        return
    if top.is_symlink():
        top.unlink()
    try:
        io.link(top, os.path.relpath(logs, place))
    except OSError:
        io.copy_tree(logs, top)


def _unlink_results(place: Path) -> None:
    top = place / "experiment_results"
    if top.is_symlink():
        top.unlink()
    elif top.is_dir():
        remove_tree(str(top))


def _move_aside(place: Path) -> Path:
    aside = place / "_figures_best"
    if aside.is_dir():  # an attempt was killed: what it had put aside may be all there is
        _restore(place, aside)
    with io.reported(aside):
        io.make_folder(aside)
    for name in (SCRIPT, "figures"):
        if (place / name).exists():
            io.move(place / name, aside / name)
    return aside


def _restore(place: Path, aside: Path) -> None:
    """Bring old figures back if there are no new ones; remove what was put aside."""
    if not figure_files(place):
        for name in (SCRIPT, "figures"):
            if (aside / name).exists():
                if (place / name).is_dir():
                    remove_tree(str(place / name))
                io.move(aside / name, place / name)
    shutil.rmtree(aside, ignore_errors=True)


def figure_files(place: Path) -> list[Path]:
    """The figures of a run directory, by name."""
    return sorted(path for path in (place / "figures").glob("*") if path.suffix.lower() in IMAGES)


def _idea_text(place: Path) -> dict[str, Any]:
    for name in ("research_idea.md", "idea.md"):
        if (place / name).is_file():
            return {"text": (place / name).read_text("utf-8", "replace")}
    return {}


def _summaries(place: Path) -> dict[str, Any]:
    """What a plot script has to know of the summaries; a missing or broken one is empty."""
    found: dict[str, Any] = {}
    for name in SUMMARIES:
        try:
            data = read_json(place / "logs" / "0-run" / f"{name}_summary.json")
        except UsageError:
            data = {}
        if isinstance(data, list):
            found[name] = {
                str(log.get("ablation_name", number)): _kept(log)
                for number, log in enumerate(data)
                if isinstance(log, dict)
            }
        elif isinstance(data, dict) and isinstance(data.get("best node"), dict):
            found[name] = {"best node": _kept(data["best node"])}
    return found


def _kept(log: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: log[key] for key in KEPT if key in log}
    for item in kept.get("plot_analyses") or []:
        if isinstance(item, dict):
            item.pop("plot_path", None)
    return kept


def _npy_files(place: Path, summaries: Mapping[str, Any]) -> list[str]:
    """Sorted absolute paths of the data files that summaries name, or of all there are."""
    named = {
        path
        for summary in summaries.values()
        for log in summary.values()
        for path in log.get("exp_results_npy_files") or []
        if isinstance(path, str)
    }
    redundant = f"{place.parent.name}/{place.name}/"
    found = set()
    for path in named:
        cut = path[path.index(redundant) + len(redundant) :] if redundant in path else path
        for base in (place, place / "logs" / "0-run"):
            if (base / cut).is_file():
                found.add(str((base / cut).resolve()))
                break
    # Summaries name the best nodes; figures that compare nodes need the others' data as well.
    logs = place / "logs" / "0-run" / "experiment_results"
    found |= {str(path.resolve()) for path in logs.glob("*/experiment_data.npy")}
    return sorted(found)


def _distinct(structures: Mapping[str, Any], limit: int = 6) -> list[dict[str, Any]]:
    """Equal structures once, with the files that have it."""
    groups: dict[str, dict[str, Any]] = {}
    for path, structure in structures.items():
        group = groups.setdefault(
            json.dumps(structure, sort_keys=True), {"structure": structure, "files": []}
        )
        group["files"].append(path)
    return list(groups.values())[:limit]


def _data_file(place: Path, node: Node | None) -> str | None:
    files = node.data.get("npy_files") if node is not None else None
    path = (place / files[0]).resolve() if files else None
    return str(path) if path is not None and path.is_file() else None


def _files_by_role(record: RunRecord, place: Path) -> dict[str, Any]:
    best = overall_best(record)
    first = first_good(record)
    compared = record.trees.get("final.first_good")
    if compared is not None:
        first = next((node for node in compared.good.values() if node.counted), first)
    best_stage = next((stage for stage in record.stages if best is not None and stage.best == best.id), None)
    seeds: Sequence[Node] = record.seeds(best_stage.scope) if best_stage else ()
    ablations = record.stage_of(4)
    return {
        "best": _data_file(place, best),
        "first": _data_file(place, first),
        "seeds": [path for node in seeds if (path := _data_file(place, node))],
        "stage_best": [
            {"stage": stage.number, "path": path}
            for stage in record.stages
            if (path := _data_file(place, stage.best_node))
        ],
        "ablations": [
            {"name": node.data["name"], "score": node.score, "path": path}
            for node in (ablations.good if ablations else [])
            if node.data.get("name") and (path := _data_file(place, node))
        ],
    }
