"""The recipes provider: pure answers, programs that run, faults that are what they say, clear refusals."""

from __future__ import annotations

import ast
import asyncio
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.errors import ModelNotFound, Unsupported
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Message, Part
from corerun_recipes.book import DRAFTS, FAULTS, IDEAS, KNOBS
from corerun_recipes.moves import ablations, affordable
from corerun_recipes.points import Point, read_point
from corerun_recipes.provider import RecipesProvider
from corerun_recipes.render import program
from tests.support.warm import WarmPython

RECIPES = list(IDEAS)


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    for module in ("numpy", "sklearn", "matplotlib"):
        pytest.importorskip(module)
    with WarmPython() as warm:
        yield warm


def reply(purpose: str, model: str = "default", node: str = "n1", **facts: Any) -> ChatReply:
    common = {
        "seed": 0,
        "attempt": 0,
        "idea": {"Name": "toy", "Recipe": "few_labels"},
        "stage": 1,
        "stage_sets": 1,
        "timeout_s": 60.0,
    }
    request = ChatRequest(model, (Message("user", "x" * 40),))
    return asyncio.run(RecipesProvider().complete(request, CallContext(purpose, common | facts, node=node)))


def ask(purpose: str, **facts: Any) -> str:
    return reply(purpose, **facts).text


def answer(purpose: str, **facts: Any) -> dict[str, Any]:
    value = json.loads(ask(purpose, **facts))
    assert isinstance(value, dict)
    return value


def code_of(text: str) -> str:
    assert text.count("```") == 2, "one fence"
    return text.split("```python\n")[1].split("```")[0]


def item(point: Point, score: float | None, node: str = "a", op: str = "tune") -> dict[str, Any]:
    status = "failed" if score is None else "good"
    shared = {"node": node, "parent": None, "op": op, "status": status, "reason": ""}
    return shared | {"score": score, "head": point.head()}


def first_point(recipe: str = "few_labels", sets: int = 1, **changes: Any) -> Point:
    return Point(recipe, sets, {**DRAFTS[0], **changes})


def load(folder: Path) -> Any:
    import numpy as np

    return np.load(folder / "working" / "experiment_data.npy", allow_pickle=True).item()


def one_move_points(recipe: str) -> list[Point]:
    """Every affordable point that differs from a draft in at most one knob."""
    found = {}
    for start in DRAFTS:
        for knob in KNOBS:
            for value in IDEAS[recipe].values(knob):
                point = Point(recipe, 1, {**start, knob: value})
                if affordable(point):
                    found[point.key] = point
    return list(found.values())


# ------------------------------------------------------------------------------------------ answers


