"""What the report page holds of a run, and that hostile texts stay texts in it."""

from __future__ import annotations

import base64
import copy
import hashlib
import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.interfaces import GUARANTEES, Event
from corerun.report.data import report_data
from corerun.report.images import Images, media_type
from corerun.report.page import embedded, render_report, render_tree
from corerun.runs import events as kinds
from tests.support.journal_sample import HOSTILE, Journal, png, sample, write_plots


def node_events(events: list[Event]) -> list[Event]:
    return [event for event in events if event.type == kinds.NODE_DONE]


FIGURES = ["figures/best_per_stage.png", "figures/ablations.png"]


def small(**done: Any) -> list[Event]:
    """A journal of one stage with one finished node; ``done`` changes the node's record."""
    journal = Journal(1, hostile=False)
    journal.emit(kinds.RUN_STARTED, run="r", job="bfts", seed=1, models={}, inputs={})
    journal.emit(kinds.STAGE_STARTED, scope="s", title="s", number=1, goals="", max_nodes=5)
    node = journal.ask("s", None, 0)
    fields = {"scope": "s", "node": node, "seq": 0, "attempt": 0, "status": "good", "score": 0.5, "data": {}}
    journal.emit(kinds.NODE_DONE, **(fields | done))
    return journal.events


# ------------------------------------------------------------------------------------------- data


def test_counts_leave_out_carried_and_seed_nodes_and_count_planted_faults_apart() -> None:
    events = sample()
    header = report_data(events)["header"]
    asked = {e.data["node"] for e in events if e.type == kinds.NODE_ASKED and e.data["counted"]}
    failed = [e for e in node_events(events) if e.data["node"] in asked and e.data["status"] == "failed"]
    planted = [e for e in failed if e.data["data"]["faults"]]
    assert (header["nodes"], header["failed"], header["planted"]) == (len(asked), len(failed), len(planted))
    assert 0 < header["planted"] < header["failed"]
    assert header["good"] == header["nodes"] - header["failed"]


def test_the_page_says_inside_what_programs_ran_and_what_that_lacks() -> None:
    journal = Journal(1, hostile=False)
    assert report_data(journal.events)["header"]["isolation"] == ""
    for name, gives in (("bwrap", GUARANTEES), ("local", {"env", "net"}), ("local", {"env"})):
        sandbox = {"name": name, "guarantees": sorted(gives)}
        journal.emit(kinds.EXECUTION_DONE, node="n", result={"status": "ok", "sandbox": sandbox})
    said = report_data(journal.events)["header"]["isolation"]
    assert said.startswith("Programs ran under bwrap; and under local, without disk_total, ")
    assert ", net, " in said and "env" not in said


def test_time_between_stop_and_resume_is_not_work() -> None:
    events = sample()
    data = report_data(events)
    assert events[-1].t - events[0].t > 86_400
    assert data["header"]["wall_s"] == pytest.approx(events[-1].t - events[0].t - 86_400, abs=0.1)
    assert data["header"]["resumes"] == len(data["timeline"]["resumes"]) == 1
    assert max(bar[2] for bar in data["timeline"]["programs"]) <= data["header"]["wall_s"]


def test_seed_reruns_stand_under_the_stage_they_rerun() -> None:
    data = report_data(sample())
    assert [stage["number"] for stage in data["stages"]] == [1, 2, 3, 4]
    assert all(stage["reruns"] == 4 for stage in data["stages"])
    reruns = [node for node in data["nodes"] if node["secondary"]]
    assert {node["group"] for node in reruns} == {stage["scope"] for stage in data["stages"]}


def test_an_unfinished_run_shows_its_running_node_and_a_resumed_one_is_not_done() -> None:
    data = report_data(sample(finished=False))
    assert data["header"]["status"] == "unfinished"
    assert data["header"]["running"] == 1
    assert [node["done"] for node in data["nodes"] if node["status"] == "running"] == [None]
    done = sample()
    resumed = [*done, Event(len(done), done[-1].t + 9, kinds.RUN_RESUMED, {"workers": 2})]
    assert report_data(resumed)["header"]["status"] == "unfinished"


