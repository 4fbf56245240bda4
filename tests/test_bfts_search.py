"""The rules of the experiment search: stages, metrics, seeds, choices, with a scripted model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import QuotaExceeded
from corerun.interfaces import Node
from corerun.testing.fake import FakeProvider
from corerun_bfts.record import RunRecord
from corerun_bfts.sdk import load_run, run_job
from tests.support.killing import FAST, IDEA, read_events, tree_of
from tests.support.researcher import METRIC, PLOT, SETS, Question, Researcher, experiment, fenced, parsed

ONE_STAGE = FAST | {
    "bfts.agent.stages.order": [1],
    "bfts.agent.multi_seed_eval.num_seeds": 0,
    "bfts.generate_report": False,
    "bfts.plot_agg_reflections": 0,
    "in_flight": 1,
    "workers": 1,
}
TWO_STAGES = ONE_STAGE | {"bfts.agent.stages.order": [1, 2], "bfts.agent.search.num_drafts": 1}
Override = Callable[[Question], Any]


@dataclass
class Story:
    """What a run came to, and what was asked in it."""

    manifest: Mapping[str, Any]
    record: RunRecord
    researcher: Researcher
    directory: Path

    def nodes(self, stage: int) -> list[Node]:
        return [node for one in self.record.stages if one.number == stage for node in one.nodes]

    def asked(self, tool: str) -> list[Question]:
        return [question for question in self.researcher.asked if question.tool == tool]

    @property
    def warnings(self) -> str:
        return "\n".join(self.manifest["warnings"])

    @property
    def tree(self) -> dict[str, dict[str, Any]]:
        return tree_of(read_events(self.directory))


async def tell(
    root: Path,
    override: Override = lambda question: None,
    settings: Mapping[str, Any] = ONE_STAGE,
    *,
    faulty: float = 0.0,
    resume: Path | None = None,
    **more: Any,
) -> Story:
    """A run in this process; ``more`` are settings below ``bfts`` with ``__`` for the dots."""
    root.mkdir(exist_ok=True)
    (root / "ideas.json").write_text(json.dumps([IDEA]))
    researcher = Researcher(override, faulty=faulty)
    own = {"bfts." + key.replace("__", "."): value for key, value in more.items()}
    manifest = await run_job(
        settings={
            "bfts.load_ideas": str(root / "ideas.json"),
            "bfts.idea_idx": 0,
            "out_root": str(root),
            "model": "fake::any",
            "sandbox.name": "local",
            **settings,
            **own,
        },
        resume=None if resume is None else str(resume),
        cwd=root,
        environ={"PATH": os.environ["PATH"], "HOME": str(root)},
        providers={"fake": FakeProvider(researcher.complete)},
        accept_weak=True,
    )
    directory = Path(manifest["paths"]["run_dir"])
    return Story(manifest, load_run(directory), researcher, directory)


def drafts(*errors: float) -> Override:
    """Drafts that end with these errors on one data set, in the order in which they are asked for."""

    def override(question: Question) -> str | None:
        if question.draft is None:
            return None
        return fenced("A draft.", experiment(errors[question.draft % len(errors)], ["synth_a"]))

    return override


def either(*overrides: Override) -> Override:
    """The first of these that has an answer."""

    def override(question: Question) -> Any:
        return next((answer for one in overrides if (answer := one(question)) is not None), None)

    return override


def says(tool: str, answer: Mapping[str, Any]) -> Override:
    """Answers one structured question the same way every time."""
    return lambda question: answer if question.tool == tool else None


def saving(values: str) -> Override:
    """Experiments that save this source as their validation values, on one data set."""
    program = experiment(0.5, ["synth_a"]).replace(
        '"metrics": {"train": curve, "val": curve}', f'"metrics": {{"val": {values}}}'
    )
    return lambda question: fenced("Values.", program) if question.wants_experiment else None


# ----------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("mode", [{"in_flight": 1}, {"workers": 2, "scheduler": "batch", "in_flight": 3}])
async def test_the_same_seed_gives_the_same_tree(tmp_path: Path, mode: dict[str, Any]) -> None:
    settings = TWO_STAGES | {"bfts.agent.search.num_drafts": 2, "bfts.agent.search.debug_prob": 0.5} | mode
    first = await tell(tmp_path / "a", settings=settings, faulty=0.3)
    second = await tell(tmp_path / "b", settings=settings, faulty=0.3)
    assert first.tree == second.tree and len(first.tree) >= 6
    texts = [[question.text for question in story.researcher.asked] for story in (first, second)]
    assert sorted(texts[0]) == sorted(texts[1])


async def test_another_seed_gives_other_nodes(tmp_path: Path) -> None:
    first = await tell(tmp_path / "a", agent__stages__stage1_max_iters=1)
    second = await tell(tmp_path / "b", settings=ONE_STAGE | {"seed": 1}, agent__stages__stage1_max_iters=1)
    assert set(first.tree).isdisjoint(second.tree)


# ---------------------------------------------------------------------------------------- stages


async def test_the_first_stage_ends_when_all_drafts_are_through_or_at_its_limit(tmp_path: Path) -> None:
    settled = await tell(tmp_path / "a", agent__stages__stage1_max_iters=9)
    assert [node.data["op"] for node in settled.nodes(1)] == ["draft", "draft"]
    limited = await tell(
        tmp_path / "b", agent__stages__stage1_max_iters=4, agent__stages__stage1_until="limit"
    )
    assert [node.data["op"] for node in limited.nodes(1)] == ["draft", "draft", "improve", "improve"]


async def test_a_success_in_the_last_node_of_the_limit_counts(tmp_path: Path) -> None:
    def override(question: Question) -> str | None:
        if question.draft in (0, 1):
            return fenced("Bad.", "raise ValueError\n")
        return None

    story = await tell(tmp_path, override, agent__search__debug_prob=0, agent__stages__stage1_max_iters=3)
    assert story.manifest["status"] == "success"
    assert [node.status for node in story.nodes(1)] == ["failed", "failed", "good"]


async def test_the_second_stage_begins_by_running_the_carried_program_on_more_data_sets(
    tmp_path: Path,
) -> None:
    def override(question: Question) -> str | None:
        # Tuning brings a better score, but on one data set alone.
        if question.wants_experiment and question.stage == 2 and "Setting" in question.sections:
            return fenced("Narrow.", experiment(0.01, ["synth_a"]))
        return None

    story = await tell(tmp_path, either(drafts(0.5), override), TWO_STAGES)
    widened, *tuned = story.nodes(2)
    assert (widened.data["op"], sorted(widened.data["metric"]["sets"])) == ("widen", list(SETS))
    assert [node.data["op"] for node in tuned] == ["tune", "tune"]
    assert all(node.status == "good" and not node.open for node in tuned)
    assert all(node.parent == widened.parent for node in tuned)
    assert story.manifest["best"]["id"] == widened.id


async def test_a_model_can_end_the_second_stage_once_its_best_node_has_stood(tmp_path: Path) -> None:
    def override(question: Question) -> str | None:
        if question.wants_experiment and question.stage == 2:
            return fenced("Tuned.", experiment(0.9 if "Setting" in question.sections else 0.1))
        return None

    complete = says("evaluate_stage_completion", {"is_complete": True, "reasoning": "stable"})
    story = await tell(
        tmp_path, either(drafts(0.5), override, complete), TWO_STAGES, agent__stages__stage2_max_iters=12
    )
    assert len(story.nodes(2)) == 5
    assert len(story.asked("evaluate_stage_completion")) == 1


async def test_nothing_left_to_try_ends_a_stage(tmp_path: Path) -> None:
    done = says("propose_experiment", {"name": "", "description": "", "setting": {}, "exhausted": True})
    story = await tell(tmp_path, either(drafts(0.5), done), TWO_STAGES, agent__stages__stage2_max_iters=9)
    assert story.manifest["status"] == "success"
    assert len(story.asked("propose_experiment")) == 1
    assert [node.data["op"] for node in story.nodes(2) if node.status == "good"] == ["widen"]


async def test_an_unusable_idea_costs_its_node_and_is_not_debugged(tmp_path: Path) -> None:
    def override(question: Question) -> Any:
        return "no idea" if question.tool == "propose_experiment" else None

    settings = TWO_STAGES | {"in_flight": 3, "workers": 2}
    story = await tell(tmp_path, either(drafts(0.5), override), settings)
    assert story.manifest["status"] == "success"
    assert [node.status for node in story.nodes(2)] == ["good", "failed", "failed"]
    assert all("BadAnswer" in node.reason and not node.open for node in story.nodes(2)[1:])


async def test_sub_stages_share_the_limit_of_their_stage_and_begin_with_its_best_node(tmp_path: Path) -> None:
    complete = says("evaluate_stage_completion", {"is_complete": True, "reasoning": "reached"})

    def override(question: Question) -> str | None:
        if question.wants_experiment and question.draft is None:
            return fenced("Worse.", experiment(0.9, ["synth_a"]))
        return None

    story = await tell(
        tmp_path,
        either(drafts(0.2), override, complete),
        agent__search__num_drafts=1,
        agent__stages__stage1_until="limit",
        agent__stages__stage1_max_iters=8,
    )
    first, second = story.record.stages
    assert len(first.nodes) + len(second.nodes) == 8 and len(second.nodes) == 3
    assert re.fullmatch(r"1_initial_implementation_2_[a-z0-9._-]+", second.scope)
    root = second.tree.nodes[second.tree.roots[0]]
    assert (root.data["op"], root.data["origin_id"], root.counted) == ("carried", first.best, False)
    assert second.goals == "Look closer at what helped."
    assert len(story.asked("generate_substage_goals")) == 1


async def test_stages_run_in_the_order_of_the_configuration(tmp_path: Path) -> None:
    story = await tell(
        tmp_path, settings=ONE_STAGE | {"bfts.agent.stages.order": [1, 4, 3]}, agent__search__num_drafts=1
    )
    assert [stage.number for stage in story.record.stages] == [1, 4, 3]
    assert story.manifest["status"] == "success"


async def test_a_stage_without_a_working_node_fails_the_run_with_its_files(tmp_path: Path) -> None:
    story = await tell(tmp_path, faulty=1.0)
    assert (story.manifest["status"], story.manifest["exit_code"]) == ("failed", 1)
    assert story.manifest["error"]["type"] == "NoWorkingNode"
    for name in ("run_manifest.json", "token_tracker.json", "token_tracker_interactions.json"):
        json.loads((story.directory / name).read_text())
    # A failed leaf is debugged once, not by two nodes.
    parents = [node.parent for node in story.nodes(1) if node.parent]
    assert len(parents) == len(set(parents))


# --------------------------------------------------------------------------------------- metrics


async def test_the_best_node_is_the_one_with_the_least_error(tmp_path: Path) -> None:
    story = await tell(tmp_path, drafts(0.7, 0.3, 0.5), agent__search__num_drafts=3)
    scores = [node.score for node in story.nodes(1)]
    assert scores == pytest.approx([-0.7, -0.3, -0.5])
    assert story.manifest["best"]["id"] == story.nodes(1)[1].id


async def test_a_person_can_name_the_metric(tmp_path: Path) -> None:
    story = await tell(
        tmp_path,
        drafts(0.7, 0.3),
        settings=ONE_STAGE | {"bfts.metric.name": "accuracy", "bfts.metric.maximize": True},
    )
    assert not story.asked("define_metric")
    assert story.manifest["best"]["id"] == story.nodes(1)[0].id


async def test_ties_go_to_the_earlier_node(tmp_path: Path) -> None:
    story = await tell(tmp_path, drafts(0.5))
    assert len({node.score for node in story.nodes(1)}) == 1
    assert story.manifest["best"]["id"] == story.nodes(1)[0].id


@pytest.mark.parametrize(
    ("values", "error"), [("[3, 1]", 1.0), ("[True]", 1.0), ("[np.float32(0.25)]", 0.25), ("0.5", 0.5)]
)
async def test_numbers_of_any_kind_are_metrics(tmp_path: Path, values: str, error: float) -> None:
    story = await tell(tmp_path, saving(values), agent__stages__stage1_max_iters=1)
    assert story.nodes(1)[0].score == -error


@pytest.mark.parametrize("values", ["[float('nan')]", "[0.5, float('inf')]"])
async def test_a_value_that_is_not_finite_is_no_score(tmp_path: Path, values: str) -> None:
    story = await tell(tmp_path, saving(values), agent__stages__stage1_max_iters=1)
    (node,) = story.nodes(1)
    assert (node.status, node.score) == ("failed", None) and "not finite" in node.reason


async def test_the_best_value_of_a_series_counts_if_asked_for(tmp_path: Path) -> None:
    story = await tell(
        tmp_path, saving("[0.9, 0.2, 0.6]"), agent__stages__stage1_max_iters=1, best_value=True
    )
    assert story.nodes(1)[0].score == -0.2


async def test_one_metric_under_another_name_is_an_alias_and_is_remembered(tmp_path: Path) -> None:
    names = iter(["Mean Error", "mean_error"])

    def override(question: Question) -> Any:
        return parsed(question, next(names)) if question.tool == "parse_metrics" else None

    story = await tell(tmp_path, override)
    assert [node.status for node in story.nodes(1)] == ["good", "good"]
    assert story.record.state.notes["metric_aliases"] == ["Mean Error"]


async def test_several_metrics_none_of_which_is_the_wanted_one_fail_the_node(tmp_path: Path) -> None:
    def override(question: Question) -> Any:
        if question.tool != "parse_metrics":
            return None
        answer = parsed(question, "accuracy")
        answer["metric_names"] += [{**answer["metric_names"][0], "metric_name": "loss"}]
        return answer

    story = await tell(tmp_path, override, agent__stages__stage1_max_iters=1)
    (node,) = story.nodes(1)
    assert node.status == "failed" and "metric_mismatch" in node.reason


async def test_other_metrics_beside_the_primary_one_do_not_change_the_score(tmp_path: Path) -> None:
    def override(question: Question) -> Any:
        if question.tool != "parse_metrics":
            return None
        answer = parsed(question, METRIC.upper().replace("_", " "))
        other = {**answer["metric_names"][0], "metric_name": "accuracy", "lower_is_better": False}
        answer["metric_names"].insert(0, other)
        return answer

    story = await tell(tmp_path, either(drafts(0.4), override), agent__stages__stage1_max_iters=1)
    assert story.nodes(1)[0].score == pytest.approx(-0.4)


async def test_votes_against_the_direction_warn_and_do_not_turn_it(tmp_path: Path) -> None:
    def override(question: Question) -> Any:
        return parsed(question, lower_is_better=False) if question.tool == "parse_metrics" else None

    errors = (0.5, 0.4, 0.6, 0.3, 0.7)
    story = await tell(
        tmp_path,
        either(drafts(*errors), override),
        agent__search__num_drafts=5,
        agent__stages__stage1_max_iters=5,
    )
    assert "keeps its direction" in story.warnings
    assert story.manifest["best"]["id"] == story.nodes(1)[3].id


async def test_data_of_another_form_are_read_by_a_program_that_the_model_writes(tmp_path: Path) -> None:
    shaped = """
