"""The built packages: what is in them, and that the wheel runs by itself in an empty directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [ROOT / "core/corerun", *(path.parent for path in ROOT.glob("plugins/*/corerun_*/__init__.py"))]
SMALL = [
    "--workers=1",
    *("-o", "bfts.agent.stages.stage1_max_iters=2"),
    *("-o", "bfts.agent.stages.order=[1]"),
    *("-o", "bfts.agent.multi_seed_eval.num_seeds=0"),
    "--plot_agg_reflections=0",
]


def on_disk(root: Path, folder: Path) -> set[str]:
    """Files of a folder, relative to ``root``, without what Python and tools leave there."""
    found = (path.relative_to(root) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path) for path in found if not any(part.startswith(".") for part in path.parts)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"wheel": next(folder.glob("*.whl")), "source": next(folder.glob("*.tar.gz"))}


def test_the_wheel_holds_the_folders_on_disk(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected: set[str] = set().union(*(on_disk(package.parent, package) for package in PACKAGES))
    assert packed == expected


@pytest.mark.parametrize(
    "name",
    [
        "corerun/py.typed",
        "corerun/llm/prices.json",
        "corerun/llm/default_model.json",
        "corerun/report/static/report.html.j2",
        "corerun/report/static/report.js",
        "corerun/execution/inside/start.py",
        "corerun_recipes/templates/program.py.j2",
        "corerun_bfts/example/ideas.json",
        "corerun_bfts/example/job_config.yaml",
        "corerun_bfts/inside/reader.py",
    ],
)
def test_the_wheel_holds_the_data_that_code_reads(built: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        assert archive.getinfo(name)


def test_the_wheel_holds_no_tests_and_no_bytecode(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = archive.namelist()
    tops = {Path(name).parts[0] for name in names if ".dist-info/" not in name}
    assert tops == {package.name for package in PACKAGES}
    assert [name for name in names if "tests" in Path(name).parts or name.endswith(".pyc")] == []


def test_the_source_holds_the_packages_and_the_tests_and_no_runs(built: dict[str, Path]) -> None:
    with tarfile.open(built["source"]) as archive:
        packed = {str(Path(*Path(name).parts[1:])) for name in archive.getnames()}
    expected: set[str] = set().union(*(on_disk(ROOT, package) for package in PACKAGES))
    expected |= {"tests/test_package.py", "README.md", "LICENSE", "examples/job_config.yaml", "docs/index.md"}
    assert expected - packed == set()
    unwanted = {".venv", "experiments", "runs", ".git", ".env", "__pycache__", "dist"}
    assert [name for name in packed if unwanted & set(Path(name).parts[:1])] == []


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; the dependencies come from the one of the tests."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(built["wheel"])], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Paths that a .pth file adds aren't searched for .pth files: the checkout stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def run(folder: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    unwanted = ("CORERUN_", "OPENAI_", "OAIC_", "PYTHON")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    environ["HOME"] = str(cwd)
    return subprocess.run(
        [str(folder / "bin" / command[0]), *command[1:]], cwd=cwd, env=environ, capture_output=True, text=True
    )


def test_an_installed_wheel_lists_its_plugins(installed: Path, empty: Path) -> None:
    done = run(installed, empty, "corerun", "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)}
    expected = {"core", *(package.name.removeprefix("corerun_") for package in PACKAGES[1:])}
    assert set(entries) == expected
    assert {entry["status"] for entry in entries.values()} == {"available"}
    assert all(Path(entry["location"]).is_relative_to(installed) for entry in entries.values())


def test_the_main_job_runs_from_an_installed_wheel(installed: Path, empty: Path) -> None:
    code = "import corerun, corerun_bfts; print(corerun.__file__); print(corerun_bfts.__file__)"
    printed = run(installed, empty, "python", "-c", code).stdout.split()
    assert len(printed) == 2
    assert all("site-packages" in line and Path(line).is_relative_to(installed) for line in printed)

    done = run(installed, empty, "corerun", "--plugin", "bfts", "run", "--run_id", "wheel", *SMALL)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["status"] == "success"
    assert Path(manifest["paths"]["unified_tree_viz_html"]).is_file()
    assert Path(manifest["paths"]["run_dir"]).parent == empty / "experiments"
