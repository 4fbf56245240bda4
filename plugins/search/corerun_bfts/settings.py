"""The settings of a bfts run: the keys of ``job_config.yaml`` and of ``bfts_config.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from corerun.config import Section
from corerun.interfaces import Limits, Role


class RoleSettings(Section):
    """Which model plays a role, and how it is asked. Unset values are inherited."""

    model: str | None = None
    temp: float | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)

    def role(self, inherited: str | None = None) -> Role:
        return Role(self.model or inherited, self.temp, self.max_tokens)


class StageSettings(Section):
    """Node limits of the four stages, and how the first one ends."""

    stage1_max_iters: int = Field(20, ge=1)
    stage2_max_iters: int = Field(12, ge=1)
    stage3_max_iters: int = Field(12, ge=1)
    stage4_max_iters: int = Field(18, ge=1)
    stage1_until: Literal["drafts", "limit"] = "drafts"
    goals: dict[int, str] = Field(default_factory=dict)
    order: list[int] = Field(default_factory=lambda: [1, 2, 3, 4])

    @field_validator("order")
    @classmethod
    def _known_stages(cls, order: list[int]) -> list[int]:
        if not order or order[0] != 1 or len(set(order)) != len(order) or set(order) - {1, 2, 3, 4}:
            raise ValueError("an order of stages begins with 1 and names each of 1 to 4 at most once")
        return order

    def limit(self, number: int) -> int:
        return int(getattr(self, f"stage{number}_max_iters"))


class SeedSettings(Section):
    """Reruns of a stage's best program with other seeds."""

    num_seeds: int = Field(3, ge=0)


class SearchSettings(Section):
    """How nodes are chosen."""

    max_debug_depth: int = Field(3, ge=0)
    debug_prob: float = Field(0.5, ge=0, le=1)
    num_drafts: int = Field(3, ge=1)


