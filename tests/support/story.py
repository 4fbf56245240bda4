"""A run of the experiment search from its first start to its end, with the server that it asked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.killing import Ended, Experiment, paid
from tests.support.openai_server import OpenAIServer, serve_in_thread
from tests.support.researcher import Researcher

ONE = ("--workers", "1", "-o", "in_flight=1")
BATCH = ("--workers", "2", "-o", "scheduler=batch")
FREE = ("--workers", "2")
EXPANSIONS = {ONE: 1, BATCH: 2, FREE: 4}
CALLS_OF_AN_EXPANSION = 3
"""What is asked at once about one program that ran: a review, its metrics, its plots."""


@dataclass
class Story:
    """A run that ended, killed on the way or not."""

    experiment: Experiment
    ended: Ended
    mode: tuple[str, ...]
    requests: list[str]
    """What the server was asked, without the place of the run."""

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.experiment.events()

    @property
    def kills(self) -> int:
        return self.experiment.kills

    def check_payments(self) -> None:
        """What the server saw is what the journal says was answered, and at most what was under way."""
        answered, lost = paid(self.events)
        assert answered <= len(self.requests) <= answered + lost
        assert len(self.ended.manifest["possibly_double_paid"]) == lost
        assert max(self.under_way_when_killed(), default=0) <= self.calls_in_flight

    @property
    def calls_in_flight(self) -> int:
        """The most model calls that can be under way at once."""
        return EXPANSIONS[self.mode] * CALLS_OF_AN_EXPANSION

    def under_way_when_killed(self) -> list[int]:
        """How many calls had no answer yet, for each process that was followed by another."""
        found, asked = [], set()
        for event in self.events:
            match event["type"]:
                case "call_asked":
                    asked.add(event["data"]["key"])
                case "call_answered" | "call_failed":
                    asked.discard(event["data"]["key"])
                case "run_resumed":
                    found.append(len(asked))
                    asked.clear()
        return found


@contextmanager
def researcher() -> Iterator[OpenAIServer]:
    with serve_in_thread(Researcher().respond) as server:
        yield server


def tell(
    root: Path, mode: tuple[str, ...], *, kills: int = 0, records: int = 0, seed: int = 0, early: float = 0.0
) -> Story:
    """A run in a folder of its own, with a server of its own."""
    with researcher() as server:
        experiment = Experiment(root, server.environ())
        experiment.arguments = (*experiment.arguments, *mode)
        rng = random.Random(seed)
        ended = experiment.killed(kills, records, rng, early) if kills else experiment.start()
        place = str(experiment.directory)
        requests = [json.dumps(body, sort_keys=True).replace(place, "RUN") for body in server.bodies]
    assert ended.code == 0, ended.stderr[-3000:]
    return Story(experiment, ended, mode, requests)
