"""The book as plain tables: ideas, knobs, first drafts and planted faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

Value: TypeAlias = str | int | float
Config: TypeAlias = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Knob:
    """One dimension of an experiment. ``ordered``: a move goes to a neighbour, else to any other value.

    ``group`` is ``tune`` (training of the network) or ``new`` (something added to it). ``neutral``
    is the value that an ablation sets; None: the knob can't be left out.
    """

    group: str
    values: tuple[Value, ...]
    ordered: bool
    neutral: Value | None


KNOBS: Mapping[str, Knob] = MappingProxyType(
    {
        "hidden": Knob("tune", (16, 32, 64, 128), True, None),
        "lr": Knob("tune", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), True, None),
        "batch": Knob("tune", (8, 16, 32), True, None),
        "epochs": Knob("tune", (10, 20, 40), True, None),
        "decay": Knob("tune", (0, 0.0001, 0.001, 0.01, 0.03), True, 0),
        "optimizer": Knob("tune", ("sgd", "momentum", "adam"), False, "sgd"),
        "scale": Knob("new", ("none", "standard"), False, "none"),
        "features": Knob("new", ("raw", "fourier", "squares"), False, "raw"),
        "augment": Knob("new", ("none", "noise", "shift", "mixup"), False, "none"),
        "dropout": Knob("new", (0, 0.1, 0.2, 0.4), True, 0),
        "smoothing": Knob("new", (0, 0.05, 0.1, 0.2), True, 0),
        "average": Knob("new", ("last", "ema"), False, "last"),
        "members": Knob("new", (1, 3), True, 1),
        "loss": Knob("new", ("plain", "bootstrap", "robust"), False, "plain"),
    }
)


@dataclass(frozen=True, slots=True)
class Idea:
    """A question that the book can work on.

    ``sets``: data sets, the first one alone in stage 1. ``rows``: most training rows of a set.
    ``without``: knob values that make no sense here. ``relabelled``: share of training labels
    that are replaced at random.
    """

    name: str
    question: str
    sets: tuple[str, ...]
    rows: int
    metric: str
    maximize: bool
    metric_text: str
    without: Mapping[str, tuple[Value, ...]]
    regression: bool = False
    relabelled: float = 0.0

    def values(self, knob: str) -> tuple[Value, ...]:
        """The values of a knob that this idea allows, in the table's order."""
        banned = self.without.get(knob, ())
        return tuple(value for value in KNOBS[knob].values if value not in banned)


_CLASSES = ("digits", "breast_cancer", "wine")

IDEAS: Mapping[str, Idea] = MappingProxyType(
    {
        idea.name: idea
        for idea in (
            Idea(
                "few_labels",
                "What helps a small network most when labels are few?",
                _CLASSES,
                150,
                "validation_accuracy",
                True,
                "share of validation rows whose most probable class is the right one",
                {"loss": ("bootstrap", "robust")},
            ),
            Idea(
                "calibration",
                "Which regularisers make probabilities honest when 15 % of the labels are wrong?",
                _CLASSES,
                150,
                "validation_nll",
                False,
                "mean negative log-likelihood (nats) of the right class on clean validation rows",
                {},
                relabelled=0.15,
            ),
            Idea(
                "regression",
                "Does anything beat a plain small network on tabular targets?",
                ("diabetes", "wine", "iris"),
                200,
                "validation_rmse",
                False,
                "root mean squared error on validation rows, in standard deviations of the target",
                {
                    "smoothing": (0.05, 0.1, 0.2),
                    "augment": ("shift",),
                    "loss": ("bootstrap",),
                },
                regression=True,
            ),
        )
    }
)

_PLAIN: dict[str, Value] = {knob: KNOBS[knob].values[0] for knob in KNOBS if KNOBS[knob].group == "new"}
BASE: Config = MappingProxyType(
    {"hidden": 32, "lr": 0.1, "batch": 16, "epochs": 20, "decay": 0, "optimizer": "sgd", **_PLAIN}
)
DRAFTS: tuple[Config, ...] = (
    BASE,
    MappingProxyType({**BASE, "features": "fourier", "hidden": 64}),
    MappingProxyType({**BASE, "features": "squares", "optimizer": "momentum", "lr": 0.01}),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A planted mistake. ``exc_type``: what the program raises; "" when it only saves nothing."""

    exc_type: str
    text: str


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "transposed_product": Fault("ValueError", "a weight matrix is transposed in a product"),
        "unknown_name": Fault("NameError", "a variable is used under a name that it does not have"),
        "wrong_key": Fault("KeyError", "a list is looked up under a key that does not exist"),
        "never_saved": Fault("", "the results are never saved"),
    }
)
SECOND_DRAFT_TWO_FAULTS = 0.35
LATER_NODE_FAULT = 0.08

STEP_CAP = 12000.0
"""Most estimated optimiser steps of one program; keeps three data sets under about 3 CPU seconds."""


def estimated_steps(idea: Idea, sets: int, config: Config) -> float:
    """Optimiser steps of a program, weighted by the network's width."""
    batch, epochs = float(config["batch"]), float(config["epochs"])
    members, hidden = float(config["members"]), float(config["hidden"])
    return sets * idea.rows / batch * epochs * members * (1 + hidden / 300)