import os
import numpy as np
os.makedirs('working', exist_ok=True)
np.save('working/experiment_data.npy', {'results': [0.3, 0.2]})
"""

    def override(question: Question) -> Any:
        if question.wants_experiment:
            return fenced("Other form.", shaped)
        if question.wants_reader:
            reader = (
                "import numpy as np\n"
                "data = np.load('working/experiment_data.npy', allow_pickle=True).item()\n"
                "print('all', 'validation_error', data['results'][-1])\n"
            )
            return fenced("Reads it.", reader)
        if question.tool == "parse_metrics":
            value = float(question.sections["Output of the metric reader"].split()[-1])
            data = [{"dataset_name": "all", "final_value": value, "best_value": value}]
            return {
                "valid_metrics_received": True,
                "metric_names": [{"metric_name": METRIC, "lower_is_better": True, "data": data}],
            }
        return None

    story = await tell(tmp_path, override, agent__stages__stage1_max_iters=1)
    assert (story.nodes(1)[0].status, story.nodes(1)[0].score) == ("good", -0.2)


# ----------------------------------------------------------------------------------------- plots


async def test_a_plot_program_that_fails_is_asked_for_again_with_its_error(tmp_path: Path) -> None:
    def override(question: Question) -> Any:
        if question.wants_plots and "The last attempt failed" not in question.sections:
            return fenced("Bad plots.", "raise KeyError('losses')\n")
        return None

    story = await tell(tmp_path, override, agent__stages__stage1_max_iters=1)
    (node,) = story.nodes(1)
    assert node.status == "good" and len(node.data["plots"]) == 1
    retry = [
        question for question in story.researcher.asked if "The last attempt failed" in question.sections
    ]
    assert "KeyError" in retry[0].text


async def test_without_plots_a_node_fails_where_they_are_looked_at_and_not_elsewhere(tmp_path: Path) -> None:
    def override(question: Question) -> Any:
        none = fenced("None.", "import os\nos.remove('working/curves.png')\n")
        return none if question.wants_plots else None

    seen = await tell(tmp_path / "a", override, agent__stages__stage1_max_iters=1)
    assert [node.reason for node in seen.nodes(1)] == ["no valid plots"]
    unseen = await tell(tmp_path / "b", override, agent__stages__stage1_max_iters=1, agent__vision="off")
    assert [(node.status, node.data["vision"]) for node in unseen.nodes(1)] == [("good", "off")]


async def test_more_analyses_than_plots_are_left_out(tmp_path: Path) -> None:
    answer = {
        "plot_analyses": [{"analysis": f"number {n}"} for n in range(9)],
        "valid_plots_received": True,
        "vlm_feedback_summary": "many",
        "datasets_successfully_tested": [],
    }
    story = await tell(tmp_path, says("analyze_experiment_plots", answer), agent__stages__stage1_max_iters=1)
    (node,) = story.nodes(1)
    assert [item["analysis"] for item in node.data["plot_analyses"]] == ["number 0"]


async def test_of_many_plots_ten_are_shown(tmp_path: Path) -> None:
    names = [f"plot_{number:02}.png" for number in range(14)]
    many = fenced("Many.", PLOT.format(folders=["working"], names=names))
    wanted = [f"working/{name}" for name in reversed(names[3:])] + ["working/none.png"]
    story = await tell(
        tmp_path,
        either(
            lambda question: many if question.wants_plots else None,
            says("select_plots", {"selected_plots": wanted}),
        ),
        agent__stages__stage1_max_iters=1,
    )
    (shown,) = story.asked("analyze_experiment_plots")
    assert shown.images == 10
    (node,) = story.nodes(1)
    assert len(node.data["plots"]) == 14 + 1, "the program's own sketch is one too"
    assert node.data["plot_analyses"][0]["plot_path"].endswith("plot_13.png")


# ----------------------------------------------------------------------------------------- seeds


async def test_seed_reruns_vary_the_seed_and_count_for_no_limit(tmp_path: Path) -> None:
    story = await tell(
        tmp_path, drafts(0.5), agent__multi_seed_eval__num_seeds=3, agent__search__num_drafts=1
    )
    (stage,) = story.record.stages
    seeds = story.record.seeds(stage.scope)
    assert [node.data["metric"]["value"] for node in seeds] == pytest.approx([0.5, 0.501, 0.502])
    assert not any(node.open for node in seeds)
    assert len(stage.nodes) == 1
    assert "seeds_identical" not in story.warnings
    assert story.manifest["best"]["seeds"]["val"]["n"] == 3


async def test_seeds_that_change_nothing_are_reported(tmp_path: Path) -> None:
    story = await tell(
        tmp_path,
        saving("[0.5]"),
        agent__multi_seed_eval__num_seeds=2,
        agent__stages__stage1_max_iters=1,
    )
    assert "seeds_identical" in story.warnings


async def test_seeds_that_fail_are_reported_and_the_run_goes_on(tmp_path: Path) -> None:
    program = experiment(0.5, ["synth_a"]) + "assert seed != 1\n"
    story = await tell(
        tmp_path,
        lambda question: fenced("Fragile.", program) if question.wants_experiment else None,
        agent__multi_seed_eval__num_seeds=3,
        agent__stages__stage1_max_iters=1,
    )
    assert story.manifest["status"] == "success"
    assert "2 of 3 seed reruns succeeded" in story.warnings


# --------------------------------------------------------------------------------------- resuming


async def test_a_resumed_node_repeats_no_program_and_no_question(tmp_path: Path) -> None:
    """Its output was long and had a progress bar, and its plot program replaced a file of its own."""

    def stop(question: Question) -> Any:
        poor = question.tool == "analyze_experiment_plots"
        return QuotaExceeded("no money is left") if poor else None

    stopped = await tell(tmp_path, stop, agent__stages__stage1_max_iters=1)
    assert (stopped.manifest["status"], stopped.manifest["exit_code"]) == ("stopped", 5)
    ended = await tell(tmp_path, resume=stopped.directory, agent__stages__stage1_max_iters=1)
    assert ended.manifest["status"] == "success"
    events = read_events(ended.directory)
    (node,) = ended.nodes(1)
    ran = [event["data"]["label"] for event in events if event["type"] == "execution_done"]
    assert [label for label in ran if label in ("program", "reader", "plot")] == ["program", "reader", "plot"]
    assert next(question.tool for question in ended.researcher.asked) == "analyze_experiment_plots"
    assert "step 599 of 600" in node.data["output"] and "\r" in node.data["output"]


# ---------------------------------------------------------------------------------------- choices


async def test_a_model_may_choose_the_best_node(tmp_path: Path) -> None:
    def override(question: Question) -> Any:
        if question.tool != "select_best_implementation":
            return None
        worst = re.findall(r'"id": "([0-9a-f]{16})"', question.sections["Candidates"])[0]
        return {"selected_id": worst, "reasoning": "it is honest"}

    story = await tell(tmp_path, either(drafts(0.7, 0.3), override), agent__select_by="llm")
    assert story.manifest["best"]["id"] == story.nodes(1)[0].id


async def test_a_choice_that_nobody_knows_is_left_to_the_metric(tmp_path: Path) -> None:
    story = await tell(tmp_path, drafts(0.7, 0.3), agent__select_by="llm")
    assert story.manifest["best"]["id"] == story.nodes(1)[1].id


async def test_a_review_that_finds_a_bug_fails_the_node_and_its_words_reach_the_debugger(
    tmp_path: Path,
) -> None:
    def override(question: Question) -> Any:
        if question.tool == "submit_review" and "Failed program" not in question.sections:
            found = "0.987" in question.sections["Program"]
            return {"is_bug": found, "summary": "It peeks at the test rows." if found else "Fine."}
        return None

    story = await tell(
        tmp_path,
        either(drafts(0.987), override),
        agent__search__num_drafts=1,
        agent__stages__stage1_max_iters=2,
    )
    first, second = story.nodes(1)
    assert (first.status, first.reason) == ("failed", "review: judged to be a bug")
    assert (second.data["op"], second.status) == ("debug", "good")
    debugged = [question for question in story.researcher.asked if "Failed program" in question.sections]
    assert "It peeks at the test rows." in debugged[0].text


async def test_metrics_that_no_model_can_name_fall_back_and_say_so(tmp_path: Path) -> None:
    def override(question: Question) -> Any:
        return "what is a metric?" if question.tool == "define_metric" else None

    story = await tell(tmp_path, override, agent__stages__stage1_max_iters=1)
    assert story.manifest["status"] == "success"
    assert "validation_loss is used" in story.warnings