def test_two_processes_answer_the_same_call_with_the_same_bytes() -> None:
    script = """
import asyncio, sys
from corerun.interfaces import CallContext, ChatRequest
from corerun_recipes.provider import RecipesProvider
from corerun_recipes.points import Point
from corerun_recipes.book import DRAFTS
head = Point("calibration", 3, DRAFTS[0]).head()
common = {"seed": 5, "attempt": 1, "idea": {"Recipe": "calibration"}, "stage": 3, "stage_sets": 3}
common |= {"tried": [], "running": [], "draft": 1, "parent": {"head": head, "score": -0.5, "sets": {}}}
common |= {"root": {"head": head, "score": -0.5}}
for purpose in ("bfts.draft", "bfts.improve", "bfts.tune_idea", "bfts.ablate_idea"):
    ctx = CallContext(purpose, common, node="abc")
    sys.stdout.write(asyncio.run(RecipesProvider().complete(ChatRequest("default", ()), ctx)).text)
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count(b"# recipe: ") == 2


def test_a_call_leaves_no_trace_in_the_next_one() -> None:
    facts = {"draft": 1, "tried": [], "running": []}
    before = ask("bfts.draft", **facts)
    ask("bfts.draft", draft=2, tried=[], running=[], seed=9)
    assert ask("bfts.draft", **facts) == before


def test_drafts_differ_and_a_re_ask_is_not_the_same_answer() -> None:
    heads = {
        code_of(ask("bfts.draft", draft=ordinal, tried=[], running=[])).splitlines()[0]
        for ordinal in range(3)
    }
    assert len(heads) == 3
    root = {"head": first_point().head(), "score": 0.8}
    ideas = {ask("bfts.tune_idea", root=root, tried=[], running=[], attempt=attempt) for attempt in range(8)}
    assert len(ideas) > 1


def test_a_fourth_draft_is_a_new_point() -> None:
    tried = [item(Point("few_labels", 1, draft), None, op="draft") for draft in DRAFTS]
    head = code_of(ask("bfts.draft", draft=3, tried=tried, running=[])).splitlines()[0]
    point = read_point(head)
    assert point and point.key not in {Point("few_labels", 1, draft).key for draft in DRAFTS}


def test_reply_says_what_it_is_and_estimates_its_tokens() -> None:
    got = reply("bfts.metric")
    assert (got.model, got.finish, got.usage.cost_usd) == ("recipes::default", "stop", 0.0)
    assert got.usage.estimated
    assert (got.usage.prompt, got.usage.completion) == (10, len(got.text) // 4)
    info = RecipesProvider().info
    assert (info.name, info.kind, info.needs_key, info.is_local, info.vision) == (
        "recipes",
        "rules",
        False,
        True,
        False,
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_metric_is_the_books(recipe: str) -> None:
    got = answer("bfts.metric", idea={"Recipe": recipe})
    assert got.keys() == {"name", "maximize", "description"}
    assert got["name"] == IDEAS[recipe].metric
    assert got["maximize"] == (recipe == "few_labels")


@pytest.mark.parametrize(
    ("facts", "is_bug"),
    [
        ({}, False),
        ({"exc_type": "KeyError"}, True),
        ({"timed_out": True}, True),
        ({"has_data": False}, True),
        ({"finite": False}, True),
    ],
)
def test_review_follows_the_run(facts: dict[str, Any], is_bug: bool) -> None:
    healthy = {"exc_type": "", "timed_out": False, "has_data": True, "finite": True}
    got = answer("bfts.review", **{**healthy, "output_tail": "epoch 1\nfinal = 0.75\n", **facts})
    assert got["is_bug"] is is_bug
    assert "final = 0.75" in got["summary"] and got["summary"].startswith("[rules]")
    assert all(str(value) in got["summary"] for value in facts.values() if isinstance(value, str))


@given(st.floats(-5, 5), st.floats(-5, 5))
@settings(max_examples=30, deadline=None)
def test_parsed_metrics_are_copies(final: float, best: float) -> None:
    rows = [
        {"set": "digits", "metric": "validation_accuracy", "final": final, "best": best},
        {"set": "wine", "metric": "validation_accuracy", "final": math.nan, "best": best},
        {"set": "digits", "metric": "validation_loss", "final": best, "best": final},
    ]
    got = answer("bfts.parse_metric", rows=rows, metric={"name": "validation_accuracy", "maximize": True})
    accuracy, loss = got["metric_names"]
    assert got["valid_metrics_received"] is True
    assert accuracy["data"] == [{"dataset_name": "digits", "final_value": final, "best_value": best}]
    assert (accuracy["lower_is_better"], loss["lower_is_better"]) == (False, True)
    nothing = answer("bfts.parse_metric", rows=[], metric={"name": "validation_accuracy", "maximize": True})
    assert nothing == {"valid_metrics_received": False, "metric_names": []}


def test_numbers_in_summaries_change_with_the_facts() -> None:
    for purpose in ("bfts.draft_summary", "bfts.node_summary"):
        texts = []
        for value in (0.8125, 0.4375):
            rows = [
                {"set": "digits", "metric": "validation_accuracy", "final": value, "best": value},
                {"set": "wine", "metric": "validation_accuracy", "mean": value, "std": 0.25, "n": 3},
            ]
            texts.append(ask(purpose, rows=rows, plans=["[rules] A plan."], figures=["a/digits_curves.png"]))
        assert texts[0] != texts[1]
        assert texts[0].replace("0.8125", "0.4375") == texts[1]
        assert "Written by rules" in texts[0]


def test_draft_summary_has_the_five_fields() -> None:
    row = {"set": "digits", "metric": "validation_accuracy", "final": 0.5, "best": 0.75}
    got = answer("bfts.draft_summary", rows=[row], plans=["[rules] One."], figures=["x/a.png"])
    assert list(got) == [
        "Experiment_description",
        "Significance",
        "Description",
        "List_of_included_plots",
        "Key_numerical_results",
    ]
    assert got["List_of_included_plots"][0].keys() == {"path", "description", "analysis"}
    assert got["Key_numerical_results"][0].keys() == {"result", "description", "analysis"}
    assert got["Key_numerical_results"][0]["result"] == 0.5


def test_stage_two_is_complete_when_the_best_covers_all_sets() -> None:
    one, three = {"digits": 0.8}, {"digits": 0.8, "breast_cancer": 0.9, "wine": 0.9}
    for sets, complete in ((one, False), (three, True)):
        got = answer("bfts.stage_complete", stage=2, stage_sets=3, best={"sets": sets}, tried=[])
        assert got["is_complete"] is complete
        assert len(got["missing_criteria"]) == (0 if complete else 2)
    assert answer("bfts.substage_complete")["is_complete"] is False


def test_overall_plan_joins_both_plans_under_one_label() -> None:
    got = answer("bfts.overall_plan", parent_plan="[rules] First.", plan="[rules] Second.")
    assert got == {"overall_plan": "[rules] First. Then: Second."}
    assert answer("bfts.overall_plan", parent_plan="", plan="Only.") == {"overall_plan": "[rules] Only."}


# -------------------------------------------------------------------------------------------- moves


def test_an_idea_lists_all_differences_to_the_root_and_builds_on_the_best() -> None:
    root, better = first_point(sets=1), first_point(sets=3, decay=0.01)
    tried = [item(first_point(sets=3), 0.8, "w"), item(better, 0.9, "b")]
    got = answer(
        "bfts.tune_idea",
        stage=2,
        stage_sets=3,
        root={"head": root.head(), "score": 0.99},
        tried=tried,
        running=[],
    )
    assert got["exhausted"] is False
    assert len(got["setting"]) == 2 or "decay" in got["setting"]
    assert "node b" in got["description"] and "0.9" in got["description"]
    text = ask(
        "bfts.tune",
        model="default-no-faults",
        stage=2,
        stage_sets=3,
        root={"head": root.head(), "score": 0.99},
        setting=got["setting"],
        name=got["name"],
    )
    point = read_point(code_of(text).splitlines()[0])
    assert point and root.differences(point) == got["setting"]
    assert (point.sets, point.outer) == (3, got["name"])


def test_widening_changes_nothing_but_the_data_sets() -> None:
    root = first_point(lr=0.03)
    text = ask(
        "bfts.tune", stage=2, stage_sets=3, root={"head": root.head(), "score": 0.8}, setting={}, name=""
    )
    point = read_point(code_of(text).splitlines()[0])
    assert point == replace(root, sets=3, outer="carried")


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_proposed_point_is_new_affordable_and_one_of_the_ideas(seed: int) -> None:
    rng = random.Random(seed)
    recipe = rng.choice(RECIPES)
    stage, points = rng.choice((1, 3)), [Point(recipe, 3, draft) for draft in DRAFTS]
    tried = [item(point, rng.random(), f"t{number}") for number, point in enumerate(points)]
    text = ask(
        "bfts.improve",
        seed=seed,
        stage=stage,
        stage_sets=3,
        idea={"Recipe": recipe},
        parent={"head": points[0].head(), "score": tried[0]["score"], "sets": {}},
        tried=tried[1:],
        running=[item(points[2], None)],
    )
    new = read_point(code_of(text).splitlines()[0])
    best = points[max(range(3), key=lambda number: tried[number]["score"])]
    assert new and affordable(new) and new.key not in {point.key for point in points}
    (knob,) = best.differences(new)
    assert KNOBS[knob].group == ("new" if stage == 3 else "tune")
    assert f"{knob} from {best.config[knob]} to {new.config[knob]}" in text


def test_ablations_come_once_each_then_exhausted_even_while_others_run() -> None:
    root = first_point(sets=3, dropout=0.2, members=3, lr=0.03, optimizer="adam")
    facts = {"stage": 4, "stage_sets": 3, "root": {"head": root.head(), "score": 0.9}}
    unwritten = item(root, None, "r", "ablate") | {"head": "", "setting": ablations(root)[0]}
    second = answer("bfts.ablate_idea", tried=[], running=[unwritten], **facts)
    tried, settings_seen = [], []
    for number in range(10):
        got = answer("bfts.ablate_idea", tried=tried, running=[], **facts)
        if got["exhausted"]:
            break
        settings_seen.append(got["setting"])
        tried.append(item(root.moved(got["setting"]), None if number else 0.8, f"a{number}", "ablate"))
    assert settings_seen == ablations(root)
    assert [list(setting) for setting in settings_seen] == [["lr"], ["optimizer"], ["dropout"], ["members"]]
    assert second["setting"] == settings_seen[1]
    assert got["exhausted"] and got["setting"] == {}


def test_a_gain_makes_a_knob_likelier_and_a_judged_value_does_not_come_back() -> None:
    base, won = first_point(sets=3), first_point(sets=3, smoothing=0.05)
    tried = [item(base, 0.8, "a"), item(won, 0.9, "b"), item(won.moved({"average": "ema"}), 0.7, "c")]
    for attempt in range(60):
        text = ask(
            "bfts.improve",
            attempt=attempt,
            stage=3,
            stage_sets=3,
            parent={"head": won.head(), "score": 0.9, "sets": {}},
            tried=tried,
            running=[],
        )
        point = read_point(code_of(text).splitlines()[0])
        assert point and point.config["average"] == "last" and point.config["smoothing"] in (0.05, 0.1)


# ----------------------------------------------------------------------------------------- programs


values = {
    recipe: st.fixed_dictionaries({knob: st.sampled_from(IDEAS[recipe].values(knob)) for knob in KNOBS})
    for recipe in RECIPES
}


@st.composite
def points(draw: st.DrawFn) -> Point:
    recipe = draw(st.sampled_from(RECIPES))
    faults = draw(st.lists(st.sampled_from(list(FAULTS)), unique=True))
    outer = draw(st.text(max_size=12))
    return Point(recipe, draw(st.integers(1, 3)), draw(values[recipe]), tuple(faults), outer)


@given(points())
@settings(max_examples=80, deadline=None)
def test_every_point_stands_in_its_program_which_compiles_and_imports_little(point: Point) -> None:
    code = program(point)
    assert read_point(code.splitlines()[0]) == point
    tree = ast.parse(code)
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported == {"os", "numpy", "sklearn.datasets"}
    assert len(code.splitlines()) < 130 and "__main__" not in code


@given(st.one_of(st.text(), st.text().map("# recipe: {}".format)))
def test_a_foreign_first_line_is_no_point(line: str) -> None:
    assert read_point(line) is None


@pytest.mark.parametrize(
    "change", [{"idea": "x"}, {"sets": 4}, {"sets": True}, {"config": {}}, {"faults": ["x"]}, {"outer": 3}]
)
def test_a_damaged_first_line_is_no_point(change: dict[str, Any]) -> None:
    data = json.loads(first_point().head().removeprefix("# recipe: "))
    assert read_point("# recipe: " + json.dumps(data)) == first_point()
    assert read_point("# recipe: " + json.dumps(data | change)) is None


def check_data(point: Point, folder: Path, raised: str) -> bool:
    """Asserts the form of a program's data; whether all its values are finite."""
    assert raised == "", (point.head(), (folder / "output.txt").read_text()[-500:])
    data = load(folder)
    if point.outer:
        (data,) = [data[point.outer]]
    assert list(data) == list(point.idea.sets[: point.sets])
    finite = True
    for result in data.values():
        assert result.keys() == {"metrics", "losses", "predictions", "ground_truth"}
        epochs = point.config["epochs"]
        sizes = [len(result[group][part]) for group in ("metrics", "losses") for part in ("train", "val")]
        assert sizes == [epochs] * 4 and len(result["metrics"]["test"]) == 1
        assert len(result["predictions"]) == len(result["ground_truth"]) > 0
        numbers = [value for part in result["metrics"].values() for value in part]
        assert all(type(value) is float for value in numbers)
        finite = finite and all(map(math.isfinite, numbers))
    return finite