def test_a_journal_that_has_only_begun_makes_a_page() -> None:
    for events in ([], sample()[:1], sample()[:3]):
        page = render_report(report_data(events), title="t")
        assert page.endswith("</html>\n")


def test_a_best_that_was_carried_over_is_shown_as_its_original() -> None:
    journal = Journal(1, hostile=False)
    first = journal.ask("one", None, 0)
    journal.done("one", first, 0, "good", 0.9, metric={"name": "a", "maximize": True, "value": 0.9})
    copied = journal.ask("two", None, 0, counted=False)
    sets = {"name": "a", "maximize": True, "value": 0.9, "sets": {"x": 0.9}}
    journal.done("two", copied, 0, "good", 0.9, op="carried", origin_id=first, metric=sets)
    assert report_data(journal.events)["header"]["best"]["id"] == first
    journal.emit(kinds.RUN_DONE, status="success", best={"id": copied})
    assert report_data(journal.events)["header"]["best"] == {"id": first, "value": 0.9}
    journal.emit(kinds.RUN_DONE, status="success", best={"id": "elsewhere"})
    assert report_data(journal.events)["header"]["best"] == {"id": "elsewhere", "value": None}


def test_best_so_far_prefers_more_data_sets_and_starts_anew_with_a_stage() -> None:
    journal = Journal(1, hostile=False)
    scores = [("one", 0.9, 1), ("one", 0.7, 3), ("one", 0.8, 3), ("one", 0.95, 1), ("two", 0.6, 3)]
    for seq, (scope, score, sets) in enumerate(scores):
        node = journal.ask(scope, None, seq)
        per_set = {str(index): score for index in range(sets)}
        metric = {"name": "a", "maximize": True, "value": score, "sets": per_set}
        journal.done(scope, node, seq, "good", score, metric=metric)
    curve = report_data(journal.events)["curve"]
    assert [(point["best"], point["sets"]) for point in curve] == [
        (0.9, 1),
        (0.7, 3),
        (0.8, 3),
        (0.8, 3),
        (0.6, 3),
    ]


def test_a_metric_to_minimise_is_shown_in_its_own_units() -> None:
    metric = {"name": "loss", "maximize": False, "value": 0.3}
    data = report_data(small(score=-0.3, data={"metric": metric}))
    assert data["header"]["metric"] == {"name": "loss", "maximize": False}
    assert data["header"]["best"]["value"] == 0.3


def test_costs_add_up_in_every_view_and_unknown_prices_are_not_zero() -> None:
    events = sample()
    answered = [i for i, e in enumerate(events) if e.type == kinds.CALL_ANSWERED]
    event = events[answered[0]]
    events[answered[0]] = Event(event.seq, event.t, event.type, dict(event.data) | {"cost_usd": None})
    data = report_data(events)
    for view in ("model", "role", "purpose", "stage"):
        rows = data["cost"][view]
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(data["header"]["cost_usd"])
        assert sum(row["calls"] for row in rows) == len(answered)
        assert sum(row["unpriced"] for row in rows) == data["header"]["unpriced"] == 1


def test_what_models_were_asked_and_answered_is_left_out() -> None:
    text = json.dumps(report_data(sample()))
    assert "the answer" not in text
    assert "0" * 64 not in text


