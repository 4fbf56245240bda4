"""The experiment search from outside: a whole run on three servers, its exit codes, its neighbours."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from corerun_bfts.sdk import run_job
from tests.support import jobs
from tests.support.experimenter import Experimenter
from tests.support.openai_server import OpenAIServer, serve_in_thread

SECRETS = {
    "OPENAI_API_KEY": "sk-only-in-dotenv-1f7a",
    "OAIC_LEFT_API_KEY": "left-only-in-dotenv-93bc",
    "OAIC_RIGHT_API_KEY": "right-of-dotenv-must-lose-5e5e",
}
SET_KEY = "right-set-in-the-shell-77d0"
SEARCH = """\
exec: {timeout: 60}
agent:
  num_workers: 2
  stages: {stage1_max_iters: 2, stage2_max_iters: 2, stage3_max_iters: 1, stage4_max_iters: 1}
  multi_seed_eval: {num_seeds: 1}
  search: {max_debug_depth: 3, debug_prob: 1.0, num_drafts: 1}
  code: {model: "left::writer", temp: 0.7, max_tokens: 6000}
  feedback: {model: "right::judge"}
  vlm_feedback: {model: "right::eyes"}
  summary: {model: clerk}
"""


@dataclass
class Served:
    """A finished run of the document's own command line, and the servers that it asked."""

    done: jobs.Done
    run: Path
    default: OpenAIServer
    left: OpenAIServer
    right: OpenAIServer

    @property
    def servers(self) -> tuple[OpenAIServer, OpenAIServer, OpenAIServer]:
        return self.default, self.left, self.right


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    jobs.write_ideas(folder / "ai_scientist/ideas", name="i_cant_believe_its_not_better.json")
    (folder / "bfts_config.yaml").write_text(SEARCH)
    (folder / "job_config.yaml").write_text("job:\n  plot_agg_reflections: 1\n  attempt_id: 9\n")
    researcher = jobs.Researcher('import os\nprint("variables", sorted(os.environ))')
    with (
        serve_in_thread(researcher) as default,
        serve_in_thread(researcher) as left,
        serve_in_thread(researcher) as right,
    ):
        lines = [f"{name}={value}" for name, value in SECRETS.items()]
        lines += ["# comment", f"export OPENAI_BASE_URL='{default.base_url}'", "PATH=/nowhere"]
        lines += [f"OAIC_LEFT_BASE_URL={left.base_url}", f"OAIC_RIGHT_BASE_URL={right.base_url}"]
        (folder / ".env").write_text("\n".join(lines) + "\n")
        done = jobs.bfts(
            *("--load_ideas", "./ai_scientist/ideas/i_cant_believe_its_not_better.json"),
            *("--idea_idx", "0", "--attempt_id", "0", "--out_root", "./runs"),
            *("--model_agg_plots", "o3-mini-2025-01-31", "--plot_agg_reflections", "5"),
            *("--plot_agg_max_figures", "12", "--plot_agg_max_tokens", "12000"),
            *("--keep_experiment_results", "--display", "plain", *jobs.UNSAFE),
            cwd=folder,
            environ=jobs.clean_environ(folder, OAIC_RIGHT_API_KEY=SET_KEY),
        )
        assert done.code == 0, done.stderr
        yield Served(done, jobs.run_directory(folder / "runs"), default, left, right)


# ----------------------------------------------------------------------------------- the whole run


def test_000_15_the_documents_command_line_runs(served: Served) -> None:
    manifest = served.done.manifest
    assert manifest["status"] == "success"
    assert manifest == json.loads((served.run / "run_manifest.json").read_text())
    inputs = manifest["inputs"]
    assert inputs["model_agg_plots"] == "o3-mini-2025-01-31" and inputs["plot_agg_reflections"] == 5
    assert (inputs["plot_agg_max_figures"], inputs["plot_agg_max_tokens"]) == (12, 12000)
    assert served.run.name.endswith("_ridge_attempt_0")
    assert len(manifest["stages"]) == 4 and len(manifest["artifacts"]["figure_files"]) == 3


def test_000_05_a_key_that_stands_only_in_dotenv_reaches_the_server(served: Served) -> None:
    for server, key in (
        (served.default, SECRETS["OPENAI_API_KEY"]),
        (served.left, SECRETS["OAIC_LEFT_API_KEY"]),
    ):
        assert server.calls > 0
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {key}"}
    names = "OPENAI_API_KEY, OAIC_LEFT_API_KEY, OPENAI_BASE_URL, OAIC_LEFT_BASE_URL, OAIC_RIGHT_BASE_URL"
    assert served.done.stderr.count(f"{names} taken from .env") == 1


def test_000_05_a_set_variable_wins_over_dotenv(served: Served) -> None:
    assert {request.headers["authorization"] for request in served.right.requests} == {f"Bearer {SET_KEY}"}


