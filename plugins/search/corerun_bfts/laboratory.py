"""Where experiment programs of a run are run: workspaces, requests, what they saved and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corerun.inputs.documents import parse_json
from corerun.interfaces import ExecRequest, ExecResult, Node, Run
from corerun_bfts.metric import PrimaryMetric, Reading
from corerun_bfts.programs import READER, extract_program, trimmed
from corerun_bfts.questions import Question
from corerun_bfts.settings import BftsSettings

READING_BYTES = 8_000_000
PROFILES = (("torch", "torch"), ("sklearn", "sklearn"), ("matplotlib", "plot"), ("numpy", "numpy"))


class Laboratory:
    """Runs programs of one run under its limits, and knows the metric by which they are compared."""

    def __init__(self, run: Run, settings: BftsSettings, metric: PrimaryMetric) -> None:
        self.run = run
        self.settings = settings
        self.metric = metric
        self.written_by = run.provider_info("code").kind
        """Who writes programs: ``model`` or ``rules``."""

    async def ask(self, question: Question, node: str | None) -> Any:
        """The value of an answer; a question without a schema is answered by (prose, program)."""
        return (await ask(self.run, question, node)).value

    def workspace(self, node: Node) -> Path:
        """Where a node's programs run."""
        return self.run.dir / "nodes" / f"{node.id}.{node.attempt}"

    def shown(self, node: Node, text: str) -> str:
        """Output as prompts and reports show it: trimmed, without the place where it ran."""
        return trimmed(text.replace(f"{self.workspace(node)}/", ""))

    async def execute(self, node: Node, label: str, code: str, **more: Any) -> ExecResult:
        """Run a program in the node's workspace; ``label`` names it in the journal."""
        data = self.run.dir / "data"
        request = ExecRequest(
            code=code,
            label=label,
            node=node.id,
            attempt=node.attempt,
            workspace=str(self.workspace(node)),
            file_name=more.pop("file_name", f"{label}.py"),
            files={"input": str(data)} if data.exists() else {},
            python=self.settings.exec.python,
            limits=self.settings.exec.program_limits(),
            preload=next((profile for word, profile in PROFILES if word in code), "bare"),
            **more,
        )
        return await self.run.execute(request)

    async def run_experiment(self, node: Node, code: str, seed: int | None = None) -> ExecResult:
        """Run the experiment itself, in an empty workspace."""
        return await self.execute(
            node,
            "program",
            code,
            file_name=self.settings.exec.agent_file_name,
            env={} if seed is None else {"CORERUN_SEED": str(seed)},
            collect=("working/*",),
            gpus=self._gpus(),
            fresh=True,
        )

    def _gpus(self) -> tuple[str, ...]:
        wanted = self.settings.agent.gpus_per_node
        if len(self.run.gpus) < wanted and self.settings.agent.allow_cpu_fallback:
            return ()
        return ("any",) * wanted

    async def read_data(self, node: Node) -> Reading:
        """What the experiment saved, read in the sandbox by fixed code."""
        result = await self.execute(node, "reader", READER, collect=("reading.json",))
        sizes = [item["size"] for item in result.files]
        if result.status != "ok" or not sizes or sizes[0] > READING_BYTES:
            return Reading(finite=False)
        return reading_of((self.workspace(node) / "reading.json").read_bytes())


def reading_of(body: bytes) -> Reading:
    """What the reader wrote, or an empty reading: loading the data may have run code that wrote it."""
    try:
        found = parse_json(body)
        sets = {
            str(name): {
                str(key): [None if value is None else float(value) for value in values]
                for key, values in series.items()
            }
            for name, series in found["sets"].items()
        }
        return Reading(sets, found["structure"], bool(found["finite"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return Reading(finite=False)


async def ask(run: Run, question: Question, node: str | None) -> Any:
    """Ask a question; one without a schema wants a program."""
    return await run.ask(
        question.role,
        question.purpose,
        question.messages,
        schema=question.schema,
        parse=None if question.schema else extract_program,
        node=node,
        facts=question.facts,
    )


async def run_script(
    run: Run,
    settings: BftsSettings,
    name: str,
    code: str,
    *,
    label: str,
    file_name: str,
    collect: tuple[str, ...],
    files: Mapping[str, str] | None = None,
    read: Sequence[str] = (),
) -> tuple[ExecResult, Path]:
    """Run a program that belongs to no node, in an empty workspace called ``name``; that is returned too.

    ``files`` are inputs by their names in the workspace, ``read`` what it reads where it lies.
    """
    workspace = run.dir / "nodes" / f"{name}.0"
    request = ExecRequest(
        code=code,
        label=label,
        node=name,
        workspace=str(workspace),
        file_name=file_name,
        files=files or {},
        python=settings.exec.python,
        limits=settings.exec.program_limits(),
        collect=collect,
        fresh=True,
        read=tuple(read),
    )
    return await run.execute(request), workspace


def exception(result: ExecResult) -> str:
    """The name of what ended a program, empty if it ended well."""
    if result.status == "timeout":
        return "TimeoutError"
    if result.status in ("oom", "disk"):
        return {"oom": "MemoryLimit", "disk": "DiskLimit"}[result.status]
    if result.status == "killed" or result.signal is not None:
        return f"Killed({result.signal})"
    return result.exc_type or ("" if result.status == "ok" else f"Exit({result.exit_code})")


def output(result: ExecResult) -> str:
    """Both streams of a program, the usual one first."""
    return result.stdout + (f"\n{result.stderr}" if result.stderr.strip() else "")
