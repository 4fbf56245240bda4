"""A journal under random work, kills, torn tails, bad bytes and salvage, beside a list that can't fail."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from corerun.errors import EnvironmentRefused, StateError
from corerun.interfaces import Event
from corerun.job.manifest import rebuild
from corerun.redaction import HIDDEN, remember
from corerun.runs import events as kinds
from corerun.runs.audit import audit
from corerun.runs.fold import fold
from corerun.runs.journal import MAX_BODY, Journal, digest, encode, read
from corerun.runs.lock import RunLock

SECRET = "a value that nobody may read"
SCOPES = ("first", "second")
ISOLATED = {"status": "ok", "sandbox": {"guarantees": ["fs_read", "fs_write", "net"]}}

texts = st.text(st.characters(codec="utf-8"), max_size=30)
bodies = st.dictionaries(
    texts.filter(lambda key: key not in ("$blob", "scope")),
    st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts | st.none(),
    max_size=4,
)


@dataclass
class Model:
    """What the journal must hold."""

    records: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def add(self, type: str, data: dict[str, Any]) -> None:
        self.records.append((type, data))

    def programs(self) -> list[dict[str, Any]]:
        return [data for type, data in self.records if type == kinds.EXECUTION_DONE]

    def findings(self) -> int:
        """Programs before which another one ran than the record before it says."""
        before = [None, *(data["key"] for data in self.programs())]
        return sum(data["after"] != key for data, key in zip(self.programs(), before, strict=False))


class Toy:
    """A job whose manifest says what it was given."""

    def derive(self, directory: Path, events: list[Event]) -> dict[str, Any]:
        return {"seen": len(events)}


class Plugins:
    """Finds the toy job."""

    def get(self, kind: str, name: str) -> type[Toy]:
        assert (kind, name) == ("jobs", "toy")
        return Toy


class JournalMachine(RuleBasedStateMachine):
    """The system under test beside its model."""

    def __init__(self) -> None:
        super().__init__()
        remember(SECRET)
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "events.jsonl"
        self.model = Model()
        self.log: Journal | None = None
        self.lock: RunLock | None = None
        self.torn = self.damaged = False
        self.number = 0

    @property
    def is_sound(self) -> bool:
        """Closed, and in order."""
        return self.log is None and not self.torn and not self.damaged

    def teardown(self) -> None:
        if self.log is not None:
            self.end()
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------------------------ open, close

    @precondition(lambda self: self.log is None and not self.damaged)
    @rule(salvage=st.booleans())
    def resume(self, salvage: bool) -> None:
        """Open it; ``salvage`` changes nothing where nothing is damaged."""
        self.lock = RunLock(self.folder)
        self.log = Journal(self.folder, salvage=salvage)
        if self.torn:
            self.expect_repair()
        if not self.model.records:
            self.emit(kinds.RUN_STARTED, {"job": "toy"})

    def expect_repair(self) -> None:
        assert self.log is not None
        repaired = self.log.events[-1]
        assert repaired.type == kinds.REPAIRED
        assert (self.folder / repaired.data["kept"]).is_file()
        self.model.add(repaired.type, dict(repaired.data))
        self.torn = self.damaged = False

    @precondition(lambda self: self.log is None and self.damaged)
    @rule()
    def resume_what_is_damaged(self) -> None:
        self.lock = RunLock(self.folder)
        before = self.path.read_bytes()
        with pytest.raises(StateError, match="corrupt journal"):
            Journal(self.folder)
        assert self.path.read_bytes() == before
        self.log = Journal(self.folder, salvage=True)
        assert (self.folder / self.log.events[-1].data["kept"]).read_bytes() == before
        self.expect_repair()

    @precondition(lambda self: self.log is not None)
    @rule()
    def close(self) -> None:
        assert self.log is not None and self.lock is not None
        self.log.close()
        self.lock.release()
        self.log = self.lock = None

    @precondition(lambda self: self.log is not None)
    @rule(tail=st.binary(max_size=40), data=bodies, cut=st.floats(0, 1))
    def crash(self, tail: bytes, data: dict[str, Any], cut: float) -> None:
        """The process is gone, maybe within its last write."""
        assert self.log is not None
        unsaid = encode(Event(len(self.model.records) + 1, 1.0, "step", data))
        self.end()
        kept = unsaid[: int(cut * (len(unsaid) - 1))]
        with self.path.open("ab") as file:
            file.write(kept)
        self.torn = bool(kept)

    def end(self) -> None:
        """What the kernel does for a killed process: close its files, and nothing else."""
        assert self.log is not None and self.lock is not None
        self.log._closed.set()
        self.log._dirty.set()
        self.log._syncer.join()
        os.close(self.log._descriptor)
        os.close(self.lock._descriptor)
        self.log = self.lock = None

    # -------------------------------------------------------------------------------- writing

    def emit(self, type: str, data: dict[str, Any]) -> None:
        assert self.log is not None
        event = self.log.emit(type, data)
        self.model.add(type, data)
        assert (event.type, event.data) == (type, data)

    @precondition(lambda self: self.log is not None)
    @rule(data=bodies)
    def append(self, data: dict[str, Any]) -> None:
        self.emit("step", data)

    @precondition(lambda self: self.log is not None)
    @rule(scope=st.sampled_from(SCOPES), data=bodies)
    def append_to_a_scope(self, scope: str, data: dict[str, Any]) -> None:
        self.emit("step", {**data, "scope": scope})

    @precondition(lambda self: self.log is not None)
    @rule(letter=st.sampled_from("ab"), extra=st.integers(-2, 2))
    def append_a_long_one(self, letter: str, extra: int) -> None:
        self.emit("step", {"text": letter * (MAX_BODY + extra)})

    @precondition(lambda self: self.log is not None)
    @rule()
    def append_a_secret(self) -> None:
        assert self.log is not None
        event = self.log.emit("step", {"said": f"it is {SECRET}, you know"})
        assert event.data == {"said": f"it is {HIDDEN}, you know"}
        self.model.add("step", dict(event.data))

    @precondition(lambda self: self.log is not None)
    @rule(long=st.booleans())
    def run_a_program(self, long: bool) -> None:
        assert self.log is not None
        before = fold(self.log.events).audited
        self.number += 1
        programs = self.model.programs()
        self.emit(
            kinds.EXECUTION_DONE,
            {
                "key": str(self.number),
                "after": programs[-1]["key"] if programs else None,
                "node": "n",
                "attempt": 0,
                "result": ISOLATED,
                "stdout": "x" * (MAX_BODY if long else 1),
                "prev": digest(before) if before else "",
            },
        )

    # ---------------------------------------------------------------------------------- damage

    @precondition(lambda self: self.is_sound and self.model.records)
    @rule(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
    def change_a_byte(self, place: float, change: int) -> None:
        body = bytearray(self.path.read_bytes())
        position = int(place * len(body))
        line = body[:position].count(b"\n")
        lost = {line, line + 1} if body[position] == 0x0A else {line}
        last = len(self.model.records) - 1
        # What is left at the end of a journal is a torn tail, which takes nothing with it that was whole.
        ends_it = max(lost) >= last
        assume(0 not in lost)
        body[position] ^= change
        # A line cut in two is a bad line and a bad last one.
        split = body[position] == 0x0A
        self.path.write_bytes(body)
        self.model.records = [record for n, record in enumerate(self.model.records) if n not in lost]
        self.torn = ends_it and not split
        self.damaged = not self.torn

    @precondition(
        lambda self: self.log is None and not self.torn and not self.damaged and len(self.model.records) > 2
    )
    @rule(place=st.floats(0, 1, exclude_max=True))
    def repeat_a_line(self, place: float) -> None:
        """A line that stands there twice is left out once."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        at = int(place * len(lines))
        self.path.write_bytes(b"".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]))
        self.damaged = True

    # ---------------------------------------------------------------------------------- others

    @precondition(lambda self: self.log is not None)
    @rule(force=st.booleans())
    def another_writer(self, force: bool) -> None:
        with pytest.raises(EnvironmentRefused, match=f"in use by pid {os.getpid()} "):
            RunLock(self.folder, force=force)
        with pytest.raises(EnvironmentRefused):
            rebuild(self.folder, Plugins())  # type: ignore[arg-type]

    @precondition(lambda self: self.log is None and self.model.records and not self.damaged)
    @rule()
    def rebuild_files(self) -> None:
        before = self.path.read_bytes()
        manifest = rebuild(self.folder, Plugins())  # type: ignore[arg-type]
        assert manifest["seen"] == len(self.model.records)
        assert manifest["job"] == "toy"
        assert json.loads((self.folder / "run_manifest.json").read_bytes()) == manifest
        assert self.path.read_bytes() == before, "only its owner repairs a journal"

    # -------------------------------------------------------------------------------- equality

    @invariant()
    def holds_what_was_acknowledged(self) -> None:
        if self.damaged:
            with pytest.raises(StateError, match=rf"{self.path}:\d+"):
                read(self.path)
            return
        events, _ = read(self.path)
        assert [(event.type, event.data) for event in events] == self.model.records
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        if self.log is not None:
            assert self.log.events == events
            for scope in SCOPES:
                scoped = [event for event in events if event.data.get("scope") == scope]
                assert list(self.log.scoped(scope)) == scoped

    @invariant()
    def audits_what_ran(self) -> None:
        if not self.damaged:
            found = audit(read(self.path)[0])
            assert found["executions"] == len(self.model.programs())
            assert (len(found["findings"]), found["weak"]) == (self.model.findings(), 0)

    @invariant()
    def tells_no_secret(self) -> None:
        for path in self.folder.rglob("*"):
            assert not path.is_file() or path.name == ".ballast" or SECRET.encode() not in path.read_bytes()