class AgentSettings(Section):
    """Who writes, judges and looks, and how far each stage goes."""

    type: Literal["parallel", "sequential"] = "parallel"
    stages: StageSettings = StageSettings()
    steps: int = Field(5, ge=1)
    k_fold_validation: int = Field(1, ge=1)
    expose_prediction: bool = False
    data_preview: bool = False
    vision: Literal["auto", "off"] = "auto"
    multi_seed_eval: SeedSettings = SeedSettings()
    code: RoleSettings = RoleSettings(temp=1.0, max_tokens=12000)
    feedback: RoleSettings = RoleSettings(temp=0.5, max_tokens=8192)
    vlm_feedback: RoleSettings = RoleSettings(temp=0.5)
    summary: RoleSettings = RoleSettings(temp=0.3)
    select_node: RoleSettings = RoleSettings(temp=0.3)
    select_by: Literal["metric", "llm"] = "metric"
    search: SearchSettings = SearchSettings()
    max_substages: int = Field(2, ge=1)
    memory_max_chars: int = Field(6000, ge=0)
    stage3_min_time_fraction: float = Field(0.5, ge=0, le=1)
    gpus_per_node: int = Field(1, ge=0)
    allow_cpu_fallback: bool = True

    @model_validator(mode="before")
    @classmethod
    def _steps_are_the_limit_of_stages_without_one(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("steps") is None:
            return data
        stages = data.get("stages")
        if stages is not None and not isinstance(stages, dict):
            return data
        limits = {f"stage{number}_max_iters": data["steps"] for number in (1, 2, 3, 4)}
        return data | {"stages": limits | (stages or {})}


class LimitSettings(Section):
    """Limits of one program; unset ones follow from the machine."""

    cpu_s: float | None = Field(None, gt=0)
    mem_mb: int | None = Field(None, ge=16)
    pids: int = Field(512, ge=1)
    file_mb: int = Field(4096, ge=1)
    disk_mb: int = Field(10240, ge=1)
    files: int = Field(20000, ge=1)
    stdout_head_kb: int = Field(64, ge=1)
    stdout_tail_kb: int = Field(192, ge=1)
    stdout_store_mb: int = Field(64, ge=1)
    nofile: int = Field(4096, ge=16)
    grace_s: float = Field(3.0, ge=0)


class ExecSettings(Section):
    """How programs run."""

    timeout: float = Field(3600, gt=0)
    node_timeout: float | None = Field(None, gt=0)
    agent_file_name: str = Field("runfile.py", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.py$")
    format_tb_ipython: bool = False
    python: str = ""
    limits: LimitSettings = LimitSettings()

    def program_limits(self) -> Limits:
        return Limits(wall_s=self.timeout, **self.limits.model_dump())


class ExperimentSettings(Section):
    """What experiments are asked for."""

    num_syn_datasets: int = Field(1, ge=1)


class MetricSettings(Section):
    """The primary metric, if a person and not the model chooses it."""

    name: str = Field(min_length=1)
    maximize: bool
    description: str = ""


class BftsSettings(Section):
    """The section ``bfts``; its plain fields are flags of ``run``."""

    load_ideas: Path | None = Field(None, description="ideas file: a JSON list of ideas")
    idea_idx: int | None = Field(None, description="which idea of the list, from 0")
    attempt_id: int = Field(0, ge=0, description="number in the directory name that tells repeats apart")
    load_code: bool = Field(False, description="offer the program beside the ideas file as a start")
    add_dataset_ref: bool = Field(False, description="offer hf_dataset_reference.py of the current folder")
    dataset_ref: Path | None = Field(None, description="offer this data set reference instead")
    bfts_config: Path | None = Field(
        None, description="search settings; bfts_config.yaml beside the job file"
    )
    model_agg_plots: str | None = Field(None, description="model of the plot aggregation")
    plot_agg_reflections: int = Field(5, ge=0, description="rounds after the first plot script")
    plot_agg_max_figures: int = Field(12, ge=1, description="target number of figures")
    plot_agg_max_tokens: int | None = Field(None, description="output tokens of the plot model; <= 0: no cap")
    keep_experiment_results: bool = Field(False, description="keep experiment_results/ after plotting")
    strict_artifacts: bool = Field(False, description="fail when summaries or figures are missing")

    data_dir: Path | None = Field(None, description="folder with input data, copied to the run's data/")
    preprocess_data: bool = Field(False, description="unpack zip archives of the copied data")
    copy_data: bool = Field(True, description="copy the input data; otherwise link to it")
    generate_report: bool = Field(True, description="write the four summaries")
    keep_workspaces: bool = Field(False, description="keep the folders that programs ran in")
    metric: MetricSettings | None = None
    best_value: bool = Field(False, description="score by the best value of a curve, not by the last")
    exec: ExecSettings = ExecSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    agent: AgentSettings = AgentSettings()

    @field_validator("plot_agg_max_tokens")
    @classmethod
    def _no_cap(cls, value: int | None) -> int | None:
        return value if value is not None and value > 0 else None

    def roles(self, model: str | None) -> dict[str, Role]:
        """Models by role: the role's own, else the run's, else the feedback role's."""
        agent = self.agent
        shared = model or agent.feedback.model
        return {
            "code": agent.code.role(shared),
            "feedback": agent.feedback.role(shared),
            "vision": agent.vlm_feedback.role(shared),
            "summary": agent.summary.role(shared),
            "select": agent.select_node.role(shared),
            "plots": Role(self.model_agg_plots or shared, 0.7, self.plot_agg_max_tokens),
        }


NOT_READ = {
    ("goal",): "the idea is the task",
    ("eval",): "the idea is the task",
    ("desc_file",): "set by the job",
    ("workspace_dir",): "set by the job",
    ("log_dir",): "set by the job",
    ("exp_name",): "logs always lie in logs/0-run",
    ("report", "model"): "summaries are written by agent.summary",
    ("report", "temp"): "summaries are written by agent.summary",
    ("debug", "stage4"): "not needed",
    ("agent", "expose_prediction"): "has no effect",
    ("agent", "type"): "both types run the same agent",
    ("exec", "format_tb_ipython"): "tracebacks are always plain",
}
"""Keys of AI-Scientist-v2's file that are accepted and do nothing, with the reason."""

MOVED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("agent", "num_workers"): ("workers",),
    ("agent", "search", "strategy"): ("strategy",),
    ("agent", "search", "seed"): ("seed",),
    ("agent", "search", "scheduler"): ("scheduler",),
    ("max_cost_usd",): ("budget", "usd"),
    ("max_tokens_total",): ("budget", "tokens"),
    ("max_wall_s",): ("budget", "seconds"),
    ("llm_concurrency",): ("llm", "concurrency"),
    ("execute", "retries"): ("infra_retries",),
    ("infra_retries",): ("infra_retries",),
    ("agent", "stages", "stage1", "until"): ("bfts", "agent", "stages", "stage1_until"),
    ("stages", "stage1", "until"): ("bfts", "agent", "stages", "stage1_until"),
    ("sandbox",): ("sandbox",),
    ("strategy",): ("strategy",),
    ("out_root",): ("out_root",),
    ("run_id",): ("run_id",),
}
"""Where keys of the two documents live in the common shape, if not in the section itself."""
