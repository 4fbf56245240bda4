"""The report page in a real browser: it draws, it selects, and no text of a model runs."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from corerun.interfaces import Event
from corerun.report.data import report_data
from corerun.report.page import render_report, render_tree
from corerun.runs import events as kinds
from tests.support.html_payloads import payloads
from tests.support.journal_sample import HOSTILE, MARKER, Journal, sample, write_plots

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def browse(page: Path, fragment: str, profile: Path, *, script_s: int = 2000, careless: bool = False) -> str:
    """The document after its scripts ran; fails on any script error or refused load, unless ``careless``."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
    flags += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    flags += ("--disable-dev-shm-usage", "--enable-logging=stderr")
    command = [str(CHROMIUM), *flags, f"--user-data-dir={profile}", f"--virtual-time-budget={script_s}"]
    done = subprocess.run(
        [*command, "--dump-dom", f"{page.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120
    )
    problems = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert careless or not problems, problems
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


# ------------------------------------------------------------- sixty payloads in every text of a run


@contextmanager
def collector() -> Iterator[tuple[str, set[str]]]:
    """A server's address, and the paths that it was asked for."""
    asked: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.add(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


IDENTITIES = (
    "node",
    "parent",
    "scope",
    "origin_id",
    "id",
    "best",
    "schema",
    "prompt",
    "code_sha256",
    "status",
)


def with_text(value: Any, text: str, key: str = "") -> Any:
    """``value`` with ``text`` at the end of every string and of every name that a run chose itself."""
    if isinstance(value, str):
        return value if key in IDENTITIES else f"{value} {text}"
    if isinstance(value, dict):
        chosen = key in ("setting", "sets", "test", "models", "versions")
        return {
            f"{name} {text}" if chosen else name: with_text(item, text, name) for name, item in value.items()
        }
    if isinstance(value, list):
        return [with_text(item, text, key) for item in value]
    return value


def full_of(texts: Sequence[str], identities: Sequence[str]) -> list[Event]:
    """A run in which each text stands in every field of one node, and of one record of each other kind."""
    journal = Journal(3, hostile=False)
    marks: list[int] = []
    for number, text in enumerate(texts):
        scope = f"{number % 2}_{identities[number % 2]}"
        marks.append(len(journal.events))
        if number < 2:
            journal.emit(kinds.RUN_STARTED, **sample(hostile=False)[0].data)
            journal.emit(kinds.STAGE_STARTED, scope=scope, title="t", number=number, goals="g", max_nodes=60)
        parent = next(
            (
                e.data["node"]
                for e in reversed(journal.events)
                if e.data.get("scope") == scope and "node" in e.data
            ),
            None,
        )
        way = {"fails": number % 3 == 2, "planted": number % 2 == 0, "name": "rate", "sets": 2}
        journal.experiment(
            scope, number % 2, parent, number, "tune", {"rate": 0.1}, 0.5 + number / 999, **way
        )
        journal.events[-1].data["data"]["vlm_feedback_summary"] = [text, {"deep": text}]
        journal.emit(
            kinds.CALL_FAILED, node=None, role="code", purpose="p", model="m", kind="http", message="m"
        )
        journal.emit(kinds.DEGRADED, model="m", feature="f", reason="r")
        journal.emit(kinds.WARNING, message="w")
        journal.emit(kinds.REFUSED, what="w", reason="r", node=None)
        journal.emit(kinds.REPAIRED, line=1, kept="k")
        journal.emit(kinds.PAUSED, reason="p")
        journal.emit(kinds.FILE_MADE, path="figures/f.png", bytes=1, sha256="0")
    marks.append(len(journal.events))
    journal.emit(
        kinds.RUN_DONE, status="failed", exit_code=1, error={"message": "m"}, best=None, disclosure="d"
    )
    made = []
    for event in journal.events:
        number = max(index for index, mark in enumerate(marks) if event.seq >= mark) % len(texts)
        made.append(Event(event.seq, event.t, event.type, with_text(event.data, texts[number])))
    return made


FIRST = """
window.dialogs = 0;
for (const name of ["alert", "confirm", "prompt", "print", "open"]) {
  window[name] = () => { window.dialogs++; };
}
"""
SHOW_ALL = """
(async () => {
  const counts = {};
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.click();
    await new Promise((resolve) => setTimeout(resolve, 30));
    counts[tab.id] = document.querySelectorAll("*").length;
  }
  document.getElementById("main").replaceChildren(...nodes.map((node) => h("div", {}, nodePanel(node))));
  await new Promise((resolve) => setTimeout(resolve, 500));
  counts.opened = document.querySelectorAll("*").length;
  counts.texts = document.body.textContent.length > 100000;
  counts.dialogs = window.dialogs;
  const result = document.createElement("output");
  result.textContent = JSON.stringify(counts);
  document.body.append(result);
})();
"""


def counts_of(text: str, folder: Path) -> dict[str, Any]:
    """How many elements each view of the page has, all nodes open, without the policy that would save it."""
    folder.mkdir()
    page = folder / "page.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', f"<script>{FIRST}</script>", text)
    page.write_text(text.replace("</body>", f"<script>{SHOW_ALL}</script></body>"), encoding="utf-8")
    dom = browse(page, "", folder / "profile", script_s=20_000)
    found = re.search(r"<output>(.*?)</output>", dom)
    assert found is not None
    counts: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    return counts


@needs_browser
def test_no_payload_in_any_text_runs_loads_or_adds_an_element(tmp_path: Path) -> None:
    with collector() as (address, asked):
        hostile = payloads(address)
        assert len(set(hostile)) == 60
        harmless = [("line\n" * text.count("\n")) + f"plain {number}" for number, text in enumerate(hostile)]
        counts = []
        for name, texts in (("hostile", hostile), ("harmless", harmless)):
            data = report_data(full_of(texts, [texts[13], texts[1]]))
            pages = [render_report(data, title=texts[9]), render_tree(data, data["stages"][0]["scope"])]
            counts.append(
                [counts_of(page, tmp_path / f"{name}-{number}") for number, page in enumerate(pages)]
            )
        assert counts[0] == counts[1]
        assert counts[0][0]["opened"] > 5000 and counts[0][0]["texts"] and counts[0][0]["dialogs"] == 0
        assert asked == set()


@needs_browser
def test_the_policy_of_the_page_lets_no_payload_load_or_run(tmp_path: Path) -> None:
    """The second wall: what if a text did get into the page as elements?"""
    with collector() as (address, asked):
        data = report_data(sample(hostile=False))
        page = render_report(data, title="Report")
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
        assert policy is not None
        for rule in ("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"):
            assert rule in policy.group(1)
        assert re.search(r"script-src 'sha256-[\w+/=]{44}';", policy.group(1))
        for name, text in (("with", page), ("without", page.replace(policy.group(0), "name=x"))):
            # Navigation is not what a policy in a page can forbid, and a dialog would stop the browser.
            texts = [text.replace(",alert(", ",void(") for text in payloads(address)]
            texts = [text for text in texts if "http-equiv" not in text and "submit()" not in text]
            frames = (
                html.escape(f"<div>{one}</div><script>var x = {json.dumps(one)};</script>") for one in texts
            )
            body = "".join(f'<iframe srcdoc="{frame}"></iframe>' for frame in frames)
            target = tmp_path / f"{name}.html"
            target.write_bytes(text.replace("</main>", f"</main>{body}").encode("utf-8", "replace"))
            browse(target, "", tmp_path / name, script_s=5000, careless=True)
            if name == "with":
                assert asked == set()
        assert len(asked) > 25
