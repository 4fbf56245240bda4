"""The programs that the tests' researcher writes: small, real, and done in a fraction of a second."""

from __future__ import annotations

from collections.abc import Sequence

_EXPERIMENT = """\
import os

import numpy as np

working_dir = os.path.join(os.getcwd(), "working")
os.makedirs(working_dir, exist_ok=True)
seed = int(os.environ.get("CORERUN_SEED", "0"))
strength = {strength!r}
experiment_data = {{}}


def make_rows(rng, rows, weights):
    inputs = rng.normal(size=(rows, weights.size))
    return inputs, inputs @ weights + rng.normal(scale=1.0, size=rows)


def rmse(inputs, targets, weights):
    return float(np.sqrt(np.mean((inputs @ weights - targets) ** 2)))


for number, name in enumerate({data_sets!r}):
    rng = np.random.default_rng(1000 * seed + number)
    truth = rng.normal(size=30) * (rng.random(30) < 0.3)
    train, validation, test = (make_rows(rng, rows, truth) for rows in (40, 200, 200))
    weights = np.zeros(truth.size)
    metrics = {{"train": [], "val": [], "test": []}}
    losses = {{"train": [], "val": []}}
    for epoch in range(10):
        for _ in range(20):
            slope = train[0].T @ (train[0] @ weights - train[1]) / train[1].size
            weights -= 0.05 / (1 + strength) * (slope + strength * weights)
        metrics["train"].append(rmse(*train, weights))
        metrics["val"].append(rmse(*validation, weights))
        losses["train"].append(metrics["train"][-1] ** 2 + strength * float(weights @ weights))
        losses["val"].append(metrics["val"][-1] ** 2)
        print(f"{{name}} epoch {{epoch}}: validation loss {{losses['val'][-1]:.4f}}")
    metrics["test"].append(rmse(*test, weights)){fault}
    experiment_data[name] = {{
        "metrics": metrics,
        "losses": losses,
        "predictions": validation[0] @ weights,
        "ground_truth": validation[1],
    }}
    print(f"{{name}} validation_rmse {{metrics['val'][-1]:.4f}}")

np.save(os.path.join(working_dir, "experiment_data.npy"), experiment_data, allow_pickle=True)
"""

_FAULT = '\n    raise ValueError("weights and targets have different shapes")'

_PLOT = """\
import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

working_dir = os.path.join(os.getcwd(), "working")
os.makedirs(working_dir, exist_ok=True)
files = [path for path in {paths!r} if os.path.exists(path)]
runs = [np.load(path, allow_pickle=True).item() for path in files]

figure, axis = plt.subplots()
for run in runs:
    for name, record in run.items():
        axis.plot(record["metrics"]["val"], label=name)
axis.set_xlabel("epoch")
axis.set_ylabel("validation rmse")
axis.legend()
figure.savefig(os.path.join(working_dir, "validation_curves.png"))
plt.close(figure)

figure, axis = plt.subplots()
for run in runs:
    for name, record in run.items():
        axis.scatter(record["ground_truth"], record["predictions"], s=4, label=name)
axis.set_xlabel("ground truth")
axis.set_ylabel("prediction")
axis.legend()
figure.savefig(os.path.join(working_dir, "predictions.png"))
plt.close(figure)
"""

_AGGREGATE = """\
import json
import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

os.makedirs("figures", exist_ok=True)
with open({manifest!r}) as file:
    manifest = json.load(file)
runs = [np.load(path, allow_pickle=True).item() for path in manifest["npy_files"]]

for figure_name, kind in (("validation.png", "val"), ("training.png", "train"), ("test.png", "test")):
    figure, axis = plt.subplots()
    for number, run in enumerate(runs):
        for name, record in run.items():
            axis.plot(record["metrics"][kind], marker="o", label=f"{{name}} {{number}}")
    axis.set_xlabel("epoch")
    axis.set_ylabel(kind + " rmse")
    axis.legend(fontsize=6)
    figure.savefig(os.path.join("figures", figure_name))
    plt.close(figure)
"""


def experiment_program(strength: float, data_sets: Sequence[str], *, is_faulty: bool = False) -> str:
    """Ridge regression on made-up data sets; saves ``working/experiment_data.npy``.

    The data depend on ``CORERUN_SEED``; a faulty program raises ValueError after some output.
    """
    return _EXPERIMENT.format(
        strength=round(strength, 6), data_sets=tuple(data_sets), fault=_FAULT if is_faulty else ""
    )


def plot_program(paths: Sequence[str]) -> str:
    """Two PNG files in ``working/`` from those of ``paths`` that exist."""
    return _PLOT.format(paths=list(paths) or ["working/experiment_data.npy"])


def aggregate_program(manifest: str) -> str:
    """Three PNG files in ``figures/`` from the data files that ``manifest`` names."""
    return _AGGREGATE.format(manifest=manifest)
