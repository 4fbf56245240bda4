"""What no file of the project may hold, and what every file must keep to."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OURS = ("core", "plugins", "tests", "docs", "examples", "benchmarks", ".ci")
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".json",
    ".txt",
    ".j2",
    ".js",
    ".css",
    ".html",
    ".example",
    "",
}
LONGEST = 450


def files(*folders: str) -> Iterator[tuple[str, str]]:
    """Path and text of every text file; what tools leave behind isn't ours."""
    tops = [path for path in ROOT.iterdir() if path.is_file()] if folders == OURS else []
    for path in [*tops, *(path for folder in folders for path in (ROOT / folder).rglob("*"))]:
        ours = not any(re.match(r"__pycache__|\..+_cache|\.env$", part) for part in path.parts)
        if ours and path.is_file() and path.suffix in TEXT:
            yield str(path.relative_to(ROOT)), path.read_text("utf-8")


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for name, text in files(*folders):
        if name.endswith(".py"):
            yield name, ast.parse(text)


def imports(tree: ast.Module) -> set[str]:
    """Top-level names that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


# ------------------------------------------------------------------------------------- contents

SECRETS = {
    "key of a model provider": r"\bsk-(?:[a-z]+-)?[A-Za-z0-9_]{24,}",
    "token of GitHub": r"\b(?:ghp|gho|ghs|ghu)_[A-Za-z0-9]{30,}|\bgithub_pat_\w{40,}",
    "token of Hugging Face": r"\bhf_[A-Za-z0-9]{30,}",
    "key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "key of Google": r"\bAIza[A-Za-z0-9_-]{30,}",
    "token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "token of PyPI": r"\bpypi-[A-Za-z0-9_-]{40,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "signed token": r"\beyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}\.",
}
PERSONAL = {
    "folder of a person": r"(?<![\w.])/(?:home|Users)/(?!(?:me|user|someone)\b)[A-Za-z]\w*",
    "address of a person": r"[\w.+-]+@(?!example\.|host\b)[\w-]+\.(?:com|org|net|io|de|cn|edu)\b",
}
HOSTS = r"(?<![\w./-])(?!host\.docker\.)(?:[a-z0-9-]+\.)+(?:internal|corp|intranet|lan)\b(?!\()"


@pytest.mark.parametrize("kind", [*SECRETS, *PERSONAL, "host of a private network"])
def test_no_file_holds_a(kind: str) -> None:
    pattern = re.compile({**SECRETS, **PERSONAL}.get(kind, HOSTS))
    found = [
        f"{name}:{number}"
        for name, text in files(*OURS)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("key of a model provider", "key = 'sk-" + "a1B2" * 8 + "'"),
        ("token of GitHub", "ghp_" + "a1B2" * 9),
        ("key of AWS", "AKIA" + "A1B2" * 4),
        ("private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("folder of a person", "open('/home" + "/ada/x')"),
        ("address of a person", "ada@" + "lovelace.org"),
    ],
)
def test_the_search_for_secrets_finds_one(kind: str, text: str) -> None:
    assert re.search({**SECRETS, **PERSONAL}[kind], text)


def test_core_and_searches_know_no_benchmark_by_name() -> None:
    names = r"gsm-?8k|humaneval|mbpp|hotpot ?qa|swe-?bench|terminal-?bench|mle-?bench|\bmmlu\b|\baime\b"
    found = [
        name
        for name, text in files("core", "plugins")
        if not name.startswith("plugins/benchmarks/") and re.search(names, text, re.IGNORECASE)
    ]
    assert found == []


def test_no_file_is_too_long_to_hold_in_the_head() -> None:
    lengths = {name: len(text.splitlines()) for name, text in files("core", "plugins")}
    code = {name: size for name, size in lengths.items() if not name.endswith((".json", ".txt"))}
    assert {name: size for name, size in code.items() if size > LONGEST} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [name for name, tree in modules("core", "plugins") if not ast.get_docstring(tree)]
    assert silent == []


def test_path_roots_are_never_imported() -> None:
    guilty = [name for name, tree in modules(*OURS) if imports(tree) & {"core", "plugins"}]
    assert guilty == []


def test_path_roots_hold_no_package() -> None:
    roots = [
        ROOT / "core",
        ROOT / "plugins",
        *(path for path in (ROOT / "plugins").iterdir() if path.is_dir()),
    ]
    assert [str(path) for path in roots if (path / "__init__.py").exists()] == []


# ---------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("needs a GPU", 0),
        ("needs the kernel's Landlock", 0),
        ("chromium is not installed", 1),
        ("", 1),
        (None, 0),
    ],
)
def test_a_skipped_test_fails_the_checks_unless_hardware_is_missing(
    tmp_path: Path, reason: str | None, code: int
) -> None:
    skip = "" if reason is None else f'<skipped type="pytest.skip" message="{reason}"/>'
    results = tmp_path / "results.xml"
    results.write_text(
        f'<testsuites><testsuite><testcase classname="tests.test_x" name="test_y">{skip}</testcase>'
        "</testsuite></testsuites>"
    )
    command = [sys.executable, str(ROOT / ".ci/skips.py"), str(results)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("tests.test_x.test_y" in done.stdout) is (reason is not None)


# --------------------------------------------------------------------------------- dependencies

IMPORT_NAMES = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pytest-asyncio": "asyncio_mode"}


@pytest.fixture(scope="module")
def groups() -> dict[str, dict[str, Requirement]]:
    """Requirements by group: "" is what is always installed."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = {"": project["dependencies"], **project["optional-dependencies"]}
    parsed = {group: [Requirement(line) for line in lines] for group, lines in listed.items()}
    return {group: {canonicalize_name(item.name): item for item in items} for group, items in parsed.items()}


