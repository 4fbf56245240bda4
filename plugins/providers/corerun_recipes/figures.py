"""The purposes that answer with a program which reads stored data: plots, and the metric reader."""

from __future__ import annotations

from .question import Question, with_program
from .render import render


def plot(asked: Question) -> str:
    """Per data set loss and metric curves, and a confusion matrix or predicted against true values."""
    code = render(
        "plot.py.j2", file=asked.facts["file"], metric=asked.idea.metric, regression=asked.idea.regression
    )
    return with_program(
        "Curves of loss and metric, and what was predicted, one figure each per data set.", code
    )


def read_metric(asked: Question) -> str:
    """Prints the last value of the primary metric per data set."""
    code = render("reader.py.j2", metric=asked.idea.metric)
    return with_program(f"Reads the stored {asked.idea.metric} of every data set.", code)


def seed_plot(asked: Question) -> str:
    """Means over seeds with standard-error bars."""
    code = render("seed_plot.py.j2", files=asked.facts["npy_files"], metric=asked.idea.metric)
    count = len(asked.facts["npy_files"])
    return with_program(f"Means of {count} seeds with bars of one standard error.", code)


def aggregate_plots(asked: Question) -> str:
    """The final figures of a run in one script; after it there is nothing to add."""
    facts = asked.facts
    if facts["round"] > 0:
        return "I am done"
    code = render(
        "aggregate.py.j2",
        manifest=facts["manifest"],
        metric=asked.idea.metric,
        maximize=asked.idea.maximize,
        scores=[item for item in facts["scores"] if item["score"] is not None],
        ablations=[item for item in facts["files"]["ablations"] if item["score"] is not None],
        files=facts["files"],
    )
    return with_program("Final figures, drawn from the data files of the manifest.", code)