def test_not_finite_numbers_become_null_and_are_named() -> None:
    metric = {"name": "a", "maximize": True, "value": math.nan, "sets": {"x": math.inf, "y": 0.5}}
    data = report_data(small(score=math.nan, data={"metric": metric}))
    node = data["nodes"][0]
    assert node["score"] is node["value"] is None
    assert node["nonfinite"] is True
    assert sorted(node["detail"]["nonfinite"]) == ["metric.sets.x", "metric.value", "score"]
    assert node["detail"]["metric"]["sets"] == {"x": None, "y": 0.5}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "op",
    "plan",
    "code",
    "output",
    "metric",
    "plots",
    "plot_analyses",
    "faults",
    "setting",
    "name",
    "origin_id",
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), anything), anything, anything)
def test_whatever_a_plugin_records_the_fold_is_pure_and_strict_json(
    data: Any, score: Any, reason: Any
) -> None:
    events = small(data=data, score=score, reason=reason)
    before = copy.deepcopy(events)
    first, second = report_data(events), report_data(events)
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)
    assert repr(before) == repr(events)
    assert render_report(first, title="t").encode()


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 9)), min_size=1, max_size=25))
def test_no_two_bars_of_a_lane_overlap(spans: list[tuple[float, float]]) -> None:
    journal = Journal(1, hostile=False)
    for start, wall in sorted(spans, key=lambda span: span[0] + span[1]):
        journal.now = 1000.0 + start + wall
        result = {"status": "ok", "wall_s": wall}
        journal.emit(kinds.EXECUTION_DONE, key="k", node=None, label="p", result=result, queue_s=0.0)
    bars = sorted(report_data(journal.events)["timeline"]["programs"], key=lambda bar: bar[1])
    lanes: dict[int, float] = {}
    for lane, start, end, *_ in bars:
        assert start >= lanes.get(lane, 0.0)
        lanes[lane] = end
    at_once = max(sum(a[1] <= b[1] < max(a[2], a[1] + 1e-9) for a in bars) for b in bars)
    assert len(lanes) <= at_once


# ----------------------------------------------------------------------------------------- images


def test_pictures_are_known_by_their_first_bytes() -> None:
    assert media_type(png()[:16]) == "image/png"
    assert media_type(b"\xff\xd8\xff\xe0" + b"0" * 12) == "image/jpeg"
    assert media_type(b"GIF89a" + b"0" * 10) == "image/gif"
    assert media_type(b"RIFF0000WEBPVP8 ") == "image/webp"
    assert media_type(b"<svg xmlns='http") is None


def test_only_raster_pictures_inside_the_run_are_embedded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    (run / "vector.png").write_text("<svg onload='alert(1)'></svg>")
    (run / "ok.png").write_bytes(png())
    images = Images(run, 1.0)
    source, why = images.embed("ok.png")
    assert source is not None and why == ""
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == png()
    for path in (
        "../secret.png",
        "link.png",
        str(tmp_path / "secret.png"),
        "vector.png",
        "none.png",
        ".",
        "a\0b",
    ):
        source, why = images.embed(path)
        assert source is None, path
        assert why


def test_pictures_past_the_limit_are_listed_by_path(tmp_path: Path) -> None:
    events = sample()
    write_plots(events, tmp_path)
    one = (len(png()) + 2) // 3 * 4 / 1e6
    data = report_data(events, run_dir=tmp_path, max_mb=one * 6.5)
    assert [figure["path"] for figure in data["figures"] if figure["src"]] == FIGURES
    plots = [plot for node in data["nodes"] for plot in node["detail"]["plots"]]
    assert sum(plot["src"] is not None for plot in plots) == 4
    assert all(plot["path"] and plot["note"] for plot in plots if plot["src"] is None)
    best = next(node for node in data["nodes"] if node["id"] == data["stages"][0]["best"])
    assert all(plot["src"] for plot in best["detail"]["plots"])
    assert best["detail"]["plots"][0]["analysis"].startswith("Both curves flatten")


# ------------------------------------------------------------------------------------------- page


