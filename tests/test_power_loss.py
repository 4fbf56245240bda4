"""A power cut at any moment: the journal opens or names its fault, and what was promised is there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.stand_in import FakeModel, cheap_interpreter
from corerun.errors import StateError
from corerun.interfaces import Event
from corerun.runs import events as kinds
from corerun.runs import io
from corerun.runs.fold import fold
from corerun.runs.journal import MAX_BODY, POWER_SAFE, Journal, read
from corerun_bfts.sdk import run_job
from tests.support.killing import IDEA
from tests.support.power import HOLE, Moment, Recorder


class Cuts:
    """A recorded run, and what is checked of each state that a power cut may leave of it."""

    def __init__(self, recorder: Recorder, run: Path, scratch: Path, *, power: bool) -> None:
        self.operations = recorder.operations
        self._run, self._scratch, self._power = run, scratch, power
        self._seen: set[bytes] = set()
        self._there: dict[Path, bytes] = {}
        self.opened = self.refused = 0

    def check(self, moment: Moment, fate: Callable[[int], float]) -> None:
        found = moment.left(fate)
        promised = [
            json.loads(operation.body)
            for operation in self.operations[: moment.size]
            if self._power and operation.kind == "promised"
        ]
        state = hashlib.sha256(repr((sorted(found.items()), len(promised))).encode()).digest()
        if state in self._seen:
            return
        self._seen.add(state)
        place = self._put(found)
        events = self._open(place)
        by_seq = {event.seq: event for event in events}
        for seq, type, key in promised:
            assert seq in by_seq and by_seq[seq].type == type, (
                f"record {seq} ({key}) was promised and is lost"
            )
            for name in blobs_of(by_seq[seq].data):
                body = (place / "blobs" / name).read_bytes()
                assert hashlib.sha256(body).hexdigest() == name
        for name in ("run_manifest.json", "derived.json"):
            if (place / name).exists():
                json.loads((place / name).read_text())

    def _put(self, found: dict[str, bytes]) -> Path:
        """Make the run's journal, blobs and documents on a disk what they are in that state."""
        wanted = {Path(path).relative_to(self._run): body for path, body in found.items()}
        wanted = {path: body for path, body in wanted.items() if len(path.parts) <= 2}
        for path in self._there.keys() - wanted.keys():
            (self._scratch / path).unlink()
        for path, body in wanted.items():
            if self._there.get(path) != body:
                (self._scratch / path).parent.mkdir(parents=True, exist_ok=True)
                (self._scratch / path).write_bytes(body)
        self._there = wanted
        return self._scratch

    def _open(self, place: Path) -> list[Event]:
        """What a resumed run starts from. A journal that can't be opened says so and can be salvaged."""
        try:
            events, _ = read(place / "events.jsonl")
            self.opened += 1
        except StateError as error:
            assert error.exit_code == 4 and "events.jsonl:" in error.where and "--salvage" in error.hint
            self.refused += 1
            events, _ = read(place / "events.jsonl", salvage=True)
        fold(events)
        return events


