"""Runs the experiment search as a command, kills it at chosen records of its journal, and compares runs."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IDEA = {
    "Name": "constant",
    "Title": "Constant predictions",
    "Abstract": "Predict a constant and measure the error.",
    "Short Hypothesis": "Some constants are better than others.",
    "Experiments": ["Compare constants."],
    "Risk Factors and Limitations": ["Constants are not clever."],
}
FAST = {
    "bfts.agent.stages.stage1_max_iters": 3,
    "bfts.agent.stages.stage2_max_iters": 3,
    "bfts.agent.stages.stage3_max_iters": 2,
    "bfts.agent.stages.stage4_max_iters": 2,
    "bfts.agent.multi_seed_eval.num_seeds": 1,
    "bfts.agent.search.num_drafts": 2,
    "bfts.agent.search.debug_prob": 1.0,
    # How long a program ran is the one thing of it that no seed repeats.
    "bfts.agent.stage3_min_time_fraction": 0,
    "bfts.plot_agg_reflections": 1,
    "bfts.exec.timeout": 60,
}

LATEST_S = 0.02
"""Seconds between a record and the kill that it triggers: about what separates two records."""

STARTED_S = 0.6
"""Seconds in which a process is surely past its start."""


@dataclass
class Ended:
    """How one process of a run ended."""

    code: int
    stdout: str
    stderr: str
    records: int
    """Journal records that were seen."""

    @property
    def manifest(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.stdout)
        return document


@dataclass
class Experiment:
    """One run of the search as commands: `start` it, `resume` it, look at its journal."""

    root: Path
    environ: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=lambda: FAST)
    arguments: Sequence[str] = ("--sandbox", "local", "--i-accept-no-isolation")
    run_id: str = "r"
    kills: int = 0
    """How many of the kills of `killed` came before the process had ended."""
    told: list[dict[str, Any]] = field(default_factory=list)
    """Every record that any process of the run said it had written, in the order in which they came."""

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.ideas = self.root / "ideas.json"
        self.ideas.write_text(json.dumps([IDEA]))

    @property
    def directory(self) -> Path:
        return next((self.root / "experiments").iterdir())

    def command(self, *more: str) -> list[str]:
        options = [
            part for key, value in self.settings.items() for part in ("-o", f"{key}={json.dumps(value)}")
        ]
        own = ["--load_ideas", str(self.ideas), "--idea_idx", "0", "--out_root", str(self.root)]
        head = [sys.executable, "-P", "-m", "corerun", "--plugin", "bfts", "run", *own]
        return [*head, "--run_id", self.run_id, *self.arguments, *options, *more]

    def start(
        self,
        *more: str,
        stop_after: int | None = None,
        stop_at: str = "",
        sign: int = signal.SIGKILL,
        late_s: float = 0.0,
        stop_after_s: float | None = None,
        then: Callable[[int], None] = lambda pid: None,
    ) -> Ended:
        """Run to the end. After ``stop_after`` new records, or when a question of purpose ``stop_at`` is
        answered, send ``sign`` to the process, ``late_s`` later, and call ``then`` with its pid; or send
        it after ``stop_after_s``."""
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.root), **self.environ}
        channel, other = os.pipe()
        with (self.root / "stdout").open("w+") as out, (self.root / "stderr").open("w+") as err:
            process = subprocess.Popen(
                [*self.command(*more), "--events", f"/dev/fd/{other}"],
                env=environ,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=(other,),
                start_new_session=True,
            )
            os.close(other)
            seen = 0
            timer = threading.Timer(stop_after_s or 0.0, os.kill, (process.pid, sign))
            if stop_after_s is not None:
                timer.start()
            try:
                with os.fdopen(channel, "rb") as stream:
                    for line in stream:
                        seen += 1
                        if not line.endswith(b"\n"):
                            break  # It was killed while it spoke.
                        event = json.loads(line)
                        self.told.append(event)
                        answered = event["type"] == "call_answered" and event["data"]["purpose"] == stop_at
                        if seen == stop_after or answered:
                            time.sleep(late_s)
                            os.kill(process.pid, sign)
                            then(process.pid)
                            stop_at = ""
                code = process.wait()
            finally:
                timer.cancel()
                process.kill()
            out.seek(0)
            err.seek(0)
            return Ended(code, out.read(), err.read(), seen)

    def resume(self, *more: str, **stop: Any) -> Ended:
        """Go on with the run; ``stop`` as for `start`."""
        return self.start("--resume", str(self.directory), *more, **stop)

    def killed(self, kills: int, records: int, rng: random.Random, early: float = 0.0) -> Ended:
        """Start, kill ``kills`` times at random, resume each time, and let the last one run to its end.

        ``records`` is how many an uninterrupted run writes; the kills are spread over them, each a
        random moment after its record. ``early``: the share of resumes before which another one is
        killed while it starts; those come on top.
        """
        cuts = sorted(rng.sample(range(2, records), kills))
        steps = [cuts[0], *(later - earlier for earlier, later in itertools.pairwise(cuts))]
        self.kills = 0
        # One more record on a resume is the word that it was resumed.
        ended = self.start(stop_after=steps[0], late_s=rng.uniform(0, LATEST_S))
        for step in steps[1:]:
            self.kills += ended.code == -signal.SIGKILL
            if rng.random() < early:
                self.kills += self.resume(stop_after_s=rng.uniform(0, STARTED_S)).code == -signal.SIGKILL
            ended = self.resume(stop_after=step + 1, late_s=rng.uniform(0, LATEST_S))
        self.kills += ended.code == -signal.SIGKILL
        return self.resume()

    def events(self) -> list[dict[str, Any]]:
        return read_events(self.directory)


def processes_of(directory: Path) -> list[str]:
    """Command lines of processes that name a run's folder or live in it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            place = os.readlink(entry / "cwd")
        except OSError:
            continue  # It ended, or it is no process.
        if place.startswith(str(directory)) or str(directory) in command:
            found.append(command)
    return found


