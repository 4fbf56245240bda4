"""No secret is written or shown: values that are known, keys by their shape, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.cli.failure import report
from corerun.errors import UsageError
from corerun.redaction import (
    HIDDEN,
    known,
    redact,
    redact_bytes,
    redact_value,
    remember,
    remember_arguments,
    remember_environment,
)
from corerun.redaction.logs import CleanFormatter
from corerun.runs import content, io, journal
from corerun.runs.journal import Journal

ROOT = Path(__file__).parent.parent
SECRET = "plain-own-key-17"
RANDOM = "a1B2c3D4e5F6g7H8"

letters = st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs"])
secrets = st.text(letters, min_size=8, max_size=40).filter(lambda text: "[" not in text and "]" not in text)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Knows no secret at first, and forgets those of the test."""
    before, known._hidden = known._hidden, ()
    yield
    known._hidden = before


def only(*values: str) -> None:
    """Know these secrets and no others."""
    known._hidden = ()
    remember(*values)


# --------------------------------------------------------------------------------- known values


@pytest.mark.parametrize(
    "secret", [SECRET, 'q"uo\\te{key}', "pass/word+1=x", "schlüssel-ß-1", "nrt-begins-so"]
)
def test_a_known_value_is_hidden_in_every_form(secret: str) -> None:
    remember(secret)
    forms = [
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        json.dumps(json.dumps({"key": secret})),
        f"https://host/?q={quote(secret, safe='')}",
        f"https://host/{quote(secret)}",
        f"say {secret}, twice: {secret}",
    ]
    for form in forms:
        clean = redact(form)
        assert HIDDEN in clean
        for part in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1]):
            assert part not in clean
    assert secret.encode() not in redact_bytes(f"x{secret}y".encode())


