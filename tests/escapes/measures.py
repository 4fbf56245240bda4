"""What the host's kernel says of a program's processes while they live."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def processes(pids: list[int]) -> float:
    return len(pids)


def threads(pids: list[int]) -> float:
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)


def memory_mb(pids: list[int]) -> float:
    """Resident memory of all together; the programs share next to none of it."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * PAGE / 1e6


def descriptors(pids: list[int]) -> float:
    return max(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def unnamed_files_mb(pids: list[int]) -> float:
    """Memory in files that have no name: no process's resident memory counts it."""
    blocks = {}
    for pid in pids:
        for entry, target in links(pid):
            if target.startswith("/memfd:"):
                status = os.stat(entry)
                blocks[status.st_ino] = status.st_blocks
    return sum(blocks.values()) * 512 / 1e6


def shared_memory_mb(pids: list[int]) -> float:
    """Memory in the files of the program's `/dev/shm`, as this program sees it."""
    folder = Path(f"/proc/{pids[0]}/root/dev/shm")
    name = Path(f"/proc/{pids[0]}/comm").read_text().strip()
    return sum(path.stat().st_blocks for path in folder.glob(f"{name}*")) * 512 / 1e6


def holds_descriptor(kind: str) -> Callable[[list[int]], float]:
    """How many open descriptors stand for ``kind``, as in ``anon_inode:[io_uring]``."""
    return lambda pids: sum(kind in target for pid in pids for _, target in links(pid))


def user_namespaces(pids: list[int]) -> float:
    return len({os.readlink(f"/proc/{pid}/ns/user") for pid in pids})


def mounts_of_its_own(pids: list[int]) -> float:
    """How many file systems are mounted, in any of the processes, under the program's own name."""
    name = Path(f"/proc/{pids[0]}/comm").read_text().strip()
    return sum(f" {name} " in Path(f"/proc/{pid}/mountinfo").read_text() for pid in pids)


def fixed_addresses(pids: list[int]) -> float:
    return sum(int(Path(f"/proc/{pid}/personality").read_text(), 16) != 0 for pid in pids)


def may_dump_core(pids: list[int]) -> float:
    """How many processes may write a core file of any size."""
    allowed = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
            if line.startswith("Max core file size"):
                allowed += line.split()[4] != "0"
    return allowed


def in_named_cgroup(pids: list[int]) -> float:
    name = Path(f"/proc/{pids[0]}/comm").read_text().strip()
    return sum(name in Path(f"/proc/{pid}/cgroup").read_text() for pid in pids)


def links(pid: int) -> Iterator[tuple[str, str]]:
    """Path and target of each open descriptor of a process."""
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            yield f"{folder}/{name}", os.readlink(f"{folder}/{name}")


def sizes(folder: Path) -> list[int]:
    """Sizes of the regular files under ``folder``, in bytes."""
    found = []
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found.append(os.lstat(os.path.join(top, name)).st_size)
    return found
