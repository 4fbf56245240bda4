"""Runs one experiment program through its steps: run, review, metric, plots, a look at the plots."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corerun.errors import BadAnswer, ContextTooLong, ModelError, RequestRefused, Unsupported
from corerun.interfaces import ExecRequest, ExecResult, Node, Outcome, Part, Run
from corerun.runs import events as kinds
from corerun_bfts import judgements
from corerun_bfts.answers import parse_metrics
from corerun_bfts.metric import PrimaryMetric, Reading, chosen_metric, values_of
from corerun_bfts.programs import READER, extract_program, trimmed
from corerun_bfts.prompts import Prompts
from corerun_bfts.questions import Question
from corerun_bfts.settings import BftsSettings

DATA = "working/experiment_data.npy"
MAX_PLOTS_SEEN = 10
MAX_PLOT_BYTES = 4_000_000
PLOT_TRIES = 3
READING_BYTES = 8_000_000
PROFILES = (("torch", "torch"), ("sklearn", "sklearn"), ("matplotlib", "plot"), ("numpy", "numpy"))


@dataclass(slots=True)
class Record:
    """What is learned about a node on its way; becomes the data of its outcome."""

    op: str
    stage: int
    plan: str = ""
    code: str = ""
    name: str = ""
    description: str = ""
    setting: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    plot_code: str = ""
    plot_base: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def take(self, idea: Mapping[str, Any]) -> None:
        """The name, description and setting of an idea, or of the node that is mended."""
        self.name = idea.get("name", "")
        self.description = idea.get("description", "")
        self.setting = idea.get("setting", {})


@dataclass(frozen=True, slots=True)
class Measured:
    """The primary metric per data set, or why there is none."""

    values: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    lower_is_better: bool | None = None


class Laboratory:
    """Runs programs of one run; knows the metric, the limits and whether anybody can see plots."""

    def __init__(
        self, run: Run, settings: BftsSettings, metric: PrimaryMetric, idea: Mapping[str, Any]
    ) -> None:
        self.run = run
        self.settings = settings
        self.metric = metric
        self.idea = idea
        self.written_by = run.provider_info("code").kind
        self._gpus = ("any",) * settings.agent.gpus_per_node if settings.agent.gpus_per_node else ()

    # ------------------------------------------------------------------------------ programs

    def workspace(self, node: Node) -> Path:
        """Where a node's programs run."""
        return self.run.dir / "nodes" / f"{node.id}.{node.attempt}"

    def shown(self, node: Node, text: str) -> str:
        """Output as prompts and reports show it: trimmed, without the place where it ran."""
        return trimmed(text.replace(f"{self.workspace(node)}/", ""))

    def _request(self, node: Node, label: str, code: str, **more: Any) -> ExecRequest:
        data = self.run.dir / "data"
        return ExecRequest(
            code=code,
            label=label,
            node=node.id,
            attempt=node.attempt,
            workspace=str(self.workspace(node)),
            file_name=more.pop("file_name", f"{label}.py"),
            files={"input": str(data)} if data.exists() else {},
            python=self.settings.exec.python,
            limits=self.settings.exec.program_limits(),
            preload=_profile(code),
            **more,
        )

    async def run_program(self, node: Node, code: str, seed: int | None = None) -> ExecResult:
        """Run the experiment itself, in an empty workspace."""
        return await self.run.execute(
            self._request(
                node,
                "program",
                code,
                file_name=self.settings.exec.agent_file_name,
                env={} if seed is None else {"CORERUN_SEED": str(seed)},
                collect=("working/*",),
                gpus=self._gpus_available(),
                fresh=True,
            )
        )

    def _gpus_available(self) -> tuple[str, ...]:
        have = self.run.gpus
        if len(have) >= len(self._gpus) or not self.settings.agent.allow_cpu_fallback:
            return self._gpus
        return ()

    async def read_data(self, node: Node) -> Reading:
        """What the program saved, read in the sandbox by fixed code."""
        result = await self.run.execute(self._request(node, "reader", READER, collect=("reading.json",)))
        path = self.workspace(node) / "reading.json"
        if result.status != "ok" or not path.is_file() or path.stat().st_size > READING_BYTES:
            return Reading(finite=False)
        try:
            found = json.loads(path.read_bytes())
            return Reading(found["sets"], found["structure"], bool(found["finite"]))
        except (ValueError, KeyError, TypeError):
            return Reading(finite=False)

    # ------------------------------------------------------------------------------ the steps

    async def examine(self, node: Node, prompts: Prompts, record: Record, *, judged: bool = True) -> Outcome:
        """All steps after the program was written. ``judged`` False: no model is asked (seed reruns)."""
        result = await self.run_program(node, record.code, record.seed)
        has_data = any(item["path"] == DATA for item in result.files)
        reading = await self.read_data(node) if has_data else Reading(finite=False)
        rows = reading.rows(self.metric)
        finite = reading.finite and all(math.isfinite(row["final"]) for row in rows)
        facts = {
            "exc_type": _exception(result),
            "timed_out": result.status == "timeout",
            "has_data": has_data,
            "finite": finite,
            "output_tail": self.shown(node, _output(result)),
        }
        data: dict[str, Any] = {
            "op": record.op,
            "stage": record.stage,
            "plan": record.plan,
            "code": record.code,
            "name": record.name,
            "description": record.description,
            "setting": dict(record.setting),
            "written_by": self.written_by,
            "output": facts["output_tail"],
            "exec_time": round(result.wall_s, 3),
            "exc_type": facts["exc_type"],
            "exc_info": {"message": result.exc_msg} if result.exc_msg else None,
            "exc_stack": [
                [Path(t["file"]).name, t.get("line"), t.get("func"), t.get("text")] for t in result.exc_trace
            ],
            "status": result.status,
            **record.extra,
        }
        if record.seed is not None:
            data["seed"] = record.seed
        measured = Measured({row["set"]: row["final"] for row in rows})
        bug = False
        if judged:
            readable = has_data and result.status == "ok"
            try:
                review, measured = await _both(
                    self._ask(node, prompts.review(record.code, facts)),
                    self._measure(node, prompts, record.code, reading, rows, readable),
                )
            except ModelError as error:
                if error.fatal:
                    raise
                return self._failed(node, data, f"{type(error).__name__}: {error.message}")
            data["analysis"], bug = review.summary, review.is_bug
        reason = _fault(result, has_data, finite, measured, bug)
        if reason:
            return self._failed(node, data, reason)
        data["metric"], data["structure"] = self._metric_json(measured, reading), reading.structure
        await self._plots(node, prompts, record, reading, data, judged=judged)
        self.store(node, data, record)
        if data.get("is_buggy_plots"):
            return Outcome("failed", None, "no valid plots", data=data | {"is_buggy": False})
        score = self.metric.score(measured.values)
        return Outcome("good", score, data=data | {"is_buggy": False})

    async def _ask(self, node: Node, question: Question) -> Any:
        return (await ask(self.run, question, node.id)).value

    def _failed(self, node: Node, data: dict[str, Any], reason: str) -> Outcome:
        data |= {"is_buggy": True, "is_buggy_plots": None, "metric": None}
        self.store(node, data, None)
        return Outcome("failed", None, reason, data=data)

    def _metric_json(self, measured: Measured, reading: Reading) -> dict[str, Any]:
        values = measured.values
        return {
            **self.metric.to_json(),
            "value": math.fsum(values.values()) / len(values),
            "sets": dict(values),
            "test": reading.test(),
            "lower_is_better": measured.lower_is_better,
        }

    async def _measure(
        self,
        node: Node,
        prompts: Prompts,
        code: str,
        reading: Reading,
        rows: list[dict[str, Any]],
        readable: bool,
    ) -> Measured:
        """The primary metric per data set, as the feedback model reports what was read."""
        if not readable:
            return Measured()
        output = ""
        if not rows:
            _, reader = await self._ask(node, prompts.read_metric(code, reading.structure))
            result = await self.run.execute(self._request(node, "metric_reader", reader))
            if result.status != "ok":
                return Measured()
            output = self.shown(node, result.stdout)
        parsed: parse_metrics = await self._ask(node, prompts.parse_metric(rows, output))
        if not parsed.valid_metrics_received or not parsed.metric_names:
            return Measured()
        aliases = self.run.noted("metric_aliases", [])
        entry = chosen_metric(parsed, self.metric, aliases)
        if entry is None:
            names = ", ".join(item.metric_name for item in parsed.metric_names)
            return Measured(problem=f"metric_mismatch: {self.metric.name} is wanted, {names} came")
        if not self.metric.means(entry.metric_name, aliases):
            self.run.note("metric_aliases", [*aliases, entry.metric_name])
        values = values_of(entry, rows, best_value=self.settings.best_value)
        return Measured(values, lower_is_better=entry.lower_is_better)

    # --------------------------------------------------------------------------------- plots

    async def _plots(
        self,
        node: Node,
        prompts: Prompts,
        record: Record,
        reading: Reading,
        data: dict[str, Any],
        *,
        judged: bool,
    ) -> None:
        """Plot the saved data, look at the plots; fills in ``data``."""
        code, error = record.plot_code, ""
        result = None
        for _ in range(PLOT_TRIES if judged else 1):
            if judged:
                question = prompts.plot(
                    record.code, record.plot_base, reading.structure, sorted(reading.sets), error
                )
                try:
                    answer = await ask(self.run, question, node.id)
                except ModelError as bad:
                    if bad.fatal:
                        raise
                    data["plot_output"] = bad.message
                    break
                code = answer.value[1]
            if not code:
                break
            result = await self.run.execute(
                self._request(node, "plot", code, collect=("working/*.png",), env={})
            )
            if result.status == "ok":
                break
            error = self.shown(node, f"{_exception(result)}: {result.exc_msg}\n{result.stderr}")
        data["plot_code"] = code
        if result is not None:
            data["plot_exec_time"] = round(result.wall_s, 3)
            data["plot_output"] = self.shown(node, _output(result))
            data["plot_exc_type"] = _exception(result)
        found = result.files if result is not None else ()
        data["plot_files"] = [item["path"] for item in found if item["path"].endswith(".png")]
        data["is_buggy_plots"], data["vision"] = None, "off"
        data["datasets_successfully_tested"] = sorted(reading.sets)
        if judged and self.vision:
            await self._look(node, prompts, record, data)

    @property
    def vision(self) -> bool:
        """Whether plots are shown to a model."""
        if self.settings.agent.vision == "off" or self.run.noted("vision_degraded"):
            return False
        return self.run.provider_info("vision").vision is not False

    async def _look(self, node: Node, prompts: Prompts, record: Record, data: dict[str, Any]) -> None:
        paths = data["plot_files"]
        if not paths:
            data |= {"is_buggy_plots": True, "vision": "ok", "vlm_feedback_summary": "there are no plots"}
            return
        try:
            chosen = await self._select(node, prompts, paths)
            images = [_image(self.workspace(node) / path) for path in chosen]
            question = judgements.plot_analysis(prompts.context, chosen, images)
            seen = await self._ask(node, question)
        except BadAnswer:
            data["vision"] = "degraded"
            return
        except (Unsupported, RequestRefused, ContextTooLong) as error:
            data["vision"] = "degraded"
            if not self.run.noted("vision_degraded"):
                self.run.note("vision_degraded", True)
                self.run.emit(kinds.DEGRADED, model="vision", feature="vision", reason=error.message)
                self.run.warn(f"vision is degraded, plots are not looked at any more: {error.message}")
            return
        analyses = [item.analysis for item in seen.plot_analyses][: len(chosen)]
        data["plot_analyses"] = [
            {"analysis": text, "plot_path": path} for text, path in zip(analyses, chosen, strict=False)
        ]
        data["vlm_feedback_summary"] = seen.vlm_feedback_summary
        data["datasets_successfully_tested"] = seen.datasets_successfully_tested
        data["is_buggy_plots"], data["vision"] = not seen.valid_plots_received, "ok"

    async def _select(self, node: Node, prompts: Prompts, paths: list[str]) -> list[str]:
        if len(paths) <= MAX_PLOTS_SEEN:
            return paths
        try:
            answer = await ask(self.run, judgements.select_plots(prompts.context, paths), node.id)
        except BadAnswer:
            return paths[:MAX_PLOTS_SEEN]
        chosen = [path for path in answer.value.selected_plots if path in paths][:MAX_PLOTS_SEEN]
        return chosen or paths[:MAX_PLOTS_SEEN]

    # ------------------------------------------------------------------------------- results

    def store(self, node: Node, data: dict[str, Any], record: Record | None) -> None:
        """Copy what a node made to its folder of results; plots are named relative to the run."""
        from corerun.runs import io

        place = f"logs/0-run/experiment_results/experiment_{node.id}"
        folder, workspace = self.run.dir / place, self.workspace(node)
        data["exp_results_dir"] = place
        io.replace(folder / "experiment_code.py", data["code"], sync=False)
        io.replace(folder / "output.txt", data["output"], sync=False)
        if record is None:
            return
        if data.get("plot_code"):
            io.replace(folder / "plotting_code.py", data["plot_code"], sync=False)
        kept: list[str] = []
        for source in sorted((workspace / "working").glob("*")):
            if source.suffix in (".npy", ".png") and source.is_file() and not source.is_symlink():
                io.copy_file(source, folder / source.name)
                kept.append(source.name)
        data["plots"] = [f"{place}/{name}" for name in kept if name.endswith(".png")]
        data["npy_files"] = [f"{place}/{name}" for name in kept if name.endswith(".npy")]
        for item in data.get("plot_analyses", []):
            item["plot_path"] = f"{place}/{Path(item['plot_path']).name}"
        data.pop("plot_files", None)


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


