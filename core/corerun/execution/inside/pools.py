"""How many threads the numeric libraries of this process use, set as if they had been loaded just now.

They read their variables once, when they are loaded; and a pool of threads doesn't survive a fork, so
they are loaded with one thread.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# By a part of the library's file name: the functions that set the number, of which each build has some.
_SETTERS = {
    "openblas": tuple(
        f"{before}openblas_set_num_threads{after}"
        for before in ("", "scipy_")
        for after in ("", "64_", "_64")
    ),
    "omp": ("omp_set_num_threads",),
    "torch_cpu": ("mkl_serv_set_num_threads",),
}


def set_sizes() -> None:
    """Give each library that is loaded the number that the environment or the machine tells it."""
    libraries = [(part, path) for path in _loaded() for part in _SETTERS if part in os.path.basename(path)]
    cores = len(os.sched_getaffinity(0))
    common = _number("OMP_NUM_THREADS")
    mkl = _number("MKL_NUM_THREADS") or common or _physical_cores()
    blas = min(cores, _number("OPENBLAS_NUM_THREADS") or common or cores)
    # PyTorch asks MKL, where it is built with it, and tells OpenMP.
    with_mkl = any(part == "torch_cpu" and _functions(part, path) for part, path in libraries)
    omp = mkl if with_mkl else common or cores
    numbers = {"openblas": blas, "omp": omp, "torch_cpu": mkl}
    for part, path in libraries:
        for function in _functions(part, path):
            function(numbers[part])


def _loaded() -> list[str]:
    with open("/proc/self/maps") as lines:
        paths = {words[5] for words in (line.split() for line in lines) if len(words) > 5}
    return sorted(path for path in paths if ".so" in path)


def _functions(part: str, path: str) -> list[Any]:
    library = ctypes.CDLL(path)
    return [getattr(library, name) for name in _SETTERS[part] if hasattr(library, name)]


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def _physical_cores() -> int:
    """Cores that this process may use, those that share one counted once."""
    allowed = os.sched_getaffinity(0)
    with open("/proc/cpuinfo") as file:
        blocks = file.read().split("\n\n")
    found = set()
    for block in blocks:
        pairs = (line.partition(":") for line in block.split("\n"))
        facts = {key.strip(): value.strip() for key, _, value in pairs}
        if "core id" in facts and int(facts["processor"]) in allowed:
            found.add((facts.get("physical id"), facts["core id"]))
    return len(found) or len(allowed)
