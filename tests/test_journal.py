"""The journal: what was acknowledged is never lost, what is damaged is never taken for whole."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.errors import StateError, Stopped
from corerun.interfaces import Event
from corerun.runs import events as kinds
from corerun.runs import io
from corerun.runs.audit import audit
from corerun.runs.journal import MAX_BODY, POWER_SAFE, Journal, decode, digest, encode, read

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
json_data = st.dictionaries(st.text(max_size=8) | st.just("$blob"), json_values, max_size=4)


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Journal]:
    log = Journal(folder, **options)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def fill(folder: Path, count: int = 5) -> list[Event]:
    with opened(folder) as log:
        return [log.emit("step", {"number": number, "text": "é\n\r\x00"}) for number in range(count)]


def journal_of(folder: Path) -> Path:
    return folder / "events.jsonl"


# ------------------------------------------------------------------------------------- round trip


@given(st.lists(json_data, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_json_comes_back_as_it_was(datas: list[dict[str, Any]]) -> None:
    with temporary() as folder:
        with opened(folder) as log:
            emitted = [log.emit("step", data) for data in datas]
        events, good = read(journal_of(folder))
        assert [event.data for event in events] == datas
        assert events == emitted
        assert [event.seq for event in events] == list(range(1, len(datas) + 1))
        assert good == journal_of(folder).stat().st_size
        for line in journal_of(folder).read_bytes().splitlines():
            assert {"seq", "t", "type", "data", "crc"} == json.loads(line).keys()


def test_the_checksum_is_that_of_the_bytes_before_it(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    line = journal_of(tmp_path).read_bytes()
    head, _, tail = line.partition(b',"crc":"')
    assert tail == b'%08x"}\n' % zlib.crc32(head + b"}")


def test_numbers_that_json_does_not_have_become_null_at_once(tmp_path: Path) -> None:
    data = {"score": float("nan"), "deep": [float("inf"), {"low": -float("inf"), "fine": 1.5}], "pair": (1, 2)}
    expected = {"score": None, "deep": [None, {"low": None, "fine": 1.5}], "pair": [1, 2]}
    heard: list[Event] = []
    with opened(tmp_path) as log:
        log.listeners.append(heard.append)
        event = log.emit("metric", data)

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} in the journal")

    for line in journal_of(tmp_path).read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    # What a listener sees now is what a resumed run will read.
    assert event.data == heard[0].data == read(journal_of(tmp_path))[0][0].data == expected


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.emit("step", {"text": "a\ud800b"})
    journal_of(tmp_path).read_text(encoding="ascii")
    assert read(journal_of(tmp_path))[0][0].data == {"text": "a\ud800b"}


def test_an_event_is_a_copy_of_what_was_emitted(tmp_path: Path) -> None:
    data = {"list": [1]}
    with opened(tmp_path) as log:
        log.emit("step", data)
        data["list"].append(2)
        assert log.events[0].data == {"list": [1]}


def test_what_is_not_json_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        with pytest.raises(TypeError):
            log.emit("step", {"path": tmp_path})
        log.emit("step", {})
    assert [event.seq for event in read(journal_of(tmp_path))[0]] == [1]


def test_bodies_past_the_limit_go_to_blobs(tmp_path: Path) -> None:
    large = {"text": "x" * MAX_BODY}
    with opened(tmp_path) as log:
        log.emit("step", {"text": "small"})
        assert not (tmp_path / "blobs").exists()
        log.emit("step", large)
        log.emit("step", large)
    lines = journal_of(tmp_path).read_bytes().splitlines()
    assert all(len(line) < 300 for line in lines)
    assert len(list((tmp_path / "blobs").iterdir())) == 1
    assert [event.data for event in read(journal_of(tmp_path))[0][1:]] == [large, large]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_lost_blob_is_corruption_even_in_the_last_line(tmp_path: Path, damage: str) -> None:
    fill(tmp_path, 2)
    with opened(tmp_path) as log:
        log.emit("step", {"text": "x" * MAX_BODY})
    blob = next((tmp_path / "blobs").iterdir())
    if damage == "missing":
        blob.unlink()
    else:
        blob.write_bytes(blob.read_bytes().replace(b"xx", b"xy", 1))
    with pytest.raises(StateError, match=rf"events.jsonl:3: corrupt journal: blobs/{blob.name}"):
        Journal(tmp_path)
    with opened(tmp_path, salvage=True) as log:
        assert [event.type for event in log.events] == ["step", "step", "repaired"]


def test_scopes_are_indexed_in_order(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for number in range(6):
            log.emit("step", {"scope": "ab"[number % 2], "number": number})
        log.emit("step", {"number": 6})
    with opened(tmp_path) as log:
        log.emit("step", {"scope": "b", "number": 7})
        assert [event.data["number"] for event in log.scoped("b")] == [1, 3, 5, 7]
        assert log.scoped("none") == ()


# ------------------------------------------------------------------------------------ torn and bad


@given(st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_cut_anywhere_everything_whole_is_kept(part: int) -> None:
    with temporary() as folder:
        events = fill(folder, 4)
        body = journal_of(folder).read_bytes()
        cut = len(body) * part // 100
        journal_of(folder).write_bytes(body[:cut])
        whole = body[:cut].count(b"\n")
        torn = body[:cut].rpartition(b"\n")[2]
        # A reader tolerates the tail and repairs nothing.
        assert read(journal_of(folder)) == (events[:whole], cut - len(torn))
        assert journal_of(folder).read_bytes() == body[:cut]
        with opened(folder) as log:
            assert log.events[:whole] == events[:whole]
            assert [event.type for event in log.events[whole:]] == (["repaired"] if torn else [])
            log.emit("step", {"after": True})
        kept = [path.read_bytes() for path in folder.glob("events.torn-*")]
        assert kept == ([torn] if torn else [])
        again, _ = read(journal_of(folder))
        assert [event.seq for event in again] == list(range(1, len(again) + 1))
        assert again[-1].data == {"after": True}


@given(line=st.integers(0, 3), place=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=120, deadline=None)
def test_a_changed_byte_is_found_and_named(line: int, place: int, value: int) -> None:
    with temporary() as folder:
        events = fill(folder, 5)
        lines = journal_of(folder).read_bytes().splitlines(keepends=True)
        place %= len(lines[line]) - 1
        if lines[line][place] == value:
            return
        lines[line] = lines[line][:place] + bytes([value]) + lines[line][place + 1 :]
        journal_of(folder).write_bytes(b"".join(lines))
        with pytest.raises(StateError) as caught:
            Journal(folder)
        assert caught.value.where == f"{journal_of(folder)}:{line + 1}"
        assert caught.value.exit_code == 4
        assert "--salvage" in caught.value.hint
        with opened(folder, salvage=True) as log:
            kept = [event.data for event in events if event.seq != line + 1]
            assert [event.data for event in log.events[:-1]] == kept
            assert log.events[-1].type == kinds.REPAIRED
            original = folder / log.events[-1].data["kept"]
            assert original.read_bytes() == b"".join(lines)
        # Renumbered: the next reader finds nothing wrong.
        again, _ = read(journal_of(folder))
        assert [event.seq for event in again] == list(range(1, len(again) + 1))


def test_a_changed_byte_in_the_last_line_is_a_torn_tail(tmp_path: Path) -> None:
    events = fill(tmp_path, 3)
    body = journal_of(tmp_path).read_bytes()
    journal_of(tmp_path).write_bytes(body[:-20] + b"\r" + body[-19:])
    assert read(journal_of(tmp_path))[0] == events[:2]


def test_a_foreign_line_between_good_ones_is_salvaged_without_losing_any(tmp_path: Path) -> None:
    events = fill(tmp_path, 4)
    lines = journal_of(tmp_path).read_bytes().splitlines(keepends=True)
    journal_of(tmp_path).write_bytes(b"".join([*lines[:2], b"a note by hand\n", *lines[2:]]))
    with pytest.raises(StateError, match="events.jsonl:3"):
        Journal(tmp_path)
    with opened(tmp_path, salvage=True) as log:
        assert log.events[:-1] == events


@pytest.mark.parametrize(
    ("order", "line"), [([0, 2, 3], 2), ([0, 1, 1, 2], 3), ([1, 0, 2], 1), ([0, 1, 2, 2], 4), ([0, 2], 2)]
)
def test_gaps_and_copies_are_corruption_in_the_last_line_too(
    tmp_path: Path, order: list[int], line: int
) -> None:
    fill(tmp_path, 4)
    lines = journal_of(tmp_path).read_bytes().splitlines(keepends=True)
    journal_of(tmp_path).write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(StateError, match=rf"events.jsonl:{line}: corrupt journal: record \d where \d belongs"):
        read(journal_of(tmp_path))
    with opened(tmp_path, salvage=True) as log:
        numbers = [event.data["number"] for event in log.events[:-1]]
        assert len(numbers) == len(set(numbers))
        assert [event.seq for event in log.events] == list(range(1, len(log.events) + 1))


def test_salvaging_a_sound_journal_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    before = journal_of(tmp_path).read_bytes()
    with opened(tmp_path, salvage=True):
        pass
    assert journal_of(tmp_path).read_bytes() == before


def test_salvage_keeps_scopes_and_large_bodies(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.emit("step", {})
        log.emit("step", {"scope": "a", "text": "x" * MAX_BODY})
    lines = journal_of(tmp_path).read_bytes().splitlines(keepends=True)
    journal_of(tmp_path).write_bytes(b"?" + b"".join(lines))
    with opened(tmp_path, salvage=True) as log:
        assert [event.seq for event in log.scoped("a")] == [1]
    assert len(read(journal_of(tmp_path))[0][0].data["text"]) == MAX_BODY
    assert max(map(len, journal_of(tmp_path).read_bytes().splitlines())) < 300


@given(st.binary(max_size=80))
def test_no_line_but_a_record_is_a_record(line: bytes) -> None:
    with pytest.raises(ValueError):
        decode(line)


@pytest.mark.parametrize("record", [b"[]", b'{"seq":1}', b"3"])
def test_a_right_checksum_alone_makes_no_record(record: bytes) -> None:
    head = record[:-1]
    with pytest.raises(ValueError):
        decode(b'%s,"crc":"%08x"}\n' % (head, zlib.crc32(head + b"}")))


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "events.jsonl") == ([], 0)


def test_a_journal_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    journal_of(tmp_path).mkdir()
    with pytest.raises(StateError, match="events.jsonl"):
        read(journal_of(tmp_path))


# ------------------------------------------------------------------------------------------- kills

WRITER = """
import sys
from pathlib import Path
from corerun.runs.journal import Journal

