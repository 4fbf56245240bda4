"""The journal: what was acknowledged is never lost, what is damaged is never taken for whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.errors import DiskFull, StateError, Stopped
from corerun.interfaces import Event
from corerun.runs import events as kinds
from corerun.runs import io
from corerun.runs.audit import audit
from corerun.runs.journal import BALLAST, MAX_BODY, POWER_SAFE, Journal, decode, digest, encode, read
from tests.support.disk import Disk

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
    data = {
        "score": float("nan"),
        "deep": [float("inf"), {"low": -float("inf"), "fine": 1.5}],
        "pair": (1, 2),
    }
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
    with pytest.raises(StateError, match=rf"events.jsonl:3: corrupt journal: it needs a blob, .*{blob.name}"):
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
    with pytest.raises(StateError, match=r"events\.jsonl:3"):
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
    with pytest.raises(
        StateError, match=rf"events.jsonl:{line}: corrupt journal: record \d where \d belongs"
    ):
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
    with pytest.raises(StateError, match=r"events\.jsonl"):
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


@pytest.mark.parametrize("room", [0, 30, 10_000])
def test_a_full_disk_leaves_room_for_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    log = Journal(tmp_path)
    monkeypatch.setattr(os, "write", Disk(tmp_path, room).write)
    with pytest.raises(DiskFull, match="the disk is full") as caught:
        for number in range(1000):
            log.emit("step", {"number": number})
    assert (caught.value.exit_code, "--resume" in caught.value.hint) == (5, True)
    log.emit(kinds.PAUSED, {"reason": "disk_full"})
    log.emit(kinds.RUN_DONE, {"status": "stopped"})
    log.close()
    monkeypatch.undo()
    events, good = read(journal_of(tmp_path))
    assert good == journal_of(tmp_path).stat().st_size
    steps = [event.data["number"] for event in events if event.type == "step"]
    assert steps == list(range(len(steps)))
    assert [event.type for event in events[-3:]] == ["step", kinds.PAUSED, kinds.RUN_DONE]
    with opened(tmp_path) as again:
        assert again.events == events
        assert (tmp_path / ".ballast").stat().st_size == BALLAST


def test_a_full_disk_at_the_very_end_is_no_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Journal(tmp_path)
    monkeypatch.setattr(os, "write", Disk(tmp_path, 0).write)
    log.emit(kinds.RUN_DONE, {"status": "success"})
    log.close()
    monkeypatch.undo()
    assert [event.type for event in read(journal_of(tmp_path))[0]] == [kinds.RUN_DONE]


def test_a_blob_that_does_not_fit_leaves_room_for_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Journal(tmp_path)
    monkeypatch.setattr(os, "write", Disk(tmp_path, 40_000, kept_back=4096).write)
    with pytest.raises(Stopped, match=r"no space left to write .*blobs"):
        log.emit("step", {"text": "x" * MAX_BODY})
    assert list((tmp_path / "blobs").iterdir()) == []
    log.emit(kinds.RUN_DONE, {"status": "stopped"})
    log.close()
    assert [event.type for event in log.events] == [kinds.RUN_DONE]


def test_a_disk_without_any_room_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = fill(tmp_path, 3)
    log = Journal(tmp_path)
    monkeypatch.setattr(os, "write", Disk(tmp_path, 10, kept_back=20).write)
    for _ in range(2):
        with pytest.raises(Stopped, match=r"no space left to write .*events\.jsonl"):
            log.emit("step", {"number": 3})
    log.close()
    monkeypatch.undo()
    assert read(journal_of(tmp_path)) == (events, journal_of(tmp_path).stat().st_size)


FILLS_A_DISK = """
import sys
from pathlib import Path
from corerun.errors import Stopped
from corerun.runs.journal import Journal, read

log = Journal(Path(sys.argv[1]))
try:
    while True:
        log.emit("step", {"text": "x" * 5000})
except Stopped as stop:
    assert stop.exit_code == 5
log.emit("paused", {"reason": "disk_full"})
log.emit("run_done", {"status": "stopped"})
log.close()
events, good = read(log.path)
assert good == log.path.stat().st_size
print(*[event.type for event in events[-3:]], len(events) > 100)
"""


def test_a_real_disk_that_fills(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=20m none {tmp_path} && exec {sys.executable} -P -c "$1" {tmp_path}'
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        probe = subprocess.run([*enter, f"mount -t tmpfs none {tmp_path}"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the kernel's tmpfs mount")
    if probe.returncode:
        pytest.skip("needs the kernel's tmpfs mount")
    done = subprocess.run([*enter, script, "sh", FILLS_A_DISK], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("step paused run_done True\n", "")


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_broken_disk_is_corrupt_state_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log = Journal(tmp_path, durability="power")

    def broken(*arguments: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(StateError, match=r"can't write .*events\.jsonl: Input/output error") as caught:
        log.emit(kinds.NODE_DONE, {"node": "a"})
    assert caught.value.exit_code == 4
    assert (tmp_path / ".ballast").exists(), "no space was missing"
    monkeypatch.undo()
    # It may answer ok now although the record is gone.
    with pytest.raises(StateError, match="Input/output error"):
        log.close()


def test_a_failed_sync_in_the_background_fails_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may forget what it failed to keep and answer ok to the next sync."""
    log = Journal(tmp_path)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    log.emit("step", {})
    log._syncer.join()
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(StateError, match="Input/output error"):
            log.emit("step", {})
    with pytest.raises(StateError, match="Input/output error"):
        log.close()


