"""A docker engine without containers: the command's words are recorded, programs run as plain processes.

Run by path: ``docker_cli.py FOLDER serve`` is the engine, ``docker_cli.py FOLDER WORD...`` the command.
Files in FOLDER: ``log`` (a JSON list of words a line), ``socket``, and ``oom`` if the test wants
containers to have run out of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

MARK = "FAKE_CONTAINER"
LOG, SOCKET, OOM = "log", "socket", "oom"
_TAKES_VALUE = {"--format", "--filter", "--workdir", "--env", "--name", "--label", "--entrypoint"} | {
    *("--cap-drop", "--security-opt", "--user", "--ipc", "--ulimit", "--network", "--pids-limit", "--memory"),
    *("--memory-swap", "--tmpfs", "--shm-size", "--mount", "--gpus"),
}


class Engine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.containers: dict[str, dict[str, Any]] = {}
        self.clients: set[int] = set()
        self.lock = threading.Lock()

    def serve(self) -> None:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.folder / "starting"))
        listener.listen(64)
        os.rename(self.folder / "starting", self.folder / SOCKET)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            request = json.loads(data)
            with self.lock, open(self.folder / LOG, "a") as log:
                log.write(json.dumps(request["words"]) + "\n")
            try:
                reply = self._do(request, descriptors)
            except Exception as error:
                reply = {"code": 1, "err": f"Error response from daemon: {error}\n"}
            for descriptor in descriptors:
                os.close(descriptor)
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(reply).encode())

    def _do(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        verb, options, rest = _parsed(request["words"])
        if verb == "version":
            return {"code": 0, "out": "99.1\n"}
        if verb == "run":
            if rest[0] == "no/such:image":
                return {"code": 125, "err": "Unable to find image 'no/such:image' locally\n"}
            self.containers[options["--name"][0]] = options
            return {"code": 0, "out": "0123456789ab\n"}
        if verb == "ps":
            rows = [(name, made["--label"][0].partition("=")[2]) for name, made in self.containers.items()]
            return {"code": 0, "out": "".join(f"{name} {label}\n" for name, label in rows)}
        if verb == "rm":
            for name in rest:
                self.containers.pop(name, None)
                self._kill(name)
            return {"code": 0}
        if rest[0] not in self.containers:
            return {"code": 1, "err": f"Error response from daemon: No such container: {rest[0]}\n"}
        if verb == "inspect":
            return {"code": 0, "out": "true\n" if (self.folder / OOM).exists() else "false\n"}
        if verb == "top":
            rows = [f"{pid} {_command_line(pid)}\n" for pid in _members(rest[0])]
            return {"code": 0, "out": "PID COMMAND\n1 docker-init -- sleep infinity\n" + "".join(rows)}
        if verb == "exec":
            return {"code": self._execute(options, rest, request["environment"], descriptors)}
        raise ValueError(f"unknown command {verb}")

    def _execute(self, options: Any, rest: list[str], client: dict[str, str], descriptors: list[int]) -> int:
        environment = {MARK: rest[0]}
        for pair in options.get("--env", ()):
            name, given, value = pair.partition("=")
            environment[name] = value if given else client[name]
        process = subprocess.Popen(
            [sys.executable if word == "python3" else word for word in rest[1:]],
            stdin=descriptors[0] if "--interactive" in options else subprocess.DEVNULL,
            stdout=descriptors[1],
            stderr=descriptors[2],
            env=environment,
            cwd=options["--workdir"][0],
            start_new_session=True,
        )
        self.clients.add(process.pid)
        code = process.wait()
        return code if code >= 0 else 128 - code

    def _kill(self, name: str) -> None:
        while members := _members(name):
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                if pid not in self.clients:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, 0)


def _parsed(words: list[str]) -> tuple[str, dict[str, list[str]], list[str]]:
    verb, rest = words[0], list(words[1:])
    if verb == "top":
        return verb, {}, rest
    options: dict[str, list[str]] = {}
    while rest and rest[0].startswith("-"):
        name = rest.pop(0)
        options.setdefault(name, []).append(rest.pop(0) if name in _TAKES_VALUE else "")
    return verb, options, rest


def _members(name: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            mark = f"{MARK}={name}".encode()
            if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip() or "?"
    except OSError:
        return "?"


def ask(folder: Path, words: list[str]) -> int:
    """The command: hand words, environment and standard descriptors to the engine."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(folder / SOCKET))
        except OSError:
            print("Cannot connect to the Docker daemon. Is the docker daemon running?", file=sys.stderr)
            return 1
        request = {"words": words, "environment": dict(os.environ)}
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        reply = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    sys.stdout.write(reply.get("out", ""))
    sys.stderr.write(reply.get("err", ""))
    return int(reply["code"])


if __name__ == "__main__":
    if sys.argv[2:] == ["serve"]:
        Engine(Path(sys.argv[1])).serve()
    else:
        sys.exit(ask(Path(sys.argv[1]), sys.argv[2:]))