def test_000_05_no_secret_is_in_any_file_of_the_run_or_on_the_screen(served: Served) -> None:
    secrets = [*SECRETS.values(), SET_KEY]
    files = [path for path in served.run.rglob("*") if path.is_file()]
    assert len(files) > 40
    for path in files:
        body = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in body], path
    for secret in secrets:
        assert secret not in served.done.stdout and secret not in served.done.stderr


def test_000_05_no_key_reaches_a_program(served: Served) -> None:
    seen = [
        line
        for path in (served.run / "logs/0-run/experiment_results").glob("*/output.txt")
        for line in path.read_text().splitlines()
        if line.startswith("variables")
    ]
    assert seen
    for line in seen:
        assert "OPENAI" not in line and "OAIC" not in line and "CUDA_VISIBLE_DEVICES" in line


def test_000_51_each_role_is_asked_of_its_own_model_and_server(served: Served) -> None:
    asked = [{body["model"] for body in server.bodies} for server in served.servers]
    assert asked == [{"clerk", "o3-mini-2025-01-31"}, {"writer"}, {"judge", "eyes"}]
    pictures = [body for body in served.right.bodies if "image_url" in json.dumps(body)]
    assert pictures and {body["model"] for body in pictures} == {"eyes"}
    writer = [body for body in served.left.bodies if "tools" not in body]
    assert {body["temperature"] for body in writer} == {0.7}
    caps = {body.get("max_tokens") or body.get("max_completion_tokens") for body in writer}
    assert caps == {6000}


def test_000_35_the_cap_reaches_the_plot_model(served: Served) -> None:
    bodies = [body for body in served.default.bodies if body["model"].startswith("o3-mini")]
    caps = {body.get("max_completion_tokens") or body.get("max_tokens") for body in bodies}
    assert bodies and caps == {12000}


def test_000_30_every_call_is_counted_as_the_servers_count_it(served: Served) -> None:
    tracker = json.loads((served.run / "token_tracker.json").read_text())
    reported = {name: usage for server in served.servers for name, usage in server.usage.items()}
    assert {name.rpartition("::")[2] for name in tracker} == set(reported)
    for name, counted in tracker.items():
        usage = reported[name.rpartition("::")[2]]
        assert counted["tokens"]["prompt"] == usage["prompt_tokens"]
        assert counted["tokens"]["completion"] == usage["completion_tokens"]
    calls = sum(server.calls for server in served.servers)
    assert served.done.manifest["cost"]["calls"] == calls
    rows = json.loads((served.run / "token_tracker_interactions.json").read_text())
    assert sum(len(group) for group in rows.values()) == calls


def test_000_36_experiment_results_are_kept_if_asked(served: Served) -> None:
    kept = served.run / "experiment_results"
    assert list(kept.glob("experiment_*/experiment_data.npy"))
    if kept.is_symlink():
        assert not Path(os.readlink(kept)).is_absolute()


def test_000_20_the_copy_names_the_models_and_no_key(served: Served) -> None:
    agent = yaml.safe_load((served.run / "bfts_config.yaml").read_text())["agent"]
    assert agent["code"] == {"model": "left::writer", "temp": 0.7, "max_tokens": 6000}
    assert agent["feedback"]["model"] == "right::judge"
    assert agent["vlm_feedback"]["model"] == "right::eyes"


def test_000_54_the_models_are_disclosed(served: Served) -> None:
    said = served.done.manifest["disclosure"]
    assert "AI-generated" in said
    for name in ("left::writer", "right::judge", "right::eyes", "clerk", "o3-mini-2025-01-31"):
        assert name in said


# -------------------------------------------------------------------------------- failures, codes