def test_power_waits_for_the_disk_on_what_was_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(threading.current_thread().name))
    main = threading.current_thread().name
    for durability, expected in (("power", sorted(POWER_SAFE)), ("kill", [])):
        with opened(tmp_path / durability, durability=durability) as log:
            waited = []
            for kind in (kinds.NODE_ASKED, kinds.NODE_DONE, kinds.CALL_ASKED, kinds.CALL_ANSWERED):
                before = synced.count(main)
                log.emit(kind, {})
                if synced.count(main) > before:
                    waited.append(kind)
        assert sorted(waited) == expected


def test_closing_syncs_and_gives_the_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Journal(tmp_path)
    log.emit("step", {})
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    log.close()
    assert synced
    assert not (tmp_path / ".ballast").exists()
    log.close()


# ------------------------------------------------------------------------------------- audit chain


def chain(folder: Path, count: int = 4) -> list[Event]:
    previous = ""
    with opened(folder) as log:
        for number in range(count):
            isolated = ["env", "fs_read", "fs_write", "net"]
            given = isolated[:-1] if number % 2 else isolated
            result = {"status": "ok", "sandbox": {"guarantees": given}}
            program = {"key": str(number), "node": "a", "attempt": 0}
            event = log.emit(kinds.EXECUTION_DONE, {**program, "result": result, "prev": previous})
            previous = digest(event)
            log.emit("step", {})
        log.emit(kinds.REFUSED, {"what": "a program", "prev": previous})
    return read(journal_of(folder))[0]


def test_a_whole_chain_has_no_findings(tmp_path: Path) -> None:
    assert audit(chain(tmp_path)) == {"executions": 4, "weak": 2, "findings": []}
    assert audit([]) == {"executions": 0, "weak": 0, "findings": []}


def test_an_edited_record_with_a_right_checksum_is_found(tmp_path: Path) -> None:
    events = chain(tmp_path)
    lines = journal_of(tmp_path).read_bytes().splitlines(keepends=True)
    edited = events[2]
    lines[2] = encode(Event(edited.seq, edited.t, edited.type, {**edited.data, "key": "another"}))
    journal_of(tmp_path).write_bytes(b"".join(lines))
    found = audit(read(journal_of(tmp_path))[0])["findings"]
    assert found == ["record 5: the record of a program before it was changed or is missing"]


def test_a_record_cut_out_is_found(tmp_path: Path) -> None:
    events = chain(tmp_path)
    del events[2]
    renumbered = [Event(seq, event.t, event.type, event.data) for seq, event in enumerate(events, 1)]
    journal_of(tmp_path).write_bytes(b"".join(map(encode, renumbered)))
    assert len(audit(read(journal_of(tmp_path))[0])["findings"]) >= 1
    del renumbered[-1]
    assert audit(renumbered[:1])["findings"] == []


# ---------------------------------------------------------------------------------------- other files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "file.txt"
    io.replace(path, "old")
    monkeypatch.setattr(os, "write", Disk(tmp_path, 2, kept_back=0).write)
    with pytest.raises(Stopped):
        io.replace(path, "the new content")
    monkeypatch.undo()
    assert [(entry.name, entry.read_text()) for entry in path.parent.iterdir()] == [("file.txt", "old")]


def test_json_files_are_json_in_utf_8_whatever_the_value(tmp_path: Path) -> None:
    io.replace_json(tmp_path / "a.json", {"é": "\ud800", "nan": float("nan"), "pair": (float("inf"), 1)})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "é" in text
    assert json.loads(text) == {"é": "\ud800", "nan": None, "pair": [None, 1]}


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "blobs"):
        folder.mkdir(exist_ok=True)
        (folder / ".manifest.json.123.tmp").write_text("half")
        (folder / "kept.tmp").write_text("whole")
    io.remove_temporary_files(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.tmp")) == ["kept.tmp", "kept.tmp"]


def test_a_blob_is_stored_once_under_its_hash(tmp_path: Path) -> None:
    names = {io.store_blob(tmp_path, b"body") for _ in range(2)}
    assert [path.name for path in tmp_path.iterdir()] == list(names)


@pytest.mark.parametrize("left", [b"", b"bo", bytes(4)])
def test_a_blob_that_a_kill_cut_off_is_stored_anew(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / hashlib.sha256(b"body").hexdigest()
    path.write_bytes(left)
    assert io.store_blob(tmp_path, b"body") == path.name
    assert [(found, found.read_bytes()) for found in tmp_path.iterdir()] == [(path, b"body")]


def test_a_blob_that_cannot_be_written_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", Disk(tmp_path, 2, kept_back=0).write)
    with pytest.raises(Stopped, match=r"no space left to write .*blobs"):
        io.store_blob(tmp_path / "blobs", b"body")
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_record_that_does_not_fit_is_taken_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    monkeypatch.setattr(os, "write", Disk(tmp_path, 3, kept_back=0).write)
    with pytest.raises(OSError, match="No space left"):
        io.append(descriptor, b"second\n")
    os.close(descriptor)
    assert path.read_bytes() == b"first\n"