def blobs_of(value: Any) -> Iterable[str]:
    """Names of the blobs that a record's data refers to."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("$blob", "$text", "prompt") and isinstance(item, str) and len(item) == 64:
                yield item
            yield from blobs_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from blobs_of(item)


def promises(recorder: Recorder) -> Callable[[Event], None]:
    """A listener that marks the moment from which a record may not be lost any more."""

    def heard(event: Event) -> None:
        if event.type in POWER_SAFE:
            recorder.note("promised", json.dumps([event.seq, event.type, event.data.get("node")]).encode())

    return heard


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder(tmp_path / "out")
    monkeypatch.setattr(io, "os", made)
    return made


# ------------------------------------------------------------------------------------- a small run


def small_run(run: Path, recorder: Recorder, durability: str) -> None:
    """Every kind of write that a run does, in two processes, the first of which was killed in a record."""
    for process in range(2):
        io.make_folder(run)
        log = Journal(run, durability=durability)
        log.listeners.append(promises(recorder))
        for number in range(2):
            place = {"scope": "s", "node": f"{process}{number}", "seq": number, "attempt": 0}
            prompt = io.store_blob(log.blobs, f"prompt {process} {number}".encode())
            call = {"key": f"k{process}{number}", "node": place["node"], "role": "code", "purpose": "p"}
            log.emit(kinds.CALL_ASKED, {**call, "model": "m", "prompt": prompt})
            answer = {"text": "x" * (MAX_BODY if number else 9), "usage": {"prompt": 1, "completion": 1}}
            log.emit(kinds.CALL_ANSWERED, {**call, **answer, "cost_usd": 0.0, "prompt": prompt})
            text = io.store_blob(log.blobs, f"output {process} {number}".encode())
            outcome = {"status": "good", "score": 1.0, "reason": "", "open": True}
            log.emit(kinds.NODE_DONE, {**place, **outcome, "data": {"output": {"$text": text}}})
            io.replace_json(run / "derived.json", {"nodes": number})
        if process:
            log.close()
        else:
            io.append(log._descriptor, b'{"seq":99,"t"')
            log._closed.set()
            log._dirty.set()
            log._syncer.join()


@pytest.mark.parametrize("durability", ["power", "kill"])
def test_a_small_run_survives_a_power_cut_at_every_moment(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    run = tmp_path / "out" / "run"
    small_run(run, recorder, durability)
    monkeypatch.setattr(io, "os", __import__("os"))
    io.end_power(run)
    cuts = Cuts(recorder, run, tmp_path / "state", power=durability == "power")
    for size in range(len(recorder.operations) + 1):
        moment = Moment(recorder.operations, size)
        for fate in moment.fates():
            cuts.check(moment, fate)
    assert cuts.opened > 100
    print(f"{len(recorder.operations)} operations, {cuts.opened} states open, {cuts.refused} say why not")


# ------------------------------------------------------------------------------------- a larger one


@pytest.fixture(scope="module", params=["power", "kill"])
def search(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cuts:
    """A search of four nodes with real programs, recorded."""
    place = tmp_path_factory.mktemp("search")
    recorder = Recorder(place / "out")
    (place / "ideas.json").write_text(json.dumps([IDEA]))
    values = {
        "model": "bench::bench",
        "workers": 2,
        "min_free_mb": 0,
        "out_root": str(place / "out"),
        "sandbox.name": "local",
        "durability": request.param,
        "bfts.load_ideas": str(place / "ideas.json"),
        "bfts.idea_idx": 0,
        "bfts.exec.python": str(cheap_interpreter(place / "bin")),
        "bfts.generate_report": False,
        "bfts.plot_agg_reflections": 0,
        "bfts.agent.multi_seed_eval.num_seeds": 0,
        "bfts.agent.stages.order": [1],
        "bfts.agent.stages.stage1_until": "limit",
        "bfts.agent.stages.stage1_max_iters": 4,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "os", recorder)
        manifest = asyncio.run(
            run_job(
                settings=values,
                providers={"bench": FakeModel()},
                cwd=place,
                environ={"PATH": "/usr/bin:/bin", "HOME": str(place)},
                accept_weak=True,
                on_event=promises(recorder),
            )
        )
    assert manifest["status"] == "success"
    run = Path(manifest["paths"]["run_dir"])
    return Cuts(recorder, run, place / "state", power=request.param == "power")


def sampled(search: Cuts, examples: int) -> None:
    @given(seed=st.integers(0, 2**32), lost=st.floats(0, 1))
    @settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 1000)
    def try_one(seed: int, lost: float) -> None:
        rng = random.Random(seed)
        size = rng.randrange(len(search.operations) + 1)
        fates: dict[int, float] = {}

        def fate(number: int) -> float:
            if number not in fates:
                fates[number] = rng.choice((0.0, rng.random(), HOLE)) if rng.random() < lost else 1.0
            return fates[number]

        search.check(Moment(search.operations, size), fate)

    try_one()


def test_a_search_survives_power_cuts_at_random(search: Cuts) -> None:
    sampled(search, 150)
    assert search.opened > 30


@pytest.mark.soak
def test_a_search_survives_ten_thousand_power_cuts(search: Cuts) -> None:
    sampled(search, 10_000)
    print(f"{len(search.operations)} operations, {search.opened} states open, {search.refused} say why not")