class Blocks(html.parser.HTMLParser):
    """Reads a page as a browser splits it: scripts by type, attributes that could load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.json: dict[str, str] = {}
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.policy = ""
        self._into: Any = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])
        if tag == "script":
            self._into = found.get("id") if found.get("type") == "application/json" else self.scripts

    def handle_data(self, data: str) -> None:
        if isinstance(self._into, str):
            self.json[self._into] = self.json.get(self._into, "") + data
        elif self._into is not None:
            self._into.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._into = None


def test_the_page_allows_its_own_script_alone_and_loads_nothing() -> None:
    page = render_report(report_data(sample()), title=f"{HOSTILE[0]}")
    blocks = Blocks(page)
    assert len(blocks.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(blocks.scripts[0].encode()).digest()).decode()
    assert blocks.policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';")
    assert "img-src data:" in blocks.policy and "unsafe-eval" not in blocks.policy
    assert blocks.links == ["#main"]
    assert not re.search(r"(?:url\(|src=|href=|@import)[\"'\s]*(?:https?:|//)", page)
    assert "http://" not in page and "https://" not in page
    assert {"img", "iframe", "link", "object", "embed"}.isdisjoint(blocks.tags)
    assert "innerHTML" not in page and "insertAdjacentHTML" not in page and "document.write" not in page


def test_every_block_is_json_that_holds_the_texts_unchanged() -> None:
    data = report_data(sample())
    blocks = Blocks(render_report(data, title="t")).json
    assert len(blocks) == len(data["nodes"]) + 1
    index = json.loads(blocks.pop("index"))
    assert [node["id"] for node in index["nodes"]] == [node["id"] for node in data["nodes"]]
    assert all("detail" not in node for node in index["nodes"])
    for position, node in enumerate(data["nodes"]):
        assert json.loads(blocks[f"detail-{position}"]) == node["detail"]
    raw = "".join(blocks.values())
    assert not set(raw) & set("<>&\u2028\u2029")
    plans = {node["detail"].get("plan", "") for node in data["nodes"]}
    assert all(any(hostile in plan for plan in plans) for hostile in HOSTILE)


@given(st.text())
def test_embedded_text_comes_back_and_cannot_leave_its_block(text: str) -> None:
    block = embedded({"text": text})
    assert json.loads(block) == {"text": text}
    assert not set(block) & set("<>&\u2028\u2029")


def test_a_thousand_nodes_stay_within_the_size_that_a_browser_opens_at_once() -> None:
    journal = Journal(3, hostile=False)
    journal.emit(kinds.STAGE_STARTED, scope="s", title="s", number=1, goals="", max_nodes=1000)
    code = "\n".join(f"value_{line} = train(features, labels, {line})" for line in range(120))[:5000]
    parents: list[str] = []
    for seq in range(1000):
        parent = journal.rng.choice(parents) if seq > 3 else None
        node = journal.ask("s", parent, seq)
        for purpose in ("program", "review", "parse", "plot", "plot_review"):
            journal.call(node, "code", purpose)
        journal.execute(node, "program")
        journal.execute(node, "plot")
        journal.done("s", node, seq, "good", seq / 1000, code=code, plan="x" * 300, output="y" * 4000)
        parents.append(node)
    page = render_report(report_data(journal.events), title="t")
    assert len(page.encode()) < 20_000_000
    assert len(Blocks(page).json["index"].encode()) < 2_000_000


def test_the_page_of_one_stage_holds_its_nodes_alone() -> None:
    data = report_data(sample())
    scope = data["stages"][1]["scope"]
    blocks = Blocks(render_tree(data, scope)).json
    index = json.loads(blocks["index"])
    assert {node["group"] for node in index["nodes"]} == {scope}
    assert [stage["scope"] for stage in index["stages"]] == [scope]
    assert len(blocks) == len(index["nodes"]) + 1
    kept = {node["id"] for node in index["nodes"]}
    assert all(bar[4] in kept for bar in index["timeline"]["programs"])
    first = data["nodes"].index(next(node for node in data["nodes"] if node["id"] == index["nodes"][0]["id"]))
    assert json.loads(blocks["detail-0"]) == data["nodes"][first]["detail"]