@given(secrets, st.binary(max_size=5), st.binary(max_size=5))
def test_a_known_value_is_hidden_in_base64_wherever_it_stands(
    secret: str, before: bytes, after: bytes
) -> None:
    only(secret)
    body = secret.encode()
    text = base64.b64encode(before + body + after).decode()
    clean = redact(text)
    assert HIDDEN in clean
    # At most the ends of the value, which are less than a character, are left of it.
    assert len(clean) <= len(text) - (len(body) * 8 // 6 - 1) + len(HIDDEN)


def test_basic_authentication_with_a_known_password_is_hidden() -> None:
    remember_environment({"HTTPS_PROXY": f"http://me:{SECRET}@proxy:3128"})
    header = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert header[:-4] not in redact(f"proxy-authorization: {header}")


@given(secrets, words, words)
def test_nothing_is_left_of_a_known_value_and_once_is_enough(secret: str, before: str, after: str) -> None:
    only(secret)
    clean = redact(before + secret + after)
    assert secret not in clean
    assert redact(clean) == clean


@given(words, st.lists(secrets, max_size=3))
def test_text_without_secrets_is_the_same_object(text: str, values: list[str]) -> None:
    only(*values)
    if not any(value in text for value in values):
        assert redact(text) is text


@pytest.mark.parametrize("value", ["", "none", "ollama", "EMPTY", "x" * 7, HIDDEN, "redacted"])
def test_placeholders_are_no_secrets(value: str) -> None:
    remember(value)
    sentence = f"The word {value} stays, and [redacted] too."
    assert redact(sentence) is sentence


# ---------------------------------------------------------------------------------------- shapes

KEYS = [
    "sk-" + RANDOM * 3,
    "sk-proj-" + RANDOM + "_-" + RANDOM,
    "sk-ant-api03-" + RANDOM + "-" + RANDOM,
    "sk-or-v1-" + "0a" * 32,
    "sk-" + "0123456789abcdef" * 2,
    "sk-planted-0123456789",
    "sk-abc1****************wxyz",
    "gsk_" + RANDOM * 3,
    "AIza" + "Sy" + RANDOM * 2,
    "xai-" + RANDOM * 5,
    "hf_" + RANDOM * 2,
    "ghp_" + RANDOM * 2,
    "gho_" + RANDOM * 2,
    "github_pat_11" + RANDOM + "_" + RANDOM * 3,
    "AKIA" + "A1B2C3D4" * 2,
    "xoxb-" + "123456789012-" * 2 + RANDOM,
    "glpat-" + RANDOM + "-x_y",
]
AROUND = [
    "{}",
    "key {} is wrong",
    "'{}'",
    '"{}"',
    "key={}",
    "({})",
    "\n{}\n",
    "Bearer {}",
    "é{}",
    "?a=1&b={}&c",
    "https://host/{}/x",
    "a,{},b",
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:6])
def test_a_key_is_known_by_its_shape(key: str) -> None:
    for around in AROUND if not key.startswith("AIza") else AROUND[:-2]:
        text = around.format(key)
        for written in (text, json.dumps(text), json.dumps(json.dumps(text))):
            clean = redact(written)
            assert key not in clean and key[-12:] not in clean, written
            assert HIDDEN in clean
            assert redact(clean) == clean
        assert json.loads(redact(json.dumps({"text": text})))["text"] == redact(text)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer opaque-token", "Authorization: Bearer [redacted]"),
        ('{"Authorization": "Basic dXNlcjpwYXNz"}', '{"Authorization": "Basic [redacted]"}'),
        ("authorization=Bearer opaque-token, ok", "authorization=Bearer [redacted], ok"),
        ("Bearer " + RANDOM * 2 + "==", "Bearer [redacted]"),
        ("Basic YWxhZGRpbjpvcGVuc2VzYW1l", "Basic [redacted]"),
        ("GET /v1?key=abcdefgh&x=1", "GET /v1?key=[redacted]&x=1"),
        ("http://h/?x=1&api_key=abcdefgh'", "http://h/?x=1&api_key=[redacted]'"),
        ("http://h/?access_token=abcdefgh#top", "http://h/?access_token=[redacted]#top"),
        ("see http://me:pass@host:1/v1.", "see http://[redacted]@host:1/v1."),
        ("postgres://me:p@ss@host/db", "postgres://[redacted]@host/db"),
        (r"http:\/\/me:pass@host", r"http:\/\/[redacted]@host"),
    ],
)
def test_what_is_hidden_and_what_stays(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


def pem(lines: int, end: bool = True) -> str:
    middle = "".join(f"{RANDOM * 4}\n" for _ in range(lines))
    head = "-----BEGIN RSA " + "PRIVATE KEY-----\n"
    return head + middle + (RANDOM[:7] + "=\n-----END RSA " + "PRIVATE KEY-----\n" if end else "")


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_private_key_is_hidden_however_often_it_was_written_as_json(end: bool, times: int) -> None:
    text = f"before\n{pem(5, end)}\nafter it"
    for _ in range(times):
        text = json.dumps(text)
    clean = redact(text)
    assert RANDOM not in clean
    for _ in range(times):
        clean = json.loads(clean)
    assert clean.startswith("before\n-----BEGIN RSA")
    assert redact(clean) == clean
    if end:
        assert clean.endswith("-----END RSA " + "PRIVATE KEY-----\n\nafter it")


@pytest.mark.parametrize(
    "text",
    [
        "task-sk-learn-pipeline-2024-v3",
        "risk-adjusted-return, disk-0123456789abcdef, desk-" + RANDOM,
        "sk-learn is scikit-learn; sk-learn-1.5.2, sk-toggleable__content, sk-text-repr-fallback",
        "Bearer of news, bearer authentication, Basic HTTP/1.1, basic understanding, Basic Authentication",
        "from huggingface_hub import hf_hub_download; hf_device_map = hf_quantizer(model)",
        "sorted(rows, key=lambda row: row.value, reverse=True); max(scores, key=scores.get)",
        "token=tokenizer.eos_token, api_key=api_key, password=getpass()",
        "gsk_render_node_get_node_type, hf_transfer_enabled_by_default",
        "ssh://git@host/repo.git, git@host:repo, http://host:8080/a@b, pip install x@http://host/x",
        "https://host/?key={key}&token=$TOKEN&api_key=<your key>",
        "f'{scheme}://{user}:{password}@{host}'",
        "-----BEGIN PUBLIC KEY----- and PRIVATE KEY----- are headers of PEM files",
        "AKIA, AIza and xoxo-gossip are no keys",
        "xai-explainability-methods, glpat-is-a-prefix-of-tokens",
    ],
)
def test_ordinary_text_and_code_stay_as_they_are(text: str) -> None:
    assert redact(text) is text
    assert redact(json.dumps(text)) == json.dumps(text)


def test_large_bodies_of_code_and_prose_stay_as_they_are() -> None:
    library = Path(os.__file__).parent
    files = [path for path in library.rglob("*.py") if not {"site-packages", "test"} & set(path.parts)]
    for folder in ("core", "plugins", "docs", "examples", "benchmarks"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".js", ".css")]
    assert len(files) > 500
    changed = []
    for path in files:
        text = path.read_text("utf-8", errors="surrogateescape")
        if redact(text) != text or redact_bytes(path.read_bytes()) != path.read_bytes():
            changed.append(path)
    assert changed == []


