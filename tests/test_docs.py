"""The documentation is true: commands run, tables are the settings, links lead somewhere.

In a ``console`` block, a line that begins with ``$ `` is a command; the lines below it are its output, in
which ``...`` stands for any text, and alone on a line for any lines. Blocks of other kinds aren't run.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from corerun.config import Settings
from corerun.errors import ModelNotFound, Transient
from corerun.interfaces import CallContext, ChatRequest, Connection, Message
from corerun.job.environment import NAMES
from corerun.job.plan import read_models
from corerun.plugins import PluginManager
from corerun.testing.contract import load_target, plugin_contract, provider_contract
from corerun_bfts.documents import search_layer
from corerun_bfts.settings import MOVED, NOT_READ, BftsSettings
from tests.support.http_server import Fault, HttpServer, Request, fault

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "AGENTS.md",
    ROOT / "examples/README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
JOB_KEYS = [
    "load_ideas",
    "idea_idx",
    "attempt_id",
    "load_code",
    "add_dataset_ref",
    "dataset_ref",
    "bfts_config",
    "model_agg_plots",
    "plot_agg_reflections",
    "plot_agg_max_figures",
    "plot_agg_max_tokens",
    "keep_experiment_results",
    "strict_artifacts",
]


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def sessions(page: Path) -> list[tuple[str, str]]:
    """Commands of a page with the output that it shows."""
    found: list[tuple[str, str]] = []
    for block in blocks(page, "console"):
        parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
        assert parts[0] == "", f"{page.name}: a console block begins with a command"
        found += zip(parts[1::2], parts[2::2], strict=True)
    return found


def pattern(shown: str) -> re.Pattern[str]:
    """What output may look like. Blanks at the ends of lines don't count."""
    lines = shown.splitlines()
    parts = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"[ \t]*\n"
        for line in lines
    ]
    return re.compile("".join(parts))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment like a new user's, in which `corerun` is this checkout's."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "corerun"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m corerun "$@"\n')
    command.chmod(0o755)
    return {
        "PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(tmp_path_factory.mktemp("home")),
        "LANG": "C.UTF-8",
        "EXAMPLES": str(ROOT / "examples"),
    }


PAGES_WITH_COMMANDS = [page for page in PAGES if sessions(page)]


def test_the_tutorials_have_commands() -> None:
    names = {page.name for page in PAGES_WITH_COMMANDS}
    assert {"README.md", "getting-started.md", "experiment-search.md"} <= names


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_print_what_the_page_shows(page: Path, shell: dict[str, str], tmp_path: Path) -> None:
    for command, shown in sessions(page):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        assert pattern(shown).fullmatch(done.stdout), f"{command}\nprinted:\n{done.stdout}\nshown:\n{shown}"


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("a\n...\nb\n", "a\nx\ny\nb\n", True),
        ("a\n...\n", "a\n", True),
        ("took ... s\n", "took 3.1 s\n", True),
        ("took ... s\n", "took 3.1 ms\n", False),
        ("a\n", "a\nb\n", False),
        ("", "a\n", False),
    ],
)
def test_how_shown_output_is_compared(shown: str, printed: str, fits: bool) -> None:
    assert bool(pattern(shown).fullmatch(printed)) is fits


# --------------------------------------------------------------------------------------- tables


def table(page: str, heading: str) -> dict[str, str]:
    """Key and default of each row of the first table below a heading."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    section = text.split(f"\n{heading}\n", 1)[1]
    rows = re.findall(
        r"^\| `([^`]+)` \| (.*?) \| .+ \|$", re.split(r"\n## |\n### ", section)[0], re.MULTILINE
    )
    assert rows, heading
    assert len(rows) == len(dict(rows)), f"{heading}: a key stands there twice"
    return dict(rows)


def leaves(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a model with their defaults; mappings and unset models are leaves."""
    found: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def assert_same(documented: dict[str, str], real: dict[str, Any]) -> None:
    assert sorted(documented) == sorted(real)
    for key, shown in documented.items():
        value = str(real[key]) if isinstance(real[key], Path) else real[key]
        assert yaml.safe_load(shown) == value, key


def test_common_settings_are_documented_with_their_defaults() -> None:
    assert_same(table("configuration.md", "## Common settings"), leaves(Settings()))


def test_job_file_keys_are_documented_with_their_defaults() -> None:
    real = leaves(BftsSettings())
    assert_same(table("experiment-search.md", "### `job_config.yaml`"), {key: real[key] for key in JOB_KEYS})


def test_search_file_keys_are_documented_with_their_defaults() -> None:
    common = Settings()
    real = {key: value for key, value in leaves(BftsSettings()).items() if key not in JOB_KEYS}
    real["agent.stages.stage1.until"] = real.pop("agent.stages.stage1_until")
    real["agent.num_workers"] = common.workers
    real |= {f"agent.search.{key}": getattr(common, key) for key in ("strategy", "seed", "scheduler")}
    assert_same(table("experiment-search.md", "### `bfts_config.yaml`"), real)


def test_every_key_of_the_other_documents_is_mentioned() -> None:
    text = (ROOT / "docs/experiment-search.md").read_text("utf-8")
    keys = {".".join(key) for key in [*NOT_READ, *MOVED]}
    own = {"out_root", "run_id", "strategy", "infra_retries", "stages.stage1.until"}  # in other tables
    assert [key for key in sorted(keys - own) if f"`{key}`" not in text] == []


