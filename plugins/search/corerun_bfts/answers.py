"""The structured answers that models give in an experiment search.

Class names are the tool names that models see; field names are those of AI-Scientist-v2.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Base of all answers: more keys than asked for are ignored."""

    model_config = ConfigDict(extra="ignore")


class define_metric(Answer):
    """The one metric by which programs of this run are compared."""

    name: str = Field(min_length=1, description="short name, such as validation_accuracy")
    maximize: bool = Field(description="true if higher is better")
    description: str = Field("", description="what it measures and on which rows")


class propose_experiment(Answer):
    """The next experiment of a tuning or ablation stage."""

    name: str = Field(description="short name of what is changed")
    description: str = Field(description="what is changed and what is expected of it")
    setting: dict[str, Any] = Field(
        default_factory=dict, description="all differences to the base program, name to value"
    )
    exhausted: bool = Field(False, description="true if nothing worth trying is left")


class submit_review(Answer):
    """A judgement on one program's run."""

    is_bug: bool = Field(description="true if the run failed or its result can't be trusted")
    summary: str = Field(description="findings, or the cause of the failure and how to mend it")


class MetricValue(Answer):
    """A metric's values on one data set."""

    dataset_name: str
    final_value: float
    best_value: float


class NamedMetric(Answer):
    """One metric over all data sets."""

    metric_name: str
    lower_is_better: bool
    description: str = ""
    data: list[MetricValue]


class parse_metrics(Answer):
    """Metrics as a program's data or output gives them."""

    valid_metrics_received: bool
    metric_names: list[NamedMetric] = Field(default_factory=list)


class PlotAnalysis(Answer):
    """What one plot shows."""

    analysis: str


class analyze_experiment_plots(Answer):
    """A judgement on the plots of one program, in the order of the images."""

    plot_analyses: list[PlotAnalysis]
    valid_plots_received: bool
    vlm_feedback_summary: str
    datasets_successfully_tested: list[str] = Field(default_factory=list)


class select_plots(Answer):
    """The plots most worth looking at."""

    selected_plots: list[str] = Field(description="at most ten of the given paths")


class select_best_implementation(Answer):
    """The best of the candidates."""

    selected_id: str
    reasoning: str = ""


class evaluate_stage_completion(Answer):
    """Whether the goals of a stage are reached."""

    is_complete: bool
    reasoning: str = ""
    missing_criteria: list[str] = Field(default_factory=list)


class generate_substage_goals(Answer):
    """Goals of the next sub-stage."""

    goals: str
    sub_stage_name: str


class merge_plans(Answer):
    """The plan of a program together with the plans it builds on."""

    overall_plan: str


class Figure(Answer):
    """A figure worth keeping."""

    path: str = ""
    description: str = ""
    analysis: str = ""


class NumericalResult(Answer):
    """A number worth keeping."""

    result: float
    description: str = ""
    analysis: str = ""


class summarize_drafts(Answer):
    """The summary of the first stage."""

    Experiment_description: str
    Significance: str
    Description: str
    List_of_included_plots: list[Figure] = Field(default_factory=list)
    Key_numerical_results: list[NumericalResult] = Field(default_factory=list)
