"""Starts the experiment search as a person would, in a clean environment, and keeps one finished run."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corerun_bfts
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Message, ProviderInfo, Usage
from tests.support.experimenter import Experimenter, all_text
from tests.support.openai_server import forced_tool, text

IDEAS = Path(corerun_bfts.__file__).parent / "example" / "ideas.json"
DATA = Path(__file__).parent.parent / "data"

SMALL_SEARCH = """\
exec:
  timeout: 60
agent:
  num_workers: 2
  stages: {stage1_max_iters: 3, stage2_max_iters: 3, stage3_max_iters: 3, stage4_max_iters: 2}
  multi_seed_eval: {num_seeds: 2}
  search: {max_debug_depth: 3, debug_prob: 1.0, num_drafts: 2}
"""

TINY_SEARCH = """\
exec:
  timeout: 60
agent:
  num_workers: 2
  stages: {stage1_max_iters: 1, stage2_max_iters: 1, stage3_max_iters: 1, stage4_max_iters: 1}
  multi_seed_eval: {num_seeds: 0}
  search: {max_debug_depth: 3, debug_prob: 1.0, num_drafts: 1}
"""
"""One node per stage: enough for a whole run if no program fails."""

UNSAFE = ("--sandbox", "local", "--i-accept-no-isolation")
"""What a run needs whose programs are not our own text."""


def idea(**changes: Any) -> dict[str, Any]:
    """An idea with all needed keys."""
    return {
        "Name": "ridge",
        "Title": "How much ridge does a small regression need?",
        "Short Hypothesis": "Some, and more on few rows.",
        "Abstract": "We fit ridge regressions to made-up data.",
        "Experiments": ["Fit with several strengths.", "Compare on three data sets."],
        "Risk Factors and Limitations": "The data are made up.",
        **changes,
    }


def write_ideas(folder: Path, *ideas: Mapping[str, Any], name: str = "ideas.json") -> Path:
    """An ideas file in ``folder``; without ideas it holds one."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(ideas) or [idea()], ensure_ascii=False), encoding="utf-8")
    return path


def clean_environ(home: Path, **more: str) -> dict[str, str]:
    """This process's variables without those that choose models, GPUs or settings; ``home`` is empty."""
    hidden = ("OPENAI_", "OAIC_", "OLLAMA_", "CORERUN_", "CUDA_VISIBLE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return kept | {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")} | more


@dataclass(frozen=True)
class Done:
    """What came back from a command line."""

    code: int
    stdout: str
    stderr: str

    @property
    def manifest(self) -> dict[str, Any]:
        """Standard output as the one JSON document that it must be."""
        data = json.loads(self.stdout)
        assert isinstance(data, dict)
        return data


def corerun(arguments: Sequence[str], cwd: Path, environ: Mapping[str, str] | None = None) -> Done:
    """The command line in a process of its own."""
    return _run([sys.executable, "-P", "-m", "corerun", *arguments], cwd, environ)


def python(program: str, cwd: Path) -> Done:
    """A Python program in a process of its own."""
    return _run([sys.executable, "-P", "-c", program], cwd, None)


def _run(command: Sequence[str], cwd: Path, environ: Mapping[str, str] | None) -> Done:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=dict(environ or clean_environ(cwd)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback (most recent call last)" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def bfts(*arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> Done:
    """``corerun --plugin bfts run`` with further arguments."""
    return corerun(["--plugin", "bfts", "run", *arguments], cwd, environ)


def run_directory(out_root: Path) -> Path:
    """The only run below ``out_root``."""
    (found,) = (out_root / "experiments").iterdir()
    return found


@functools.cache
def finished_run(base: Path) -> tuple[Done, Path]:
    """A whole search on recipes below ``base``, made once however many tests read it; change copies."""
    folder = base / "finished"
    folder.mkdir()
    (folder / "bfts_config.yaml").write_text(SMALL_SEARCH)
    (folder / "job_config.yaml").write_text(
        f"job:\n  load_ideas: {IDEAS}\n  idea_idx: 0\n  attempt_id: 4\n  out_root: runs\n"
        "  plot_agg_reflections: 1\n  strict_artifacts: true\n"
    )
    done = bfts("--display", "none", cwd=folder)
    assert done.code == 0, done.stderr
    return done, run_directory(folder / "runs")


def copy_of(run: Path, folder: Path) -> Path:
    """A run's directory without its workspaces, to be changed."""
    target = folder / run.name
    shutil.copytree(run, target, symlinks=True, ignore=shutil.ignore_patterns("nodes"))
    return target


class Researcher:
    """`Experimenter` that stops improving its figures, and whose programs begin with ``first_lines``.

    ``figure_answers`` answer the first rounds of the final figures; after them it is done.
    """

    def __init__(self, first_lines: str = "", figure_answers: Sequence[str] | None = None) -> None:
        self._inner = Experimenter()
        self._first_lines = first_lines
        self._figure_answers = list(figure_answers) if figure_answers is not None else None
        self.figure_questions: list[dict[str, Any]] = []

    def __call__(self, body: dict[str, Any]) -> Any:
        question = all_text(body)
        if forced_tool(body) is None and "plot_agg_manifest.json" in question:
            self.figure_questions.append(body)
            number = len(self.figure_questions) - 1
            if self._figure_answers is not None:
                left = self._figure_answers[number:]
                return text(left[0] if left else "I am done")
            return text("I am done") if number else self._inner(body)
        reply = self._inner(body)
        if self._first_lines and reply.content and "epoch in range" in reply.content:
            return text(reply.content.replace("```python\n", f"```python\n{self._first_lines}\n", 1))
        return reply


class InProcess:
    """A provider that a test brings itself: asks ``answer`` without any wire."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any], name: str = "mine") -> None:
        self.info = ProviderInfo(name, needs_key=False, is_local=True, vision=True)
        self._answer = answer
        self.purposes: list[str] = []

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        self.purposes.append(ctx.purpose)
        body: dict[str, Any] = {"model": request.model, "messages": [_wire(m) for m in request.messages]}
        body["max_tokens"] = request.max_tokens
        if request.schema is not None:
            function = {"name": request.schema_name, "parameters": request.schema}
            body["tools"] = [{"type": "function", "function": function}]
            body["tool_choice"] = {"type": "function", "function": {"name": request.schema_name}}
        reply = self._answer(body)
        answer = json.dumps(reply.calls[0][1]) if reply.calls else str(reply.content)
        return ChatReply(text=answer, finish=_FINISH.get(reply.finish, "stop"), usage=Usage(10, 5))


_FINISH = {"length": "length", "tool_calls": "tool"}


def _wire(message: Message) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": message.role, "content": message.content}
    parts = [
        {"type": "text", "text": part.text} if part.kind == "text" else {"type": "image_url"}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}
