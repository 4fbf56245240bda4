"""Where a search's settings come from: flags, job file, search file, user file, environment, defaults."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.cli import app
from corerun.cli.run import COMMON
from corerun.job import plan
from corerun_bfts.settings import BftsSettings
from tests.support import jobs


@dataclass
class Checked:
    """What a ``--dry-run`` said, and the plan behind it."""

    code: int
    stdout: str
    stderr: str
    plan: plan.Plan | None

    @property
    def settings(self) -> Any:
        assert self.plan is not None, self.stderr
        return self.plan.settings


@contextlib.contextmanager
def standing_in(cwd: Path, environ: Mapping[str, str]) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(cwd)
    try:
        with mock.patch.dict(os.environ, environ, clear=True):
            yield
    finally:
        os.chdir(before)


def dry_run(cwd: Path, *arguments: str, **variables: str) -> Checked:
    """``run --dry-run`` in this process, with an empty home and ``variables`` in the environment."""
    made: list[plan.Plan] = []
    describe = plan.describe
    out, err = io.StringIO(), io.StringIO()
    environ = jobs.clean_environ(cwd / "home", **variables)
    with (
        standing_in(cwd, environ),
        mock.patch.object(plan, "describe", lambda one: made.append(one) or describe(one)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = app.run_command(["--plugin", "bfts", "run", "--dry-run", *arguments])
    return Checked(code, out.getvalue(), err.getvalue(), made[0] if made else None)


def write_job(folder: Path, **job: Any) -> Path:
    """A job file on the packaged ideas; further keys are its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job_config.yaml"
    path.write_text(yaml.safe_dump({"job": {"load_ideas": str(jobs.IDEAS), "idea_idx": 0, **job}}))
    return path


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
    assert flags - internal - {"out_root"} <= {*SCALARS, *SHARED}


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
    owner, value = None, checked.settings
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


# ------------------------------------------------------------------------------------------ paths


def test_000_17_paths_of_the_job_file_lie_beside_it_and_flags_in_the_current_folder(tmp_path: Path) -> None:
    job, here = tmp_path / "job", tmp_path / "here"
    here.mkdir()
    jobs.write_ideas(job / "ideas")
    jobs.write_ideas(here, jobs.idea(Recipe="few_labels"), jobs.idea(Name="flag", Recipe="regression"))
    (job / "search.yaml").write_text("exec: {timeout: 11}\n")
    (here / "search.yaml").write_text("exec: {timeout: 22}\n")
    write_job(job, load_ideas="ideas/ideas.json", bfts_config="search.yaml", out_root="out", idea_idx=0)

    from_file = dry_run(here, "--config", "../job/job_config.yaml", "--model", "fake::json")
    assert from_file.settings.bfts.load_ideas == job / "ideas/ideas.json"
    assert from_file.settings.bfts.exec.timeout == 11
    assert from_file.plan is not None and from_file.plan.directory.parent == job / "out/experiments"

    flags = ("--load_ideas", "ideas.json", "--bfts-config", "search.yaml", "--out_root", "../there")
    from_flags = dry_run(here, "--config", "../job/job_config.yaml", *flags)
    assert from_flags.settings.bfts.load_ideas == here / "ideas.json"
    assert from_flags.settings.bfts.exec.timeout == 22
    assert from_flags.plan is not None
    assert from_flags.plan.directory.parent == tmp_path / "there/experiments"


def test_000_17_a_tilde_is_the_home_folder_in_flags_and_files(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path / "home", jobs.idea(Recipe="few_labels"))
    write_job(tmp_path, load_ideas="~/ideas.json", out_root="~/out")
    checked = dry_run(tmp_path)
    assert checked.settings.bfts.load_ideas == tmp_path / "home/ideas.json"
    assert checked.settings.out_root == tmp_path / "home/out"
    assert dry_run(tmp_path, "--out_root", "~/other").settings.out_root == tmp_path / "home/other"


def test_000_17_out_root_is_the_current_folder_unless_it_is_set(tmp_path: Path) -> None:
    write_job(tmp_path / "job")
    here = tmp_path / "here"
    here.mkdir()
    checked = dry_run(here, "--config", "../job/job_config.yaml")
    assert checked.plan is not None and checked.plan.directory.parent == here / "experiments"


