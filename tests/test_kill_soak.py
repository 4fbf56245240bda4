"""A thousand kills of experiment searches that a real server answers, all counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.killing import check_journal, paid, tree_of
from tests.support.story import BATCH, FREE, ONE, Story, tell

KILLS_OF_A_RUN = 40
RUNS = {ONE: 13, BATCH: 11, FREE: 8}
EARLY = 0.15


@dataclass
class Counts:
    """What was counted over all runs."""

    whole: dict[tuple[str, ...], Story]
    total: Counter[str] = field(default_factory=Counter)

    def add(self, story: Story) -> None:
        """Count one run that was killed. Everything but ``runs``, ``kills``, ``records``, ``nodes``,
        ``answers``, ``requests`` and ``double_paid`` should stay 0."""
        events = story.events
        answered, sent_twice = paid(events)
        written = {event["seq"]: (event["type"], event["data"]) for event in events}
        listed = len(story.ended.manifest["possibly_double_paid"])
        whole = self.whole[story.mode]
        deterministic = story.mode != FREE
        self.total.update(
            runs=1,
            kills=story.kills,
            records=len(events),
            nodes=sum(event["type"] == "node_done" for event in events),
            answers=answered,
            requests=len(story.requests),
            double_paid=sent_twice,
            double_paid_not_listed=sent_twice - listed,
            more_than_in_flight=sum(count > story.calls_in_flight for count in story.under_way_when_killed()),
            requests_nobody_knows_of=max(0, len(story.requests) - answered - sent_twice),
            lost_records=sum(written.get(e["seq"]) != (e["type"], e["data"]) for e in story.experiment.told),
            journals_that_do_not_hold=int(_breaks(events)),
            other_trees=int(deterministic and tree_of(events) != tree_of(whole.events)),
            other_questions=int(deterministic and set(story.requests) != set(whole.requests)),
        )

    @property
    def faults(self) -> dict[str, int]:
        usual = {"runs", "kills", "records", "nodes", "answers", "requests", "double_paid"}
        return {name: count for name, count in self.total.items() if count and name not in usual}


def _breaks(events: list[dict[str, object]]) -> bool:
    """Whether a node is lost or done twice, or an answered call was sent again."""
    try:
        check_journal(events)
    except AssertionError:
        return True
    return False


@contextmanager
def counted(folder: Path, modes: tuple[tuple[str, ...], ...]) -> Iterator[Counts]:
    yield Counts({mode: tell(folder / f"whole-{number}", mode) for number, mode in enumerate(modes)})


@pytest.mark.soak
def test_a_thousand_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with counted(tmp_path, tuple(RUNS)) as counts:
        tasks = [(mode, seed) for mode, runs in RUNS.items() for seed in range(runs)]

        def one(number: int, mode: tuple[str, ...], seed: int) -> Story:
            records = counts.whole[mode].ended.records
            place = tmp_path / f"{number}"
            return tell(place, mode, kills=KILLS_OF_A_RUN, records=records, seed=seed, early=EARLY)

        with ThreadPoolExecutor(2) as pool:
            for story in pool.map(one, range(len(tasks)), *zip(*tasks, strict=True)):
                counts.add(story)
                with capsys.disabled():
                    print(json.dumps(counts.total), flush=True)
        assert counts.faults == {}
        assert counts.total["kills"] >= 1000
