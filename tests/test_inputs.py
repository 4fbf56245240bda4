"""Documents and names from outside: what is taken, what is refused, and how it is said."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import ConfigError, StateError, UsageError
from corerun.inputs.documents import (
    JSON_DEPTH,
    NotJson,
    deeper_than,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_text,
)
from corerun.inputs.names import is_plain, safe_join, safe_name
from corerun.inputs.yaml_documents import ALIASES, DEPTH, VALUES, parse_yaml, read_yaml_document
from corerun.llm.jsontext import parsed

# --------------------------------------------------------------------------------------------- YAML


def yaml(text: str) -> Any:
    return parse_yaml(text, "f.yaml").data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("1.5", 1.5),
        ("-.5", -0.5),
        ("1e3", 1000.0),
        ("2.", 2.0),
        *((word, word) for word in ("on", "off", "yes", "no", "y", "n", "On", "OFF", "=", "<<x")),
        *((word, word) for word in ("2024-01-02", "2024-01-02 03:04:05", "12:30", "1:2.5", "007", "0x10")),
        *((word, word) for word in ("1_000", "0b1", "0o7", ".inf", "-.inf", ".nan", "NaN", "1.2.3", "1e")),
        ("'5'", "5"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("|\n  5\n", "5\n"),
    ],
)
def test_plain_words_are_read_as_json_has_them(text: str, value: Any) -> None:
    found = yaml(f"key: {text}\n")["key"]
    assert (found, type(found)) == (value, type(value))


def test_every_key_has_its_line_and_one_below_a_list_that_of_the_nearest_above() -> None:
    document = parse_yaml("a:\n  b: 1\n\n  c: [1, {d: 2}]\ne: &x {f: 3}\ng: *x\n", "f.yaml")
    assert document.data == {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": {"f": 3}, "g": {"f": 3}}
    for keys, line in (
        ((), 1),
        (("a",), 1),
        (("a", "b"), 2),
        (("a", "c"), 4),
        (("a", "c", "9"), 4),
        (("a", "c", "1", "d"), 4),
        (("g", "f"), 6),
        (("nothing",), 1),
    ):
        assert document.where(*keys) == f"f.yaml:{line}"


def test_keys_are_texts_whatever_they_look_like() -> None:
    assert yaml("1: a\ntrue: b\n~: c\n2024-01-01: d\n") == {
        "1": "a",
        "true": "b",
        "~": "c",
        "2024-01-01": "d",
    }


def test_limits_are_inclusive() -> None:
    assert yaml(f"a: &x 1\nb: [{'*x, ' * ALIASES}]\n")["b"] == [1] * ALIASES
    # The outermost mapping, its key and its list count, too.
    assert len(yaml(f"a: [{'1, ' * (VALUES - 3)}]\n")["a"]) == VALUES - 3
    for text, message in (
        (f"a: &x 1\nb: [{'*x, ' * (ALIASES + 1)}]\n", "more than 100 aliases"),
        (f"a: [{'1, ' * (VALUES - 2)}]\n", "more than 100,000 values"),
    ):
        with pytest.raises(ConfigError, match=message):
            yaml(text)
    assert yaml("[" * DEPTH + "]" * DEPTH)
    with pytest.raises(ConfigError, match="nested deeper than 50"):
        yaml("[" * DEPTH + "1" + "]" * DEPTH)


def test_a_text_that_is_no_utf_8_is_no_yaml() -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        yaml("a: \ud800\n")


def test_what_aliases_stand_for_is_one_object_and_counted_each_time() -> None:
    found = yaml("a: &x [1, 2]\nb: [*x, *x]\n")
    assert found["b"][0] is found["a"]
    text = f"a: &x [{'1, ' * 50_000}]\nb: *x\n"
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        yaml(text)


def test_the_largest_yaml_file_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: 1\n#" + b"x" * (5 * 2**20 - 6))
    assert read_yaml_document(path).data == {"a": 1}
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="larger than 5 MB"):
        read_yaml_document(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_yaml_that_is_written_comes_back(value: Any) -> None:
    from yaml import safe_dump

    # Through JSON, so that no two values are one object, which would be written as an alias.
    assert yaml(safe_dump(json.loads(json.dumps(value)))) == value


@given(st.text(max_size=80) | st.text("[]{}&*!:-,' \"\n\tab1", max_size=80))
def test_any_text_is_a_document_or_one_configuration_error(text: str) -> None:
    try:
        yaml(text)
    except ConfigError as error:
        assert error.where.startswith("f.yaml") and "\n" not in error.message


# --------------------------------------------------------------------------------------------- JSON


@given(JSON_VALUES)
def test_json_comes_back(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value).encode()):
        assert parse_json(text, unique=True) == value


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("[1,\n}", "Expecting value", 2),
        ("[NaN]", "NaN is no JSON number", 0),
        ("[Infinity]", "Infinity is no JSON number", 0),
        ("[-1e999]", "the number -1e999 is too large", 0),
        ("9" * 4301, "a number has more than 4300 digits", 0),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is given twice", 0),
        ("[" * 101 + "]" * 101, "nested deeper than 100 levels", 0),
        ("[" * 200_000, "nested deeper than 100 levels", 0),
        (b"\xff[]", "not UTF-8", 0),
    ],
)
def test_what_json_is_refused_for(text: str | bytes, message: str, line: int) -> None:
    with pytest.raises(NotJson) as caught:
        parse_json(text, unique=True)
    assert (str(caught.value), caught.value.line) == (message, line)


def test_what_is_just_within_the_limits_is_read() -> None:
    assert parse_json("9" * 4300) == int("9" * 4300)
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    # Brackets in a text are no nesting.
    assert parse_json(json.dumps("[" * 500)) == "[" * 500


@given(JSON_VALUES, st.integers(0, 6))
def test_depth_is_counted_as_people_count_it(value: Any, depth: int) -> None:
    def height(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(height, inner), default=0)

    assert deeper_than(value, depth) == (height(value) > depth)


def test_a_models_deep_answer_is_no_json() -> None:
    assert parsed("[" * JSON_DEPTH + "]" * JSON_DEPTH)[1]
    assert parsed("[" * (JSON_DEPTH + 1) + "]" * (JSON_DEPTH + 1)) == (None, False)


def test_lines_have_places_and_a_text_may_hold_odd_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('1\n\n"a\u2028b\x85c"\r\n2', encoding="utf-8", newline="")
    assert list(read_json_lines(path)) == [(f"{path}:1", 1), (f"{path}:3", "a\u2028b\x85c"), (f"{path}:4", 2)]
    path.write_text("1\n{\n")
    with pytest.raises(UsageError, match=rf"^{path}:2: not JSON: Expecting property name"):
        list(read_json_lines(path))


def test_the_error_is_of_the_class_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("[")
    for read in (read_json, read_text, read_bytes):
        with pytest.raises(StateError, match="no such file"):
            read(tmp_path / "none", error=StateError)
    with pytest.raises(StateError, match=rf"{tmp_path}/f:1: not JSON"):
        read_json(tmp_path / "f", error=StateError)
    with pytest.raises(UsageError, match=r"^--flag: no such file"):
        read_text(tmp_path / "none", where="--flag")


def test_a_document_may_hold_a_million_values_and_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(f"\ufeff[{'1,' * 999_998}1]", encoding="utf-8")
    assert len(read_json(path)) == 999_999
    path.write_text(f"[{'1,' * 1_000_000}1]")
    with pytest.raises(UsageError, match="more than 1,000,000 values"):
        read_json(path)


def test_neither_a_pipe_nor_a_device_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null"), tmp_path):
        with pytest.raises(UsageError, match=f"can't read {path}: it is"):
            read_text(path)
    with pytest.raises(UsageError, match="can't read"):
        read_text(Path("a\0b"))


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_a_usage_error(body: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(body)
        try:
            read_json(path)
        except UsageError as error:
            assert str(path) in str(error) and "\n" not in str(error)


# -------------------------------------------------------------------------------------------- names

HOSTILE = (
    *("", ".", "..", "...", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "..\\x", "a/../../b"),
    *("%2e%2e%2f", "%2e%2e/", "..%2f", "a\0b", "a\nb", "\x1b[2J", "C:", "C:\\x", "c:/x", "~", "~root"),
    *("a.", "a..", ".hidden", "-rf", "--help", "_x", " a", "a ", "a b", "CON", "con", "NUL.txt"),
    *("nul.tar.gz", "COM1", "lpt9.log", "aux", "PRN", "x" * 81, "x" * 300, "Größe", "数", "\u202etxt.exe"),
    *("a\u200bb", "\ufeffa", "\ud800", "e\u0301", "ａ", "a:b", "a|b", "$(id)", "`id`", "*", "\u2025"),
    "../" * 100,
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_becomes_a_plain_one_of_its_own(tmp_path: Path, text: str) -> None:
    name = safe_name(text)
    assert name != text and is_plain(name) and re.search(r"-[0-9a-f]{8}$", name)
    assert safe_name(name) == name
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_two_hostile_names_share_one() -> None:
    assert len({safe_name(text) for text in HOSTILE}) == len(HOSTILE)
    assert safe_name("Größe") == safe_name("Gro\u0308ße"), "two spellings of one text"


@given(st.text(max_size=200), st.sampled_from((40, 80)))
def test_any_text_becomes_one_plain_path_element(text: str, limit: int) -> None:
    name = safe_name(text, limit)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and len(name) <= limit
    assert not name.endswith(".")
    assert safe_name(name, limit) == name


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,78}[A-Za-z0-9_-]", fullmatch=True))
def test_a_plain_name_is_kept(name: str) -> None:
    device = name.partition(".")[0].upper() in ("CON", "PRN", "AUX", "NUL") or re.match(
        r"(?i)(COM|LPT)\d(\.|$)", name
    )
    assert (safe_name(name) == name) != bool(device)


@pytest.mark.parametrize("part", ["a", "a/b", "a.b/c", "%2e%2e/x", "a\\b", "~", "C:", "...", "数"])
def test_a_path_below_is_joined(tmp_path: Path, part: str) -> None:
    assert safe_join(tmp_path, part) == tmp_path / part
    assert safe_join(tmp_path, part).resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize(
    "part",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "a/..",
            "a/../..",
            "a/../../x",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            "/",
            "/etc/passwd",
        ),
        *("//etc", "a\0b", "x" * 300, "/", "/etc/passwd"),
        *("link", "link/x", "inner", "inner/x", "real/up", "real/up/x", "loop/x", "dangling"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, part: str) -> None:
    base = tmp_path / "base"
    (base / "real").mkdir(parents=True)
    (base / "link").symlink_to("/etc")
    (base / "inner").symlink_to("real")
    (base / "real" / "up").symlink_to("../..")
    (base / "loop").symlink_to("loop")
    (base / "dangling").symlink_to("nothing")
    with pytest.raises(UsageError):
        safe_join(base, part)
    with pytest.raises(StateError) as caught:
        safe_join(base, part, error=StateError)
    assert "\n" not in caught.value.message


def test_the_base_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert safe_join(tmp_path / "link", "a") == tmp_path / "link" / "a"


@given(st.text(max_size=60) | st.text("./\\~%2e:\0a", max_size=30))
def test_no_text_leads_out(part: str) -> None:
    base = Path("/nowhere/base")
    try:
        place = safe_join(base, part)
    except UsageError:
        return
    assert Path(os.path.normpath(place)).is_relative_to(base) and place != base
