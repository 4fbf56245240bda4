"""The final figures, drawn again without the search: what is rebuilt, kept, rolled back and restored."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from corerun.config import Entry
from corerun.job.plan import make_plan
from corerun.job.start import run_plan
from corerun.plugins import PluginManager
from corerun_bfts.figures import link_results
from tests.support import jobs
from tests.support.experimenter import all_text
from tests.support.openai_server import serve_in_thread
from tests.support.openai_server import text as answer_text

np = pytest.importorskip("numpy")

OLD_SCRIPT = "# the old script\n"
OLD_FIGURE = b"\x89PNG old"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What another program left of a run: an idea, summaries, data, figures, and no journal."""
    place = tmp_path / "runs/experiments/other_run"
    logs = place / "logs/0-run"
    for name in ("experiment_a", "experiment_b"):
        (logs / "experiment_results" / name).mkdir(parents=True)
        np.save(logs / "experiment_results" / name / "experiment_data.npy", {"toy": {"losses": [2.0, 1.0]}})
    (place / "idea.md").write_text("## Title\n\nThe idea of idea.md\n")
    best = {
        "overall_plan": "plan of the baseline",
        "plot_analyses": [{"analysis": "falls", "plot_path": "plots/hidden.png"}],
        "plot_paths": ["plots/hidden.png"],
        "exp_results_npy_files": [
            "runs/experiments/other_run/experiment_results/experiment_a/experiment_data.npy"
        ],
        "code": "secret_of_the_code()",
    }
    (logs / "baseline_summary.json").write_text(json.dumps({"best node": best, "other": "not kept"}))
    (logs / "ablation_summary.json").write_text("{cut")
    (place / "figures").mkdir()
    (place / "figures/old.png").write_bytes(OLD_FIGURE)
    (place / "auto_plot_aggregator.py").write_text(OLD_SCRIPT)
    return place


def drawing(*names: str, then: str = "") -> str:
    """A script that reads its data through the manifest and makes figures of these names."""
    return (
        "import json, os\n"
        "import numpy as np\n"
        "files = json.load(open('plot_agg_manifest.json'))['npy_files']\n"
        "for path in files:\n"
        "    assert os.path.isabs(path)\n"
        "    np.load(path, allow_pickle=True).item()['toy']\n"
        "os.makedirs('figures', exist_ok=True)\n"
        f"for name in {names!r}:\n"
        "    open('figures/' + name, 'wb').write(b'\\x89PNG ' + name.encode())\n"
        f"print('drew', {len(names)})\n{then}"
    )


def fenced(script: str) -> str:
    return f"Here it is.\n\n```python\n{script}```\n"


class Plotted:
    """One ``plots`` job in this process with the model's answers given, and what came of it."""

    manifest: Mapping[str, Any]
    researcher: jobs.Researcher

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def draw(self, answers: Sequence[str], *, reflections: int = 3, cut: bool = False) -> Plotted:
        self.researcher = jobs.Researcher(figure_answers=answers)
        asked: Any = self.researcher
        if cut:
            asked = lambda body: answer_text(self.researcher(body).content, finish="length")  # noqa: E731
        manager = PluginManager()
        environ = jobs.clean_environ(self.folder.parent)
        values: dict[tuple[str, ...], Any] = {
            ("plots", "folder"): str(self.folder),
            ("plots", "reflections"): reflections,
            ("model",): "mine::painter",
            ("sandbox", "name"): "local",
        }
        plan = make_plan(
            "bfts/plots",
            manager,
            flags={key: Entry(value, "test") for key, value in values.items()},
            cwd=self.folder.parent,
            environ=environ,
            providers={"mine": jobs.InProcess(asked)},
        )
        self.manifest = (await run_plan(plan, manager, accept_weak=True)).manifest
        return self

    @property
    def figures(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "figures").iterdir())

    @property
    def script(self) -> str:
        return (self.folder / "auto_plot_aggregator.py").read_text()

    @property
    def questions(self) -> list[str]:
        return [all_text(body) for body in self.researcher.figure_questions]

    def is_as_before(self) -> bool:
        old = (self.folder / "figures/old.png").read_bytes() == OLD_FIGURE
        return old and self.figures == ["old.png"] and self.script == OLD_SCRIPT


# ------------------------------------------------------------------------------- the whole command


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[jobs.Done, Path]:
    return jobs.finished_run(tmp_path_factory.getbasetemp())


