"""The folders, the entry points and the wheel agree with each other."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("plugins/*/corerun_*/__init__.py"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_entry_points_are_the_plugin_folders_and_core(project: dict[str, Any]) -> None:
    expected = {path.name.removeprefix("corerun_"): path.name for path in PACKAGES}
    assert PACKAGES
    assert project["project"]["entry-points"] == {"corerun.plugins": {**expected, "core": "corerun.builtin"}}


def test_the_wheel_s_packages_are_the_folders(project: dict[str, Any]) -> None:
    build = project["tool"]["hatch"]["build"]
    folders = [str(path.relative_to(ROOT)) for path in PACKAGES]
    assert sorted(build["targets"]["wheel"]["packages"]) == sorted(["core/corerun", *folders])
    assert set(build["dev-mode-dirs"]) == {"core", *(str(Path(folder).parent) for folder in folders)}


def test_import_contracts_cover_every_package(project: dict[str, Any]) -> None:
    names = {path.name for path in PACKAGES}
    contracts = {contract["name"]: contract for contract in project["tool"]["importlinter"]["contracts"]}
    assert set(project["tool"]["importlinter"]["root_packages"]) == {"corerun", *names}
    assert set(contracts["core imports no plugin"]["forbidden_modules"]) == names
    assert set(contracts["plugins do not import each other"]["modules"]) == names


def test_every_package_is_typed() -> None:
    untyped = [path.name for path in [*PACKAGES, ROOT / "core/corerun"] if not (path / "py.typed").is_file()]
    assert untyped == []


@pytest.mark.parametrize(
    "path",
    [
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "core",
        "plugins/operators",
        "plugins/providers",
        "plugins/rewards",
        "plugins/stages",
        "plugins/search",
        "tests",
        "docs",
    ],
)
def test_top_level_paths_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_console_script_is_the_function_that_returns_the_exit_code(project: dict[str, Any]) -> None:
    from corerun.cli import main

    assert project["project"]["scripts"] == {"corerun": "corerun.cli:main"}
    assert main(["--version"]) == 0


def test_a_wheel_holds_the_packages_and_no_tests(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel"]
    subprocess.run([*pip, "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    on_disk = {
        str(path.relative_to(package.parent))
        for package in [*PACKAGES, ROOT / "core/corerun"]
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "/." not in str(path.relative_to(ROOT))
    }
    assert packed == on_disk
    assert not any("tests" in Path(name).parts for name in packed)
