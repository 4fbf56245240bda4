"""Programs that take more of the machine than they were given."""

from __future__ import annotations

from pathlib import Path

from tests.escapes import measures
from tests.support.containment import Escape, escape, holds, leaves, reaches, returns

ESCAPES: list[Escape] = []
FEW = {"pids": 24, "mem_mb": 2000}
LITTLE = {"mem_mb": 100}


def came_to_the_end(workspace: Path) -> bool:
    """Whether the program went on at leisure with all that it took."""
    return (workspace / "came-to-the-end").exists()


@escape("pids", evidence=reaches(24 + 3), into=ESCAPES, alone=True, limits=FEW, measure=measures.processes)
def flood_of_forks(token: str) -> None:
    import os
    import time

    for _ in range(100):
        try:
            if os.fork() == 0:
                time.sleep(1)
                os._exit(0)
        except OSError:
            break
    time.sleep(1)


@escape("pids", evidence=reaches(24 + 3), into=ESCAPES, alone=True, limits=FEW, measure=measures.threads)
def flood_of_threads(token: str) -> None:
    import threading
    import time

    threading.stack_size(1 << 18)
    for _ in range(100):
        try:
            threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
        except RuntimeError:
            break
    time.sleep(1)


@escape("mem_proc", evidence=holds(250), into=ESCAPES, limits=LITTLE, measure=measures.memory_mb)
def much_memory_in_one_process(token: str) -> None:
    import time

    kept = []
    for _ in range(15):
        kept.append(bytearray(b"x") * (20 << 20))
        time.sleep(0.02)
    time.sleep(1.5)


@escape("mem_proc", evidence=holds(250), into=ESCAPES, limits=LITTLE, measure=measures.memory_mb)
def much_memory_by_mapping(token: str) -> None:
    import mmap
    import time

    kept = []
    for _ in range(15):
        kept.append(mmap.mmap(-1, 20 << 20))
        kept[-1].write(b"x" * (20 << 20))
        time.sleep(0.02)
    time.sleep(1.5)


@escape("mem_total", evidence=holds(250), into=ESCAPES, limits=LITTLE, measure=measures.memory_mb)
def much_memory_in_many_processes(token: str) -> None:
    import os
    import time

    for _ in range(6):
        if os.fork() == 0:
            kept = []
            for _ in range(6):
                kept.append(bytearray(b"x") * (8 << 20))
                time.sleep(0.02)
            time.sleep(1.5)
            os._exit(0)
    time.sleep(2)


@escape(
    "mem_total",
    "fs_write",
    evidence=holds(250),
    into=ESCAPES,
    limits={"mem_mb": 100, "file_mb": 1000, "disk_mb": 2000},
    measure=measures.shared_memory_mb,
)
def much_memory_in_shared_files(token: str) -> None:
    import time

    for number in range(15):
        with open(f"/dev/shm/{token}-{number}", "wb") as file:
            file.write(bytes(20 << 20))
        time.sleep(0.02)
    time.sleep(1.5)


@escape(
    "mem_total",
    evidence=holds(250),
    into=ESCAPES,
    limits={"mem_mb": 100, "file_mb": 1000},
    measure=measures.unnamed_files_mb,
)
def much_memory_in_unnamed_files(token: str) -> None:
    # Memory of no process: written, never mapped.
    import os
    import time

    for _ in range(15):
        os.write(os.memfd_create("kept"), bytes(20 << 20))
        time.sleep(0.02)
    time.sleep(1.5)


@escape(
    "file_size",
    evidence=leaves(lambda workspace: any(size > 8 << 20 for size in measures.sizes(workspace))),
    into=ESCAPES,
    limits={"file_mb": 8},
)
def one_huge_file() -> None:
    with open("huge.bin", "wb", 0) as file:
        for _ in range(24):
            file.write(bytes(1 << 20))


@escape(
    "disk_total",
    evidence=leaves(
        lambda workspace: came_to_the_end(workspace) and sum(measures.sizes(workspace)) > 100 << 20
    ),
    into=ESCAPES,
    limits={"disk_mb": 40, "file_mb": 8},
)
def much_disk_in_many_files() -> None:
    import time

    for number in range(40):
        with open(f"part-{number}.bin", "wb") as file:
            file.write(bytes(4 << 20))
    time.sleep(3)
    with open("came-to-the-end", "w"):
        pass


@escape(
    "disk_total",
    evidence=leaves(lambda workspace: came_to_the_end(workspace) and len(measures.sizes(workspace)) > 450),
    into=ESCAPES,
    limits={"files": 200},
)
def many_files() -> None:
    import os
    import time

    for folder in range(10):
        os.mkdir(f"folder-{folder}")
        for number in range(50):
            with open(f"folder-{folder}/{number}", "w"):
                pass
    time.sleep(5)
    with open("came-to-the-end", "w"):
        pass


@escape(evidence=reaches(80), into=ESCAPES, limits={"nofile": 64}, measure=measures.descriptors)
def flood_of_descriptors(token: str) -> None:
    import os
    import time

    for _ in range(400):
        try:
            os.open("/dev/null", os.O_RDONLY)
        except OSError:
            break
    time.sleep(1.5)


@escape(
    evidence=returns(lambda last: last["stored"] + len(last["stdout"]) > 6 << 20),
    into=ESCAPES,
    limits={"stdout_store_mb": 2},
)
def flood_of_output() -> None:
    import os

    for _ in range(40):
        for stream in (1, 2):
            os.write(stream, b"x" * (1 << 19))


@escape(evidence=returns(lambda last: len(str(last)) > 1 << 20), into=ESCAPES, limits={"stdout_store_mb": 64})
def flood_in_an_exception() -> None:
    raise ValueError("x" * (8 << 20))


@escape(evidence=reaches(0), into=ESCAPES, measure=measures.may_dump_core)
def ask_for_a_core_file(token: str) -> None:
    import resource
    import time

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    time.sleep(1.5)
