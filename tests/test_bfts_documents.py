"""The two documents of a search, where their paths lie, how models are found, and the help."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from corerun.llm.models import parse_model
from corerun_bfts.sdk import run_job
from tests.support import jobs
from tests.support.dry import dry_run, write_job
from tests.support.openai_server import OpenAIServer

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
    keys = dict.fromkeys(("OAIC_LEFT_API_KEY", "OAIC_RIGHT_API_KEY"), "k")
    urls = dict.fromkeys(("OAIC_LEFT_BASE_URL", "OAIC_RIGHT_BASE_URL"), "http://127.0.0.1:9/v1")
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


def test_000_21_a_data_folder_that_only_the_launcher_makes_is_left_out_with_a_warning(
    tmp_path: Path,
) -> None:
    write_job(tmp_path)
    (tmp_path / "bfts_config.yaml").write_text("data_dir: data\n")
    checked = dry_run(tmp_path)
    assert checked.plan is not None and checked.settings.bfts.data_dir is None
    (warning,) = checked.plan.prepared.warnings
    assert str(tmp_path / "data") in warning and "going on without data" in warning
    named = dry_run(tmp_path, "-o", "bfts.data_dir=nowhere")
    assert named.code == 2 and f"no such folder: {tmp_path}/nowhere" in named.stderr


async def data_of_a_run(folder: Path, search: str) -> tuple[Path, list[str]]:
    """``data/`` of a run whose model refuses at once, and the run's warnings."""
    jobs.write_ideas(folder)
    (folder / "bfts_config.yaml").write_text(search)
    manifest = await run_job(
        settings={
            "bfts.load_ideas": "ideas.json",
            "bfts.idea_idx": 0,
            "model": "fake::fail:401",
            "sandbox": "local",
        },
        cwd=folder,
        environ=jobs.clean_environ(folder),
        accept_weak=True,
    )
    return Path(manifest["paths"]["run_dir"]) / "data", list(manifest["warnings"])


