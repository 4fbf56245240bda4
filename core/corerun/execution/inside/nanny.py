"""The first process of a program's namespace: waits for the program and reports how it ended.

When it ends, the kernel ends everything else in the namespace.
"""

from __future__ import annotations

import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, NoReturn
else:
    # What the module signal is made of; itself it imports enum, which takes milliseconds.
    import _signal as signal

COMMAND_LINES = 5
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def watch(program: int, status: int) -> NoReturn:
    """Reap until ``program`` ends, count what it leaves behind, write that to ``status``, and end.

    The record is the wait status, the resources that the program and all it waited for have used (those
    of getrusage), and the command lines of up to five processes that are killed with the namespace.
    """
    while True:
        pid, code = os.wait()
        if pid == program:
            break
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    left, lines = _left_behind() if _has_children() else (0, [])
    record: dict[str, Any] = {
        "status": code,
        "usage": [*usage],
        "left": left,
        "lines": lines,
    }
    os.write(status, _as_json(record).encode())
    os._exit(0)


def _as_json(record: dict[str, Any]) -> str:
    if record["lines"]:
        import json

        return json.dumps(record)
    # Numbers and an empty list, which Python writes as JSON does.
    return repr(record).replace("'", '"')


def _has_children() -> bool:
    """Whether anything lives here still: what loses its parent becomes a child of this process."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _left_behind() -> tuple[int, list[str]]:
    """How many processes are in this namespace beside this one, and what some of them are."""
    # /proc may be that of an outer namespace: then the numbers are others, and most are not ours.
    own = os.readlink("/proc/self/ns/pid")
    me = os.readlink("/proc/self")
    count = 0
    lines: list[str] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or name == me:
            continue
        try:
            if os.readlink(f"/proc/{name}/ns/pid") != own:
                continue
            state, text = _facts(name)
        except OSError:
            continue
        if state not in "ZX":
            count += 1
            if len(lines) < COMMAND_LINES:
                lines.append(text)
    return count, lines


def _facts(pid: str) -> tuple[str, str]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        state = file.read().rpartition(b") ")[2][:1].decode()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4096)
    return state, one_line(words) or f"[pid {pid}]"


def one_line(words: bytes) -> str:
    """A command line as the kernel shows it, on one printable line of at most 200 characters."""
    text = words.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)[:200]


def ignore_stops() -> None:
    """What is sent to the program's group must not end the one who counts."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


def heed_stops() -> None:
    """Undo `ignore_stops`, in the program."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
