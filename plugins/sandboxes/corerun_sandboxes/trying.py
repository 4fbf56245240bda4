"""Finds out what a sandbox really keeps a program from, by a program that tries it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from corerun.execution import cgroups, probing, processes
from corerun.execution.enclosure import INSIDE, Enclose
from corerun.interfaces import Json, Limits

_SECRET = "canary"
_PIDS = 12
_MORE_THREADS = 20

_ATTEMPTS = """
import resource, socket, threading
found = {}
def attempt(name, act):
    try:
        found[name] = act() is not False
    except Exception:
        found[name] = False
def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as client:
        client.settimeout(1)
        client.connect(address)
        client.send(b"x")
def overwrite():
    with open(facts["file"], "a") as file:
        file.write("x")
def start_threads():
    end = threading.Event()
    started = 0
    try:
        for _ in range(facts["threads"]):
            threading.Thread(target=end.wait, daemon=True).start()
            started += 1
    finally:
        end.set()
def raise_limit():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
same_processes = os.readlink("/proc/self/ns/pid") == facts["processes"]
attempt("read", lambda: open(facts["file"]).read())
attempt("list", lambda: os.listdir(facts["folder"]))
attempt("write", overwrite)
attempt("create", lambda: open(os.path.join(facts["folder"], "new"), "x"))
attempt("change", lambda: os.chmod(facts["file"], 0o640))
attempt("remove", lambda: os.unlink(facts["other"]))
attempt("system", lambda: open(facts["system"], "r+b"))
attempt("tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", facts["tcp"])))
attempt("udp", lambda: connect(socket.AF_INET, ("127.0.0.1", facts["udp"]), socket.SOCK_DGRAM))
attempt("unix", lambda: connect(socket.AF_UNIX, facts["unix"]))
attempt("abstract", lambda: connect(socket.AF_UNIX, facts["abstract"]))
attempt("signal", lambda: same_processes and os.kill(facts["pid"], 0))
attempt("peek", lambda: same_processes and open(f"/proc/{facts['pid']}/environ", "rb").read())
attempt("limit", raise_limit)
attempt("threads", start_threads)
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What a sandbox guarantees, or why it doesn't work."""

    failure: str = ""
    guarantees: frozenset[str] = frozenset()


def try_sandbox(enclose: Enclose) -> Found:
    """Run the attempts in a sandbox; what was refused is guaranteed."""
    with _Outside() as outside:
        code = f"facts = {json.dumps(outside.facts)}{_ATTEMPTS}"
        tried = probing.try_program(enclose, code, Limits(pids=_PIDS))
        if tried.failure or tried.found is None:
            return Found(failure=tried.failure)
        done = {name for name, success in tried.found.items() if success}
        guarantees = set(cgroups.guarantees())
        if tried.clean_environment:
            guarantees.add("env")
        if processes.become_subreaper():
            guarantees.add("tree_kill")
        if not done & {"read", "list"}:
            guarantees.add("fs_read")
        if outside.untouched() and not done & {"write", "create", "remove", "system"}:
            # All that is written lies in the workspace, which is watched, or in memory of limited size.
            guarantees |= {"fs_write", "disk_total"}
        # A packet can be sent in a network of one's own too: what counts is that none came.
        if "tcp" not in done and outside.silent():
            guarantees.add("net")
        if not done & {"unix", "abstract"}:
            guarantees.add("unix_sockets")
        if not done & {"signal", "peek"}:
            guarantees.add("proc_isolation")
        if "limit" not in done:
            guarantees |= {"file_size", "mem_proc"}
        elif "mem_total" in guarantees:
            guarantees.add("mem_proc")
        if "threads" not in done:
            guarantees.add("pids")
        return Found(guarantees=frozenset(guarantees))


class _Outside(contextlib.ExitStack):
    """What a program must not reach: files, sockets and a process that are not its own."""

    def __enter__(self) -> _Outside:
        folder = tempfile.mkdtemp(prefix="corerun-outside-")
        self.callback(shutil.rmtree, folder)
        self._files = [os.path.join(folder, name) for name in ("file", "other")]
        for path in self._files:
            with open(path, "w") as file:
                file.write(_SECRET)
            os.chmod(path, 0o600)
        path = os.path.join(folder, "socket")
        tcp = self._socket(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        self._udp = self._socket(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        self._socket(socket.AF_UNIX, socket.SOCK_STREAM, path)
        abstract = self._socket(socket.AF_UNIX, socket.SOCK_STREAM, "")
        self.facts: Mapping[str, Json] = {
            "folder": folder,
            "file": self._files[0],
            "other": self._files[1],
            "system": os.path.join(INSIDE, "start.py"),
            "tcp": tcp.getsockname()[1],
            "udp": self._udp.getsockname()[1],
            "unix": path,
            "abstract": abstract.getsockname().decode("latin-1"),
            "processes": os.readlink("/proc/self/ns/pid"),
            "pid": os.getpid(),
            "threads": _PIDS + _MORE_THREADS,
        }
        self._before = self._state()
        return self

    def _socket(self, family: int, kind: int, address: tuple[str, int] | str) -> socket.socket:
        one = self.enter_context(socket.socket(family, kind))
        one.bind(address)
        if kind == socket.SOCK_STREAM:
            one.listen()
        return one

    def _state(self) -> list[object]:
        found: list[object] = [sorted(os.listdir(os.path.dirname(self._files[0])))]
        for path in self._files:
            with contextlib.suppress(OSError), open(path) as file:
                found += (file.read(), os.fstat(file.fileno()).st_mode)
        return found

    def untouched(self) -> bool:
        """Whether the files are as they were."""
        return self._state() == self._before

    def silent(self) -> bool:
        """Whether no packet has come."""
        self._udp.setblocking(False)
        try:
            self._udp.recv(1)
        except BlockingIOError:
            return True
        return False