@pytest.mark.parametrize(
    "arguments",
    [("--config", "none.yaml"), ("--bfts_config", "none.yaml"), ("--load_ideas", "none.json")],
)
def test_000_06_a_named_file_that_is_not_there_is_an_error(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    write_job(tmp_path)
    checked = dry_run(tmp_path, *arguments)
    assert checked.code == 2 and arguments[1] in checked.stderr and checked.stdout == ""


def test_000_06_a_missing_search_file_of_the_job_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_job(tmp_path, bfts_config="gone.yaml")
    checked = dry_run(tmp_path)
    assert checked.code == 2
    assert f"{path}:2: no such file: {tmp_path}/gone.yaml" in checked.stderr


# --------------------------------------------------------------------------------------- job file


def test_000_07_a_job_file_in_the_current_folder_is_found(tmp_path: Path) -> None:
    path = write_job(tmp_path, attempt_id=7)
    checked = dry_run(tmp_path)
    said = json.loads(checked.stdout)
    assert said["run_dir"].endswith("_attempt_7")
    assert said["inputs"]["config"] == str(path)
    assert "packaged example" not in checked.stderr


def test_000_07_without_one_the_packaged_example_runs(tmp_path: Path) -> None:
    checked = dry_run(tmp_path)
    said = json.loads(checked.stdout)
    assert said["inputs"]["config"] == "packaged example"
    assert Path(said["inputs"]["load_ideas"]) == jobs.IDEAS and said["inputs"]["idea_idx"] == 0
    assert said["run_dir"].startswith(str(tmp_path / "experiments"))
    assert len([line for line in checked.stderr.splitlines() if "packaged example" in line]) == 1
    assert not (tmp_path / "experiments").exists()


def test_000_07_the_search_file_beside_the_job_file_is_found(tmp_path: Path) -> None:
    write_job(tmp_path / "job")
    (tmp_path / "job/bfts_config.yaml").write_text("exec: {timeout: 33}\n")
    assert dry_run(tmp_path, "--config", "job/job_config.yaml").settings.bfts.exec.timeout == 33


@pytest.mark.parametrize("key", ["load_ideas", "idea_idx"])
def test_000_10_an_open_choice_of_the_idea_is_an_error(tmp_path: Path, key: str) -> None:
    write_job(tmp_path, **{key: None})
    checked = dry_run(tmp_path)
    assert checked.code == 2 and f"{key} is not set" in checked.stderr and f"--{key}" in checked.stderr


def test_000_18_flags_override_the_job_file(tmp_path: Path) -> None:
    write_job(tmp_path, out_root="runs")
    checked = dry_run(tmp_path, "--idea_idx", "1", "--out_root", "./runs_alt")
    assert checked.plan is not None
    assert checked.plan.directory.parent == tmp_path / "runs_alt/experiments"
    name = json.loads(jobs.IDEAS.read_text())[1]["Name"]
    assert f"_{name}_attempt_0" in checked.plan.directory.name


def test_000_09_the_wrappers_job_file_loads_with_all_its_keys(tmp_path: Path) -> None:
    for name in ("job_config.yaml", "bfts_config.yaml"):
        shutil.copy(jobs.DATA / name, tmp_path / name)
    jobs.write_ideas(tmp_path / "ideas", name="ours.json")
    variables = {
        f"OAIC_{name}_{kind}": value
        for name in ("LEFT", "RIGHT")
        for kind, value in (("API_KEY", "key"), ("BASE_URL", "http://127.0.0.1:9/v1"))
    }
    checked = dry_run(tmp_path, **variables)
    assert checked.code == 0, checked.stderr
    own = checked.settings.bfts
    written = yaml.safe_load((tmp_path / "job_config.yaml").read_text())["job"]
    assert set(written) - {"run_id", "out_root"} <= set(type(own).model_fields)
    assert own.attempt_id == 3 and own.plot_agg_max_figures == 7 and own.keep_experiment_results is True
    assert own.plot_agg_max_tokens == 9999999999999
    assert checked.settings.out_root == tmp_path / "out"
    assert checked.plan is not None
    assert [text for text in checked.plan.prepared.warnings if "OPENAI_API_KEY" in text]
    assert dry_run(tmp_path, OPENAI_API_KEY="set", **variables).plan is not None


def test_000_09_a_required_variable_that_is_set_is_no_warning(tmp_path: Path) -> None:
    (tmp_path / "job_config.yaml").write_text(
        f"job: {{load_ideas: '{jobs.IDEAS}', idea_idx: 0}}\nenv:\n  required: [WANTED_A, WANTED_B]\n"
    )
    unset = dry_run(tmp_path, "--model", "recipes::default", WANTED_A="x").plan
    assert unset is not None
    assert [text for text in unset.prepared.warnings if "WANTED" in text] == [
        "the job file requires variables that are not set: WANTED_B"
    ]
    both = dry_run(tmp_path, "--model", "recipes::default", WANTED_A="x", WANTED_B="y").plan
    assert both is not None and both.prepared.warnings == ()


# ------------------------------------------------------------------------------------ search file


def test_000_21_every_key_of_the_search_file_has_an_effect_or_is_named(tmp_path: Path) -> None:
    shutil.copy(jobs.DATA / "bfts_config.yaml", tmp_path / "bfts_config.yaml")
    (tmp_path / "data").mkdir()
    write_job(tmp_path, model_agg_plots="recipes::default")
    keys = {name: "k" for name in ("OAIC_LEFT_API_KEY", "OAIC_RIGHT_API_KEY")}
    urls = {name: "http://127.0.0.1:9/v1" for name in ("OAIC_LEFT_BASE_URL", "OAIC_RIGHT_BASE_URL")}
    checked = dry_run(tmp_path, **keys, **urls)
    assert checked.plan is not None, checked.stderr
    settings, own, roles = checked.settings, checked.settings.bfts, checked.plan.roles
    assert settings.workers == 3
    assert (own.exec.timeout, own.exec.agent_file_name) == (90, "program.py")
    assert own.data_dir == tmp_path / "data" and own.agent.data_preview is True
    assert own.experiment.num_syn_datasets == 2 and own.agent.k_fold_validation == 2
    assert [own.agent.stages.limit(number) for number in (1, 2, 3, 4)] == [7, 6, 5, 4]
    assert own.agent.multi_seed_eval.num_seeds == 2
    assert own.agent.search.model_dump() == {"max_debug_depth": 2, "debug_prob": 0.75, "num_drafts": 4}
    asked = {name: (role.model, role.temperature, role.max_tokens) for name, role in roles.items()}
    assert asked["code"] == ("left::writer", 0.8, 4000)
    assert asked["feedback"] == ("right::judge", 0.2, 3000)
    assert asked["vision"] == ("right::eyes", 0.1, None)
    assert asked["summary"] == ("left::clerk", 0.4, None)
    assert asked["select"] == ("left::chooser", 0.6, None)
    assert asked["plots"][0] == "recipes::default"
    (warning,) = [text for text in checked.plan.prepared.warnings if "without effect" in text]
    for key in ("log_dir", "workspace_dir", "exp_name", "report.model", "report.temp", "agent.type"):
        assert key in warning
    assert "agent.steps" not in warning and "num_workers" not in warning


def test_000_21_steps_limits_the_stages_that_have_no_limit(tmp_path: Path) -> None:
    write_job(tmp_path)
    (tmp_path / "bfts_config.yaml").write_text("agent:\n  steps: 9\n  stages: {stage2_max_iters: 4}\n")
    stages = dry_run(tmp_path).settings.bfts.agent.stages
    assert [stages.limit(number) for number in (1, 2, 3, 4)] == [9, 4, 9, 9]


def test_000_21_a_data_folder_that_only_the_launcher_makes_is_left_out(tmp_path: Path) -> None:
    write_job(tmp_path)
    (tmp_path / "bfts_config.yaml").write_text("data_dir: data\n")
    assert dry_run(tmp_path).settings.bfts.data_dir is None


# ------------------------------------------------------------------------------------------ models


def test_000_51_a_role_without_a_model_takes_the_runs_then_the_feedback_models(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    write_job(tmp_path, load_ideas="ideas.json")
    (tmp_path / "bfts_config.yaml").write_text("agent:\n  feedback: {model: fake::json}\n")
    checked = dry_run(tmp_path)
    assert checked.plan is not None
    assert {role.model for role in checked.plan.roles.values()} == {"fake::json"}
    named = dry_run(tmp_path, "--model", "fake::echo")
    assert named.plan is not None
    assert named.plan.roles["feedback"].model == "fake::json"
    assert {role.model for name, role in named.plan.roles.items() if name != "feedback"} == {"fake::echo"}


def test_000_51_the_documents_single_provider_example(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    write_job(tmp_path, load_ideas="ideas.json")
    (tmp_path / "bfts_config.yaml").write_text(
        "agent:\n  code:\n    model: gpt-4o-mini-2024-07-18\n  feedback:\n    model: gpt-4o-2024-11-20\n"
    )
    refused = dry_run(tmp_path)
    assert refused.code == 2 and "OPENAI_API_KEY" in refused.stderr
    checked = dry_run(tmp_path, OPENAI_API_KEY="key")
    assert checked.plan is not None
    assert checked.plan.roles["code"].model == "gpt-4o-mini-2024-07-18"
    assert checked.plan.roles["feedback"].model == "gpt-4o-2024-11-20"


def test_000_44_a_provider_without_its_variables_names_both(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    write_job(tmp_path, load_ideas="ideas.json")
    checked = dry_run(tmp_path, "--model", "deepseek::deepseek-chat")
    assert checked.code == 2
    assert "OAIC_DEEPSEEK_API_KEY" in checked.stderr and "OAIC_DEEPSEEK_BASE_URL" in checked.stderr


def test_000_52_the_trial_pair_loads(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples/configs/qwen.yaml"
    if not example.is_file():
        pytest.skip("the example isn't in this tree")
    jobs.write_ideas(tmp_path)
    checked = dry_run(
        tmp_path,
        *("--load_ideas", "ideas.json", "--idea_idx", "0", "--bfts_config", str(example)),
        OPENAI_API_KEY="key",
        OAIC_QWEN_API_KEY="key",
        OAIC_QWEN_BASE_URL="http://127.0.0.1:9/v1",
    )
    assert checked.plan is not None, checked.stderr
    models = {name: str(role.model).rpartition("::")[2] for name, role in checked.plan.roles.items()}
    assert models["vision"] == "qwen3-vl-plus"
    assert {models[name] for name in ("code", "feedback", "summary")} == {"qwen-plus"}


# -------------------------------------------------------------------------------------------- help


def test_000_19_help_names_every_flag_with_its_default_and_loads_no_model_client(tmp_path: Path) -> None:
    done = jobs.corerun(["--plugin", "bfts", "run", "--help"], tmp_path)
    assert done.code == 0 and done.stderr == ""
    flags = [
        *("config", "load_ideas", "idea_idx", "attempt_id", "load_code", "add_dataset_ref", "dataset_ref"),
        *("bfts_config", "model_agg_plots", "plot_agg_reflections", "plot_agg_max_figures"),
        *("plot_agg_max_tokens", "keep_experiment_results", "out_root", "run_id", "strict_artifacts"),
        *("resume", "strategy", "max_wall_s", "max_cost_usd", "max_tokens_total", "dry-run", "env-file"),
    ]
    for flag in flags:
        assert re.search(rf"--{flag}\b", done.stdout), flag
    text = re.sub(r"\s+", " ", done.stdout)
    assert "rounds after the first plot script [default: 5]" in text
    assert "--no-keep-experiment-results" in text and "--no-strict-artifacts" in text
    program = (
        "import sys; from corerun.cli.app import run_command; "
        "run_command(['--plugin', 'bfts', 'run', '--help']); "
        "sys.exit(bool({'openai', 'numpy', 'matplotlib', 'httpx'} & set(sys.modules)))"
    )
    assert jobs.python(program, tmp_path).code == 0


def test_000_02_there_is_no_command_that_writes_or_reviews_a_paper(tmp_path: Path) -> None:
    for verb in ("writeup", "review"):
        done = jobs.corerun(["--plugin", "bfts", verb], tmp_path)
        assert done.code == 2 and f"named {verb}" in done.stderr
