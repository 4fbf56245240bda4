"""`corerun doctor`: what it finds, what it advises, and that it tells no secret and loads nothing large."""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from corerun.cli.app import run_command
from corerun.execution.select import MODEL_CODE_GUARANTEES, RULES_CODE_GUARANTEES
from corerun.interfaces import GUARANTEES, Probe
from corerun.job import checkup
from corerun.job.checkup import Finding, examine
from corerun.job.isolation import probe_all
from corerun.plugins import PluginManager
from tests.support.http_server import Fault, HttpServer, Request, fault, in_thread

LOCAL = Probe(True, "no isolation", RULES_CODE_GUARANTEES, 10)
BWRAP = Probe(True, "", GUARANTEES - {"pids"}, 30)
NO_BWRAP = Probe(False, "not installed (apt install bubblewrap)", strength=30)

SPY = """
import json, sys
from corerun.cli import main
code = main(["doctor", "--format", "json"])
sys.stderr.write("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
sys.exit(code)
"""


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Probe]:
    found = {"local": LOCAL, "bwrap": BWRAP}
    monkeypatch.setattr(checkup, "probe_all", lambda manager: found)
    return found


def checks(environ: Mapping[str, str] | None = None, folder: Path = Path("/")) -> dict[str, Finding]:
    manager: Any = None
    return {item.check: item for item in examine(manager, environ or {}, folder)}


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    code = run_command(["doctor", "--format", "json", *arguments])
    out, err = capsys.readouterr()
    return code, {row["check"]: row for row in json.loads(out)}, err


def test_each_sandbox_says_what_it_gives_and_auto_which_it_takes(probes: dict[str, Probe]) -> None:
    found = checks()
    assert found["sandbox local"].detail == "strength 10; gives env, tree_kill"
    assert found["sandbox bwrap"].ok
    for programs in ("model-written code", "built-in recipes"):
        assert found[f"auto for {programs}"] == Finding(
            f"auto for {programs}", True, "bwrap, without pids", "", programs == "model-written code"
        )


def test_a_missing_sandbox_says_what_to_install(probes: dict[str, Probe]) -> None:
    probes["bwrap"] = NO_BWRAP
    found = checks()
    assert (found["sandbox bwrap"].ok, found["sandbox bwrap"].hint) == (False, "apt install bubblewrap")
    assert not found["auto for model-written code"].ok
    assert found["auto for model-written code"].hint == "apt install bubblewrap"
    assert found["auto for built-in recipes"].detail.startswith("local, without disk_total, ")


def test_exit_code_and_first_advice(probes: dict[str, Probe], capsys: pytest.CaptureFixture[str]) -> None:
    code, rows, err = doctor(capsys)
    assert (code, err) == (0, "")
    assert all(set(row) == {"check", "ok", "detail", "hint"} for row in rows.values())
    probes["bwrap"] = NO_BWRAP
    code, rows, err = doctor(capsys)
    assert code == 1
    assert err == "corerun: a model's programs can't run isolated here; first: apt install bubblewrap\n"
    del probes["bwrap"]
    code, rows, err = doctor(capsys)
    assert code == 1 and "first: run it in a container or virtual machine" in err
    probes["landlock"] = Probe(True, "ABI 4", MODEL_CODE_GUARANTEES, 20)
    assert doctor(capsys)[0] == 0


