"""What a terminal shows of a run: one line per node, a status now and then, an honest result."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import UsageError
from corerun.interfaces import Event
from corerun.report.data import report_data
from corerun.report.progress import Progress, choose
from corerun.report.results import disclosure, outcome
from corerun.report.wording import clean, node_line, status_line, summary_line
from corerun.runs import events as kinds
from tests.support.journal_sample import HOSTILE, Journal, sample


def node_events(events: list[Event]) -> list[Event]:
    return [event for event in events if event.type == kinds.NODE_DONE]


def result_of(best: tuple[float, float], first: tuple[float, float], maximize: bool = True) -> dict[str, Any]:
    side = [{"seeds": {"val": {"mean": mean, "sd": sd, "n": 3}}} for mean, sd in (best, first)]
    return outcome({"best": side[0], "first_good": side[1]}, maximize)


def test_a_gain_inside_the_seed_spread_is_not_called_a_gain() -> None:
    assert result_of((0.95, 0.01), (0.91, 0.01))["gain"]["val"]["beyond"] is True
    assert result_of((0.92, 0.01), (0.91, 0.01))["gain"]["val"]["beyond"] is False
    assert result_of((0.30, 0.01), (0.40, 0.01), maximize=False)["gain"]["val"]["beyond"] is True
    assert result_of((0.40, 0.01), (0.30, 0.01), maximize=False)["gain"]["val"]["beyond"] is False
    assert outcome({"best": {"seeds": {"val": {"mean": math.nan}}}}, True)["best"]["val"] is None


def test_the_summary_line_says_what_was_found_and_how_sure_it_is() -> None:
    common = {
        "status": "success",
        "metric": "accuracy",
        "best": 0.963,
        "nodes": 34,
        "failed": 4,
        "planted": 3,
    }
    line = summary_line(maximize=True, result=result_of((0.952, 0.009), (0.914, 0.016)), **common)
    assert "best accuracy 0.9630 on validation" in line
    assert "seed mean 0.9520 +- 0.0090 (3 seeds)" in line
    assert "same sets and seeds: validation 0.9140 +0.0380" in line
    assert line.endswith("34 nodes, 4 failed, 3 of them planted")
    assert "within the seed spread" not in line
    weak = summary_line(maximize=True, result=result_of((0.92, 0.009), (0.914, 0.016)), **common)
    assert "validation 0.9140 +0.0060 (within the seed spread)" in weak
    loss = summary_line(maximize=False, result=result_of((0.5, 0.01), (0.4, 0.01), maximize=False), **common)
    assert "validation 0.4000 +0.1000 (no gain)" in loss


def test_rules_are_never_called_a_model() -> None:
    data = report_data(
        [Event(0, 0.0, kinds.RUN_STARTED, {"models": {"recipes::default": {"kind": "rules"}}})]
    )
    assert data["header"]["models"][0]["label"] == "recipes (built-in rules, not a language model)"
    assert "not a language model" in data["header"]["disclosure"]
    assert "AI" not in data["header"]["disclosure"]
    assert "AI-generated, by x::y" in disclosure({"x::y": {"kind": "model"}})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(mode: str, events: list[Event], stream: io.StringIO | None = None) -> str:
    stream = stream if stream is not None else io.StringIO()
    progress = Progress(stream, mode, environ={})
    for event in events:
        progress.on_event(event)
    progress.close()
    return stream.getvalue()


def test_auto_is_live_on_a_terminal_only() -> None:
    assert choose("auto", Terminal(), {}) == "rich"
    assert choose("auto", Terminal(), {"NO_COLOR": "1"}) == "rich"
    assert choose("auto", Terminal(), {"CI": "true"}) == "plain"
    assert choose("auto", Terminal(), {"TERM": "dumb"}) == "plain"
    assert choose("auto", io.StringIO(), {}) == "plain"
    with pytest.raises(UsageError, match="fancy"):
        choose("fancy", Terminal(), {})


def test_plain_shows_one_line_per_finished_node_without_control_characters() -> None:
    events = sample()
    text = shown("plain", events)
    assert not set(text) & (set(map(chr, range(32))) - {"\n"})
    for event in node_events(events):
        assert len(re.findall(rf"^s\d(?:\.seeds)? {event.data['node'][:8]} < ", text, re.MULTILINE)) == 1
    assert text.splitlines()[-1].startswith("success: best validation_accuracy")
    assert re.search(r"\d+ failed, \d+ of them planted$", text.splitlines()[-1])


def test_a_quiet_run_shows_at_most_one_status_line_every_ten_seconds() -> None:
    journal = Journal(1, hostile=False)
    journal.emit(kinds.STAGE_STARTED, scope="s", title="s", number=1, goals="", max_nodes=5)
    node = journal.ask("s", None, 0)
    for second in range(100):
        journal.now = 1_790_000_000.0 + second
        journal.emit(kinds.EXECUTION_DONE, key="k", node=node, label="p", result={"wall_s": 1.0}, queue_s=0.0)
    lines = [line for line in shown("plain", journal.events).splitlines() if "0 of 5 nodes" in line]
    assert len(lines) == 9


def test_during_seed_reruns_the_status_is_that_of_their_stage() -> None:
    journal = Journal(1, hostile=False)
    journal.emit(kinds.STAGE_STARTED, scope="s", title="s", number=1, goals="", max_nodes=5)
    node = journal.ask("s", None, 0)
    journal.done("s", node, 0, "good", 0.5)
    journal.ask("s.seeds", None, 0, counted=False)
    journal.now += 60
    journal.emit(kinds.METRIC, name="loss", value=1.0, step=1)
    line = shown("plain", journal.events).splitlines()[-1]
    assert line.startswith("s1  1 of 5 nodes (1 good, 0 failed, 1 running)  best score 0.5000")


def test_restored_events_count_but_are_not_shown_again() -> None:
    events = sample()
    stream = io.StringIO()
    progress = Progress(stream, "plain", environ={})
    progress.restore(events[:-1])
    progress.on_event(events[-1])
    progress.close()
    (line,) = stream.getvalue().splitlines()
    assert line == shown("plain", events).splitlines()[-1]


def test_none_is_silent_and_log_tells_every_event() -> None:
    events = sample()
    assert shown("none", events) == ""
    lines = shown("log", events).splitlines()
    assert len(lines) == len(events) + 1
    assert lines[0].startswith("2026-") and " 0 run_started" in lines[0]


def test_a_live_display_takes_no_markup_from_texts() -> None:
    events = sample()
    last = events[-1]
    events.insert(-1, Event(last.seq, last.t, kinds.WARNING, {"message": HOSTILE[4]}))
    text = shown("rich", events, Terminal())
    assert "[bold red]markup[/bold red]" in text
    assert "\x1b]0;" not in text and "\x07" not in text
    assert "success: best validation_accuracy" in text.splitlines()[-1]


def test_a_terminal_that_went_away_does_not_end_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError("gone")

    assert shown("plain", sample(), Gone()) == ""


def test_plain_lines_do_not_load_the_library_of_the_live_display() -> None:
    code = "import sys, io; from corerun.report.progress import Progress; Progress(io.StringIO(), 'plain'); "
    code += "print([name for name in ('rich', 'jinja2', 'pydantic') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_node_and_status_lines_are_short_and_say_what_is_unknown() -> None:
    line = node_line(
        stage="s2", node="1a2b3c4d5e6f", parent="9f8e7d6c5b4a", op="improve", status="good", score=0.94312,
        delta=0.0121, tokens=3210, usd=0.004, seconds=12.34,
    )  # fmt: skip
    words = "s2 1a2b3c4d < 9f8e7d6c improve good 0.9431 +0.0121 3.2kt $0.0040 12.3s"
    assert " ".join(line.split()) == words
    failed = node_line(
        stage="s1", node="1a2b3c4d", parent=None, op="draft", status="failed", score=None, delta=None,
        tokens=0, usd=None, seconds=75.0, reason="ValueError:\nno",
    )  # fmt: skip
    words = "s1 1a2b3c4d < root draft failed - - 0t $? 1m15s ValueError: no"
    assert " ".join(failed.split()) == words
    status = status_line(
        stage="s1", good=2, failed=1, running=3, limit=8, metric="loss", best=0.25, tokens=1_500_000, usd=1.5,
        seconds=7500.0,
    )  # fmt: skip
    expected = "s1  3 of 8 nodes (2 good, 1 failed, 3 running)  best loss 0.2500  1.50M tokens  $1.50  2h05m"
    assert status == expected


@given(st.text())
def test_a_cleaned_text_is_one_printable_line(text: str) -> None:
    line = clean(text)
    assert len(line) <= 240
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", line)
    assert clean(line) == line.strip()
