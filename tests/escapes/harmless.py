"""Programs that only work: a sandbox that breaks them holds too much."""

from __future__ import annotations

from tests.support.containment import Escape, Trace, escape

ESCAPES: list[Escape] = []


def _proves(trace: Trace) -> bool:
    proof = trace.place.workspace / "proof.txt"
    return not (trace.last["status"] == "ok" and proof.is_file() and proof.read_text() == "42")


@escape(evidence=_proves, into=ESCAPES)
def write_and_read_in_workspace() -> None:
    import os
    import pathlib
    import shutil
    import tempfile

    os.makedirs("working/deep", exist_ok=True)
    with open("working/deep/data.txt", "w") as file:
        file.write("42")
    os.symlink("working/deep/data.txt", "link.txt")
    os.chmod("working/deep/data.txt", 0o600)
    os.utime("working/deep/data.txt")
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write(pathlib.Path("link.txt").read_text())
    shutil.move(file.name, "proof.txt")


@escape(evidence=_proves, into=ESCAPES)
def run_children_and_signal_them() -> None:
    import os
    import signal
    import subprocess

    child = subprocess.Popen(["/bin/sleep", "60"])
    child.send_signal(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert (
        subprocess.run(["/bin/sh", "-c", "kill -0 $$ && echo 40"], capture_output=True, text=True).stdout
        == "40\n"
    )
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, b"42")
        os._exit(0)
    os.wait()
    with open("proof.txt", "w") as file:
        file.write(os.read(read, 10).decode())


@escape(evidence=_proves, into=ESCAPES)
def run_an_event_loop_with_threads() -> None:
    import asyncio

    async def work() -> int:
        parts = [asyncio.to_thread(lambda part: part * 2, part) for part in (1, 20)]
        child = await asyncio.create_subprocess_exec("/bin/true")
        await child.wait()
        return sum(await asyncio.gather(*parts))

    with open("proof.txt", "w") as file:
        file.write(str(asyncio.run(work())))


@escape(evidence=_proves, into=ESCAPES)
def compute_with_numpy() -> None:
    import numpy

    matrix = numpy.random.default_rng(0).normal(size=(60, 60))
    inverse = numpy.linalg.inv(matrix)
    with open("proof.txt", "w") as file:
        file.write(str(round(float(numpy.trace(matrix @ inverse))) - 18))


@escape(evidence=_proves, into=ESCAPES, limits={"pids": 64})
def fork_half_of_what_is_allowed() -> None:
    # However many processes the same account has elsewhere.
    import os

    children = 0
    for _ in range(30):
        if os.fork() == 0:
            os._exit(0)
        children += 1
    for _ in range(children):
        os.wait()
    with open("proof.txt", "w") as file:
        file.write(str(children + 12))


@escape(evidence=_proves, into=ESCAPES, landlock_gap=True)
def talk_to_itself() -> None:
    # Only where the loopback inside is the program's own.
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        connection, _ = server.accept()
        client.sendall(b"42")
        with open("proof.txt", "w") as file:
            file.write(connection.recv(10).decode())


@escape(evidence=_proves, into=ESCAPES, landlock_gap=True)
def share_work_among_processes() -> None:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        parts = pool.map(int, ["20", "22"])
    with open("proof.txt", "w") as file:
        file.write(str(sum(parts)))


@escape(evidence=_proves, into=ESCAPES)
def tell_what_is_imported() -> None:
    import sys

    print(sorted(sys.modules))
    with open("proof.txt", "w") as file:
        file.write("42")