def test_text_for_people_ends_with_what_to_do(
    probes: dict[str, Probe], capsys: pytest.CaptureFixture[str]
) -> None:
    probes["bwrap"] = NO_BWRAP
    assert run_command(["doctor", "--format", "text"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["CHECK", "DETAIL"]
    assert any(line.split()[:4] == ["sandbox", "bwrap", "no", "not"] for line in lines)
    assert "sandbox bwrap: apt install bubblewrap" in lines


@pytest.mark.parametrize(
    ("absent", "failing", "hint", "essential"),
    [
        ("torch", "extra train", "pip install 'corerun[train]'", False),
        ("anthropic", "extra anthropic", "pip install 'corerun[anthropic]'", False),
        ("numpy", "extra experiments", "pip install 'corerun[experiments]'", True),
    ],
)
def test_a_missing_package_names_its_extra(
    probes: dict[str, Probe],
    monkeypatch: pytest.MonkeyPatch,
    absent: str,
    failing: str,
    hint: str,
    essential: bool,
) -> None:
    version, find = checkup.importlib.metadata.version, checkup.importlib.util.find_spec

    def without(name: str) -> str:
        if name == absent:
            raise checkup.importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(checkup.importlib.metadata, "version", without)
    monkeypatch.setattr(
        checkup.importlib.util, "find_spec", lambda name: None if name == absent else find(name)
    )
    found = checks()
    failed = found[failing]
    assert (failed.ok, failed.hint, failed.essential) == (False, hint, essential)
    assert f"{absent} missing" in failed.detail
    assert "extra dev" not in found
    of_profiles = {check for check, item in found.items() if check.startswith("preload") and not item.ok}
    numeric = {f"preload {name}" for name in ("numpy", "plot", "sklearn", "torch")}
    expected = {"torch": {"preload torch"}, "numpy": numeric}
    assert of_profiles == expected.get(absent, set())


def test_keys_are_named_and_never_shown(probes: dict[str, Probe]) -> None:
    secret = secrets.token_hex(16)
    environ = {"OPENAI_API_KEY": secret, "OAIC_MINE_BASE_URL": f"http://{secret}/", "HF_TOKEN": ""}
    found = checks(environ)
    assert found["models"].detail == "OAIC_MINE_BASE_URL, OPENAI_API_KEY set"
    assert secret not in repr(found)
    assert not checks()["models"].ok


def test_gpus_disk_and_cache(
    probes: dict[str, Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks({"CUDA_VISIBLE_DEVICES": "4,7"})["gpus"].detail == "4, 7"
    assert checks({"CUDA_VISIBLE_DEVICES": ""})["gpus"].detail == "none: programs compute on the CPU"
    found = checks({"XDG_CACHE_HOME": str(tmp_path / "deep" / "er")}, tmp_path)
    assert found["cache"].ok and found["disk"].ok
    (tmp_path / "file").touch()
    refused = checks({"XDG_CACHE_HOME": str(tmp_path / "file")})["cache"]
    assert (refused.ok, refused.hint) == (False, "set XDG_CACHE_HOME to a folder of yours")
    few = type("Usage", (), {"free": 5 << 20})
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda folder: few)
    assert (checks()["disk"].ok, checks()["disk"].essential) == (False, True)


class Models(HttpServer):
    """Keeps a list of models, as OpenAI's API does."""

    async def respond(self, request: Request, reader: object, writer: object) -> Fault:
        assert request.page == "/v1/models"
        return fault(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})


def test_servers_are_asked_only_online(
    probes: dict[str, Probe],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in [name for name in os.environ if name.startswith(("OAIC_", "OPENAI_", "ANTHROPIC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with in_thread(Models()) as server:
        monkeypatch.setenv("OAIC_NEAR_BASE_URL", f"http://127.0.0.1:{server.port}/v1")
        monkeypatch.setenv("OAIC_GONE_BASE_URL", "http://127.0.0.1:9/v1")
        _, rows, _ = doctor(capsys)
        assert not any(check.startswith("server") for check in rows)
        assert server.requests == []
        code, rows, _ = doctor(capsys, "--online")
    assert (code, rows["server near"]["ok"], rows["server near"]["detail"]) == (0, True, "answers, 1 models")
    assert rows["server gone"]["ok"] is False and rows["server gone"]["hint"]


def test_the_page_promises_what_the_sandboxes_give_here() -> None:
    page = (Path(__file__).parent.parent / "docs/isolation.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+((?:\| [^|]+){4})\|$", page.partition("## What holds what")[2], re.MULTILINE
    )
    promised = {name: [cell.strip() for cell in cells.strip("| ").split("|")] for name, cells in rows}
    assert set(promised) == GUARANTEES
    for column, sandbox in enumerate(("local", "landlock", "bwrap")):
        probe = probe_all(PluginManager())[sandbox]
        for guarantee, cells in promised.items():
            if probe.ok and cells[column] in ("yes", "no"):
                assert (guarantee in probe.guarantees) is (cells[column] == "yes"), (sandbox, guarantee)


def test_it_costs_little_and_imports_nothing_large() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-P", "-c", SPY], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 1), done.stderr
    found = {row["check"] for row in json.loads(done.stdout)}
    assert {"python", "sandbox local", "auto for model-written code", "cgroups", "extra experiments"} <= found
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert (
        modules & {"numpy", "torch", "sklearn", "matplotlib", "openai", "transformers", "pydantic"} == set()
    )
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