async def test_000_21_data_are_copied_or_linked(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/a.csv").write_text("x\n1\n")
    copied, _ = await data_of_a_run(tmp_path, "data_dir: rows\n")
    assert not copied.is_symlink() and (copied / "a.csv").read_text() == "x\n1\n"
    linked, _ = await data_of_a_run(tmp_path, "data_dir: rows\ncopy_data: false\n")
    assert linked.is_symlink() and linked.resolve() == tmp_path / "rows"


async def test_000_21_archives_are_unpacked_in_the_copy_alone(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    with zipfile.ZipFile(rows / "good.zip", "w") as archive:
        archive.writestr("inner.csv", "x\n")
        archive.writestr("__MACOSX/junk", "")
    with zipfile.ZipFile(rows / "evil.zip", "w") as archive:
        archive.writestr("inner.csv", "x\n")
        archive.writestr("../outside.csv", "never")
    (rows / "broken.zip").write_bytes(b"no archive")
    (rows / ".DS_Store").write_bytes(b"")
    data, warnings = await data_of_a_run(tmp_path, "data_dir: rows\npreprocess_data: true\n")
    found = sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())
    assert found == ["broken.zip", "evil.zip", "good.zip", "good/inner.csv"]
    for name in ("broken.zip", "evil.zip"):
        assert [text for text in warnings if f"data/{name} can't be unpacked" in text]
    assert sorted(path.name for path in rows.iterdir()) == [".DS_Store", "broken.zip", "evil.zip", "good.zip"]


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


@pytest.mark.parametrize(
    ("code", "feedback"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-2024-11-20"),
        ("deepseek-ai/DeepSeek-V3", "meta-llama/llama-3.1-405b-instruct"),
    ],
)
def test_000_51_the_documents_examples_of_models(tmp_path: Path, code: str, feedback: str) -> None:
    jobs.write_ideas(tmp_path)
    write_job(tmp_path, load_ideas="ideas.json")
    (tmp_path / "bfts_config.yaml").write_text(
        f"# bfts_config.yaml\nagent:\n  code:\n    model: {code}\n  feedback:\n    model: {feedback}\n"
    )
    refused = dry_run(tmp_path)
    assert refused.code == 2 and "OPENAI_API_KEY" in refused.stderr
    checked = dry_run(tmp_path, OPENAI_API_KEY="key")
    assert checked.plan is not None
    roles = checked.plan.roles
    assert (roles["code"].model, roles["feedback"].model) == (code, feedback)
    default = parse_model("gpt-4o").provider
    assert [parse_model(model).provider for model in (code, feedback)] == [default, default]


def test_000_51_two_providers_by_name(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    write_job(tmp_path, load_ideas="ideas.json")
    (tmp_path / "bfts_config.yaml").write_text(
        "agent:\n  code: {model: 'deepseek::deepseek-chat'}\n  feedback: {model: ollama/llama3.1}\n"
    )
    checked = dry_run(tmp_path, OAIC_DEEPSEEK_API_KEY="key", OAIC_DEEPSEEK_BASE_URL="http://127.0.0.1:9/v1")
    assert checked.plan is not None, checked.stderr
    assert checked.plan.roles["code"].model == "deepseek::deepseek-chat"
    assert parse_model(str(checked.plan.roles["feedback"].model)).provider == "ollama"


def test_000_44_a_provider_without_its_variables_names_both(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    write_job(tmp_path, load_ideas="ideas.json")
    checked = dry_run(tmp_path, "--model", "deepseek::deepseek-chat")
    assert checked.code == 2
    assert "OAIC_DEEPSEEK_API_KEY" in checked.stderr and "OAIC_DEEPSEEK_BASE_URL" in checked.stderr


async def test_000_52_the_trial_pair_loads_and_runs(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples/configs/qwen.yaml"
    jobs.write_ideas(tmp_path)
    flags = ("--load_ideas", "ideas.json", "--idea_idx", "0", "--bfts_config", str(example))
    async with OpenAIServer(jobs.Researcher()) as server:
        variables = {"OAIC_QWEN_API_KEY": "key", "OAIC_QWEN_BASE_URL": server.base_url}
        checked = dry_run(tmp_path, *flags, **variables)
        assert checked.plan is not None, checked.stderr
        models = {name: str(role.model) for name, role in checked.plan.roles.items()}
        assert models.pop("vision") == "qwen::qwen3-vl-plus"
        assert set(models.values()) == {"qwen::qwen-plus"}

        small = {f"bfts.agent.stages.stage{number}_max_iters": 1 for number in (1, 2, 3, 4)}
        manifest = await run_job(
            settings={
                "bfts.load_ideas": "ideas.json",
                "bfts.idea_idx": 0,
                "bfts.bfts_config": str(example),
                "bfts.agent.search.num_drafts": 1,
                "bfts.agent.multi_seed_eval.num_seeds": 0,
                "sandbox": "local",
                **small,
            },
            cwd=tmp_path,
            environ=jobs.clean_environ(tmp_path, **variables),
            accept_weak=True,
        )
    assert manifest["status"] == "success", manifest["error"]
    assert {body["model"] for body in server.bodies} == {"qwen-plus", "qwen3-vl-plus"}
    pictures = [body["model"] for body in server.bodies if "image_url" in json.dumps(body)]
    assert set(pictures) == {"qwen3-vl-plus"}


# ------------------------------------------------------------------------------------------- .env


def test_000_05_dotenv_can_be_named_or_left_out(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path / "job")
    write_job(tmp_path / "job", load_ideas="ideas.json")
    lines = "OAIC_LEFT_API_KEY=key-of-dotenv\nOAIC_LEFT_BASE_URL=http://127.0.0.1:9/v1\nOTHER=x\n"
    (tmp_path / "job/.env").write_text(lines)
    (tmp_path / "variables").write_text(lines)
    flags = ("--config", "job/job_config.yaml", "--model", "left::writer")
    beside = dry_run(tmp_path, *flags)
    assert beside.plan is not None
    assert "OAIC_LEFT_API_KEY, OAIC_LEFT_BASE_URL taken from job/.env" in beside.stderr
    assert "key-of-dotenv" not in beside.stderr + beside.stdout
    assert "OTHER" not in beside.plan.invocation.environ
    assert dry_run(tmp_path, *flags, "--no-env-file").code == 2
    (tmp_path / "job/.env").unlink()
    assert dry_run(tmp_path, *flags).code == 2
    assert dry_run(tmp_path, *flags, "--env-file", "variables").code == 0
    gone = dry_run(tmp_path, *flags, "--env-file", "gone")
    assert gone.code == 2 and "no such file: gone" in gone.stderr


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


def test_two_providers_that_read_the_same_variable_are_refused(tmp_path: Path) -> None:
    write_job(tmp_path)
    text = "agent: {code: {model: 'silicon-flow::a'}, feedback: {model: 'silicon.flow::b'}}\n"
    (tmp_path / "bfts_config.yaml").write_text(text)
    keys = {"OAIC_SILICON_FLOW_API_KEY": "k", "OAIC_SILICON_FLOW_BASE_URL": "http://127.0.0.1:9/v1"}
    checked = dry_run(tmp_path, **keys)
    assert checked.code == 2
    assert "'silicon-flow' and 'silicon.flow' both read OAIC_SILICON_FLOW_API_KEY" in checked.stderr