def test_every_dependency_has_its_reason(groups: dict[str, dict[str, Requirement]]) -> None:
    page = (ROOT / "docs/dependencies.md").read_text("utf-8")
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    reasons = {name: reason for name, reason, _ in rows if name != "package"}
    assert len(reasons) == len([row for row in rows if row[0] != "package"])
    assert set(reasons) == {name for group in groups.values() for name in group}


def test_every_dependency_is_used(groups: dict[str, dict[str, Requirement]]) -> None:
    code: set[str] = set().union(*(imports(tree) for _, tree in modules("core", "plugins")))
    templates = "".join(text for name, text in files("plugins") if name.endswith(".j2"))
    code |= set(re.findall(r"^(?:import|from) (\w+)", templates, re.MULTILINE))
    needed = {**groups[""], **groups["experiments"]}
    names = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in needed}
    assert names - code == set()


def test_every_tool_is_used(groups: dict[str, dict[str, Requirement]]) -> None:
    tests: set[str] = set().union(*(imports(tree) for _, tree in modules("tests")))
    settings = [ROOT / "Makefile", ROOT / ".pre-commit-config.yaml", ROOT / "tests/test_package.py"]
    text = "".join(path.read_text("utf-8") for path in settings)
    text += (ROOT / "pyproject.toml").read_text("utf-8").split("[tool.", 1)[1]
    commands = {"import-linter": "lint-imports", "hatchling": "--no-isolation", "types-pyyaml": "mypy"}
    commands |= {"pytest-xdist": "--numprocesses"}
    unused = [
        name
        for name in groups["dev"]
        if name not in tests and commands.get(name, IMPORT_NAMES.get(name, name)) not in text
    ]
    assert unused == []


def test_every_dependency_is_pinned_within_its_bounds(groups: dict[str, dict[str, Requirement]]) -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions: dict[str, str] = {canonicalize_name(name): version for name, version in pins.items()}
    for requirements in groups.values():
        for name, requirement in requirements.items():
            assert requirement.specifier.contains(versions[name]), name
    assert versions["torch"] == "2.13.0"


# ------------------------------------------------------------------------------- who writes files

WRITERS = {
    "core/corerun/runs/io.py": "the one module that writes what must survive",
    "core/corerun/execution/": "the workspaces of programs, and what they print as it comes",
    "core/corerun/llm/sqlite.py": "SQLite keeps its files whole itself",
    "core/corerun/runs/faults.py": "the half of a record that a fault leaves",
    "core/corerun/job/tee.py": "hands on what a program prints",
    "core/corerun/cli/": "streams and pages that somebody wants elsewhere, the terminal",
    "core/corerun/testing/": "plugins that a test makes up",
    "core/corerun/inputs/archives.py": "unpacks into a folder of its own before anything is there",
    "plugins/providers/corerun_openai_router/wire/cassette.py": "recordings that a developer makes",
    "plugins/sandboxes/": "trials of a sandbox in folders of their own, pipes to it",
    "plugins/search/corerun_bfts/inside/": "runs inside the sandbox",
}
"""Files and folders whose code may write files, and why."""
_OF_OS = re.compile(
    r"(write|pwrite|writev|sendfile|f?truncate|replace|renames?|link|symlink|mkdir|makedirs|mkfifo|f?sync|fdatasync"
    r"|posix_fallocate|copy_file_range|utime)"
)
_OF_MODULES = re.compile(
    rf"os\.{_OF_OS.pattern}|shutil\.(copy\w*|move|unpack_archive)|sqlite3\.connect|tempfile\.(?!gettempdir)\w+"
    r"|logging\.(handlers\.\w+|FileHandler)"
)
_OF_PATHS = {"write_text", "write_bytes", "mkdir", "touch", "symlink_to", "hardlink_to"}


def writes_files(call: ast.Call) -> bool:
    """Whether a call makes, changes, moves or syncs a file, as far as one sees it."""
    name = ast.unparse(call.func)
    if _OF_MODULES.fullmatch(name) or name.rpartition(".")[2] in _OF_PATHS:
        return True
    if name == "os.open":
        return bool(re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)", ast.unparse(call)))
    if name.rpartition(".")[2] in ("open", "fdopen"):
        modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        texts = [
            node.value for node in modes if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        return any(re.fullmatch(r"[rbt]*[wax+][wbt+]*", text) for text in texts)
    return False


def test_one_module_writes_what_must_survive() -> None:
    guilty = [
        f"{name}:{node.lineno}: {ast.unparse(node)[:60]}"
        for name, tree in modules("core", "plugins")
        if not name.startswith(tuple(WRITERS))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and writes_files(node)
    ]
    assert guilty == []


def test_no_leave_to_write_is_left_over() -> None:
    found = {
        name
        for name, tree in modules("core", "plugins")
        if any(isinstance(node, ast.Call) and writes_files(node) for node in ast.walk(tree))
    }
    assert {place for place in WRITERS if not any(name.startswith(place) for name in found)} == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open(p, 'w')", True),
        ("p.open('ab')", True),
        ("p.open(mode='r+')", True),
        ("os.fdopen(d, 'wb')", True),
        ("os.open(p, os.O_WRONLY | os.O_CREAT)", True),
        ("p.write_text(x)", True),
        ("os.replace(a, b)", True),
        ("shutil.copyfile(a, b)", True),
        ("os.fdatasync(d)", True),
        ("open(p)", False),
        ("p.open('rb')", False),
        ("os.open(p, os.O_RDONLY)", False),
        ("text.replace(a, b)", False),
        ("io.replace(p, x)", False),
        ("sandbox.open(policy, workspace)", False),
    ],
)
def test_the_search_for_writers_finds_one(code: str, found: bool) -> None:
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call) and writes_files(call) is found
