"""What a model must say to get through an experiment search: one text for each task that a question names."""

from __future__ import annotations

import json
from string import ascii_lowercase
from typing import Any

from tests.support.researcher import METRIC, PLOT, SETS, experiment, fenced

ERROR = 0.5
DEPTH = "metres_below"
"""A key that no question names: it is answered only where a schema is shown to the model."""


def _chatty(value: dict[str, Any]) -> str:
    """As small models answer: the JSON is there, and words around it."""
    return f"Sure, here it is:\n```json\n{json.dumps(value)}\n```\nAnything else?"


_PROGRAM = fenced("A constant prediction.", experiment(ERROR))
_ROWS = [
    {"dataset_name": name, "final_value": ERROR + 0.01 * number, "best_value": ERROR + 0.01 * number}
    for number, name in enumerate(SETS)
]
_PLOTS = fenced("Plots.", PLOT.format(folders=["working"], names=["curves.png"]))
_FIGURES = fenced("Figures.", PLOT.format(folders=["figures"], names=["one.png", "two.png"]))

STRUCTURED: dict[str, tuple[str, dict[str, Any]]] = {
    "define_metric": (
        "Name the one metric",
        {"name": METRIC, "maximize": False, "description": "mean error on validation rows"},
    ),
    "propose_experiment": (
        "Propose the next hyperparameter setting",
        {"name": "rate", "description": "a larger step", "setting": {"rate": 0.1}, "exhausted": False},
    ),
    "submit_review": (
        "Judge the run of this program",
        {"is_bug": False, "summary": "The error falls."},
    ),
    "parse_metrics": (
        "Report the metrics of this run",
        {
            "valid_metrics_received": True,
            "metric_names": [
                {"metric_name": METRIC, "lower_is_better": True, "description": "an error", "data": _ROWS}
            ],
        },
    ),
    "analyze_experiment_plots": (
        "Look at the plots",
        {
            "plot_analyses": [{"analysis": "The error falls."}],
            "valid_plots_received": True,
            "vlm_feedback_summary": "The plots are readable.",
            "datasets_successfully_tested": list(SETS),
        },
    ),
    "select_plots": ("Choose at most ten plots", {"selected_plots": ["working/curves.png"]}),
    "select_best_implementation": (
        "Choose the program that serves the idea best",
        {"selected_id": "no such node", "reasoning": "a guess"},
    ),
    "evaluate_stage_completion": (
        "Judge whether the goals of the stage are reached",
        {"is_complete": False, "reasoning": "There is more to try.", "missing_criteria": ["a second set"]},
    ),
    "generate_substage_goals": (
        "Set the goals of the next sub-stage",
        {"goals": "Look closer at what helped.", "sub_stage_name": "closer look"},
    ),
    "merge_plans": ("Merge the two plans", {"overall_plan": "A constant prediction, step by step."}),
    "summarize_drafts": (
        "Summarise the first stage",
        {
            "Experiment_description": "Drafts.",
            "Significance": "They run.",
            "Description": "Constant predictions.",
            "List_of_included_plots": [],
            "Key_numerical_results": [{"result": ERROR, "description": "error", "analysis": "constant"}],
        },
    ),
}
"""By the name of the answer: the words that ask for it, and the answer."""

TEXTS: dict[str, list[str]] = {
    "": ["1 2 3 4 5 6 7 8 9"],
    "Say five words, any words": list(ascii_lowercase),
    DEPTH: [json.dumps({DEPTH: 55})],
    "Write a first, simple and complete experiment": [_PROGRAM],
    "Improve the working program below": [_PROGRAM],
    "The program below failed. Find the cause": [_PROGRAM],
    "Write the base program again": [_PROGRAM],
    "Run the base program unchanged": [_PROGRAM],
    "Write a plot program": [_PLOTS],
    "draws the final figures": [_FIGURES],
    "Improve the figures of the run": ["I am done"],
    "Propose the next ablation": [
        _chatty({"name": "no bias", "description": "", "setting": {"bias": False}})
    ],
    **{phrase: [_chatty(value)] for phrase, value in STRUCTURED.values()},
}
