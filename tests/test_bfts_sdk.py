"""The search from Python: the document's snippet, a provider of the caller's own, GPUs, the journal."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from corerun.errors import UsageError
from corerun.interfaces import Event
from corerun_bfts.sdk import load_run, run_job, run_job_subprocess
from tests.support import jobs
from tests.support.openai_server import OpenAIServer, serve_in_thread


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with serve_in_thread(jobs.Researcher()) as started:
        yield started


def leave_environ_alone(monkeypatch: pytest.MonkeyPatch, home: Path, **variables: str) -> None:
    """Make this process's variables what `jobs.clean_environ` says."""
    import os

    environ = jobs.clean_environ(home, **variables)
    for name in set(os.environ) - set(environ):
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


# -------------------------------------------------------------------------------------- subprocess


def test_000_41_the_documents_snippet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: OpenAIServer
) -> None:
    jobs.write_ideas(tmp_path / "ai_scientist/ideas", name="i_cant_believe_its_not_better.json")
    (tmp_path / "bfts_config.yaml").write_text(
        jobs.TINY_SEARCH + "sandbox: {name: local, allow_weak: true}\n"
    )
    leave_environ_alone(monkeypatch, tmp_path, **server.environ())
    monkeypatch.chdir(tmp_path)

    manifest = run_job_subprocess(
        load_ideas="./ai_scientist/ideas/i_cant_believe_its_not_better.json",
        idea_idx=0,
        out_root="./runs",
    )

    run = jobs.run_directory(tmp_path / "runs")
    assert manifest["status"] == "success" and manifest["paths"]["idea_dir"] == str(run)
    assert manifest == json.loads((run / "run_manifest.json").read_text())
    assert server.calls == manifest["cost"]["calls"] > 0


def test_000_41_the_subprocess_keeps_the_wrappers_parameters_and_defaults() -> None:
    parameters = inspect.signature(run_job_subprocess).parameters
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    wrappers = {
        "load_ideas": inspect.Parameter.empty,
        "idea_idx": inspect.Parameter.empty,
        "attempt_id": 0,
        "load_code": False,
        "add_dataset_ref": False,
        "bfts_config": None,
        "model_agg_plots": None,
        "out_root": None,
        "run_id": None,
        "strict_artifacts": False,
        "cwd": None,
        "python_executable": None,
    }
    assert {name: parameters[name].default for name in wrappers} == wrappers
    added = "config plot_agg_reflections plot_agg_max_figures plot_agg_max_tokens keep_experiment_results"
    assert {*added.split(), "resume", "strategy", "timeout", "env", "on_event"} <= set(parameters)


def test_000_41_a_failed_run_returns_its_manifest_and_events_are_passed_on(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    events: list[Mapping[str, Any]] = []
    manifest = run_job_subprocess(
        load_ideas="ideas.json",
        idea_idx=0,
        attempt_id=5,
        run_id="sdk",
        cwd=str(tmp_path),
        arguments=("--model", "fake::fail:401", *jobs.UNSAFE),
        env=jobs.clean_environ(tmp_path),
        on_event=events.append,
    )
    assert manifest["status"] == "failed" and manifest["error"]["type"] == "AuthFailed"
    run = Path(manifest["paths"]["run_dir"])
    assert run.name == "sdk_ridge_attempt_5"
    written = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["type"] for event in events] == [event["type"] for event in written]
    assert events[0]["type"] == "run_started" and events[-1]["type"] == "run_done"


