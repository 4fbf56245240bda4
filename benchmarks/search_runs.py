"""Runs of the experiment search in this process, and what can be read off them."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stand_in import FakeModel, cheap_interpreter, ideas_file
from corerun.interfaces import Event
from corerun.runs import events as kinds
from corerun.runs import journal
from corerun_bfts.job import ExperimentSearch
from corerun_bfts.sdk import run_job

CODE_AND_OUTPUTS = frozenset({"code", "plot_code", "output", "plot_output", "stdout", "stderr"})
ANSWERS = frozenset({"text", "reasoning", "tool_calls"})
COPIES = frozenset({"plan", "plot_plan", "analysis", "plot_analyses", "vlm_feedback_summary", "description"})
"""Fields of records into which the search takes a piece of an answer's text."""
TEXTS = CODE_AND_OUTPUTS | ANSWERS | COPIES
HALF = 10
WIDE = 40
"""Nodes on either side over which CPU and bytes are averaged."""


def own_cpu_s() -> float:
    """CPU seconds of this process so far: all its threads, none of its children."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True, slots=True)
class SearchRun:
    """A finished run. ``done`` is the CPU clock of this process at each finished node."""

    directory: Path
    events: Sequence[Event]
    done: Sequence[float]
    cpu_whole: float

    def cpu_between(self, first: int, last: int) -> float:
        """CPU seconds per node between two nodes."""
        return (self.done[last - 1] - self.done[first - 1]) / (last - first)

    def cpu_around(self, node: int) -> float:
        """CPU seconds per node over the ten nodes on either side, as far as there are any."""
        return self.cpu_between(max(1, node - HALF), min(len(self.done), node + HALF))


async def search(
    place: Path,
    model: FakeModel,
    stages: Mapping[str, Any],
    *,
    workers: int = 4,
    extra: Mapping[str, Any] | None = None,
) -> SearchRun:
    """Search with a model that stands in, and real child processes for programs."""
    place.mkdir(parents=True)
    settings = {
        "model": "bench::bench",
        "workers": workers,
        "out_root": str(place),
        "sandbox.name": "local",
        "bfts.load_ideas": str(ideas_file(place)),
        "bfts.idea_idx": 0,
        "bfts.exec.python": str(cheap_interpreter(place / "bin")),
        "bfts.generate_report": False,
        "bfts.plot_agg_reflections": 0,
        "bfts.agent.multi_seed_eval.num_seeds": 0,
        "bfts.agent.stages.stage1_until": "limit",
        **{f"bfts.agent.stages.{key}": value for key, value in stages.items()},
        **(extra or {}),
    }
    events: list[Event] = []
    done: list[float] = []

    def note(event: Event) -> None:
        events.append(event)
        if event.type == kinds.NODE_DONE:
            done.append(own_cpu_s())

    before = own_cpu_s()
    manifest = await run_job(
        settings=settings,
        providers={"bench": model},
        cwd=place,
        environ={"PATH": "/usr/bin:/bin", "HOME": str(place)},
        accept_weak=True,
        on_event=note,
    )
    if manifest["status"] != "success":
        raise SystemExit(f"the run to measure ended as {manifest['status']}: {manifest.get('error')}")
    return SearchRun(Path(manifest["paths"]["run_dir"]), events, done, own_cpu_s() - before)


# ---------------------------------------------------------------------------------------- bytes


def without_texts(value: Any) -> Any:
    """A record's data with code, outputs and texts of model calls emptied."""
    if isinstance(value, Mapping):
        return {key: type(item)() if key in TEXTS else without_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_texts(item) for item in value]
    return value


def _stripped(event: Event) -> Event:
    return Event(event.seq, event.t, event.type, without_texts(event.data))


def _finished(events: Sequence[Event]) -> list[int]:
    return [index for index, event in enumerate(events) if event.type == kinds.NODE_DONE]


def journal_bytes_per_node(run: SearchRun, node: int) -> float:
    """Bytes of the records between two finished nodes around ``node``, texts emptied.

    Records beyond the journal's line limit are counted in full: their blobs are written as well.
    """
    finished = _finished(run.events)
    first, last = max(0, node - WIDE), min(len(finished), node + WIDE) - 1
    window = run.events[finished[first] + 1 : finished[last] + 1]
    return sum(len(journal.encode(_stripped(event))) for event in window) / (last - first)


def derived_bytes_per_node(run: SearchRun, place: Path, node: int) -> float:
    """Bytes of all derived files of the run as it stood at ``node``, texts emptied, per node.

    The files of a stage are written twice in a run, when it ends and when the run ends; its page once.
    """
    cut = _finished(run.events)[node - 1] + 1
    place.mkdir()
    events = [_stripped(event) for event in run.events[:cut]]
    # The prompts are texts of model calls: every record names the same empty one.
    empty = b'{"messages": []}'
    name = hashlib.sha256(empty).hexdigest()
    (place / "blobs").mkdir()
    (place / "blobs" / name).write_bytes(empty)
    emptied = [
        Event(e.seq, e.t, e.type, {**e.data, "prompt": name}) if "prompt" in e.data else e for e in events
    ]
    ExperimentSearch().derive(place, emptied)
    sizes = {path: path.stat().st_size for path in place.rglob("*") if path.is_file()}
    twice = sum(
        size
        for path, size in sizes.items()
        if path.parent.name.startswith("stage_") and path.suffix != ".html"
    )
    return (sum(sizes.values()) + twice) / node


# ---------------------------------------------------------------------------------- calls, slots


def calls_per_good_node(run: SearchRun) -> tuple[float, float]:
    """Model calls under a good node's own name without the idea call of stages 2 and 4, on the mean;
    and all calls of the run by good nodes."""
    good = {e.data["node"] for e in run.events if e.type == kinds.NODE_DONE and e.data["status"] == "good"}
    calls = [event.data for event in run.events if event.type == kinds.CALL_ASKED]
    own = [data for data in calls if data["node"] in good and not data["purpose"].endswith("_idea")]
    # A carried root is a good node of the next stage that no model is asked about.
    asked = {data["node"] for data in own}
    return len(own) / len(asked), len(calls) / len(asked)


def busy_share(run: SearchRun, workers: int) -> tuple[float, float]:
    """Time in which programs ran, by time times slots: to the last ask, and to the last program."""
    spans = []
    for event in run.events:
        if event.type == kinds.EXECUTION_DONE:
            result = event.data["result"]
            end = event.t - result["timing"].get("collect_s", 0.0)
            spans.append((end - result["wall_s"], end))
    stage_end = next(event.t for event in run.events if event.type == kinds.STAGE_DONE)
    first = min(start for start, _ in spans)
    shares = []
    for last in (max(e.t for e in run.events if e.type == kinds.NODE_ASKED), stage_end):
        inside = sum(max(0.0, min(end, last) - start) for start, end in spans)
        shares.append(inside / (workers * (last - first)))
    return shares[0], shares[1]