def test_000_37_38_39_plots_alone_on_a_finished_run_from_another_folder(
    finished: tuple[jobs.Done, Path], tmp_path: Path
) -> None:
    run = jobs.copy_of(finished[1], tmp_path / "runs")
    here = tmp_path / "here"
    here.mkdir()
    old = {path.name for path in (run / "figures").iterdir()}
    shutil.rmtree(run / "figures")
    journal = (run / "events.jsonl").read_bytes()
    done = jobs.corerun(
        [
            *("--plugin", "bfts", "plots", "--folder", f"../runs/{run.name}", "--model", "recipes::default"),
            *("--reflections", "1", "--max_figures", "12", "--max_tokens", "12000", "--display", "none"),
        ],
        here,
    )
    assert done.code == 0, done.stderr
    assert {path.name for path in (run / "figures").iterdir()} == old
    assert done.manifest["artifacts"]["figure_files"] == [str(run / "figures" / name) for name in sorted(old)]
    assert done.manifest["inputs"] == {
        **{"folder": str(run), "reflections": 1, "max_figures": 12, "max_tokens": 12000}
    }
    assert (run / "experiment_results").is_symlink()
    assert (run / "experiment_results").resolve() == run / "logs/0-run/experiment_results"
    manifest = json.loads((run / "plot_agg_manifest.json").read_text())
    assert manifest["base_dir"] == str(run)
    assert manifest["npy_files"] and all(path.startswith(str(run)) for path in manifest["npy_files"])
    assert (run / "events.jsonl").read_bytes() == journal
    assert list(here.iterdir()) == []


def test_000_37_the_flags_reach_the_model(folder: Path) -> None:
    researcher = jobs.Researcher(figure_answers=[fenced(drawing("one.png"))])
    with serve_in_thread(researcher) as server:
        done = jobs.corerun(
            [
                *("--plugin", "bfts", "plots", "--folder", str(folder), "--model", "painter"),
                *("--reflections", "5", "--max-figures", "4", "--max-tokens", "777", *jobs.UNSAFE),
            ],
            folder.parent,
            jobs.clean_environ(folder.parent, **server.environ()),
        )
    assert done.code == 0, done.stderr
    assert server.calls == 2
    for body in server.bodies:
        assert body["model"] == "painter"
        assert (body.get("max_tokens") or body.get("max_completion_tokens")) == 777
    assert "Target number of figures" in all_text(server.bodies[0])
    assert [path.name for path in (folder / "figures").iterdir()] == ["one.png"]


