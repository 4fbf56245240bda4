"""The report page in a real browser: it draws, it selects, and no text of a model runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from corerun.report.data import report_data
from corerun.report.page import render_report
from corerun.runs import events as kinds
from tests.support.journal_sample import HOSTILE, MARKER, Journal, sample, write_plots

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def browse(page: Path, fragment: str, profile: Path, *, script_s: int = 2000) -> str:
    """The document after its scripts ran; fails on any script error or refused load."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
    flags += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    flags += ("--disable-dev-shm-usage", "--enable-logging=stderr")
    command = [str(CHROMIUM), *flags, f"--user-data-dir={profile}", f"--virtual-time-budget={script_s}"]
    done = subprocess.run(
        [*command, "--dump-dom", f"{page.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120
    )
    problems = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not problems, problems
    return done.stdout


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("page")
    events = sample()
    write_plots(events, folder / "run")
    data = report_data(events, run_dir=folder / "run")
    page = folder / "report.html"
    page.write_text(render_report(data, title="Report"), encoding="utf-8")
    return page, data


def aside(dom: str) -> str:
    found = re.search(r"<aside.*?</aside>", dom, re.DOTALL)
    assert found is not None
    return found.group()


@needs_browser
def test_a_payload_would_run_in_a_page_that_does_not_escape(tmp_path: Path) -> None:
    page = tmp_path / "control.html"
    page.write_text(f"<title>Report</title><script type='application/json'>{HOSTILE[0]}", encoding="utf-8")
    assert f"<title>{MARKER}</title>" in browse(page, "", tmp_path / "profile")


@needs_browser
def test_the_fragment_opens_a_node_and_its_texts_stay_texts(
    hostile_page: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    page, data = hostile_page
    node = next(n for n in data["nodes"] if HOSTILE[1] in n["detail"].get("plan", "") and n["parent"])
    dom = browse(page, f"#node-{node['id']}", tmp_path / "profile")
    assert "<title>Report</title>" in dom
    panel = aside(dom)
    assert f"{node['id']}" in panel
    assert "&lt;img src=x onerror=" in panel and "<img src=x" not in dom
    assert node["detail"]["plan"].split(":")[0] in panel
    assert 'class="line added"' in panel
    assert 'aria-selected="true" class="hit"' not in dom
    selected = re.findall(r'<g class="node[^>]*data-node="([0-9a-f]+)"[^>]*aria-selected="true"', dom)
    assert selected == [node["id"]]
    assert not re.search(r'href="(?!#)', dom)


@needs_browser
@pytest.mark.parametrize("view", ["curves", "timeline", "cost", "figures", "log"])
def test_every_view_draws(view: str, hostile_page: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    page, data = hostile_page
    dom = browse(page, f"#{view}", tmp_path / "profile")
    main = dom[dom.index("<main") : dom.index("</main>")]
    assert "<title>Report</title>" in dom
    if view == "curves":
        assert main.count('class="dot"') == len(data["curve"])
        assert main.count('class="best-line"') == 4
    elif view == "timeline":
        assert len(re.findall(r'class="bar (?:run|call)', main)) == sum(
            len(data["timeline"][name]) for name in ("programs", "calls")
        )
    elif view == "cost":
        assert main.count("<table") == 4
    elif view == "figures":
        assert main.count('src="data:image/png;base64,') == len(data["figures"]) == 2
    else:
        assert main.count("<tr") == len(data["log"]["entries"]) + 1


@needs_browser
def test_a_stage_with_very_many_nodes_is_collapsed_and_the_chosen_one_is_drawn(tmp_path: Path) -> None:
    journal = Journal(5, hostile=False)
    journal.emit(kinds.STAGE_STARTED, scope="s", title="s", number=1, goals="", max_nodes=900)
    ids: list[str] = []
    for seq in range(900):
        ids.append(journal.ask("s", ids[seq // 4] if seq else None, seq))
        journal.done("s", ids[-1], seq, "good", seq / 1000, plan=f"plan number {seq}.")
    page = tmp_path / "big.html"
    page.write_text(render_report(report_data(journal.events), title="t"), encoding="utf-8")
    dom = browse(page, f"#node-{ids[300]}", tmp_path / "profile")
    drawn = re.findall(r'data-node="([0-9a-f]+)"', dom)
    assert ids[300] in drawn and ids[899] in drawn
    assert 390 <= len(drawn) <= 440
    assert "plan number 300." in aside(dom)
    assert "Show " in dom


KEYS = """
const wait = () => new Promise((resolve) => setTimeout(resolve, 30));
const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const chosen = () => document.querySelector('#lanes [aria-selected="true"]');
(async () => {
  const seen = [];
  for (const key of ["ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft", "End", "Home"]) {
    press(chosen(), key);
    await wait();
    seen.push(chosen().getAttribute("data-node"));
  }
  press(chosen(), "Enter");
  seen.push(document.activeElement.id);
  press(document.body, "/");
  seen.push(document.activeElement.id);
  const search = document.getElementById("search");
  search.value = "debug";
  search.dispatchEvent(new Event("input"));
  seen.push(document.getElementById("found").textContent);
  press(search, "Enter");
  await wait();
  seen.push(chosen().getAttribute("data-node"));
  const status = document.querySelectorAll(".toolbar select")[0];
  search.value = "";
  search.dispatchEvent(new Event("input"));
  status.value = "planted";
  status.dispatchEvent(new Event("change"));
  seen.push(document.getElementById("found").textContent);
  document.getElementById("tab-cost").click();
  await wait();
  seen.push(location.hash);
  document.title = JSON.stringify(seen);
})();
"""


@needs_browser
def test_keys_search_filters_and_tabs(tmp_path: Path) -> None:
    data = report_data(sample(hostile=False))
    by_id = {node["id"]: node for node in data["nodes"]}
    first = next(node for node in data["nodes"] if sum(n["parent"] == node["id"] for n in data["nodes"]) > 1)
    page = tmp_path / "keys.html"
    text = render_report(data, title="t")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page.write_text(text.replace("</body>", f"<script>{KEYS}</script></body>"), encoding="utf-8")
    dom = browse(page, f"#node-{first['id']}", tmp_path / "profile", script_s=9000)
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    seen = json.loads(title.group(1))
    right, down, up, left, end, home, panel, search, debugs, debug, planted, fragment = seen
    assert by_id[right]["parent"] == first["id"] and right == up and left == first["id"]
    assert down not in (right, first["id"])
    stages = [stage["scope"] for stage in data["stages"]]
    assert (by_id[home]["scope"], by_id[end]["group"]) == (stages[0], stages[-1])
    assert (panel, search, fragment) == ("panel", "search", "#cost")
    total = len(data["nodes"])
    assert debugs == f"{sum('debug' in (n['op'] + n['text']) for n in data['nodes'])} of {total} nodes"
    assert by_id[debug]["op"] == "debug"
    assert planted == f"{sum(n['planted'] for n in data['nodes'])} of {total} nodes"


OPEN_ALL = """
const wrong = [];
for (const node of nodes) {
  try {
    if (!nodePanel(node).length) wrong.push(node.id);
  } catch (error) {
    wrong.push(plain(detailOf(node)) + error);
  }
}
document.title = nodes.length + " opened, wrong: " + wrong.join("; ");
"""
KEYS_OF_NODES = (
    *(
        "plan",
        "code",
        "output",
        "analysis",
        "metric",
        "exc_type",
        "exc_info",
        "exc_stack",
        "plot_code",
        "setting",
    ),
    *("timing", "tokens", "faults", "seed", "origin_id", "plots", "plot_analyses", "vlm_feedback_summary"),
)


@needs_browser
def test_a_node_opens_whatever_shape_its_data_has(tmp_path: Path) -> None:
    journal = Journal(2, hostile=False)
    for key in KEYS_OF_NODES:
        for value in (True, 3.5, "x", [1, None, ["a"]], {"a": None, "sets": 1, "test": [2], "llm_s": "y"}):
            node = journal.ask("s", None, journal.made)
            journal.done("s", node, journal.made, "failed", None, **{key: value})
    page = tmp_path / "odd.html"
    text = render_report(report_data(journal.events), title="t")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page.write_text(text.replace("</body>", f"<script>{OPEN_ALL}</script></body>"), encoding="utf-8")
    assert f"<title>{len(KEYS_OF_NODES) * 5} opened, wrong: </title>" in browse(
        page, "", tmp_path / "profile"
    )
