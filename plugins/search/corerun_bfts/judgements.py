"""The questions around the search: metric, stage ends, plots, summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from corerun.interfaces import Part
from corerun_bfts import answers
from corerun_bfts.questions import RESEARCHER, REVIEWER, Question, Section, ask_about

Facts = Mapping[str, Any]
Known = Sequence[Section]
"""The sections with which every question of a run begins (`questions.context`)."""
WRITER = "You write short, exact summaries of experiments. You state only what the data below shows."


def define_metric(known: Known) -> Question:
    """The one metric of a run."""
    task = (
        "Name the one metric by which programs for this idea are compared. It is measured on validation rows "
        "and averaged over data sets."
    )
    return ask_about("code", "bfts.metric", RESEARCHER, task, known, schema=answers.define_metric)


def stage_complete(
    kind: str, known: Known, stage: int, goals: str, best: Facts, tried: Sequence[Facts]
) -> Question:
    """Whether a stage's (``stage``) or a sub-stage's (``substage``) goals are reached."""
    task = "Judge whether the goals of the stage are reached by its best program, and name what is missing."
    sections = [
        *known,
        Section("Goals", "goals", goals),
        Section("Best program's record", "best", dict(best)),
        Section("Programs of the stage", "tried", list(tried)),
    ]
    rules = [
        "A stage that tunes is complete only if curves are stable and the results hold on two data sets."
    ]
    return ask_about(
        "feedback",
        f"bfts.{kind}_complete",
        REVIEWER,
        task,
        sections,
        rules=rules if stage == 2 else (),
        schema=answers.evaluate_stage_completion,
    )


def substage_goals(known: Known, goals: str, best: Facts, tried: Sequence[Facts]) -> Question:
    """Goals of the next sub-stage."""
    task = "Set the goals of the next sub-stage: what to examine next within the stage, in two sentences."
    sections = [
        *known,
        Section("Goals so far", "goals", goals),
        Section("Best program's record", "best", dict(best)),
        Section("Programs of the stage", "tried", list(tried)),
    ]
    return ask_about(
        "feedback",
        "bfts.substage_goals",
        RESEARCHER,
        task,
        sections,
        schema=answers.generate_substage_goals,
    )


def select_best(known: Known, candidates: Sequence[Facts]) -> Question:
    """The best of several working programs."""
    task = "Choose the program that serves the idea best, by its metric and by how far it can be trusted."
    sections = [
        *known,
        Section("Candidates", "candidates", list(candidates)),
    ]
    return ask_about(
        "select", "bfts.select_best", REVIEWER, task, sections, schema=answers.select_best_implementation
    )


def select_plots(known: Known, paths: Sequence[str]) -> Question:
    """The ten plots most worth looking at."""
    task = "Choose at most ten plots that say most about the experiment, by their file names."
    return ask_about(
        "feedback",
        "bfts.select_plots",
        REVIEWER,
        task,
        [*known, Section("Plots", "paths", list(paths))],
        schema=answers.select_plots,
    )


def plot_analysis(known: Known, paths: Sequence[str], images: Sequence[Part]) -> Question:
    """What the plots of a program show."""
    task = (
        "Look at the plots, in the order of their names. Say of each what it shows; say whether they are "
        "valid plots of a working experiment, what they mean for the idea, and on which data sets the "
        "experiment succeeded."
    )
    sections = [
        *known,
        Section("Plots", "paths", list(paths)),
    ]
    return ask_about(
        "vision",
        "bfts.plot_analysis",
        REVIEWER,
        task,
        sections,
        schema=answers.analyze_experiment_plots,
        images=images,
    )


def overall_plan(known: Known, parent_plan: str, plan: str) -> Question:
    """A node's plan merged with the plans it builds on."""
    task = "Merge the two plans into one description of what the program does; keep what still holds."
    sections = [
        *known,
        Section("Plan so far", "parent_plan", parent_plan),
        Section("New step", "plan", plan),
    ]
    return ask_about("summary", "bfts.overall_plan", WRITER, task, sections, schema=answers.merge_plans)


def draft_summary(
    known: Known, plans: Sequence[str], rows: Sequence[Facts], figures: Sequence[str]
) -> Question:
    """The summary of the first stage."""
    task = "Summarise the first stage: what was tried, what it means, and the numbers that matter."
    sections = [
        *known,
        Section("Plans", "plans", list(plans)),
        Section("Results", "rows", list(rows)),
        Section("Figures", "figures", list(figures)),
    ]
    return ask_about("summary", "bfts.draft_summary", WRITER, task, sections, schema=answers.summarize_drafts)


def seed_plot(
    known: Known,
    metric: Facts,
    files: Sequence[str],
    structure: Any,
    sets: Sequence[str],
    base: str,
    error: str,
) -> Question:
    """A program that plots several seeds of one experiment together."""
    task = (
        "Write a plot program that loads the data files below, one per seed of the same experiment, and "
        "saves plots of the mean over seeds with standard-error bars as PNG files in working/."
    )
    sections = [
        *known,
        Section("Primary metric", "metric", dict(metric)),
        Section("Data files", "npy_files", list(files)),
        Section("Structure of one file", "structure", structure),
        Section("Data sets", "sets", list(sets)),
        Section("Plot program of one seed", "base", base),
        Section("The last attempt failed", "error", error),
    ]
    rules = [
        "Answer with exactly one ```python block.",
        "Load with np.load(path, allow_pickle=True).item().",
        "Begin with: import os; os.makedirs('working', exist_ok=True).",
    ]
    return ask_about("code", "bfts.seed_plot", RESEARCHER, task, sections, rules=rules)


def aggregate_plots(known: Known, facts: Facts) -> Question:
    """The script that draws a run's final figures; later rounds improve on it."""
    first = facts["round"] == 0
    task = (
        "Write one script that draws the final figures of the whole run."
        if first
        else "Improve the figures of the run: write the whole script again, or answer 'I am done'."
    )
    titles = {
        "summaries": "Summaries of the stages",
        "manifest": "Manifest of the data files",
        "structure": "Structure of the data files",
        "metric": "Primary metric",
        "scores": "Scores (higher is better)",
        "files": "Data files by role",
        "seed_stats": "Statistics over seeds",
        "max_figures": "Target number of figures",
        "round": "Round",
        "figures": "Figures made by the last script",
        "best_figures": "Figures made by the best script",
        "output": "Output of the last script",
        "script": "Last script",
    }
    sections = [*known, *(Section(titles[key], key, facts[key]) for key in titles if key in facts)]
    rules = [
        "Answer with exactly one ```python block, or with 'I am done'.",
        "Read data only from the absolute paths that plot_agg_manifest.json lists under 'npy_files' "
        "(np.load(path, allow_pickle=True).item()); use only keys of the structure above.",
        "Save PNG files into figures/ (make it); invent no data; guard each figure with try/except.",
        "Label axes and titles so that a reader understands each figure alone.",
    ]
    return ask_about("plots", "bfts.aggregate_plots", RESEARCHER, task, sections, rules=rules)
