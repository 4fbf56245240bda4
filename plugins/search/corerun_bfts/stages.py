"""The four stages of an experiment search: their names, goals and scopes in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from corerun.inputs.names import safe_name

GOALS = {
    1: (
        "Get a basic working program for the idea on one simple data set. A program that may be given as "
        "'Code' is a starting point. Correct and simple comes before good."
    ),
    2: (
        "Tune hyperparameters of the working program (learning rate, epochs, batch size, regularisation), "
        "without changing its architecture, and test it on {sets} data sets in total."
    ),
    3: (
        "Try new ideas that go beyond tuning and give insight, along the planned experiments, on {sets} "
        "data sets in total. Be creative and think outside of the box."
    ),
    4: (
        "Find out what contributes: take away or neutralise one component at a time, on the same data sets, "
        "with the known risks in mind."
    ),
}
MAIN = {
    1: ("initial_implementation", "preliminary"),
    2: ("baseline_tuning", "first_attempt"),
    3: ("creative_research", "first_attempt"),
    4: ("ablation_studies", "first_attempt"),
}
KINDS = {1: "improve", 2: "tune", 3: "improve", 4: "ablate"}
"""What a good parent is expanded to, by stage."""

DATA_SETS = 3
"""Data sets asked for from the second stage on."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage or sub-stage: a search of its own, a scope of the journal."""

    number: int
    sub: int
    main: str
    slug: str
    goals: str
    named: str = ""

    @property
    def scope(self) -> str:
        """Name in the journal; a stage's folder under ``logs/0-run`` is ``stage_`` and this."""
        return self.named or f"{self.number}_{self.main}_{self.sub}_{self.slug}"

    @property
    def seeds(self) -> str:
        """Scope of the seed reruns of this stage's best node."""
        return f"{self.scope}.seeds"

    @property
    def sets(self) -> int:
        """Data sets that programs of this stage are asked for."""
        return 1 if self.number == 1 else DATA_SETS

    @property
    def kind(self) -> str:
        """What a good parent is expanded to."""
        return KINDS[self.number]


FIRST_GOOD = Stage(
    2,
    1,
    "first_good",
    "widened",
    f"Run the first working program of the search on {DATA_SETS} data sets, for comparison.",
    named="final.first_good",
)
"""Not a stage of the search: measures what it started from on the data sets that it ended with."""


def first_stage(number: int, goals: Mapping[int, str]) -> Stage:
    """The first sub-stage of a main stage."""
    main, slug = MAIN[number]
    sets = 1 if number == 1 else DATA_SETS
    return Stage(number, 1, main, slug, goals.get(number) or GOALS[number].format(sets=sets))


def next_substage(stage: Stage, name: str, goals: str) -> Stage:
    """The sub-stage after ``stage``, with goals that a model set."""
    slug = safe_name(name.strip().lower().replace(" ", "_"), 40)
    return Stage(stage.number, stage.sub + 1, stage.main, slug, goals)
