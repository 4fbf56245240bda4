"""Which setting of a search wins: flag, job file, search file, user file, environment, default."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.cli.run import COMMON
from corerun_bfts.settings import BftsSettings
from tests.support import jobs
from tests.support.dry import dry_run, write_job

# ------------------------------------------------------------------------------------- precedence

SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "idea_idx": st.integers(0, 2),
    "attempt_id": st.integers(0, 99),
    "load_code": st.booleans(),
    "add_dataset_ref": st.booleans(),
    "keep_experiment_results": st.booleans(),
    "strict_artifacts": st.booleans(),
    "model_agg_plots": st.sampled_from(["recipes::default", "fake::echo", "fake::json"]),
    "plot_agg_reflections": st.integers(0, 9),
    "plot_agg_max_figures": st.integers(1, 30),
    "plot_agg_max_tokens": st.integers(1, 10**13),
}
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["recipes::default", "recipes::other"]),
    "strategy": st.sampled_from(["bfts", "greedy", "mcts"]),
    "workers": st.integers(1, 9),
    "in_flight": st.integers(1, 20),
    "scheduler": st.sampled_from(["async", "batch"]),
    "seed": st.integers(0, 2**31),
    "executor": st.sampled_from(["inline", "process"]),
    "sandbox": st.sampled_from(["local", "auto"]),
    "run_id": st.sampled_from(["one", "two", "three"]),
    "max_cost_usd": st.floats(0, 100).map(lambda value: round(value, 2)),
    "max_tokens_total": st.integers(0, 10**6),
    "max_wall_s": st.integers(0, 10**4),
}
KEYS = {name: ("bfts", name) for name in SCALARS} | {
    name: tuple(key.split(".")) for name, key, _ in COMMON if name in SHARED
}
IN_ENVIRONMENT = ("model", "strategy", "workers", "in_flight", "scheduler", "seed", "executor", "sandbox")
SEARCH_FILE_PLACE = {
    "strategy": ("agent", "search", "strategy"),
    "scheduler": ("agent", "search", "scheduler"),
    "seed": ("agent", "search", "seed"),
    "workers": ("agent", "num_workers"),
}
"""Where ``bfts_config.yaml`` has the keys that it calls otherwise."""


def test_every_flag_but_the_paths_is_in_the_precedence_test() -> None:
    flags = {name for name, _, _ in COMMON} | {
        name for name, field in BftsSettings.model_fields.items() if field.annotation in (bool, int)
    }
    internal = {"best_value", "copy_data", "generate_report", "keep_workspaces", "preprocess_data"}
    in_one_place = {"out_root", "models_file", "strict_params"}
    assert flags - internal - in_one_place <= {*SCALARS, *SHARED}


@pytest.mark.parametrize(("flag", "strict"), [((), True), (("--no-strict-params",), False)])
def test_a_refused_parameter_is_an_error_where_the_file_or_a_flag_says_so(
    tmp_path: Path, flag: tuple[str, ...], strict: bool
) -> None:
    (tmp_path / "job_config.yaml").write_text(
        yaml.safe_dump(
            {"job": {"load_ideas": str(jobs.IDEAS), "idea_idx": 0}, "llm": {"strict_params": True}}
        )
    )
    checked = dry_run(tmp_path, *flag)
    assert checked.code == 0, checked.stderr
    assert checked.plan.settings.llm.strict_params is strict


def place(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def as_flag(draw: st.DrawFn, name: str, value: Any) -> list[str]:
    spelled = draw(st.sampled_from([name, name.replace("_", "-")]))
    if isinstance(value, bool):
        return [f"--{spelled}" if value else f"--no-{spelled}"]
    return [f"--{spelled}", str(value)]


@st.composite
def one_key_in_many_places(draw: st.DrawFn) -> dict[str, Any]:
    """A key, a value in some of the places where it may stand, and the value that must win."""
    name = draw(st.sampled_from(sorted(KEYS)))
    values = {**SCALARS, **SHARED}[name]
    places = ["flag", "job", "search", "user"]
    if name in IN_ENVIRONMENT:
        places.append("environment")
    chosen = [one for one in places if draw(st.booleans())]
    written = {one: draw(values) for one in chosen}
    strongest = next((written[one] for one in places if one in written), None)
    null = draw(st.booleans()) and "job" not in written
    flag = as_flag(draw, name, written["flag"]) if "flag" in written else []
    return {"name": name, "written": written, "wins": strongest, "null": null, "flag": flag}


@given(case=one_key_in_many_places())
@settings(max_examples=120, deadline=None)
def test_000_16_the_strongest_place_wins_for_every_key(case: dict[str, Any]) -> None:
    name, written = case["name"], case["written"]
    search_only = {"model", "executor", "in_flight"}  # no names of AI-Scientist-v2's file
    job: dict[str, Any] = {"job": {"load_ideas": str(jobs.IDEAS), "idea_idx": 0}}
    if name == "idea_idx":
        del job["job"][name]
    top_level = name in (*IN_ENVIRONMENT,) and name not in ("strategy", "sandbox")
    if "job" in written or case["null"]:
        place(job, (name,) if top_level else ("job", name), written.get("job"))
    search: dict[str, Any] = {}
    expected = case["wins"]
    if "search" in written and name not in search_only:
        place(search, SEARCH_FILE_PLACE.get(name, (name,)), written["search"])
    elif "search" in written:
        order = [one for one in ("flag", "job", "user", "environment") if one in written]
        expected = written[order[0]] if order else None
    user: dict[str, Any] = {}
    if "user" in written:
        place(user, KEYS[name], written["user"])
    variables = {f"CORERUN_{name.upper()}": str(written["environment"])} if "environment" in written else {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        (here / "job_config.yaml").write_text(yaml.safe_dump(job))
        (here / "bfts_config.yaml").write_text(yaml.safe_dump(search))
        (here / "home/.config/corerun").mkdir(parents=True)
        (here / "home/.config/corerun/config.yaml").write_text(yaml.safe_dump(user))
        checked = dry_run(here, *case["flag"], **variables)
    if name == "idea_idx" and expected is None:
        assert checked.code == 2 and "idea_idx is not set" in checked.stderr
        return
    assert checked.code == 0, checked.stderr
    owner: Any = None
    value: Any = checked.settings
    for part in KEYS[name]:
        owner, value = value, getattr(value, part)
    default = type(owner).model_fields[KEYS[name][-1]].default
    assert value == (default if expected is None else expected)


def test_000_16_null_in_the_job_file_means_not_set(tmp_path: Path) -> None:
    write_job(tmp_path, plot_agg_reflections=None, run_id=None)
    (tmp_path / "bfts_config.yaml").write_text("plot_agg_reflections: 3\n")
    assert dry_run(tmp_path).settings.bfts.plot_agg_reflections == 3


def test_000_16_a_bad_integer_is_named_with_its_line(tmp_path: Path) -> None:
    write_job(tmp_path, attempt_id="third")
    checked = dry_run(tmp_path)
    assert checked.code == 2
    line = next(
        number
        for number, text in enumerate((tmp_path / "job_config.yaml").read_text().splitlines(), 1)
        if "attempt_id" in text
    )
    assert f"{tmp_path}/job_config.yaml:{line}: " in checked.stderr and "attempt_id" in checked.stderr
    assert "Traceback" not in checked.stderr and checked.stdout == ""


@pytest.mark.parametrize("value", ["3", "'3'", "3.0"])
def test_000_16_integers_are_coerced(tmp_path: Path, value: str) -> None:
    (tmp_path / "job_config.yaml").write_text(
        f"job:\n  load_ideas: {jobs.IDEAS}\n  idea_idx: 0\n  attempt_id: {value}\n"
    )
    assert dry_run(tmp_path).settings.bfts.attempt_id == 3


@pytest.mark.parametrize("value", ["0", "-5"])
def test_000_35_a_cap_below_one_means_none(tmp_path: Path, value: str) -> None:
    write_job(tmp_path, plot_agg_max_tokens=int(value))
    assert dry_run(tmp_path).settings.bfts.plot_agg_max_tokens is None
    assert dry_run(tmp_path, "--plot_agg_max_tokens", value).settings.bfts.plot_agg_max_tokens is None


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("job:\n  idea_idx: 0\n  idea_indx: 1\n", 3, "did you mean 'idea_idx'?"),
        ("job:\n  plot_agg_reflection: 1\n", 2, "did you mean 'plot_agg_reflections'?"),
        ("jobs:\n  idea_idx: 0\n", 2, "did you mean 'job'?"),
        ("job: 3\n", 1, "'job' must be a mapping"),
        ("job:\n  idea_idx: 0\n  idea_idx: 1\n", 3, "given twice"),
        ("job: [\n", 2, "not YAML"),
    ],
)
def test_000_08_a_wrong_key_of_the_job_file_is_named(tmp_path: Path, text: str, line: int, said: str) -> None:
    (tmp_path / "job_config.yaml").write_text(text)
    checked = dry_run(tmp_path)
    assert checked.code == 2 and said in checked.stderr
    assert f"{tmp_path}/job_config.yaml:{line}: " in checked.stderr


def test_000_08_a_wrong_key_of_the_search_file_is_named(tmp_path: Path) -> None:
    write_job(tmp_path)
    (tmp_path / "bfts_config.yaml").write_text("agent:\n  stages:\n    stage1_max_iter: 3\n")
    checked = dry_run(tmp_path)
    assert checked.code == 2
    assert f"{tmp_path}/bfts_config.yaml:3: " in checked.stderr
    assert "did you mean 'stage1_max_iters'?" in checked.stderr
