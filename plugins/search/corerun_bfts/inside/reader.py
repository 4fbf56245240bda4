"""Runs inside the sandbox: turns working/experiment_data.npy into reading.json.

Beside a plot_agg_manifest.json it reads the structure of the files named there instead. The saved
files are pickles, so they are opened here and never by the process that owns the run.
"""

import json
import math
import os

import numpy as np

MAX_POINTS = 2000
MAX_SETS = 100


def numbers(value):
    """A list of floats of what looks like a series of numbers; None for anything else."""
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return [float(value)]
    if isinstance(value, dict):
        return None
    try:
        items = list(value)
    except TypeError:
        return None
    found = []
    for item in items:
        if isinstance(item, (tuple, list)) and item:
            item = item[-1]
        if isinstance(item, np.ndarray) and item.size == 1:
            item = item.item()
        if not isinstance(item, (bool, int, float, np.number, np.bool_)):
            return None
        found.append(float(item))
    return found


def finite(values):
    return all(math.isfinite(value) for value in values)


def clean(values):
    shown = values if len(values) <= MAX_POINTS else values[: MAX_POINTS - 1] + values[-1:]
    return [value if math.isfinite(value) else None for value in shown]


def structure(value, depth=0):
    """Keys, types and shapes: what a plot program has to know."""
    if isinstance(value, dict) and depth < 6:
        return {str(key): structure(item, depth + 1) for key, item in list(value.items())[:MAX_SETS]}
    if isinstance(value, np.ndarray):
        return {"type": f"array of {value.dtype}", "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        kind = type(value[0]).__name__ if value else "nothing"
        return {"type": f"list of {kind}", "shape": [len(value)]}
    return {"type": type(value).__name__}


def records(data, outer=()):
    """Data sets with their records, at any depth: the first dictionaries that have 'metrics'."""
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(value.get("metrics"), dict):
            yield outer, str(key), value
        elif isinstance(value, dict) and len(outer) < 4:
            yield from records(value, (*outer, str(key)))


def load(path):
    data = np.load(path, allow_pickle=True)
    return data.item() if isinstance(data, np.ndarray) and data.dtype == object and data.size == 1 else data


def structures(paths):
    found = {}
    for path in paths:
        try:
            found[path] = structure(load(path))
        except Exception as error:
            found[path] = {"type": "unreadable: " + type(error).__name__}
    return found


def read(path):
    data = load(path)
    if not isinstance(data, dict):
        return {"structure": structure(data), "sets": {}, "finite": True}
    sets = {}
    whole = True
    for outer, name, record in records(data):
        if len(sets) >= MAX_SETS:
            break
        label = name if name not in sets else "/".join((*outer, name))
        series = {}
        for part in ("metrics", "losses"):
            group = record.get(part)
            for key, value in group.items() if isinstance(group, dict) else ():
                values = numbers(value)
                if values:
                    series[part + "." + str(key)] = clean(values)
                    whole = whole and finite(values[-1:])
        sets[label] = series
    return {"structure": structure(data), "sets": sets, "finite": whole}


if os.path.exists("plot_agg_manifest.json"):
    with open("plot_agg_manifest.json", encoding="utf-8") as handle:
        reading = structures(json.load(handle)["npy_files"])
else:
    reading = read(os.path.join("working", "experiment_data.npy"))
with open("reading.json", "w", encoding="utf-8") as handle:
    json.dump(reading, handle, allow_nan=False)
