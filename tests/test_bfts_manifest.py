"""What a finished search leaves behind: its manifest, its files, and what is said of missing ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from corerun_bfts.outputs import missing_artifacts
from tests.support import jobs

STAGES = (
    "1_initial_implementation_1_preliminary",
    "2_baseline_tuning_1_first_attempt",
    "3_creative_research_1_first_attempt",
    "4_ablation_studies_1_first_attempt",
)
SUMMARIES = ("draft", "baseline", "research", "ablation")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[jobs.Done, Path]:
    return jobs.finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def run(finished: tuple[jobs.Done, Path]) -> Path:
    return finished[1]


@pytest.fixture
def manifest(finished: tuple[jobs.Done, Path]) -> dict[str, Any]:
    return finished[0].manifest


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif value is not None:
        yield value


# --------------------------------------------------------------------------------------- manifest


def test_000_31_stdout_is_the_manifest_and_nothing_else(
    finished: tuple[jobs.Done, Path], manifest: dict[str, Any]
) -> None:
    done, run = finished
    assert json.loads((run / "run_manifest.json").read_text()) == manifest
    assert done.stdout == json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    assert "{" not in done.stderr.replace("{'", "")


NAME: dict[str, Any] = {"type": "string", "minLength": 1}
PATH: dict[str, Any] = {"type": "string", "pattern": "^/"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
MEASURED = {
    "type": "object",
    "required": ["id", "score", "metric", "code_path", "seeds"],
    "properties": {"id": NAME, "score": {"type": "number"}, "code_path": PATH, "seeds": {"type": "object"}},
}
SCHEMA = {
    "type": "object",
    "required": [
        *("schema_version", "status", "inputs", "paths", "warnings", "error", "artifacts", "stages", "best"),
        *("first_good", "models", "cost", "possibly_double_paid", "resumed_from", "disclosure", "wall_s"),
        *("corerun_version", "plugin", "strategy", "started_at", "ended_at"),
    ],
    "properties": {
        "schema_version": {"const": "1.0"},
        "status": {"enum": ["success", "failed", "stopped", "interrupted"]},
        "warnings": {"type": "array", "items": {"type": "string"}},
        "plugin": {"const": "bfts"},
        "artifacts": {
            "type": "object",
            "required": ["figure_files"],
            "properties": {"figure_files": {"type": "array", "items": PATH}},
        },
        "paths": {
            "type": "object",
            "additionalProperties": False,
            "required": [
                *("idea_dir", "idea_md", "idea_json", "bfts_config_run", "logs_run_dir", "figures_dir"),
                *("unified_tree_viz_html", "summaries", "auto_plot_aggregator_py", "token_tracker"),
                *("token_tracker_interactions", "run_dir", "plot_agg_manifest", "events", "run_manifest"),
            ],
            "properties": {
                "summaries": {
                    "type": "object",
                    "additionalProperties": PATH,
                    "required": list(SUMMARIES),
                    "maxProperties": 4,
                }
            },
            "patternProperties": {"^(?!summaries$)": PATH},
        },
        "stages": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "nodes", "good", "buggy", "best_id", "best_score", "wall_s"],
                "properties": {"name": NAME, "nodes": COUNT, "good": COUNT, "buggy": COUNT},
            },
        },
        "best": MEASURED,
        "first_good": MEASURED,
        "cost": {"type": "object", "required": ["usd", "tokens", "calls"]},
        "started_at": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
    },
}


def test_000_32_the_manifest_fits_its_schema_with_the_wrappers_key_names(manifest: dict[str, Any]) -> None:
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["status"] == "success" and manifest["error"] is None
    assert manifest["warnings"] == [] and manifest["exit_code"] == 0


def test_000_32_every_path_is_absolute_and_exists(manifest: dict[str, Any], run: Path) -> None:
    found = [*strings(manifest["paths"]), *manifest["artifacts"]["figure_files"]]
    found += [manifest["best"]["code_path"], manifest["first_good"]["code_path"]]
    for path in found:
        assert Path(path).is_absolute() and Path(path).exists(), path
    assert manifest["paths"]["idea_dir"] == manifest["paths"]["run_dir"] == str(run)


def test_000_32_inputs_are_the_resolved_settings(manifest: dict[str, Any], run: Path) -> None:
    inputs = manifest["inputs"]
    job = run.parent.parent.parent
    assert inputs["load_ideas"] == str(jobs.IDEAS) and inputs["idea_idx"] == 0
    assert inputs["bfts_config"] is None and inputs["config"] == str(job / "job_config.yaml")
    assert inputs["out_root"] == str(job / "runs")
    assert inputs["strict_artifacts"] is True and inputs["attempt_id"] == 4


def test_000_22_four_stages_each_with_a_best_node(manifest: dict[str, Any], run: Path) -> None:
    assert tuple(stage["name"] for stage in manifest["stages"]) == STAGES
    for stage in manifest["stages"]:
        assert stage["nodes"] == stage["good"] + stage["buggy"] > 0
        folder = run / "logs/0-run" / f"stage_{stage['name']}"
        assert (folder / "best_node_id.txt").read_text().strip() == stage["best_id"]
        journal = json.loads((folder / "journal.json").read_text())
        best = next(node for node in journal["nodes"] if node["id"] == stage["best_id"])
        assert best["is_buggy"] is False and best["score"] == stage["best_score"]


def test_000_23_every_kind_of_expansion_was_made(run: Path) -> None:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    done = [event["data"]["data"] for event in events if event["type"] == "node_done"]
    assert {"draft", "debug", "improve", "tune", "ablate", "seed"} <= {data.get("op") for data in done}


def test_000_54_the_use_of_models_is_disclosed(manifest: dict[str, Any], run: Path) -> None:
    said = manifest["disclosure"]
    assert "recipes::default" in said and "not a language model" in said
    assert "not a language model" in (run / "logs/0-run/unified_tree_viz.html").read_text()


def test_000_26_best_and_first_good_are_measured_on_the_same_sets_and_seeds(
    manifest: dict[str, Any], run: Path
) -> None:
    best, first = manifest["best"], manifest["first_good"]
    assert set(best["metric"]["sets"]) == set(first["metric"]["sets"])
    assert best["seeds"]["val"]["n"] == first["seeds"]["val"]["n"] == 2
    assert best["seeds"]["test"]["n"] == 2
    stats = [json.loads(path.read_text()) for path in (run / "logs/0-run").glob("stage_*/seed_stats.json")]
    assert len(stats) == 4
    for one in stats:
        assert one["n"] == 2 and len(one["values"]) == 2
        assert one["mean"] == pytest.approx(sum(one["values"]) / 2)
        assert one["std"] == pytest.approx(abs(one["values"][0] - one["values"][1]) / 2**0.5)


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "path",
    [
        *("run.lock", "events.jsonl", "run.log", "config.resolved.yaml", "run_manifest.json"),
        *("idea.md", "idea.json", "bfts_config.yaml", "auto_plot_aggregator.py", "plot_agg_manifest.json"),
        *("token_tracker.json", "token_tracker_interactions.json", "logs/0-run/unified_tree_viz.html"),
        *(f"logs/0-run/{name}_summary.json" for name in SUMMARIES),
        *(
            f"logs/0-run/stage_{stage}/{name}"
            for stage in STAGES
            for name in (
                *("journal.json", "config.yaml", "tree_data.json", "tree_plot.html", "best_node_id.txt"),
                "notes/stage_progress.json",
            )
        ),
    ],
)
def test_000_27_to_31_every_file_of_the_contract_is_there(run: Path, path: str) -> None:
    assert (run / path).is_file()
    if path.endswith(".json"):
        json.loads((run / path).read_text())


def test_000_36_experiment_results_are_removed_unless_they_are_kept(run: Path) -> None:
    assert not (run / "experiment_results").is_symlink() and not (run / "experiment_results").exists()
    assert list((run / "logs/0-run/experiment_results").glob("experiment_*/experiment_data.npy"))


def test_000_27_the_summaries_have_their_shapes(run: Path) -> None:
    found = {name: json.loads((run / f"logs/0-run/{name}_summary.json").read_text()) for name in SUMMARIES}
    for name in ("baseline", "research"):
        best = found[name]["best node"]
        assert best["overall_plan"] and best["analysis"] and best["metric"] and best["code"]
        assert best["exp_results_npy_files"]
        assert len(found[name]["best node with different seeds"]) == 2
    assert isinstance(found["ablation"], list)
    assert all(log["ablation_name"] and log["metric"] for log in found["ablation"])
    for key in ("Experiment_description", "Significance", "Description", "Key_numerical_results"):
        assert found["draft"][key]
    files = [found[name]["best node"]["exp_results_npy_files"] for name in ("baseline", "research")]
    for path in [path for paths in files for path in paths]:
        assert path.startswith("experiment_results/") and (run / "logs/0-run" / path).is_file()


def test_000_29_the_figures_are_pictures(manifest: dict[str, Any], run: Path) -> None:
    figures = manifest["artifacts"]["figure_files"]
    assert len(figures) >= 3 and figures == sorted(figures)
    assert {Path(path).parent for path in figures} == {run / "figures"}
    for path in figures:
        assert Path(path).read_bytes().startswith(b"\x89PNG")
    assert not (run / "_figures_best").exists()


def test_000_39_the_plot_manifest_names_data_by_absolute_paths(run: Path) -> None:
    found = json.loads((run / "plot_agg_manifest.json").read_text())
    assert found["base_dir"] == str(run)
    assert found["npy_files"] == sorted(set(found["npy_files"])) and found["npy_files"]
    for path in found["npy_files"]:
        assert Path(path).is_absolute() and Path(path).is_file()
    assert set(found["structure"]) <= set(found["npy_files"]) and found["structure"]
    script = (run / "auto_plot_aggregator.py").read_text()
    assert "plot_agg_manifest.json" in script


def test_000_20_the_copy_of_the_search_file_is_what_ran(run: Path) -> None:
    copy = yaml.safe_load((run / "bfts_config.yaml").read_text())
    written = yaml.safe_load(jobs.SMALL_SEARCH)
    assert copy["exec"]["timeout"] == written["exec"]["timeout"]
    assert copy["agent"]["num_workers"] == written["agent"]["num_workers"]
    for section in ("stages", "multi_seed_eval", "search"):
        assert copy["agent"][section].items() >= written["agent"][section].items()
    assert copy["desc_file"] == str(run / "idea.json") and copy["workspace_dir"] == str(run)
    assert copy["data_dir"] == str(run / "data") and copy["log_dir"] == str(run / "logs")
    started = json.loads((run / "events.jsonl").read_text().splitlines()[0])
    assert started["data"]["settings"]["bfts"]["agent"]["stages"]["stage1_max_iters"] == 3


def test_000_20_the_copy_can_be_used_again(run: Path, tmp_path: Path) -> None:
    done = jobs.bfts("--dry-run", "--bfts_config", str(run / "bfts_config.yaml"), cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert done.manifest["estimate"]["nodes_at_most"] == {"1": 3, "2": 3, "3": 3, "4": 2}


def test_000_30_the_token_files_agree_with_the_journal(manifest: dict[str, Any], run: Path) -> None:
    tracker = json.loads((run / "token_tracker.json").read_text())
    rows = json.loads((run / "token_tracker_interactions.json").read_text())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    answered = [event for event in events if event["type"] == "call_answered"]
    assert len(answered) == sum(len(group) for group in rows.values())
    assert len(answered) == sum(one["calls"] for one in tracker.values()) == manifest["cost"]["calls"]
    counted = [one["tokens"] for one in tracker.values()]
    assert sum(one["prompt"] + one["completion"] for one in counted) == manifest["cost"]["tokens"]


# -------------------------------------------------------------------------------- missing artifacts

MISSING = {
    **{f"summary:{name}": f"logs/0-run/{name}_summary.json" for name in SUMMARIES},
    "figures_dir": "figures",
    "figures_dir_empty": "figures/*",
}


def delete(run: Path, pattern: str) -> None:
    for path in list(run.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_000_33_each_missing_artifact_has_its_code(run: Path, tmp_path: Path) -> None:
    assert missing_artifacts(run) == []
    for code, pattern in MISSING.items():
        copy = jobs.copy_of(run, tmp_path / code.replace(":", "_"))
        delete(copy, pattern)
        assert missing_artifacts(copy) == [code]


def test_000_33_missing_artifacts_are_one_warning_and_null_in_the_manifest(run: Path, tmp_path: Path) -> None:
    copy = jobs.copy_of(run, tmp_path)
    for pattern in ("logs/0-run/draft_summary.json", "figures", "idea.md"):
        delete(copy, pattern)
    done = jobs.bfts("--resume", str(copy), cwd=tmp_path)
    assert done.code == 0, done.stderr
    manifest = done.manifest
    assert manifest["warnings"] == ["Missing artifacts: summary:draft, figures_dir"]
    assert manifest["paths"]["summaries"]["draft"] is None and manifest["paths"]["figures_dir"] is None
    assert manifest["paths"]["idea_md"] is None and manifest["artifacts"]["figure_files"] == []
    assert manifest["paths"]["idea_dir"] == str(copy) and Path(manifest["paths"]["logs_run_dir"]).is_dir()
    assert json.loads((copy / "run_manifest.json").read_text()) == manifest


# ------------------------------------------------------------------------------------------ resume


def test_a_finished_run_prints_its_manifest_and_does_nothing(run: Path, tmp_path: Path) -> None:
    copy = jobs.copy_of(run, tmp_path)
    before = (copy / "events.jsonl").read_bytes()
    original = json.loads((copy / "run_manifest.json").read_text())
    done = jobs.bfts("--resume", str(copy), cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert (copy / "events.jsonl").read_bytes() == before
    for key in ("status", "stages", "cost", "wall_s", "seed", "inputs", "disclosure", "warnings"):
        assert done.manifest[key] == original[key]
    assert done.manifest["best"]["id"] == original["best"]["id"]


def test_the_same_run_id_finds_the_run_again(run: Path, tmp_path: Path) -> None:
    copy = jobs.copy_of(run, tmp_path)
    place = tmp_path / "experiments/again_few_labels_attempt_0"
    place.parent.mkdir()
    copy.rename(place)
    done = jobs.bfts("--run_id", "again", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert done.manifest["paths"]["run_dir"] == str(place)
    changed = json.loads(jobs.IDEAS.read_text())
    changed[0]["Title"] = "Another question"
    jobs.write_ideas(tmp_path, *changed)
    done = jobs.bfts("--run_id", "again", "--load_ideas", "ideas.json", "--idea_idx", "0", cwd=tmp_path)
    assert done.code == 2 and "can't change its idea" in done.stderr and done.stdout == ""


def test_another_idea_on_resume_is_an_error(run: Path, tmp_path: Path) -> None:
    copy = jobs.copy_of(run, tmp_path)
    events = (copy / "events.jsonl").read_text().splitlines(keepends=True)
    (copy / "events.jsonl").write_text("".join(line for line in events if '"run_done"' not in line))
    other = ("--load_ideas", str(jobs.IDEAS), "--idea_idx", "1")
    done = jobs.bfts("--resume", str(copy), *other, cwd=tmp_path)
    assert done.code == 2 and "can't change its idea" in done.stderr and done.stdout == ""
    (tmp_path / "other.yaml").write_text(f"job: {{load_ideas: '{jobs.IDEAS}', idea_idx: 1}}\n")
    done = jobs.bfts("--resume", str(copy), "--config", "other.yaml", cwd=tmp_path)
    assert done.code == 2 and "can't change its idea" in done.stderr
    done = jobs.bfts("--resume", str(copy), "--strategy", "greedy", cwd=tmp_path)
    assert done.code == 2 and "can't change its strategy" in done.stderr