def test_000_41_without_a_manifest_the_error_says_why(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        run_job_subprocess(
            load_ideas="ideas.json", idea_idx=3, cwd=str(tmp_path), env=jobs.clean_environ(tmp_path)
        )
    text = str(caught.value)
    assert "exit code: 2" in text and "stdout:" in text and "idea_idx 3 is out of range" in text


# -------------------------------------------------------------------------------------- in process


class Gate:
    """Lets the first two programs go on only when both have begun."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._both = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.append((await reader.readline()).decode().strip())
        if len(self.seen) >= 2:
            self._both.set()
        await self._both.wait()
        writer.write(b"go\n")
        await writer.drain()
        writer.close()


KNOCK = """\
import os as _os, socket as _socket
with _socket.create_connection(("127.0.0.1", {port})) as _gate:
    _gate.sendall((_os.environ["CUDA_VISIBLE_DEVICES"] + "\\n").encode())
    _gate.recv(3)
"""


async def test_card_01_000_56_a_provider_of_the_tests_own_answers_and_programs_get_a_gpu_each(
    tmp_path: Path,
) -> None:
    gate = Gate()
    server = await asyncio.start_server(gate.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    provider = jobs.InProcess(jobs.Researcher(KNOCK.format(port=port)))
    jobs.write_ideas(tmp_path)
    (tmp_path / "bfts_config.yaml").write_text(
        jobs.TINY_SEARCH.replace("stage1_max_iters: 1", "stage1_max_iters: 2").replace(
            "num_drafts: 1", "num_drafts: 2"
        )
    )
    events: list[Event] = []
    async with server:
        manifest = await run_job(
            settings={
                "bfts.load_ideas": "ideas.json",
                "bfts.idea_idx": 0,
                "bfts.plot_agg_reflections": 1,
                "model": "mine::anything",
                "sandbox": "local",
                "out_root": "out",
            },
            cwd=tmp_path,
            environ=jobs.clean_environ(tmp_path, CUDA_VISIBLE_DEVICES="GPU-aa,GPU-bb"),
            providers={"mine": provider},
            accept_weak=True,
            on_event=events.append,
        )
    assert manifest["status"] == "success", manifest["error"]
    assert manifest["models"] == {"mine::anything": {"kind": "model"}}
    assert {"bfts.metric", "bfts.draft", "bfts.review", "bfts.aggregate_plots"} <= set(provider.purposes)
    assert len(provider.purposes) == manifest["cost"]["calls"]

    assert sorted(gate.seen[:2]) == ["GPU-aa", "GPU-bb"]
    assert set(gate.seen) == {"GPU-aa", "GPU-bb"}
    programs = [event for event in events if event.type == "execution_done"]
    for event in programs:
        expected = 1 if event.data["label"] == "program" else 0
        assert len(event.data["gpus"]) == expected, event.data["label"]

    written = load_run(manifest["paths"]["run_dir"])
    assert [(event.seq, event.type) for event in written.events] == [
        (event.seq, event.type) for event in events
    ]
    assert [stage.number for stage in written.stages] == [1, 2, 3, 4]
    assert written.idea["Name"] == "ridge" and written.metric["name"] == "validation_rmse"
    best = written.stages[-1].best_node
    assert best is not None and best.score is not None
    assert best.id == manifest["stages"][-1]["best_id"]


async def test_run_job_takes_a_job_file_and_settings_over_it(tmp_path: Path) -> None:
    jobs.write_ideas(tmp_path / "job")
    (tmp_path / "job/job_config.yaml").write_text(
        "job: {load_ideas: ideas.json, idea_idx: 0, attempt_id: 1, out_root: out}\nmodel: fake::fail:401\n"
    )
    manifest = await run_job(
        config=tmp_path / "job/job_config.yaml",
        settings={"bfts.attempt_id": 2, "sandbox": "local"},
        cwd=tmp_path,
        environ=jobs.clean_environ(tmp_path),
        accept_weak=True,
    )
    assert manifest["error"]["type"] == "AuthFailed"
    assert manifest["paths"]["run_dir"].startswith(str(tmp_path / "job/out/experiments"))
    assert manifest["paths"]["run_dir"].endswith("_attempt_2")


async def test_run_job_raises_what_prevents_a_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        await run_job(settings={"bfts.load_ideas": "none.json", "bfts.idea_idx": 0}, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_load_run_of_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no journal"):
        load_run(tmp_path)