log = Journal(Path(sys.argv[1]))
number = len(log.events)
while True:
    log.emit("step", {"number": number, "text": "x" * (number * 7919 % 90_000)})
    print(log.events[-1].seq, flush=True)
    number += 1
"""


def test_twenty_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged = 0
    for kill in range(20):
        writer = subprocess.Popen(
            [sys.executable, "-P", "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        for line in writer.stdout:
            if int(line) - first >= 3 * kill + kill % 5:
                break
        writer.kill()
        rest = writer.stdout.read().splitlines(keepends=True)
        seen = [int(text) for text in (line, *rest) if text.endswith("\n")]
        writer.wait()
        writer.stdout.close()
        acknowledged = max(acknowledged, *seen)
        events, _ = read(journal_of(tmp_path))
        # At most the one record under way when the kill came.
        assert acknowledged <= len(events) <= acknowledged + 1
    steps = [event for event in events if event.type == "step"]
    assert len(steps) + sum(event.type == kinds.REPAIRED for event in events) == len(events)
    assert len(steps) > 20


# ------------------------------------------------------------------------------------------- disks


def failing(monkeypatch: pytest.MonkeyPatch, number: int, fails: Callable[[bytes], bool]) -> None:
    """Let writes of bodies for which ``fails`` is true write a part of them and then fail."""
    write = os.write

    def broken(descriptor: int, body: bytes) -> int:
        if fails(bytes(body)):
            if len(body) > 10:
                return write(descriptor, body[:10])
            raise OSError(number, os.strerror(number))
        return write(descriptor, body)

    monkeypatch.setattr(os, "write", broken)


def fails_once_begun(marker: bytes) -> Callable[[bytes], bool]:
    state = {"on": False}

    def fails(body: bytes) -> bool:
        if marker in body:
            state["on"] = True
            return True
        if state["on"]:
            state["on"] = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return False

    return fails


def test_a_full_disk_pauses_the_run_with_the_journal_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills in the middle of a record; the space that was kept back takes it and the last words."""
    fill(tmp_path, 2)
    log = Journal(tmp_path)
    full = {"on": True}
    write = os.write

    def broken(descriptor: int, body: bytes) -> int:
        if full["on"] and (tmp_path / ".ballast").exists():
            if len(body) > 10:
                return write(descriptor, body[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, body)

    def one_part(descriptor: int, body: bytes) -> int:
        if (tmp_path / ".ballast").exists():
            monkeypatch.setattr(os, "write", nothing)
            return write(descriptor, body[:10])
        return write(descriptor, body)

    def nothing(descriptor: int, body: bytes) -> int:
        if (tmp_path / ".ballast").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, body)

    monkeypatch.setattr(os, "write", one_part)
    with pytest.raises(Stopped, match="full") as caught:
        log.emit("step", {"number": 2})
    assert caught.value.exit_code == 5
    log.emit("step", {"number": 3})
    log.close()
    monkeypatch.undo()
    events, _ = read(journal_of(tmp_path))
    assert [(event.type, event.data.get("reason")) for event in events[2:]] == [
        ("step", None),
        (kinds.PAUSED, "disk_full"),
        ("step", None),
    ]
    with opened(tmp_path) as again:  # nothing to repair, and new space is kept back
        assert again.events == events
        assert (tmp_path / ".ballast").exists()
