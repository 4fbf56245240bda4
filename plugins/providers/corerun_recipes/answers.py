"""The purposes that judge or describe: every number in an answer is copied from the facts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from corerun.interfaces import Json

from .question import LABEL, Question, number

_LOWER_IS_BETTER = ("loss", "nll", "rmse", "error")


def review(asked: Question) -> str:
    """``{is_bug, summary}`` from what the run itself reported."""
    facts = asked.facts
    causes = []
    if facts["timed_out"]:
        causes.append("it ran past its time limit")
    elif facts["exc_type"]:
        causes.append(f"it raised {facts['exc_type']}")
    if not facts["has_data"]:
        causes.append("it saved no experiment data")
    elif not facts["finite"]:
        causes.append("its values are not finite")
    verdict = (
        f"The program failed: {' and '.join(causes)}." if causes else "The program ran and saved its data."
    )
    lines = facts["output_tail"].strip().splitlines()
    quoted = f' Last line of its output: "{lines[-1].strip()}".' if lines else ""
    return json.dumps({"is_bug": bool(causes), "summary": f"{LABEL} {verdict}{quoted}"})


def parse_metric(asked: Question) -> str:
    """The tool's object, copied from rows ``{set, metric, final, best}`` that hold finite numbers."""
    primary = asked.facts["metric"]
    by_metric: dict[str, list[dict[str, Json]]] = {}
    for row in asked.facts["rows"]:
        if _is_number(row["final"]) and _is_number(row["best"]):
            data = {"dataset_name": row["set"], "final_value": row["final"], "best_value": row["best"]}
            by_metric.setdefault(row["metric"], []).append(data)
    names = [
        {
            "metric_name": name,
            "lower_is_better": (
                not primary["maximize"]
                if name == primary["name"]
                else any(word in name.lower() for word in _LOWER_IS_BETTER)
            ),
            "description": asked.idea.metric_text if name == asked.idea.metric else "stored by the program",
            "data": data,
        }
        for name, data in by_metric.items()
    ]
    return json.dumps({"valid_metrics_received": bool(names), "metric_names": names})


def stage_complete(asked: Question) -> str:
    """Complete when the best program covers all data sets of the stage."""
    covered = asked.facts["best"]["sets"]
    missing = [name for name in asked.idea.sets[: asked.sets] if name not in covered]
    scores = ", ".join(f"{name} {number(value)}" for name, value in covered.items())
    reasoning = f"{LABEL} The best program covers {len(covered)} of {asked.sets} data sets ({scores})."
    return _verdict(not missing, reasoning, [f"a result on {name}" for name in missing])


def substage_complete(asked: Question) -> str:
    """Never: the book has one sub-stage per stage."""
    return _verdict(False, f"{LABEL} The book has one sub-stage per stage.", ["the stage's node limit"])


def overall_plan(asked: Question) -> str:
    """The parent's overall plan, then this plan."""
    before, now = (_unlabelled(asked.facts[name]) for name in ("parent_plan", "plan"))
    return json.dumps({"overall_plan": f"{LABEL} {before} Then: {now}" if before else f"{LABEL} {now}"})


def draft_summary(asked: Question) -> str:
    """The five-field object of a stage. Facts: ``rows``, ``plans`` (texts), ``figures`` (paths)."""
    idea, rows = asked.idea, asked.facts["rows"]
    plans = [_unlabelled(plan) for plan in asked.facts["plans"]]
    answer = {
        "Experiment_description": f"{LABEL} Written by rules. {idea.question} {' '.join(plans)}",
        "Significance": f"First programs for this question; later stages build on their {idea.metric}.",
        "Description": (
            f"Small numpy networks on at most {idea.rows} training rows, judged by {idea.metric}: "
            f"{idea.metric_text}."
        ),
        "List_of_included_plots": [
            {
                "path": path,
                "description": f"{path.rsplit('/', 1)[-1]}, drawn by the plot program from stored data",
                "analysis": "Not analysed: rules don't look at images.",
            }
            for path in asked.facts["figures"]
        ],
        "Key_numerical_results": [
            {
                "result": row["final"] if "final" in row else row["mean"],
                "description": f"{row['metric']} on {row['set']}",
                "analysis": _row(row),
            }
            for row in rows
        ],
    }
    return json.dumps(answer)


def node_summary(asked: Question) -> str:
    """What one node found, in sentences around its rows."""
    results = " ".join(_row(row) for row in asked.facts["rows"])
    plans = " ".join(_unlabelled(plan) for plan in asked.facts["plans"])
    return json.dumps(
        {
            "findings": f"{LABEL} Written by rules. {results or 'No results.'}",
            "significance": f"Bears on: {asked.idea.question} {plans}".rstrip(),
            "next_steps": "Change one knob of the best program, then repeat it with other seeds.",
        }
    )


def _row(row: Mapping[str, Json]) -> str:
    place = f"{row['metric']} on {row['set']}"
    if "mean" in row:
        return f"{place}: {number(row['mean'])} +- {number(row['std'])} over {row['n']} seeds."
    return f"{place}: {number(row['final'])} at the end, {number(row['best'])} at best."


def _verdict(complete: bool, reasoning: str, missing: list[str]) -> str:
    return json.dumps({"is_complete": complete, "reasoning": reasoning, "missing_criteria": missing})


def _unlabelled(text: str) -> str:
    return text.removeprefix(LABEL).strip()


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