@pytest.mark.parametrize(("name", "said"), [("gone", "no such run directory"), ("empty", "it has no logs/")])
def test_000_37_a_folder_that_is_no_run_is_exit_2(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    done = jobs.corerun(["--plugin", "bfts", "plots", "--folder", name], tmp_path)
    assert done.code == 2 and said in done.stderr and "--folder" in done.stderr and done.stdout == ""


def test_000_37_a_refused_key_is_told_and_the_old_figures_stay(folder: Path) -> None:
    done = jobs.corerun(
        ["bfts", "plots", "--folder", str(folder), "--model", "fake::fail:401", *jobs.UNSAFE], folder.parent
    )
    assert done.code == 2 and done.manifest["status"] == "failed"
    assert "AuthFailed" in done.stderr
    assert Plotted(folder).is_as_before()


# ------------------------------------------------------------------------------------- the folder


def test_000_38_experiment_results_are_linked_relatively(folder: Path) -> None:
    link_results(folder)
    top = folder / "experiment_results"
    assert os.readlink(top) == "logs/0-run/experiment_results"
    moved = folder.rename(folder.with_name("moved"))
    assert (moved / "experiment_results/experiment_a/experiment_data.npy").is_file()


def test_000_38_where_links_fail_they_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    link_results(folder)
    top = folder / "experiment_results"
    assert not top.is_symlink()
    assert {path.name for path in top.iterdir()} == {"experiment_a", "experiment_b"}


def test_000_38_a_dangling_link_is_made_again_and_a_folder_is_left_alone(folder: Path) -> None:
    top = folder / "experiment_results"
    top.symlink_to("/nowhere/at/all")
    link_results(folder)
    assert (top / "experiment_a").is_dir()
    top.unlink()
    top.mkdir()
    link_results(folder)
    assert top.is_dir() and not top.is_symlink()


# ------------------------------------------------------------------------------------- the rounds


async def test_000_39_what_the_model_is_told(folder: Path) -> None:
    plotted = await Plotted(folder).draw([fenced(drawing("one.png"))])
    question = plotted.questions[0]
    for known in ("The idea of idea.md", "plan of the baseline", "falls", "plot_agg_manifest.json", "losses"):
        assert known in question, known
    for hidden in ("hidden.png", "secret_of_the_code", "not kept"):
        assert hidden not in question, hidden
    manifest = json.loads((folder / "plot_agg_manifest.json").read_text())
    results = folder / "logs/0-run/experiment_results"
    assert manifest["npy_files"] == [
        str(results / name / "experiment_data.npy") for name in ("experiment_a", "experiment_b")
    ]
    assert set(manifest["structure"]) == set(manifest["npy_files"])


async def test_000_39_research_idea_md_is_preferred(folder: Path) -> None:
    (folder / "research_idea.md").write_text("The idea of research_idea.md")
    plotted = await Plotted(folder).draw([fenced(drawing("one.png"))])
    assert "The idea of research_idea.md" in plotted.questions[0]
    assert "The idea of idea.md" not in plotted.questions[0]


async def test_000_40_a_better_script_replaces_the_first(folder: Path) -> None:
    better = drawing("b.png", "a.pdf", "c.svg")
    plotted = await Plotted(folder).draw([fenced(drawing("only.png")), fenced(better)])
    assert plotted.figures == ["a.pdf", "b.png", "c.svg"] and plotted.script == better
    assert plotted.manifest["artifacts"]["figure_files"] == [
        str(folder / "figures" / name) for name in plotted.figures
    ]
    assert "drew 1" in plotted.questions[1]
    assert len(plotted.questions) == 3  # the third answer is "I am done"
    assert not (folder / "_figures_best").exists()


async def test_000_40_a_worse_script_is_rolled_back(folder: Path) -> None:
    best = drawing("a.png", "b.png", "c.png")
    worse, broken = drawing("x.png"), drawing("y.png", then="raise SystemExit(3)\n")
    plotted = await Plotted(folder).draw([fenced(best), fenced(worse), fenced(broken)])
    assert plotted.figures == ["a.png", "b.png", "c.png"] and plotted.script == best


async def test_000_40_equal_counts_take_the_newer_script(folder: Path) -> None:
    newer = drawing("new.png")
    plotted = await Plotted(folder).draw([fenced(drawing("first.png")), fenced(newer)])
    assert plotted.figures == ["new.png"] and plotted.script == newer


async def test_000_40_other_files_are_no_figures(folder: Path) -> None:
    plotted = await Plotted(folder).draw([fenced(drawing("a.png", "notes.txt", "data.csv"))])
    assert plotted.figures == ["a.png"]


async def test_000_40_rounds_end_at_the_number_of_reflections(folder: Path) -> None:
    script = fenced(drawing("a.png"))
    plotted = await Plotted(folder).draw([script] * 9, reflections=2)
    assert len(plotted.questions) == 3


async def test_000_40_done_counts_only_once_a_script_has_run(folder: Path) -> None:
    plotted = await Plotted(folder).draw(["I am done", fenced(drawing("a.png"))])
    assert plotted.figures == ["a.png"]


@pytest.mark.parametrize("failing", ["raise ValueError('no')", "import not_a_module", "1/0"])
async def test_000_40_a_script_that_fails_is_shown_its_error(folder: Path, failing: str) -> None:
    plotted = await Plotted(folder).draw([fenced(failing + "\n"), fenced(drawing("a.png"))])
    assert plotted.figures == ["a.png"]
    error = {"raise": "ValueError", "import": "ModuleNotFoundError", "1/0": "ZeroDivisionError"}
    assert error[failing.split(" ")[0]] in plotted.questions[1]


# ------------------------------------------------------------------------------------- cut scripts


async def test_000_35_a_cut_script_is_asked_for_again(folder: Path) -> None:
    whole = fenced(drawing("a.png"))
    plotted = await Plotted(folder).draw([whole[: len(whole) // 2], whole])
    assert plotted.figures == ["a.png"] and plotted.manifest["status"] == "success"
    assert len(plotted.questions) >= 2


async def test_000_35_a_model_that_always_cuts_is_reported_and_old_figures_are_restored(
    folder: Path,
) -> None:
    half = fenced(drawing("a.png"))[:120]
    plotted = await Plotted(folder).draw([half] * 99, cut=True)
    assert plotted.is_as_before()
    assert plotted.manifest["status"] == "success"
    (warning,) = [text for text in plotted.manifest["warnings"] if "plot aggregation" in text]
    assert "cut" in warning or "max_tokens" in warning


async def test_000_40_a_later_cut_round_keeps_the_best_figures(folder: Path) -> None:
    whole = drawing("a.png", "b.png")
    plotted = await Plotted(folder).draw([fenced(whole), *["```python\nimport ("] * 9])
    assert plotted.figures == ["a.png", "b.png"] and plotted.script == whole
    assert any("round 1" in text for text in plotted.manifest["warnings"])


# ---------------------------------------------------------------------------------------- restore


async def test_000_37_old_figures_are_restored_when_the_new_attempt_yields_none(folder: Path) -> None:
    plotted = await Plotted(folder).draw([fenced("print('nothing')\n")])
    assert plotted.is_as_before()
    assert not (folder / "_figures_best").exists()


async def test_000_37_what_a_killed_attempt_had_put_aside_is_restored(folder: Path) -> None:
    aside = folder / "_figures_best"
    aside.mkdir()
    for name in ("figures", "auto_plot_aggregator.py"):
        (folder / name).rename(aside / name)
    plotted = await Plotted(folder).draw([fenced("print('nothing')\n")])
    assert plotted.is_as_before()
    assert not aside.exists()


async def test_000_37_old_figures_go_when_there_are_new_ones(folder: Path) -> None:
    plotted = await Plotted(folder).draw([fenced(drawing("a.png"))])
    assert plotted.figures == ["a.png"]
    assert (folder / "experiment_results").is_symlink()
