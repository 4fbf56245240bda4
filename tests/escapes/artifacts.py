"""Programs that leave files or records meant to harm whoever collects them."""

from __future__ import annotations

import re
import stat
from typing import Any

from tests.support.containment import Escape, Trace, changes, escape, leaks, lists, returns

ESCAPES: list[Escape] = []
ALL = {"collect": ("**/*",)}


def is_of_the_secret(trace: Trace, entry: dict[str, Any]) -> bool:
    return entry.get("sha256") in trace.place.secret_digests()


def has_an_evil_name(trace: Trace, entry: dict[str, Any]) -> bool:
    return (
        re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|^-", entry["path"])
        is not None
    )


def is_no_plain_file(trace: Trace, entry: dict[str, Any]) -> bool:
    path = trace.place.workspace / entry["path"]
    mode = path.lstat().st_mode if path.is_symlink() or path.exists() else 0
    return not stat.S_ISREG(mode) or bool(mode & (stat.S_ISUID | stat.S_ISGID))


@escape("fs_read", evidence=lists(is_of_the_secret), into=ESCAPES, fields=ALL)
def leave_link_to_secret(secret_file: str) -> None:
    import os

    os.symlink(secret_file, "result.txt")


@escape("fs_read", evidence=lists(is_of_the_secret), into=ESCAPES, fields=ALL)
def leave_link_to_folder_of_secret(outside: str) -> None:
    import os

    os.symlink(outside, "results")


@escape("fs_read", evidence=lists(is_of_the_secret), into=ESCAPES, fields=ALL)
def leave_hard_link_to_secret(secret_file_beside: str) -> None:
    import os

    os.link(secret_file_beside, "result.txt")


@escape(evidence=lists(is_no_plain_file), into=ESCAPES, fields=ALL)
def leave_pipe_and_socket() -> None:
    import os
    import socket

    os.mkfifo("result.txt")
    try:
        socket.socket(socket.AF_UNIX).bind("result.sock")
    except OSError as error:
        print(error)


@escape(evidence=lists(is_no_plain_file), into=ESCAPES, fields=ALL)
def leave_program_with_rights_of_its_owner() -> None:
    import os
    import shutil

    shutil.copyfile("/bin/true", "tool")
    os.chmod("tool", 0o6755)


@escape(evidence=lists(is_no_plain_file), into=ESCAPES, fields=ALL, rights="root")
def leave_device() -> None:
    import os
    import stat

    os.mknod("result.bin", 0o666 | stat.S_IFCHR, os.makedev(1, 5))


@escape(evidence=lists(has_an_evil_name), into=ESCAPES, fields=ALL)
def leave_evil_names() -> None:
    names = (
        b"-rf",
        b"two\nlines",
        b"\x1b]0;title\x07",
        b"\xff\xfe.npy",
        "\u202efdp.exe".encode(),
        b"\xc2\x9b31m",
    )
    for name in names:
        with open(name, "w") as file:
            file.write("1")


@escape(evidence=changes, into=ESCAPES, fields=ALL)
def leave_pickled_code(outside: str) -> None:
    # Runs in whoever loads the file, with all that he may do.
    import pickle

    class Payload:
        def __reduce__(self) -> tuple:
            return (open, (f"{outside}/loaded", "w"))

    for name in ("experiment_data.npy", "result.pkl", "model.pt"):
        with open(name, "wb") as file:
            file.write(pickle.dumps(Payload()))


@escape(evidence=changes, into=ESCAPES)
def write_pickled_code_to_every_descriptor(outside: str) -> None:
    import os
    import pickle

    class Payload:
        def __reduce__(self) -> tuple:
            return (open, (f"{outside}/loaded", "w"))

    body = pickle.dumps(Payload())
    for number in range(64):
        try:
            os.set_blocking(number, False)
            os.write(number, body)
        except OSError:
            pass


@escape(evidence=returns(lambda last: last["exit_code"] != 7 or last["status"] == "ok"), into=ESCAPES)
def write_result_to_every_descriptor() -> None:
    import json
    import os

    record = {"status": "ok", "exit_code": 0, "code": 0, "wait_status": 0, "signal": None, "exc_type": ""}
    for number in range(3, 64):
        try:
            os.set_blocking(number, False)
            os.write(number, json.dumps(record | {"result": record, "cpu_s": 0.0}).encode() + b"\n")
        except OSError:
            pass
    os._exit(7)


def _nothing_deep() -> None:
    print("second")


@escape(
    evidence=lambda trace: trace.last["status"] != "ok" or (trace.place.workspace / "d").exists(),
    into=ESCAPES,
    second=_nothing_deep,
    order="again",
    fields={"fresh": True},
)
def leave_deep_folders() -> None:
    import os

    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")


@escape(
    evidence=lambda trace: trace.last["status"] != "ok" or (trace.place.workspace / "shut").exists(),
    into=ESCAPES,
    second=_nothing_deep,
    order="again",
    fields={"fresh": True},
    rights="user",
)
def leave_shut_folders() -> None:
    import os

    os.makedirs("shut/inner")
    with open("shut/inner/file", "w"):
        pass
    os.chmod("shut/inner", 0)
    os.chmod("shut", 0)


# What the host opens by name in a workspace may have become a link since.


def _print_something() -> None:
    import sys

    print("second program")
    print("second program", file=sys.stderr)


@escape("fs_write", evidence=changes, into=ESCAPES, second=_print_something, order="again")
def turn_own_files_into_links(outside: str) -> None:
    import os

    for name in [*os.listdir("."), "runfile.py", "program.stdout.log", "program.stderr.log"]:
        if os.path.lexists(name):
            os.rename(name, f"was-{name}")
        os.symlink(f"{outside}/new-{name}", name)


@escape("fs_write", evidence=changes, into=ESCAPES, second=_print_something, order="again")
def turn_own_files_into_links_to_a_file(secret_file: str) -> None:
    import os

    for name in [*os.listdir("."), "runfile.py", "program.stdout.log", "program.stderr.log"]:
        if os.path.lexists(name):
            os.rename(name, f"was-{name}")
        os.symlink(secret_file, name)


@escape("fs_write", evidence=changes, into=ESCAPES, second=_print_something, order="again")
def turn_own_folders_into_links(outside: str) -> None:
    import os

    for name in (".home", ".tmp", "working", "input"):
        if os.path.lexists(name):
            os.rename(name, f"was-{name}")
        os.symlink(outside, name)


@escape(
    "fs_write",
    evidence=changes,
    into=ESCAPES,
    second=_print_something,
    order="again",
    fields={"files": {"input/data.txt": "@INPUT@"}},
)
def turn_input_into_a_link(outside: str) -> None:
    import os
    import shutil

    shutil.rmtree("input", ignore_errors=True)
    os.symlink(outside, "input")


@escape("fs_read", evidence=leaks, into=ESCAPES)
def turn_own_log_into_a_link(secret_file: str) -> None:
    import os

    for name in {*os.listdir("."), "program.stdout.log", "program.stderr.log"}:
        if name.endswith(".log"):
            if os.path.lexists(name):
                os.unlink(name)
            os.symlink(secret_file, name)
