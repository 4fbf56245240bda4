"""Each benchmark runs, small, and ends with one JSON line; what it reads off a run is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Figure, Peer
from benchmarks.search_runs import SearchRun, busy_share, calls_per_good_node, without_texts
from benchmarks.stand_in import PROGRAM_BYTES, FakeModel, program
from corerun.interfaces import Event

ROOT = Path(__file__).parents[1]


def result(*command: str) -> dict[str, Any]:
    """What a benchmark prints, checked for its form."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    found: dict[str, Any] = json.loads(lines[0])
    assert list(found) == ["benchmark", "figures"]
    assert found["figures"]
    for figure in found["figures"]:
        assert list(figure) == ["what", "value", "unit", "goal", "better", "met", "peer"]
        assert isinstance(figure["value"], int | float)
        assert isinstance(figure["goal"], int | float)
        assert figure["better"] in ("lower", "higher")
        below = figure["value"] <= figure["goal"]
        assert figure["met"] is (below if figure["better"] == "lower" else figure["value"] >= figure["goal"])
        assert figure["peer"] is None or list(figure["peer"]) == ["name", "version", "value"]
    return found


def test_bfts() -> None:
    found = result("benchmarks.bfts", "--quick")
    assert found["benchmark"] == "bfts"
    by_name = {figure["what"]: figure for figure in found["figures"]}
    assert len(by_name) == len(found["figures"])
    # The counts don't depend on the machine, so they hold in a small run too.
    assert by_name["model calls per good node"]["value"] == 5
    growth = next(figure for what, figure in by_name.items() if what.startswith("journal bytes per node"))
    assert growth["met"]
    assert all(figure["value"] > 0 for what, figure in by_name.items() if "farthest" not in what)


def test_execution() -> None:
    found = result("benchmarks.execution", "--quick")
    assert found["benchmark"] == "execution"
    names = [figure["what"] for figure in found["figures"]]
    assert len(set(names)) == len(names)
    assert any("cold start in local" in name for name in names)


def test_supervision() -> None:
    found = result("benchmarks.supervision", "--quick")
    assert found["benchmark"] == "supervision"
    assert [figure["unit"] for figure in found["figures"]] == ["MB", "s", "ms", "ms", "of a core"]
    assert found["figures"][0]["met"]


def test_durability() -> None:
    found = result("benchmarks.durability", "--quick")
    assert found["benchmark"] == "durability"
    assert [figure["unit"] for figure in found["figures"]] == ["s/node", "share"]
    assert all(figure["value"] > 0 for figure in found["figures"])


def test_router() -> None:
    found = result("benchmarks.router", "--quick")
    assert found["benchmark"] == "router"
    assert all(figure["value"] > 0 for figure in found["figures"])
    peers = {figure["peer"]["name"]: figure["peer"]["value"] for figure in found["figures"] if figure["peer"]}
    assert peers["openai"] > 0 and peers["litellm"] is None


def test_startup() -> None:
    found = result("benchmarks.startup", "--quick", "--peer", "pytest")
    assert found["benchmark"] == "startup"
    version, helped, listed, broken = found["figures"]
    assert all(figure["value"] > 1 for figure in found["figures"])
    assert version["peer"]["value"] > helped["value"] > version["value"]
    assert listed["peer"]["value"] is None
    assert "broken" in broken["what"]


def test_recipes_gain() -> None:
    pytest.importorskip("sklearn")
    found = result("benchmarks.recipes_gain", "--quick", "--ideas", "regression")
    (figure,) = found["figures"]
    assert figure["better"] == "higher"
    assert figure["peer"]["name"] == "random points"
    assert isinstance(figure["peer"]["value"], float)


def test_random_points_stay_in_the_book_and_differ() -> None:
    import asyncio

    from benchmarks.recipes_gain import RandomPoints
    from corerun.interfaces import CallContext, ChatRequest
    from corerun_recipes.points import read_point

    async def ask(purpose: str, node: str, **facts: Any) -> str:
        common = {"seed": 0, "attempt": 0, "idea": {"Recipe": "regression"}, "stage": 3, "stage_sets": 3}
        context = CallContext(purpose, common | {"tried": [], "running": [], "draft": 0} | facts, node)
        request = ChatRequest("default-no-faults", ())
        return (await RandomPoints().complete(request, context)).text

    first = asyncio.run(ask("bfts.draft", "a"))
    head = first.split("```python\n")[1].splitlines()[0]
    parent = {"head": head, "score": -1.0}
    texts = [asyncio.run(ask("bfts.improve", node, parent=parent)) for node in "abcd"]
    points = [read_point(text.split("```python\n")[1].splitlines()[0]) for text in texts]
    assert len({point.key for point in points if point}) == 4
    root = {"root": {"head": head, "score": -1.0}}
    idea = json.loads(asyncio.run(ask("bfts.tune_idea", "e", **root)))
    assert len(idea["setting"]) > 2
    assert not idea["exhausted"]


@pytest.mark.parametrize(
    ("better", "value", "met"),
    [("lower", 2.0, True), ("lower", 2.1, False), ("higher", 2.0, True), ("higher", 1.9, False)],
)
def test_a_goal_is_met_when_it_is_reached(better: Any, value: float, met: bool) -> None:
    figure = Figure("speed", value, "s", 2.0, better, Peer("other", None, None))
    assert figure.met is met
    assert figure.to_json()["peer"] == {"name": "other", "version": None, "value": None}


def test_only_texts_are_left_out_of_bytes() -> None:
    data = {"node": "a", "code": "print()", "result": {"stdout": "x" * 99, "files": [{"path": "p"}]}}
    assert without_texts(data) == {
        "node": "a",
        "code": "",
        "result": {"stdout": "", "files": [{"path": "p"}]},
    }


def test_the_model_that_stands_in_writes_distinct_programs_of_the_promised_size() -> None:
    texts = [program(number, 0.5, 0.0) for number in range(3)]
    assert len(set(texts)) == 3
    assert all(PROGRAM_BYTES < len(text) < 1.1 * PROGRAM_BYTES for text in texts)
    compile(texts[0], "program", "exec")
    assert FakeModel.info.needs_key is False


def a_run(*records: tuple[str, float, dict[str, Any]]) -> SearchRun:
    events = [Event(number, t, kind, data) for number, (kind, t, data) in enumerate(records, 1)]
    return SearchRun(Path(), events, (), 0.0)


def executed(start: float, end: float) -> tuple[str, float, dict[str, Any]]:
    return ("execution_done", end, {"result": {"wall_s": end - start, "timing": {"collect_s": 0.0}}})


def test_busy_share_counts_from_the_first_program_to_the_last_ask() -> None:
    run = a_run(
        ("node_asked", 1.0, {}),
        executed(2.0, 6.0),
        executed(2.0, 4.0),
        ("node_asked", 6.0, {}),
        executed(6.0, 8.0),
        ("stage_done", 10.0, {}),
    )
    assert busy_share(run, 2) == pytest.approx((6 / 8, 8 / 16))


def test_calls_are_those_of_good_nodes_without_ideas() -> None:
    def call(node: str, purpose: str) -> tuple[str, float, dict[str, Any]]:
        return ("call_asked", 0.0, {"node": node, "purpose": purpose})

    run = a_run(
        *(call("a", purpose) for purpose in ("bfts.tune_idea", "bfts.tune", "bfts.review")),
        call("b", "bfts.draft"),
        call("metric", "bfts.metric"),
        ("node_done", 0.0, {"node": "a", "status": "good"}),
        ("node_done", 0.0, {"node": "b", "status": "failed"}),
    )
    assert calls_per_good_node(run) == (2.0, 5.0)
