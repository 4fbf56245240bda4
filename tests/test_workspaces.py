"""What programs get and leave: environment, artifacts, streams, removal."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corerun.errors import UsageError
from corerun.execution.collect import collect, escaped, remove_tree
from corerun.execution.environment import program_environment
from corerun.execution.streams import Stream
from corerun.interfaces import ExecRequest, Limits

LIMITS = Limits(file_mb=1)


def paths(folder: Path, *globs: str) -> list[str]:
    return [item["path"] for item in collect(str(folder), globs, LIMITS).files]


def skipped(folder: Path, *globs: str) -> dict[str, str]:
    return {item["path"]: item["why"] for item in collect(str(folder), globs, LIMITS).skipped}


def test_globs(tmp_path: Path) -> None:
    for name in ("a.png", "b.txt", "sub/c.png", "sub/deep/d.png", ".home/e.png", ".tmp/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert paths(tmp_path, "*.png") == ["a.png"]
    assert paths(tmp_path, "./sub/*.png") == ["sub/c.png"]
    assert paths(tmp_path, "*/*") == ["sub/c.png"]
    assert paths(tmp_path, "**/*.png") == ["a.png", "sub/c.png", "sub/deep/d.png"]
    assert paths(tmp_path, "sub/**") == ["sub/c.png", "sub/deep/d.png"]
    assert paths(tmp_path, "[ab].*", "a*") == ["a.png", "b.txt"]
    assert paths(tmp_path) == []
    assert paths(tmp_path / "absent", "*") == []


@given(
    name=st.text("ab.", min_size=1, max_size=6),
    glob=st.text("ab.*?[]!", min_size=1, max_size=6).filter(lambda text: text != "**"),
)
@settings(max_examples=200, deadline=None)
def test_one_part_matches_as_fnmatch_does(
    tmp_path_factory: pytest.TempPathFactory, name: str, glob: str
) -> None:
    if name in (".", ".."):
        return
    folder = tmp_path_factory.mktemp("glob")
    (folder / name).write_text("")
    assert bool(paths(folder, glob)) == fnmatch.fnmatchcase(name, glob)


def test_only_plain_files_are_taken(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("outside")
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "good").write_text("ok")
    (folder / "link").symlink_to(secret)
    (folder / "folder").symlink_to(tmp_path)
    os.link(secret, folder / "hard")
    os.mkfifo(folder / "fifo")
    (folder / "suid").write_text("")
    (folder / "suid").chmod(0o4755)
    (folder / "big").write_bytes(b"x" * (2**20 + 1))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        found = collect(str(folder), ["**"], LIMITS)
    assert found.files == [{"path": "good", "size": 2, "sha256": hashlib.sha256(b"ok").hexdigest()}]
    assert {item["path"]: item["why"] for item in found.skipped} == {
        "link": "symbolic link",
        "folder": "symbolic link",
        "hard": "hard link",
        "fifo": "no regular file",
        "socket": "no regular file",
        "suid": "setuid or setgid",
        "big": "larger than 1 MB",
    }


def test_hostile_names_are_replaced(tmp_path: Path) -> None:
    hostile = (
        b"evil\n\xe2\x80\xaename.png",
        b"-rf",
        b"bad\xff.a/b",
        b"sub/\x1b]0;x\x07.npy",
        b"-x/y",
        b"s\np/-z",
    )
    for name in (*hostile, b"artifact_1", b"sub/plain"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_text(name.decode("latin-1"))
    found = collect(str(tmp_path), ["**"], LIMITS)
    assert {item["path"]: item.get("name") for item in found.files} == {
        "artifact_1": None,
        "artifact_2": "-rf",
        "artifact_3": "-x/y",
        "artifact_4": "bad\\udcff.a/b",
        "artifact_5.png": "evil\\n\\u202ename.png",
        "artifact_6": "s\\np/-z",
        "sub/artifact_7.npy": "sub/\\x1b]0;x\\x07.npy",
        "sub/plain": None,
    }
    assert found.skipped == []
    for item in found.files:
        assert hashlib.sha256((tmp_path / item["path"]).read_bytes()).hexdigest() == item["sha256"]
    assert (tmp_path / "artifact_3").read_text() == "-x/y"


def test_depth_and_count_are_capped(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*(["d"] * 70))
    deep.mkdir(parents=True)
    (deep / "f").write_text("")
    assert list(skipped(tmp_path, "**").values()) == ["deeper than 64 folders"]
    many = tmp_path / "many"
    many.mkdir()
    for number in range(10):
        (many / f"{number}").write_text("")
    found = collect(str(many), ["*"], Limits(files=5))
    assert [item["path"] for item in found.files] == ["0", "1", "2", "3", "4"]
    assert found.skipped == [{"path": "5", "why": "this and all after it: more than 5 entries"}]


def test_collecting_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/f").write_text("")
    before = len(os.listdir("/proc/self/fd"))
    collect(str(tmp_path), ["**"], Limits(files=2))
    collect(str(tmp_path), ["**"], LIMITS)
    assert len(os.listdir("/proc/self/fd")) == before


@given(st.text())
def test_escaped_names_are_printable_and_plain_ones_unchanged(text: str) -> None:
    assert escaped(text).isprintable()
    assert not text.isprintable() or escaped(text) == text


def test_a_very_deep_tree_with_shut_folders_goes(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for number in range(1500):
        os.mkdir("deep", dir_fd=descriptor)
        inner = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        if number % 300 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
            os.symlink("/etc", "link", dir_fd=inner)
            os.mkdir("0", dir_fd=inner)
            os.chmod("deep", 0, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    (top / "1").mkdir()
    assert remove_tree(str(top))
    assert not top.exists()
    assert Path("/etc/passwd").exists()


def test_removing_a_link_a_file_and_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("")
    (tmp_path / "link").symlink_to(kept)
    assert remove_tree(str(tmp_path / "link"))
    assert remove_tree(str(tmp_path / "absent"))
    assert (kept / "file").exists()
    assert remove_tree(str(kept / "file"))
    assert list(kept.iterdir()) == []


# --------------------------------------------------------------------------------- environment


def environment(base: dict[str, str], pass_env: tuple[str, ...] = (), **fields: Any) -> dict[str, str]:
    return program_environment(ExecRequest(**fields), workspace="/w", base=base, pass_env=pass_env)


def test_the_environment_is_an_allow_list() -> None:
    base = {"LANG": "de_DE.UTF-8", "HOME": "/home/me", "PATH": "/evil", "MINE": "1", "OTHER": "2"}
    made = environment(
        base, ("MINE", "ABSENT"), env={"EXTRA": "3"}, python="/opt/py/bin/python", gpus=("GPU-1",)
    )
    assert made["PATH"] == "/opt/py/bin:/usr/local/bin:/usr/bin:/bin"
    assert (made["HOME"], made["TMPDIR"], made["LANG"]) == ("/w/.home", "/w/.tmp", "de_DE.UTF-8")
    assert (made["MINE"], made["EXTRA"], made["CUDA_VISIBLE_DEVICES"]) == ("1", "3", "GPU-1")
    assert not {"OTHER", "ABSENT", "OMP_NUM_THREADS"} & set(made)
    assert environment({})["CUDA_VISIBLE_DEVICES"] == ""
    assert environment({}, python="python3")["PATH"] == "/usr/local/bin:/usr/bin:/bin"


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY",
        "openai_api_key",
        "MY_SECRET_THING",
        "DB_PASSWORD",
        "HF_TOKEN",
        "AWS_REGION",
        "WANDB_MODE",
        "SSH_AUTH_SOCK",
        "PYTHONPATH",
        "GIT_DIR",
        "CORERUN_EXEC_ID",
        "",
        "A=B",
    ],
)
def test_names_that_never_pass(name: str) -> None:
    with pytest.raises(UsageError):
        environment({}, env={name: "x"})
    with pytest.raises(UsageError):
        environment({name: "x"}, (name,))


def test_a_value_with_a_nul_byte_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        environment({}, env={"X": "a\0b"})


# -------------------------------------------------------------------------------------- streams


@given(
    pieces=st.lists(st.binary(max_size=3000), max_size=12),
    head=st.integers(0, 2),
    tail=st.integers(0, 2),
    store=st.integers(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_head_tail_and_store_fit_the_whole(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], head: int, tail: int, store: int
) -> None:
    path = tmp_path_factory.mktemp("stream") / "out"
    stream = Stream(str(path), Limits(stdout_head_kb=head, stdout_tail_kb=tail, stdout_store_mb=store))
    for piece in pieces:
        stream.feed(piece)
    stream.close()
    whole = b"".join(pieces)
    stored = path.read_bytes()
    assert stored == whole[: store * 2**20]
    assert stream.sha256 == hashlib.sha256(stored).hexdigest()
    assert stream.total == len(whole)
    assert stream.cut == max(0, len(whole) - (head + tail) * 1024)
    if stream.cut:
        first = whole[: head * 1024].decode("utf-8", "backslashreplace")
        last = whole[len(whole) - tail * 1024 :].decode("utf-8", "backslashreplace")
        assert stream.text == f"{first}\n[... {stream.cut} bytes cut ...]\n{last}"
    else:
        assert stream.text == whole.decode("utf-8", "backslashreplace")