@given(st.integers(0, 2**32))
def test_pictures_stay_as_they_are(seed: int) -> None:
    picture = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(seed).randbytes(20_000)
    assert redact_bytes(picture) is picture
    text = "data:image/png;base64," + base64.b64encode(picture).decode()
    assert redact(text) is text


@pytest.mark.parametrize(
    "piece",
    [
        "sk-",
        "sk-a-",
        "://",
        "://a:",
        "Bearer ",
        "Basic a1",
        "PRIVATE KEY-----\n",
        "PRIVATE KEY-----\\\\n",
        "\\\\\\n",
        "?key=",
        "AIza",
        "github_pat_",
        "-",
        "_",
        "@:",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    assert redact(redact(text)) == redact(text)
    redact("PRIVATE KEY-----" + text)
    redact("://x:" + text)


# ------------------------------------------------------------------------------------------ JSON

pieces = st.lists(
    st.sampled_from([*KEYS, SECRET, "Bearer ", "http://me:pass@host ", "\n", "\\", '"', "{", ",", " "])
    | words,
    max_size=6,
).map(" ".join)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | pieces,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(pieces, inner, max_size=3),
    max_leaves=10,
)


@given(documents)
def test_json_stays_json_with_clean_strings(value: Any) -> None:
    only(SECRET)
    for options in ({}, {"ensure_ascii": False, "indent": 2}, {"separators": (",", ":")}):
        text = content.json_text(value, **options)
        assert json.loads(text) == redact_value(value)
        assert not any(secret in text for secret in (*KEYS, SECRET))
        json.loads(redact(json.dumps(value, **options)))


def test_a_number_that_looks_like_a_secret_stays_a_number(tmp_path: Path) -> None:
    remember("1234567890")
    assert json.loads(content.json_text([1234567890, "1234567890"])) == [1234567890, HIDDEN]
    name = io.store_blob(tmp_path, b'{"seed": 1234567890, "key": "1234567890"}')
    assert json.loads((tmp_path / name).read_bytes()) == {"seed": 1234567890, "key": HIDDEN}


def test_a_secret_that_goes_on_an_escape_leaves_the_escape_whole() -> None:
    remember("nine-to-five")
    assert json.loads(redact(json.dumps("\nine-to-five"))) == "\n" + HIDDEN


# ------------------------------------------------------------------------ names that say secret


def test_variables_are_secret_by_their_names() -> None:
    environ = {
        "OPENAI_API_KEY": "value-one-1",
        "OAIC_SILICON_FLOW_API_KEY": "value-two-2",
        "HF_TOKEN": "value-three",
        "AWS_SECRET_ACCESS_KEY": "value/four+4",
        "DB_PASSWORD": "value-five-5 ",
        "GITHUB_PAT": "value-six-6",
        "MASTER_KEY": "value-seven",
        "OPENAI_BASE_URL": "https://me:value-eight@host/v1",
        "http_proxy": "http://value-nine@proxy",
        "ALL_PROXY": "me:value%2Dten@proxy:1",
        "TOKENIZERS_PARALLELISM": "open-one",
        "MAX_TOKENS": "11111111",
        "HF_TOKEN_PATH": "/open/two",
        "KEYBOARD": "open-three",
        "MONKEY": "open-four",
        "PATH": "/open/five:/usr/bin",
        "OLLAMA_HOST": "http://open-six:11434",
    }
    remember_environment(environ)
    shown = redact("\n".join(environ.values()) + " value-ten")
    assert "value" not in shown
    assert [word for word in environ.values() if word in shown] == list(environ.values())[10:]


def test_arguments_are_secret_by_their_names() -> None:
    typed = [
        "-o",
        "models.x.api_key=value-one-1",
        "--api_key=value-two-2",
        "-omodels.y.api_key='value-three'",
        "models.w.api_key=value-four.x=value-four",
        "models.z.api_key=env:OPEN_NAME",
        "models.z.api_key=${OPEN_OTHER}",
        "models.z.base_url=http://open-host",
        "budget.tokens=11111111",
        "seed=12345678",
    ]
    remember_arguments(typed)
    shown = " ".join(redact(part) for part in typed)
    assert "value" not in shown
    assert shown.count(HIDDEN) == 4
    assert all(part in shown for part in typed[5:])


# ----------------------------------------------------------------------------------------- sinks


def test_files_hold_no_secret_and_pictures_are_left_alone(tmp_path: Path) -> None:
    remember(SECRET)
    text = f"key {SECRET}\n"
    written = io.replace(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_bytes() == written == f"key {HIDDEN}\n".encode()
    io.replace(tmp_path / "b.txt", text.encode())
    io.replace_json(tmp_path / "c.json", {"a": [text], SECRET: 1})
    picture = b"\x89PNG\r\n\x1a\n\0\0" + SECRET.encode()
    assert io.replace(tmp_path / "d.png", picture) is picture
    assert (tmp_path / "b.txt").read_text() == f"key {HIDDEN}\n"
    assert json.loads((tmp_path / "c.json").read_text()) == {"a": [f"key {HIDDEN}\n"], HIDDEN: 1}
    assert (tmp_path / "d.png").read_bytes() == picture


@pytest.mark.parametrize("body", [SECRET, json.dumps({"z": SECRET, "a": 1.50, "ü": "ß"})])
def test_a_blob_is_named_by_what_is_in_it(tmp_path: Path, body: str) -> None:
    remember(SECRET)
    name = io.store_blob(tmp_path, body.encode())
    stored = (tmp_path / name).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == name
    assert SECRET.encode() not in stored
    assert io.store_blob(tmp_path, body.encode()) == name
    if body != SECRET:
        assert json.loads(stored) == {"z": HIDDEN, "a": 1.5, "ü": "ß"}
    other = io.store_blob(tmp_path, b"nothing to hide")
    assert (tmp_path / other).read_bytes() == b"nothing to hide"


@pytest.mark.parametrize("size", [10, journal.MAX_BODY])
def test_a_record_holds_no_secret_and_its_checksum_fits(tmp_path: Path, size: int) -> None:
    remember(SECRET)
    heard: list[Any] = []
    log = Journal(tmp_path)
    log.listeners.append(heard.append)
    data = {"text": f"{SECRET}\n" * size, SECRET: [f'"{SECRET}"'], "n": float("nan"), "ü": "ß"}
    event = log.emit("step", data)
    log.close()
    (read,), _ = journal.read(tmp_path / "events.jsonl")
    assert read == event == heard[0] == log.events[0]
    assert read.data == {"text": f"{HIDDEN}\n" * size, HIDDEN: [f'"{HIDDEN}"'], "n": None, "ü": "ß"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in path.read_bytes() for path in files)


def test_log_lines_and_their_tracebacks_hold_no_secret() -> None:
    remember(SECRET)
    try:
        raise RuntimeError(f"no {SECRET}")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "at %s", (SECRET,), sys.exc_info())
    line = CleanFormatter("%(message)s").format(record)
    assert line.startswith(f"at {HIDDEN}\nTraceback")
    assert SECRET not in line


def test_a_failed_command_repeats_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    typed = ["-o", "models.x.api_key=typed-secret"]
    try:
        raise UsageError(f"bad {SECRET}", hint="not typed-secret", where=SECRET)
    except UsageError as error:
        assert report(error, debug=True, as_json=True, arguments=typed) == 2
    shown = capsys.readouterr()
    assert "Traceback" in shown.err and HIDDEN in shown.out
    for text in (shown.out, shown.err):
        assert SECRET not in text and "typed-secret" not in text


LAST_WORDS = """
import logging, threading
from corerun.redaction import remember
from corerun.redaction.logs import clean_last_words
remember("plain-own-key-17")
clean_last_words()
def fail():
    raise RuntimeError("thread plain-own-key-17")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
logging.getLogger("anything").warning("line plain-own-key-17")
raise RuntimeError("end plain-own-key-17")
"""


def test_last_words_of_a_process_hold_no_secret() -> None:
    done = subprocess.run([sys.executable, "-c", LAST_WORDS], capture_output=True, text=True)
    assert done.returncode == 1
    for word in ("thread", "line", "end"):
        assert f"{word} {HIDDEN}" in done.stderr
    # The source line that Python quotes is the program's own text.
    assert SECRET not in "".join(line for line in done.stderr.splitlines() if "raise" not in line)
