"""Runs the job from Python: in a subprocess, or in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from corerun.config import Entry, Key, Layer
from corerun.interfaces import Event, Provider
from corerun.job.plan import make_plan
from corerun.job.start import run_plan
from corerun.plugins import PluginManager
from corerun_bfts.record import load_run

__all__ = ["load_run", "run_job", "run_job_subprocess"]


def run_job_subprocess(
    *,
    load_ideas: str,
    idea_idx: int,
    attempt_id: int = 0,
    load_code: bool = False,
    add_dataset_ref: bool = False,
    bfts_config: str | None = None,
    model_agg_plots: str | None = None,
    out_root: str | None = None,
    run_id: str | None = None,
    strict_artifacts: bool = False,
    cwd: str | None = None,
    python_executable: str | None = None,
    config: str | None = None,
    plot_agg_reflections: int | None = None,
    plot_agg_max_figures: int | None = None,
    plot_agg_max_tokens: int | None = None,
    keep_experiment_results: bool | None = None,
    resume: bool | str = False,
    strategy: str | None = None,
    arguments: tuple[str, ...] = (),
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run the command line in a subprocess and return its manifest, of a failed run as well.

    ``timeout`` is in seconds; ``arguments`` are further flags; ``on_event`` is called with every
    record of the journal. Raises RuntimeError with exit code, stdout and stderr if there is no manifest.
    """
    command = [python_executable or sys.executable, "-P", "-m", "corerun", "--plugin", "bfts", "run"]
    values: dict[str, Any] = {
        "load_ideas": load_ideas,
        "idea_idx": idea_idx,
        "attempt_id": attempt_id,
        "bfts_config": bfts_config,
        "model_agg_plots": model_agg_plots,
        "out_root": out_root,
        "run_id": run_id,
        "config": config,
        "plot_agg_reflections": plot_agg_reflections,
        "plot_agg_max_figures": plot_agg_max_figures,
        "plot_agg_max_tokens": plot_agg_max_tokens,
        "strategy": strategy,
    }
    for name, value in values.items():
        if value is not None:
            command += [f"--{name}", str(value)]
    switches = {
        "load_code": load_code,
        "add_dataset_ref": add_dataset_ref,
        "strict_artifacts": strict_artifacts,
        "keep_experiment_results": keep_experiment_results,
    }
    command += [f"--{name}" for name, value in switches.items() if value]
    if keep_experiment_results is False:
        command.append("--no-keep-experiment-results")
    if resume:
        command += ["--resume", *([resume] if isinstance(resume, str) else [])]
    command += arguments
    reader = None
    if on_event is not None:
        channel, write_end = os.pipe()
        command += ["--events", f"/dev/fd/{write_end}"]
        reader = threading.Thread(target=_pass_on, args=(channel, on_event), daemon=True)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=dict(env) if env is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
        pass_fds=(write_end,) if on_event is not None else (),
    )
    if reader is not None:
        os.close(write_end)
        reader.start()
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        stdout, stderr = process.communicate()
    if reader is not None:
        reader.join()
    try:
        manifest = json.loads(stdout)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or "status" not in manifest:
        raise RuntimeError(
            f"no manifest came back\nexit code: {process.returncode}\nstdout:\n{stdout}\nstderr:\n{stderr}"
        )
    return manifest


def _pass_on(channel: int, on_event: Callable[[Mapping[str, Any]], None]) -> None:
    with os.fdopen(channel, encoding="utf-8") as stream:
        for line in stream:
            on_event(json.loads(line))


async def run_job(
    *,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: str | None = None,
    cwd: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    providers: Mapping[str, Provider] | None = None,
    accept_weak: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Mapping[str, Any]:
    """Run the job in this process and return its manifest, of a failed run as well.

    ``settings`` are dotted keys as for ``-o`` (``bfts.load_ideas``, ``model``, ``workers``).
    ``providers`` answer for the provider names that they are given under: how a fake is swapped in.
    """
    flags: Layer = {}
    for name, value in (settings or {}).items():
        key: Key = tuple(name.split("."))
        flags[key] = Entry(value, f"settings[{name!r}]")
    manager = PluginManager()
    env = dict(os.environ if environ is None else environ)
    plan = make_plan(
        "bfts",
        manager,
        flags=flags,
        cwd=Path(cwd) if cwd is not None else Path.cwd(),
        config_file=Path(config) if config is not None else None,
        resume=resume,
        environ=env,
        providers=providers,
    )
    finished = await run_plan(
        plan, manager, listeners=[on_event] if on_event else [], accept_weak=accept_weak
    )
    return finished.manifest