def read_events(directory: Path) -> list[dict[str, Any]]:
    """The journal, with the blobs of long records put in."""
    found = []
    for line in (directory / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if "$blob" in event["data"]:
            event["data"] = json.loads((directory / "blobs" / event["data"]["$blob"]).read_text())
        found.append(event)
    return found


def tree_of(events: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What must be equal between two runs: all nodes with parents, kinds, outcomes and programs."""
    asked = {event["data"]["node"]: event["data"] for event in events if event["type"] == "node_asked"}
    tree = {}
    for event in events:
        if event["type"] == "node_done":
            data = event["data"]
            known = data["data"]
            tree[data["node"]] = {
                "scope": data["scope"],
                "parent": asked[data["node"]]["parent"],
                "status": data["status"],
                "score": data["score"],
                "reason": data["reason"],
                "open": data["open"],
                **{
                    key: known.get(key)
                    for key in ("op", "code", "plot_code", "name", "setting", "plan", "analysis")
                },
            }
    return tree


def check_journal(events: Sequence[Mapping[str, Any]]) -> None:
    """What must hold of every journal, killed or not."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        kinds.setdefault(event["type"], []).append(event)
    done = {event["data"]["node"]: event["seq"] for event in kinds["node_done"]}
    assert len(done) == len(kinds["node_done"]), "a node was done twice"
    assert set(done) == {event["data"]["node"] for event in kinds["node_asked"]}, "a node was lost"
    for event in kinds.get("execution_done", ()):
        node = event["data"]["node"]
        if event["data"]["label"] != "aggregate" and node in done:
            assert event["seq"] < done[node], f"{event['data']['label']} of {node} ran after it was done"
    answers = Counter(event["data"]["key"] for event in kinds.get("call_answered", ()))
    assert set(answers.values()) <= {1}, "an answered call was answered again"
    known: set[str] = set()
    for event in events:
        if event["type"] == "call_answered":
            known.add(event["data"]["key"])
        elif event["type"] == "call_asked":
            assert event["data"]["key"] not in known, "a recorded answer was asked for again"


def paid(events: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Calls with a recorded answer, and calls sent by a process that died before the answer came."""
    answered = sum(event["type"] == "call_answered" for event in events)
    return answered, sum(event["type"] == "call_asked" for event in events) - answered