def run_points(python: WarmPython, chosen: list[Point], tmp_path: Path) -> list[Point]:
    """Runs each point; those whose values were not finite."""
    diverged = []
    for number, point in enumerate(chosen):
        folder = tmp_path / f"p{number}"
        if not check_data(point, folder, python.run(program(point), folder)):
            diverged.append(point)
    return diverged


@pytest.mark.parametrize("recipe", RECIPES)
def test_points_one_move_from_a_draft_run_and_save_good_data(
    python: WarmPython, tmp_path: Path, recipe: str
) -> None:
    chosen = random.Random(1).sample(one_move_points(recipe), 8)
    outer = replace(chosen[0], sets=3, outer='lr 0.1, "quoted"')
    assert len(run_points(python, [*chosen, outer], tmp_path)) <= 1


@pytest.mark.soak
@pytest.mark.parametrize("recipe", RECIPES)
def test_all_points_one_move_from_a_draft(python: WarmPython, tmp_path: Path, recipe: str) -> None:
    chosen = [replace(point, sets=3) for point in one_move_points(recipe)]
    for point in run_points(python, chosen, tmp_path):
        assert float(point.config["lr"]) >= 0.1, "only large steps may diverge"


def test_programs_print_validation_and_never_test_values(python: WarmPython, tmp_path: Path) -> None:
    python.run(program(first_point(sets=3)), tmp_path)
    output = (tmp_path / "output.txt").read_text()
    assert "digits epoch 1: validation_loss = " in output and "test" not in output
    last = load(tmp_path)["wine"]["metrics"]["val"][-1]
    assert output.splitlines()[-1].endswith(f"final validation_accuracy = {last:.4f}")


