"""Runs programs under one account, by the command, by the API or with no sandbox; says what came back.

Jobs come as one JSON document on the command line's file, results go as JSON lines to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

Program = dict[str, Any]
AT_ONCE = 8
LONGEST = 90.0


async def by_api(program: Program, job: dict[str, Any]) -> dict[str, Any]:
    from corerun.execution.collect import remove_tree
    from corerun.execution.worker import program_spec, run_program
    from corerun.interfaces import ExecRequest, Limits

    fields = dict(program["fields"])
    fields["collect"] = tuple(fields.get("collect", ()))
    if fields.get("fresh"):
        # As a run does before it hands the request on.
        remove_tree(program["workspace"])
    request = ExecRequest(
        kind="python",
        code=program["code"],
        workspace=program["workspace"],
        limits=Limits(**program["limits"]),
        preload=job["preload"],
        **fields,
    )
    result: dict[str, Any] = await run_program(program_spec(request, job["target"]))
    logs = [result[name] for name in ("stdout_path", "stderr_path") if result[name]]
    result["stored"] = sum(os.lstat(path).st_size for path in logs if os.path.lexists(path))
    result["stdout"] = result["stdout"] + result["stderr"]
    return result


async def by_command(program: Program, job: dict[str, Any]) -> dict[str, Any]:
    file = Path(program["workspace"]).parent.parent / f"{Path(program['workspace']).name}.py"
    file.write_text(program["code"])
    limits = program["limits"]
    command = [str(Path(sys.executable).parent / "corerun"), "exec"]
    for flag, name in (
        ("timeout", "wall_s"),
        ("memory-mb", "mem_mb"),
        ("pids", "pids"),
        ("file-mb", "file_mb"),
    ):
        command += [f"--{flag}", str(limits[name])]
    command += [
        "--disk-mb",
        str(limits["disk_mb"]),
        "--cwd",
        program["workspace"],
        "--sandbox",
        job["sandbox"],
    ]
    if job["preload"]:
        command += ["--preload", job["preload"]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, str(file), stdin=subprocess.DEVNULL, **pipes)  # type: ignore[arg-type]
    shown, said = await process.communicate()
    code = process.returncode or 0
    status = {0: "ok", 124: "timeout", 137: "killed"}.get(code, "lost" if code < 0 else "error")
    text = (shown + said).decode("utf-8", "replace")
    return {"status": status, "exit_code": code, "stdout": text, "stored": 0}


async def with_no_sandbox(program: Program, job: dict[str, Any]) -> dict[str, Any]:
    return await asyncio.to_thread(run_plainly, program)


_starting = threading.Lock()


def run_plainly(program: Program) -> dict[str, Any]:
    """As one writes it without thinking of attacks: by names, politely, collecting whatever lies there."""
    workspace, fields = Path(program["workspace"]), program["fields"]
    if fields.get("fresh"):
        for child in workspace.iterdir():
            remove(child)
    for name, source in fields.get("files", {}).items():
        (workspace / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, workspace / name)
    for name in (".home", ".tmp"):
        with contextlib.suppress(FileExistsError):
            (workspace / name).mkdir()
        with contextlib.suppress(OSError):
            (workspace / name / "used").write_text("")
    (workspace / "runfile.py").write_text(program["code"])
    logs = [workspace / f"program.{name}.log" for name in ("stdout", "stderr")]
    answers, answer = os.pipe()
    with logs[0].open("wb") as stdout, logs[1].open("wb") as stderr:
        command = [sys.executable, "runfile.py"]
        streams = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
        # One at a time: a program that starts meanwhile would inherit this end, and could speak for this one.
        with _starting:
            os.set_inheritable(answer, True)
            process = subprocess.Popen(command, cwd=workspace, close_fds=False, **streams)  # type: ignore[call-overload]
            os.close(answer)
        status = ""
        try:
            process.wait(program["limits"]["wall_s"])
        except subprocess.TimeoutExpired:
            status = "timeout"
            process.terminate()
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                status = "hung"
    os.set_blocking(answers, False)
    with contextlib.suppress(BlockingIOError, EOFError, pickle.UnpicklingError):
        pickle.loads(os.read(answers, 1 << 16))
    os.close(answers)
    code = process.returncode
    result: dict[str, Any] = {"status": status or ("ok" if code == 0 else "error"), "exit_code": code}
    there = [path for path in logs if path.exists()]
    result["stored"] = sum(path.stat().st_size for path in there)
    result["stdout"] = "".join(path.read_text("utf-8", "replace")[: 9 << 20] for path in there)
    result["files"] = collect(workspace) if "collect" in fields else []
    if code == 7:
        # A plain runner believes the program's last words.
        result |= {"status": "ok"}
    return result


def collect(workspace: Path) -> list[dict[str, Any]]:
    files = []
    for path in sorted(workspace.glob("**/*")):
        entry: dict[str, Any] = {"path": str(path.relative_to(workspace))}
        for inner in [path, *path.glob("*")] if path.is_symlink() and path.is_dir() else [path]:
            if inner.is_file():
                body = inner.read_bytes()
                entry["sha256"] = hashlib.sha256(body).hexdigest()
                if inner.suffix in {".npy", ".pkl", ".pt"}:
                    with contextlib.suppress(Exception):
                        pickle.loads(body)
        files.append(entry)
    return files


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            remove(child)
        path.rmdir()
    else:
        path.unlink()


WAYS = {"api": by_api, "command": by_command, "plain": with_no_sandbox}


async def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    run_one, programs = WAYS[job["way"]], job["programs"]
    if job["order"] == "beside" and len(programs) == 2:
        first = asyncio.create_task(run_one(programs[0], job))
        ready = Path(programs[0]["workspace"]) / "ready"
        while not ready.exists() and not first.done():
            await asyncio.sleep(0.01)
        second = await run_one(programs[1], job)
        (ready.parent / "enough").touch()
        return [await first, second]
    return [await run_one(program, job) for program in programs]


async def outcome(job: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return await asyncio.wait_for(run(job), LONGEST)
    except TimeoutError:
        return [{"status": "hung", "exit_code": None, "stdout": "", "stored": 0}]
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return [{"status": "lost", "exit_code": None, "stdout": "", "stored": 0, "infra": text[-300:]}]


async def main(jobs: list[dict[str, Any]], results: Any) -> None:
    def tell(record: dict[str, Any]) -> None:
        results.write(json.dumps(record) + "\n")
        results.flush()

    turn = asyncio.Semaphore(AT_ONCE)

    async def take(job: dict[str, Any]) -> None:
        async with turn:
            tell({"name": job["name"], "begins": True})
            tell({"name": job["name"], "outcomes": await outcome(job)})

    tell({"name": "", "guarantees": guarantees(next((job["target"] for job in jobs), ""))})
    descriptors = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(take(job) for job in jobs if not (job["alone"] or job["last"])))
    for job in (job for job in jobs if job["alone"]):
        await take(job)
    tell({"name": "", "zombies": zombies(), "descriptors": len(os.listdir("/proc/self/fd")) - descriptors})
    for job in (job for job in jobs if job["last"]):
        await take(job)
    tell({"name": "", "end": True})


def guarantees(target: str) -> list[str]:
    """What the sandbox promises this account; none without a sandbox."""
    if not target:
        return []
    module, _, name = target.partition(":")
    probe = getattr(importlib.import_module(module), name)().probe()
    if not probe.ok:
        raise SystemExit(f"{name}: {probe.reason}")
    return sorted(probe.guarantees)


def zombies() -> int:
    found = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            fields = Path(f"/proc/{int(name)}/stat").read_text().rpartition(")")[2].split()
            found += fields[0] == "Z" and int(fields[1]) == os.getpid()
    return found


if __name__ == "__main__":
    _, jobs_file, results_file, terminal, inherited = sys.argv
    # The terminal is this process's own, as it is where somebody starts a run by hand.
    os.setsid()
    fcntl.ioctl(os.open(terminal, os.O_RDWR), termios.TIOCSCTTY, 0)
    os.set_inheritable(os.open(inherited, os.O_RDONLY), True)
    with open(results_file, "a") as file:
        asyncio.run(main(json.loads(Path(jobs_file).read_text()), file))