def _profile(code: str) -> str | None:
    return next((profile for word, profile in PROFILES if word in code), "bare")


def _exception(result: ExecResult) -> str:
    if result.status == "timeout":
        return "TimeoutError"
    if result.status in ("oom", "disk"):
        return {"oom": "MemoryLimit", "disk": "DiskLimit"}[result.status]
    if result.status == "killed":
        return f"Killed({result.signal})"
    return result.exc_type or ("" if result.status == "ok" else f"Exit({result.exit_code})")


def _output(result: ExecResult) -> str:
    return result.stdout + (f"\n{result.stderr}" if result.stderr.strip() else "")


async def _both(one: Awaitable[Any], other: Awaitable[Any]) -> tuple[Any, Any]:
    """Both results; an error of one is raised when the other is through as well."""
    results = await asyncio.gather(one, other, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results[0], results[1]


def _fault(result: ExecResult, has_data: bool, finite: bool, measured: Measured, bug: bool) -> str:
    """Why the node is a failure, in one line; empty if it is none."""
    if result.status != "ok":
        return " ".join(f"{_exception(result)}: {result.exc_msg}".split())[:300]
    if not has_data:
        return f"no data: {DATA} was not saved"
    if not finite:
        return "not finite: the saved values hold NaN or infinity"
    if not measured.values:
        return measured.problem or "no valid metric"
    return "review: judged to be a bug" if bug else ""


def _image(path: Path) -> Part:
    body = path.read_bytes()[:MAX_PLOT_BYTES]
    return Part("image", data=body, media_type="image/png")