def test_equal_seeds_give_equal_data_and_other_seeds_other_data(python: WarmPython, tmp_path: Path) -> None:
    code = program(first_point("regression"))
    curves = []
    for number, seed in enumerate((0, 0, 1)):
        python.run(code, tmp_path / str(number), seed)
        curves.append(load(tmp_path / str(number))["diabetes"]["metrics"])
    assert curves[0] == curves[1] != curves[2]


# ------------------------------------------------------------------------------------------- faults


def debug(point: Point, raised: str, output: str, **facts: Any) -> tuple[str, Point]:
    reason = facts.pop("reason", raised or "no experiment data")
    text = ask(
        "bfts.debug",
        idea={"Recipe": point.recipe},
        parent={"head": point.head(), "faults": list(point.faults), "op": "draft"},
        exc_type=raised,
        exc_message="",
        reason=reason,
        output_tail=output,
        **facts,
    )
    repaired = read_point(code_of(text).splitlines()[0])
    assert repaired
    return text, repaired


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_raises_what_its_row_says_and_its_repair_runs(
    python: WarmPython, tmp_path: Path, recipe: str, fault: str
) -> None:
    for hidden in (32, 64):  # 64 is also the number of a digit's pixels: a transposed product must still fail
        point = replace(first_point(recipe, hidden=hidden), faults=(fault,), outer="o")
        folder = tmp_path / f"{hidden}"
        raised = python.run(program(point), folder)
        assert raised == FAULTS[fault].exc_type
        assert (folder / "working" / "experiment_data.npy").exists() is False
        text, repaired = debug(point, raised, (folder / "output.txt").read_text())
        assert repaired == replace(point, faults=()) and FAULTS[fault].text in text
        check_data(repaired, folder, python.run(code_of(text), folder))