def drive(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        JournalMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_journal_holds_what_a_list_would() -> None:
    drive(12, 25)


@pytest.mark.soak
def test_a_journal_holds_what_a_list_would_for_ten_thousand_steps() -> None:
    drive(200, 50)


# ------------------------------------------------------------------------------------- audit chain


def programs(folder: Path, count: int) -> list[Event]:
    log = Journal(folder)
    before = ""
    for number in range(count):
        data = {"key": str(number), "node": "n", "attempt": 0, "result": ISOLATED, "prev": before}
        before = digest(log.emit(kinds.EXECUTION_DONE, data))
        log.emit("step", {"number": number})
    log.close()
    return list(log.events)


def salvaged(folder: Path, lines: list[bytes]) -> list[str]:
    """What an audit finds after ``--salvage`` of these lines."""
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    Journal(folder, salvage=True).close()
    findings: list[str] = audit(read(folder / "events.jsonl")[0])["findings"]
    return findings


def test_a_bad_line_elsewhere_breaks_no_link_of_the_chain(tmp_path: Path) -> None:
    lines = [encode(event) for event in programs(tmp_path, 4)]
    lines[1] = b"rubbish\n"
    assert salvaged(tmp_path, lines) == []


def test_a_link_that_is_lost_or_changed_or_moved_is_found_after_a_salvage_too(tmp_path: Path) -> None:
    events = programs(tmp_path, 4)
    lines = [encode(event) for event in events]
    changed = replace(events[2], data={**events[2].data, "key": "another"})
    swapped = [replace(events[4], seq=events[2].seq), replace(events[2], seq=events[4].seq)]
    for place, others in (
        ("lost", {2: b"rubbish\n"}),
        ("changed", {1: b"rubbish\n", 2: encode(changed)}),
        ("moved", {1: b"rubbish\n", 2: encode(swapped[0]), 4: encode(swapped[1])}),
    ):
        folder = tmp_path / place
        folder.mkdir()
        assert salvaged(folder, [others.get(number, line) for number, line in enumerate(lines)])
