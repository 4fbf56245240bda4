"""The questions about experiment programs: writing, mending, choosing the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from corerun_bfts import answers
from corerun_bfts.questions import (
    RESEARCHER,
    REVIEWER,
    Question,
    Section,
    ask_about,
    context,
    program_rules,
)

Facts = Mapping[str, Any]


class Prompts:
    """Questions that share an idea, a metric and a stage."""

    def __init__(
        self,
        idea: Facts,
        metric: Facts,
        *,
        stage: int,
        stage_name: str,
        goals: str,
        stage_sets: int,
        timeout_s: float,
        synthetic_sets: int = 1,
        folds: int = 1,
        packages: str = "",
        preview: str = "",
    ) -> None:
        self._metric = metric
        self._timeout = timeout_s
        self._stage = stage
        self._sets = stage_sets
        self._more = []
        if synthetic_sets > 1:
            self._more.append(f"Test on at least {synthetic_sets} synthetic data sets.")
        if folds > 1:
            self._more.append(f"Use {folds}-fold cross-validation where the data allows it.")
        self.context = context(idea, stage, stage_sets, timeout_s)
        """What every question of the stage begins with."""
        self._context = [
            *self.context,
            Section("Stage name", "stage_name", stage_name),
            Section("Goals of the stage", "goals", goals),
            Section("Primary metric", "metric", dict(metric)),
            Section("Packages that programs may import", "packages", packages),
            Section("Data at hand", "preview", preview),
        ]

    def _program(self, purpose: str, task: str, sections: Sequence[Section]) -> Question:
        rules = program_rules(self._metric, self._timeout, outer=self._stage in (2, 4), more=self._more)
        return ask_about("code", purpose, RESEARCHER, task, [*self._context, *sections], rules=rules)

    def _history(self, tried: Sequence[Facts], running: Sequence[Facts]) -> list[Section]:
        return [
            Section("Programs tried so far (score: higher is better)", "tried", list(tried)),
            Section("Programs still running", "running", list(running)),
        ]

    def draft(self, ordinal: int, tried: Sequence[Facts], running: Sequence[Facts]) -> Question:
        """A first program, different from what was tried."""
        task = (
            "Write a first, simple and complete experiment for the idea: a sound baseline on one data set. "
            "Take another approach than the programs tried so far. No hyperparameter search yet."
        )
        number = Section("Number of this draft, from 0", "draft", ordinal)
        return self._program("bfts.draft", task, [number, *self._history(tried, running)])

    def improve(
        self, parent: Facts, code: str, tried: Sequence[Facts], running: Sequence[Facts], feedback: Facts
    ) -> Question:
        """One change to a working program."""
        task = (
            "Improve the working program below with one clear change towards the goals of the stage. "
            "Say what you change, from what to what, and why the history speaks for it."
        )
        sections = [
            Section("Parent", "parent", dict(parent)),
            Section("Parent program", "parent_code", code),
            Section("Feedback on the parent", "feedback", dict(feedback)),
            *self._history(tried, running),
        ]
        return self._program("bfts.improve", task, sections)

    def debug(self, parent: Facts, code: str, failure: Facts) -> Question:
        """A mended version of a failed program."""
        task = "The program below failed. Find the cause and write the whole program again, mended."
        sections = [
            Section("Failed program's record", "parent", dict(parent)),
            Section("Failed program", "parent_code", code),
            Section("Exception", "exc_type", failure["exc_type"]),
            Section("Message", "exc_message", failure["exc_message"]),
            Section("What went wrong", "reason", failure["reason"]),
            Section("Review of its run", "review", failure["review"]),
            Section("Feedback on its plots", "plots", failure["plots"]),
            Section("End of its output", "output_tail", failure["output_tail"]),
            Section("Name of its change", "name", failure["name"]),
        ]
        return self._program("bfts.debug", task, sections)

    def next_idea(
        self, kind: str, root: Facts, code: str, tried: Sequence[Facts], running: Sequence[Facts]
    ) -> Question:
        """The next tuning (``tune``) or ablation (``ablate``) of the carried program."""
        task = {
            "tune": (
                "Propose the next hyperparameter setting for the base program; no change of architecture. "
                "Keep what helped: the setting lists all differences to the base program."
            ),
            "ablate": (
                "Propose the next ablation of the base program: take away or neutralise one component, to "
                "learn what it contributes. The setting lists all differences to the base program."
            ),
        }[kind]
        sections = [
            Section("Base program's record", "root", dict(root)),
            Section("Base program", "root_code", code),
            *self._history(tried, running),
        ]
        return ask_about(
            "code",
            f"bfts.{kind}_idea",
            RESEARCHER,
            task,
            [*self._context, *sections],
            rules=["Don't repeat a setting that was tried or is running."],
            schema=answers.propose_experiment,
        )

    def apply(self, kind: str, root: Facts, code: str, idea: Facts) -> Question:
        """The carried program with a proposed setting; an empty setting widens it to all data sets."""
        setting = dict(idea["setting"])
        if idea["name"] or setting:
            task = "Write the base program again with exactly the proposed change, on all data sets."
        else:
            task = (
                "Run the base program unchanged in method and settings on all data sets of this stage "
                f"({self._sets} in total): add the missing ones."
            )
        sections = [
            Section("Base program's record", "root", dict(root)),
            Section("Base program", "root_code", code),
            Section("Name of the change", "name", idea["name"]),
            Section("The change", "description", idea["description"]),
            Section("Setting", "setting", setting),
        ]
        return self._program(f"bfts.{kind}", task, sections)

    def review(self, code: str, run: Facts) -> Question:
        """Whether a run can be trusted."""
        task = (
            "Judge the run of this program. It is a bug if it raised, ran out of time, saved no data, gave "
            "values that are not finite, or can't be what the idea asks for."
        )
        sections = [
            *self.context,
            Section("Program", "code", code),
            Section("Exception", "exc_type", run["exc_type"]),
            Section("It ran out of time", "timed_out", run["timed_out"]),
            Section("It saved its data", "has_data", run["has_data"]),
            Section("All its values are finite", "finite", run["finite"]),
            Section("End of its output", "output_tail", run["output_tail"]),
        ]
        return ask_about("feedback", "bfts.review", REVIEWER, task, sections, schema=answers.submit_review)

    def read_metric(self, code: str, structure: Any) -> Question:
        """A program that prints the metrics of saved data whose form isn't the agreed one."""
        task = (
            "The program below saved working/experiment_data.npy in a form of its own. Write a program that "
            "loads it (np.load(..., allow_pickle=True).item()) and prints for every data set and every "
            "metric one line: data set, metric name, final value, best value."
        )
        sections = [
            *self.context,
            Section("Program", "code", code),
            Section("Primary metric", "metric", dict(self._metric)),
            Section("Structure of the data", "structure", structure),
        ]
        rules = ["Answer with exactly one ```python block.", "Print nothing else."]
        return ask_about("code", "bfts.read_metric", RESEARCHER, task, sections, rules=rules)

    def parse_metric(self, rows: Sequence[Facts], output: str) -> Question:
        """The metrics of a run as data."""
        task = "Report the metrics of this run, as they stand below. Invent nothing."
        sections = [
            *self.context,
            Section("Primary metric", "metric", dict(self._metric)),
            Section("Values read from the saved data", "rows", list(rows)),
            Section("Output of the metric reader", "output", output),
        ]
        return ask_about(
            "feedback", "bfts.parse_metric", REVIEWER, task, sections, schema=answers.parse_metrics
        )

    def plot(self, code: str, base: str, structure: Any, sets: Sequence[str], error: str) -> Question:
        """A program that plots a run's saved data."""
        task = (
            "Write a plot program: it loads working/experiment_data.npy and saves plots of it as PNG files "
            "in working/: for each data set the curves of loss and metric, and predictions against truth."
        )
        sections = [
            *self.context,
            Section("Experiment program", "code", code),
            Section("Plot program to start from", "base", base),
            Section("Primary metric", "metric", dict(self._metric)),
            Section("Data sets", "sets", list(sets)),
            Section("Data file", "file", "working/experiment_data.npy"),
            Section("Structure of the data", "structure", structure),
            Section("The last attempt failed", "error", error),
        ]
        rules = [
            "Answer with exactly one ```python block.",
            "Load with np.load(path, allow_pickle=True).item(); use only keys of the structure above.",
            "Guard each figure with try/except so that one failure doesn't lose the others; close figures.",
            "File names say data set and content; titles and axes are labelled. Invent no data.",
        ]
        return ask_about("code", "bfts.plot", RESEARCHER, task, sections, rules=rules)
