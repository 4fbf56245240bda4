"""Texts of models, programs and files on terminals and in logs: nothing in them is obeyed."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.cli.failure import report
from corerun.cli.output import print_table, say
from corerun.errors import UsageError
from corerun.redaction.logs import CleanFormatter, clean_traceback
from corerun.redaction.terminal import one_line, shown
from corerun.report.wording import clean

ATTACKS = {
    "title": "a\x1b]0;owned\x07b",
    "title by C1": "a\x9d0;owned\x9cb",
    "clipboard": "a\x1b]52;c;cm0gLXJmIC8=\x1b\\b",
    "link": "a\x1b]8;;http://evil.example/\x1b\\\x1b]8;;\x1b\\b",
    "colour": "a\x1b[31;1m\x1b[0mb",
    "colour by C1": "a\x9b31mb",
    "clear": "a\x1b[2J\x1b[3J\x1b[Hb",
    "up and over": "a\x1b[5A\x1b[2Kb",
    "cursor": "a\x1b[10;10H\x1b[s\x1b[ub",
    "report": "a\x1b[6n\x1b[c\x1b[>0qb",
    "reset": "a\x1bcb",
    "charset": "a\x1b(0\x1b)0b",
    "device string": 'a\x1bP$q"p\x1b\\\x1bP1;2|x\x1b\\b',
    "other strings": "a\x1bXx\x1b\\\x1b^x\x1b\\\x1b_Gx\x1b\\b",
    "alternate screen": "a\x1b[?1049h\x1b[?25lb",
    "paste": "a\x1b[200~\x1b[201~b",
}
LEFT = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2066", "\u2028", "\ud800"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_sequences_are_taken_out(attack: str) -> None:
    assert shown(ATTACKS[attack]) == one_line(ATTACKS[attack]) == clean(ATTACKS[attack]) == "ab"


@pytest.mark.parametrize("character", LEFT)
def test_other_control_characters_are_blanks(character: str) -> None:
    kept = character if character in "\n\t" else " "
    if character not in "\x1b\x9b":
        assert shown(f"a{character}b") == f"a{kept}b"
        assert one_line(f"a{character}b") == "a b"


def test_what_never_ends_hides_nothing() -> None:
    assert "the rest" in shown("\x1b]0;title the rest") and "the rest" in shown("\x1bPxyz\nthe rest\x1b\\")
    assert shown("one\r\ntwo\n") == "one\ntwo\n"
    assert len(shown("\x1b]" * 200_000)) < 10 and len(shown("\x9d" * 200_000)) < 10


@given(st.text(st.characters(max_codepoint=0x2FFF)))
def test_nothing_is_left_of_any_text(text: str) -> None:
    for made, allowed in ((shown(text), "\n\t"), (one_line(text), "")):
        assert not any(mark in made for mark in LEFT if mark not in allowed)
    assert one_line(text) == shown(text).replace("\n", " ").replace("\t", " ")


def test_a_log_has_one_line_for_each_record() -> None:
    forged = "refused\n2026-11-26 12:00:00 INFO corerun.run all is well\x1b]0;owned\x07\x1b[1A"
    record = logging.LogRecord("corerun.x", logging.WARNING, "f", 1, "%s", (forged,), None)
    line = CleanFormatter("%(levelname)s %(name)s %(message)s").format(record)
    assert line == "WARNING corerun.x refused 2026-11-26 12:00:00 INFO corerun.run all is well"
    try:
        raise ValueError("bad\x1b[2J")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
        assert "\x1b" not in clean_traceback(error)
    lines = CleanFormatter("%(message)s").format(record).splitlines()
    assert lines[1].startswith("Traceback") and lines[-1] == "ValueError: bad"


def test_what_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    all_of_it = " ".join(ATTACKS.values())
    say(f"{all_of_it}\nsecond")
    print_table([("A\nB", all_of_it), (None, "x")])
    code = report(UsageError(f"bad\n{all_of_it}", hint=all_of_it, where=all_of_it), debug=True, as_json=True)
    out, err = capsys.readouterr()
    assert code == 2 and "second" in out and len(err.split("corerun: ")[1].splitlines()) == 2
    assert not any(mark in out + err for mark in LEFT if mark != "\n")


def test_a_commands_own_streams_stay_clean(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text('"mod\\e]0;owned\\ael": x\n"strategy": "\\e[2Jnone"\n', encoding="utf-8")
    command = [sys.executable, "-P", "-m", "corerun", "--plugin", "bfts", "run", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith(b"corerun: ")
    assert not any(byte < 32 and byte != 10 for byte in done.stdout + done.stderr)