def test_000_31_stdout_of_a_failed_run_is_its_manifest(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    done = jobs.bfts(
        *("--load_ideas", "ideas.json", "--idea_idx", "0", "--model", "fake::fail:401", *jobs.UNSAFE),
        cwd=tmp_path,
    )
    assert done.code == 2
    run = jobs.run_directory(tmp_path)
    assert done.manifest == json.loads((run / "run_manifest.json").read_text())
    assert done.manifest["status"] == "failed" and done.manifest["error"]["type"] == "AuthFailed"
    assert done.manifest["best"] is None and done.manifest["stages"] == []
    assert (run / "token_tracker.json").is_file() and (run / "idea.md").is_file()
    assert "AuthFailed" in done.stderr


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Flags and variables of a run with one node per stage, and the server that it asks."""
    (tmp_path / "bfts_config.yaml").write_text(jobs.TINY_SEARCH)
    jobs.write_ideas(tmp_path)
    flags = ["--load_ideas", "ideas.json", "--idea_idx", "0", "--plot_agg_reflections", "0"]
    flags += ["--display", "none", *jobs.UNSAFE]
    with serve_in_thread(Experimenter()) as server:
        yield flags, jobs.clean_environ(tmp_path, **server.environ())


def test_000_34_strict_artifacts_fail_when_summaries_are_missing(
    tmp_path: Path, tiny: tuple[list[str], dict[str, str]]
) -> None:
    flags, environ = tiny
    strict = ("--strict_artifacts", "-o", "bfts.generate_report=false")
    done = jobs.bfts(*flags, *strict, cwd=tmp_path, environ=environ)
    assert done.code == 2
    assert done.manifest["status"] == "failed"
    assert done.manifest["error"]["type"] == "MissingArtifacts"
    codes = ", ".join(f"summary:{name}" for name in ("draft", "baseline", "research", "ablation"))
    assert done.manifest["error"]["message"] == f"Missing artifacts: {codes}"
    assert done.manifest == json.loads((jobs.run_directory(tmp_path) / "run_manifest.json").read_text())
    assert f"MissingArtifacts: Missing artifacts: {codes}" in done.stderr
    assert len(done.manifest["artifacts"]["figure_files"]) == 3


async def test_no_working_node_within_the_limit_is_a_failed_run(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    (tmp_path / "bfts_config.yaml").write_text(jobs.TINY_SEARCH)
    manifest = await run_job(
        settings={
            "bfts.load_ideas": "ideas.json",
            "bfts.idea_idx": 0,
            "model": "mine::anything",
            "sandbox": "local",
        },
        cwd=tmp_path,
        environ=jobs.clean_environ(tmp_path),
        providers={"mine": jobs.InProcess(jobs.Researcher("raise ValueError('never')"))},
        accept_weak=True,
    )
    assert manifest["exit_code"] == 1 and manifest["error"]["type"] == "NoWorkingNode"
    assert manifest["stages"][0]["good"] == 0 and manifest["best"] is None
    codes = "summary:draft, summary:baseline, summary:research, summary:ablation, figures_dir"
    assert f"Missing artifacts: {codes}" in manifest["warnings"]
    assert Path(manifest["paths"]["token_tracker"]).is_file()


def test_an_out_root_that_cannot_be_made_is_exit_3(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = jobs.bfts("--out_root", "file", cwd=tmp_path)
    assert done.code == 3
    assert done.manifest["status"] == "failed" and done.manifest["error"]["type"] == "EnvironmentRefused"
    assert str(tmp_path / "file") in done.manifest["error"]["message"]
    assert "choose another --out_root" in done.stderr


def test_a_run_directory_that_cannot_be_made_leaves_its_manifest_in_out_root(tmp_path: Path) -> None:
    (tmp_path / "experiments").write_text("in the way")
    done = jobs.bfts("--run_id", "x", cwd=tmp_path)
    assert done.code == 3
    assert json.loads((tmp_path / "run_manifest.json").read_text()) == done.manifest
    assert done.manifest["warnings"] and done.manifest["inputs"]["idea_idx"] == 0


def test_a_run_directory_with_foreign_files_is_exit_2(tmp_path: Path) -> None:
    taken = tmp_path / "experiments/mine_few_labels_attempt_0"
    taken.mkdir(parents=True)
    (taken / "thesis.txt").write_text("do not touch")
    done = jobs.bfts("--run_id", "mine", cwd=tmp_path)
    assert done.code == 2 and done.stdout == ""
    assert f"{taken} is not empty and holds no journal" in done.stderr
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def test_missing_packages_are_exit_3_before_a_folder_is_made(tmp_path: Path) -> None:
    program = (
        "import importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name == 'sklearn' else real(name, *rest); "
        "import sys; from corerun.cli.app import run_command; "
        "sys.exit(run_command(['--plugin', 'bfts', 'run']))"
    )
    done = jobs.python(program, tmp_path)
    assert done.code == 3 and "scikit-learn" in done.stderr
    assert "pip install 'corerun[experiments]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------- neighbours


def test_000_03_a_process_that_looks_like_ours_lives_and_two_runs_do_not_meet(
    tmp_path: Path, tiny: tuple[list[str], dict[str, str]]
) -> None:
    flags, environ = tiny
    looks = shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / "python torch bfts")
    bystander = subprocess.Popen(["python torch bfts mp_spawn", "600"], executable=looks)

    def run(seed: int) -> jobs.Done:
        own = ("-o", f"seed={seed}", "--out_root", "shared")
        return jobs.bfts(*flags, *own, cwd=tmp_path, environ=environ)

    try:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(run, (0, 1)))
        assert [one.code for one in done] == [0, 0], [one.stderr for one in done]
        folders = [one.manifest["paths"]["run_dir"] for one in done]
        assert len(set(folders)) == 2
        for one, folder in zip(done, folders, strict=True):
            assert one.manifest["resumed_from"] is None
            assert not any("Missing" in text for text in one.manifest["warnings"])
            assert json.loads((Path(folder) / "run_manifest.json").read_text()) == one.manifest
        assert [one.manifest["seed"] for one in done] == [0, 1]
        assert bystander.poll() is None
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait()


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = jobs.corerun(["--version"], tmp_path)
    script = Path(sys.executable).parent / "corerun"
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert done.stdout == said and re.fullmatch(r"corerun \d+\.\d+\.\d+\S*\n", said)
