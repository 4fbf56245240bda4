"""Code that lies in the current folder, beside a run or in it is never imported by corerun's processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corerun.execution.executors import ProcessExecutor
from corerun.execution.worker import RUN_PROGRAM, program_spec
from corerun.interfaces import ExecRequest, ExecResult
from corerun.plugins import PluginManager
from tests.support.killing import FAST

PLANTED = (
    *("pluggy", "click", "yaml", "pydantic", "jinja2", "rich", "aiohttp", "openai", "importlib_metadata"),
    *("sitecustomize", "usercustomize", "conftest", "typing", "json", "asyncio", "subprocess", "select"),
    *("corerun_bfts", "corerun_recipes", "corerun_planted", "numpy", "matplotlib", "sklearn", "plan", "io"),
)
ONE_OF_EACH = {name: 1 if "max_iters" in name or "num_" in name else value for name, value in FAST.items()}
COMMANDS = {
    "console script": [shutil.which("corerun", path=str(Path(sys.executable).parent)) or "corerun"],
    "module": [sys.executable, "-m", "corerun"],
}


def plant(folder: Path, canary: Path) -> None:
    """Modules that leave a trace when they are imported, a plugin's metadata, and a startup hook."""
    body = f"import os\nopen({str(canary)!r}, 'a').write(__name__ + ' in {folder}\\n')\nos._exit(99)\n"
    for name in PLANTED:
        (folder / f"{name}.py").write_text(body)
    metadata = folder / "corerun_planted-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: corerun-planted\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[corerun.plugins]\nplanted = corerun_planted\n")
    (folder / "planted.pth").write_text("import corerun_planted\n")
    (folder / "pyvenv.cfg").write_text("home = /nowhere\n")


def run(folder: Path, *command: str) -> str:
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", COMMANDS)
def test_what_lies_in_the_current_folder_is_not_imported(way: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "repository"
    folder.mkdir()
    plant(folder, canary)
    with pytest.raises(AssertionError):
        run(folder, sys.executable, "-c", "import click")
    assert canary.read_text() == f"click in {folder}\n"
    canary.unlink()
    assert "planted" not in run(folder, *COMMANDS[way], "plugins", "list")
    run(folder, *COMMANDS[way], "--plugin", "bfts", "run", "--model", "recipes::default", "--dry-run")
    assert not canary.exists(), canary.read_text()


PROGRAM = (
    "import asyncio, io, json, select, subprocess, typing, numpy\nprint(json.dumps(len(numpy.zeros(3))))\n"
)


@pytest.mark.parametrize("preload", [(), ("--preload", "numpy")])
@pytest.mark.parametrize("sandbox", ["local", "bwrap"])
def test_launchers_and_zygotes_import_nothing_planted(
    sandbox: str, preload: tuple[str, ...], tmp_path: Path
) -> None:
    canary, folder, work = tmp_path / "canary", tmp_path / "repository", tmp_path / "work"
    for made in (folder, work):
        made.mkdir()
    plant(folder, canary)
    (work / "program.py").write_text(PROGRAM)
    command = [*COMMANDS["module"], "exec", "--sandbox", sandbox, "--cwd", str(work), *preload]
    assert run(folder, *command, str(work / "program.py")) == "3\n"
    assert not canary.exists(), canary.read_text()


async def test_worker_processes_import_nothing_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    plant(folder, tmp_path / "canary")
    monkeypatch.chdir(folder)
    executor = ProcessExecutor(1)
    try:
        request = ExecRequest(workspace=str(tmp_path / "work"), code=PROGRAM)
        done = await executor.submit(
            RUN_PROGRAM, program_spec(request, "corerun.execution.local:LocalSandbox")
        )
    finally:
        await executor.close()
    assert ExecResult.from_json(done).stdout == "3\n"
    assert not (tmp_path / "canary").exists()


@pytest.mark.soak
def test_nothing_planted_is_imported_by_a_run_its_workers_and_programs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    work = tmp_path / "work"
    for folder in (work, work / "experiments"):
        folder.mkdir()
        plant(folder, canary)
    options = [part for key, value in ONE_OF_EACH.items() for part in ("-o", f"{key}={json.dumps(value)}")]
    weak = ["--sandbox", "local", "--i-accept-no-isolation"]
    command = [*COMMANDS["module"], "--plugin", "bfts", "run", "--model", "recipes::default", *weak, *options]
    manifest: dict[str, Any] = json.loads(run(work, *command, "--executor", "process"))
    assert manifest["status"] == "success"
    assert not canary.exists(), canary.read_text()
    directory = Path(manifest["paths"]["run_dir"])
    for folder in (directory, directory / "nodes", directory / "logs", directory / "logs" / "0-run"):
        plant(folder, canary)
    for way in COMMANDS.values():
        run(directory, *way, "runs", "rebuild", str(directory))
        run(directory, *way, "report", str(directory), "-f", str(tmp_path / "report.html"))
    run(directory, *COMMANDS["console script"], "--plugin", "bfts", "plots", "--folder", ".", *weak)
    assert not canary.exists(), canary.read_text()


def test_a_plugins_hash_tells_its_code_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> dict[str, str]:
        manager = PluginManager(environ={}, load=("hashed",))
        manager.load("hashed")
        facts = manager.provenance()["hashed"]
        for name in [name for name in sys.modules if name.split(".")[0] == "corerun_hashed"]:
            del sys.modules[name]
        return facts

    package = tmp_path / "corerun_hashed"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("VALUE = 1\n")
    metadata = tmp_path / "corerun_hashed-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: corerun-hashed\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[corerun.plugins]\nhashed = corerun_hashed\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = told()
    assert (first["distribution"], first["version"], first["target"]) == (
        "corerun-hashed",
        "1.2",
        "corerun_hashed",
    )
    assert told() == first
    (package / "part.py").write_text("VALUE = 2\n")
    assert told()["sha256"] != first["sha256"]