def test_every_provider_variable_is_in_the_example_and_the_page() -> None:
    names = re.findall(r"^(\w+)=$", (ROOT / "examples/.env.example").read_text("utf-8"), re.MULTILINE)
    assert len(names) == len(set(names)) >= 12
    assert [name for name in names if not NAMES.match(name)] == []
    page = (ROOT / "docs/models.md").read_text("utf-8")
    later = {"OAIC_DEBUG", "CORERUN_CAPS_PATH"}
    own = {name for name in names if not name.startswith("OAIC_QWEN_")} - later
    assert [name for name in sorted(own) if f"`{name}`" not in page] == []
    sources = "\n".join(path.read_text("utf-8") for path in ROOT.glob("plugins/**/*.py"))
    sources += "\n".join(path.read_text("utf-8") for path in ROOT.glob("core/**/*.py"))
    built = {"OAIC_OLLAMA_BASE_URL", "OAIC_OLLAMA_API_KEY"}  # by the rule OAIC_<PROVIDER>_...
    assert [name for name in sorted(own - built) if f'"{name}"' not in sources] == []


# -------------------------------------------------------------------------------- pages and files


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/cli.py"), "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_links_lead_to_files() -> None:
    broken = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in path:
                continue
            file = page.parent / path if path else page
            known = anchors(file) if anchor and file.suffix == ".md" else {anchor}
            if not file.exists() or anchor not in known:
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text("utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")]
    assert [page for page in sorted(pages) if page != "index.md" and f"({page})" not in index] == []


def test_python_examples_are_python() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, str(page), "exec")


async def test_the_provider_of_the_page_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "corerun_mine"
    package.mkdir()
    written = blocks(ROOT / "docs/writing-plugins.md", "python")
    (provider,) = [block for block in written if block.startswith('"""corerun_mine/native.py"""')]
    (hook,) = [block for block in written if "corerun_providers" in block]
    (package / "native.py").write_text(provider)
    (package / "__init__.py").write_text(hook)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("corerun_mine")
    try:
        (component,) = plugin_contract(module)
        make = load_target(component)
        async with NativeServer() as server:
            environ = {"OAIC_NATIVE_BASE_URL": f"http://127.0.0.1:{server.port}"}
            native = make(Connection(component.name, environ))
            await provider_contract(native, "tiny")
            question = ChatRequest("nothing", (Message("user", "Are you there?"),))
            with pytest.raises(ModelNotFound, match="HTTP 404"):
                await native.complete(question, CallContext("test"))
        with pytest.raises(Transient, match="no answer"):
            await native.complete(question, CallContext("test"))
    finally:
        for name in ("corerun_mine", "corerun_mine.native"):
            sys.modules.pop(name, None)


class NativeServer(HttpServer):
    """Answers Ollama's own API with a word, or with JSON where a format is given."""

    async def respond(self, request: Request, reader: object, writer: object) -> Fault:
        if request.body["model"] != "tiny":
            return fault(404, {"error": f"model {request.body['model']!r} not found"})
        said = '{"word": "yes"}' if request.body.get("format") else "yes"
        counts = {"prompt_eval_count": 9, "eval_count": 3, "done_reason": "stop"}
        return fault(200, {"model": "tiny", "message": {"role": "assistant", "content": said}, **counts})


def test_flags_in_the_text_exist() -> None:
    help_page = (ROOT / "docs/cli.md").read_text("utf-8")
    known = set(re.findall(r"--[a-z][a-z0-9_-]*", help_page))
    docker = {"--rm", "--user", "--cap-drop", "--env", "--volume", "--workdir"}
    for page in PAGES:
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*[a-z0-9](?![\w-])", page.read_text("utf-8")))
        assert used - known - docker == set(), page.name


@pytest.mark.parametrize("name", ["bfts_config.yaml", "configs/qwen.yaml"])
def test_example_search_files_load(name: str) -> None:
    layer = search_layer(ROOT / "examples" / name)
    assert ("workers",) in layer


def test_the_example_of_aliases_means_what_it_says(tmp_path: Path) -> None:
    file = ROOT / "examples/configs/models.yaml"
    _, models = read_models(PluginManager(), {"HOME": str(tmp_path)}, tmp_path, models_file=file)
    assert {name: models.meaning(name) for name in models.aliases} == {
        "writer": "qwen::qwen-plus",
        "looker": "qwen::qwen3-vl-plus",
        "claude": "anthropic::claude-sonnet-4-5",
        "gateway-mini": "openai::gpt-4o-mini",
        "local": "ollama::qwen3:8b",
    }
    assert models.reachable(["writer"]) == ("writer", "local")
    assert models.check("local").vision is False


def test_the_example_of_qwen_names_the_models_of_each_role(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OAIC_", "OPENAI_"))}
    environ |= {"OAIC_QWEN_BASE_URL": "http://127.0.0.1:9/v1", "OAIC_QWEN_API_KEY": "none"}
    flags = ["--config", "examples/job_config.yaml", "--bfts_config", "examples/configs/qwen.yaml"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "corerun", "--plugin", "bfts", "run", *flags, "--dry-run"],
        cwd=ROOT,
        env=environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    roles = yaml.safe_load(done.stdout)["roles"]
    assert roles["vision"] == "qwen::qwen3-vl-plus"
    assert {roles[role] for role in ("code", "feedback", "summary", "plots")} == {"qwen::qwen-plus"}