def test_two_faults_need_two_repairs(python: WarmPython, tmp_path: Path) -> None:
    names = list(FAULTS)
    for pair in [(a, b) for a in names for b in names if names.index(a) < names.index(b)]:
        point = replace(first_point("regression", epochs=10), faults=pair)
        for left in (1, 0):
            raised = python.run(program(point), tmp_path)
            text, point = debug(point, raised, (tmp_path / "output.txt").read_text())
            assert len(point.faults) == left
            assert ("planted fault so that debugging" in text) is bool(left)
        assert python.run(program(point), tmp_path) == ""


def test_other_causes_are_mended_one_at_a_time() -> None:
    point = first_point(epochs=40, members=3, lr=0.3)
    _, cooler = debug(point, "", "digits epoch 3: validation_loss = nan", reason="no finite metric")
    assert point.differences(cooler) == {"lr": 0.03}
    _, shorter = debug(point, "TimeoutError", "", reason="time limit of 60 s")
    assert point.differences(shorter) == {"epochs": 20, "members": 1}
    faulty = replace(point, faults=("wrong_key",))
    text, afresh = debug(faulty, "MemoryError", "")
    assert afresh == point and "MemoryError" in text


def test_a_diverging_program_is_mended(python: WarmPython, tmp_path: Path) -> None:
    point = first_point("regression", lr=0.3, batch=8, scale="standard")
    assert check_data(point, tmp_path, python.run(program(point), tmp_path)) is False
    text, repaired = debug(point, "", (tmp_path / "output.txt").read_text()[-2000:], reason="not finite")
    assert check_data(repaired, tmp_path, python.run(code_of(text), tmp_path))


def test_the_second_draft_carries_a_fault_and_says_so() -> None:
    counts = []
    for seed in range(60):
        text = ask("bfts.draft", draft=1, tried=[], running=[], seed=seed)
        point = read_point(code_of(text).splitlines()[0])
        assert point and "planted fault so that debugging is exercised" in text
        counts.append(len(point.faults))
    assert set(counts) == {1, 2} and 10 <= counts.count(2) <= 32


