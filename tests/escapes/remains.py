"""What the host shows of a program's doings: files, processes, objects of the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any


def snapshot(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        # A folder's own time and links tell of what is in it, which is listed anyway.
        shown = (status.st_mode, status.st_uid, status.st_gid)
        if stat.S_ISREG(status.st_mode):
            shown += (status.st_mtime_ns, path.read_bytes(), tuple(os.listxattr(path)))  # type: ignore[assignment]
        found[str(path)] = shown
    return found


def state_of(pid: int) -> tuple[Any, ...]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    score = Path(f"/proc/{pid}/oom_score_adj").read_text()
    return fields[0] in "tT", fields[16], score, Path(f"/proc/{pid}/limits").read_text()


def was_set(timer: int) -> bool:
    try:
        os.read(timer, 8)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


def kernel_objects(key: int) -> list[str]:
    found = []
    for kind in ("shm", "msg"):
        rows = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
        found += [kind for row in rows if int(row.split()[0]) == key]
    return found


def remove_kernel_objects(key: int) -> None:
    for kind in kernel_objects(key):
        flag = {"shm": "-M", "msg": "-Q"}[kind]
        subprocess.run(["ipcrm", flag, hex(key)], check=False, capture_output=True)


def end(pids: set[int]) -> None:
    """Ends what is left of the programs' own processes."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