def test_faults_can_be_switched_off() -> None:
    for seed in range(40):
        facts = {"draft": 1, "tried": [], "running": [], "seed": seed}
        assert '"faults"' not in ask("bfts.draft", model="default-no-faults", **facts)
        assert "planted" not in ask("bfts.draft", model="default-no-faults", **facts)
    ctx = CallContext(
        "bfts.draft",
        {
            "seed": 0,
            "attempt": 0,
            "idea": {"Recipe": "few_labels"},
            "stage_sets": 1,
            "draft": 1,
            "tried": [],
            "running": [],
        },
    )
    text = asyncio.run(RecipesProvider(plant_faults=False).complete(ChatRequest("default", ()), ctx)).text
    assert '"faults"' not in text


# ------------------------------------------------------------------------------------------ figures


@pytest.fixture(scope="module")
def stored(python: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Data files per idea: one with an outer level, then two plain ones of other seeds."""
    folders = {}
    for recipe in ("few_labels", "regression"):
        folders[recipe] = [tmp_path_factory.mktemp(f"{recipe}{seed}") for seed in range(3)]
        for seed, folder in enumerate(folders[recipe]):
            outer = "" if seed else "lr 0.1"
            code = program(replace(first_point(recipe, sets=3, epochs=10), outer=outer))
            assert python.run(code, folder, seed) == ""
    return folders


def png_names(folder: Path) -> list[str]:
    paths = sorted(folder.glob("*.png"))
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000 for path in paths)
    return [path.name for path in paths]


@pytest.mark.parametrize(("recipe", "suffix"), [("few_labels", "confusion"), ("regression", "against_true")])
def test_plot_program_draws_two_figures_per_set(
    python: WarmPython, stored: dict[str, list[Path]], recipe: str, suffix: str
) -> None:
    facts = {"structure": {}, "metric": {}, "sets": [], "file": "working/experiment_data.npy"}
    code = code_of(ask("bfts.plot", idea={"Recipe": recipe}, **facts))
    for folder in stored[recipe][:2]:
        assert python.run(code, folder) == ""
        names = png_names(folder / "working")
        assert len(names) == 6 and sum(suffix in name for name in names) == 3


def test_one_damaged_set_does_not_lose_the_other_figures(
    python: WarmPython, stored: dict[str, list[Path]], tmp_path: Path
) -> None:
    import numpy as np

    data = load(stored["few_labels"][1])
    data["digits"]["losses"] = "damaged"
    (tmp_path / "working").mkdir()
    np.save(tmp_path / "working" / "experiment_data.npy", data, allow_pickle=True)
    facts = {"structure": {}, "metric": {}, "sets": [], "file": "working/experiment_data.npy"}
    assert python.run(code_of(ask("bfts.plot", **facts)), tmp_path) == ""
    assert len(png_names(tmp_path / "working")) == 5
    assert "plot_curves failed for digits" in (tmp_path / "output.txt").read_text()


def test_seed_plot_averages_what_loads(
    python: WarmPython, stored: dict[str, list[Path]], tmp_path: Path
) -> None:
    files = [str(folder / "working" / "experiment_data.npy") for folder in stored["few_labels"]]
    text = ask("bfts.seed_plot", npy_files=[*files, "/nowhere.npy"], structure={}, metric={}, sets=[])
    assert python.run(code_of(text), tmp_path) == ""
    assert png_names(tmp_path / "working") == ["seed_means.png"]
    output = (tmp_path / "output.txt").read_text()
    assert (
        "wine: validation_accuracy" in output and "n = 3" in output and "/nowhere.npy was left out" in output
    )


@pytest.mark.parametrize("recipe", ["few_labels", "regression"])
def test_aggregation_draws_the_final_figures_from_the_manifest_only(
    python: WarmPython, stored: dict[str, list[Path]], tmp_path: Path, recipe: str
) -> None:
    files = [str(folder / "working" / "experiment_data.npy") for folder in stored[recipe]]
    manifest = tmp_path / "plot_agg_manifest.json"
    manifest.write_text(json.dumps({"base_dir": "/", "npy_files": files, "structure": {}}))
    sign = 1 if recipe == "few_labels" else -1
    facts: dict[str, Any] = {
        "idea": {"Recipe": recipe},
        "manifest": str(manifest),
        "structure": {},
        "metric": {},
        "scores": [
            {"stage": stage, "op": op, "score": sign * score, "name": ""}
            for stage, op, score in ((1, "draft", 0.8), (2, "tune", 0.9), (2, "seed", 0.88), (2, "seed", 0.9))
        ]
        + [{"stage": 1, "op": "draft", "score": None, "name": ""}],
        "files": {
            "best": files[0],
            "first": files[1].removeprefix("/"),
            "seeds": files[1:],
            "stage_best": [{"stage": 1, "path": files[1]}],
            "ablations": [{"name": "decay 0 instead of 0.01", "path": files[2], "score": sign * 0.85}],
        },
        "figures": 0,
        "round": 0,
        "max_figures": 12,
    }
    assert python.run(code_of(ask("bfts.aggregate_plots", **facts)), tmp_path) == ""
    expected = [
        "ablations.png",
        "best_against_first_draft.png",
        "search_progress.png",
        "seed_curves.png",
        "stage_scores.png",
        "test_against_validation.png",
    ]
    assert png_names(tmp_path / "figures") == expected
    assert "failed" not in (tmp_path / "output.txt").read_text()
    assert ask("bfts.aggregate_plots", **(facts | {"round": 1})) == "I am done"


def test_aggregation_with_little_data_draws_what_it_can(python: WarmPython, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"base_dir": "/", "npy_files": [], "structure": {}}))
    files = {"best": None, "first": None, "seeds": [], "stage_best": [], "ablations": []}
    scores = [{"stage": 1, "op": "draft", "score": 0.8, "name": ""}]
    text = ask("bfts.aggregate_plots", manifest="m.json", scores=scores, files=files, round=0)
    assert python.run(code_of(text), tmp_path) == ""
    assert png_names(tmp_path / "figures") == ["search_progress.png", "stage_scores.png"]


def test_metric_reader_prints_the_last_value_per_set(
    python: WarmPython, stored: dict[str, list[Path]]
) -> None:
    folder = stored["few_labels"][0]
    assert python.run(code_of(ask("bfts.read_metric")), folder) == ""
    data = load(folder)["lr 0.1"]
    expected = [
        line
        for name in data
        for line in (f"data set: {name}", f"validation_accuracy: {data[name]['metrics']['val'][-1]}")
    ]
    assert (folder / "output.txt").read_text().splitlines() == expected


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("purpose", "facts", "said"),
    [
        ("bfts.substage_goals", {}, "bfts.substage_goals"),
        ("bfts.plot_analysis", {}, "bfts.plot_analysis"),
        ("grpo.policy", {}, "grpo.policy"),
        ("", {}, "free text"),
        ("bfts.draft", {"idea": {"Name": "mine"}}, "few_labels, calibration, regression"),
        ("bfts.draft", {"idea": {"Name": "mine", "Recipe": ["x"]}}, "few_labels, calibration, regression"),
        ("bfts.draft", {}, "'draft'"),
        (
            "bfts.tune",
            {"root": {"head": "import numpy", "score": 1.0}, "setting": {}, "name": ""},
            "programs that it wrote itself",
        ),
        (
            "bfts.tune",
            {"root": {"head": first_point().head(), "score": 1.0}, "setting": {"lr": 7}, "name": ""},
            "lr = 7",
        ),
    ],
)
def test_refusals_are_one_line_with_a_way_out(purpose: str, facts: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported) as caught:
        ask(purpose, **facts)
    assert said in caught.value.message and "\n" not in str(caught.value)
    assert "--model" in caught.value.hint


def test_images_and_unknown_models_are_refused() -> None:
    image = Message("user", (Part("text", "look"), Part("image", data=b"x", media_type="image/png")))
    ctx = CallContext("bfts.metric", {"idea": {"Recipe": "few_labels"}, "seed": 0, "attempt": 0})
    with pytest.raises(Unsupported, match="images"):
        asyncio.run(RecipesProvider().complete(ChatRequest("default", (image,)), ctx))
    with pytest.raises(ModelNotFound, match="default-no-faults"):
        reply("bfts.metric", model="large")


def test_a_test_of_the_model_gets_a_fixed_sentence() -> None:
    assert "not a language model" in ask("models.test")


async def test_the_models_are_listed() -> None:
    assert await RecipesProvider().list_models() == ["default", "default-no-faults"]
