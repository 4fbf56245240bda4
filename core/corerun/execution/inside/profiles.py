"""What a zygote imports before any program, and what a forked program needs so that it can't tell."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import time
import weakref
from typing import Any

from . import pages, pools

_NUMPY = ("numpy",)
_PLOT = ("numpy", "matplotlib", "matplotlib.pyplot")
PROFILES = {
    "bare": (),
    "numpy": _NUMPY,
    "plot": _PLOT,
    "sklearn": (*_PLOT, "sklearn", "sklearn.datasets"),
    "torch": ("numpy", "torch"),
}
"""What must be there, by the name of a profile."""

# The second one is what showing an exception imports, where it can show the line.
_ALWAYS = ("traceback", "ast")
# What these packages import when it is first used; left out, each program would import it anew. Names
# change from version to version, so none of them must be there.
_LAZY = {
    "numpy": (
        *(".random", ".linalg", ".fft", ".polynomial", ".ma", ".lib.format", ".lib.scimath", ".rec"),
        *("pathlib", "zipfile"),
    ),
    "matplotlib": (
        *(".backends.backend_agg", ".backends.backend_pdf", ".font_manager", ".mathtext", ".tri"),
        *("._mathtext_data", ".category", ".units", ".dates"),
    ),
    "PIL": (
        *(".BmpImagePlugin", ".GifImagePlugin", ".JpegImagePlugin", ".PngImagePlugin", ".PpmImagePlugin"),
        *(".ImageFile", ".ImageColor"),
    ),
    "sklearn": (
        *("importlib.resources", "importlib.readers", ".datasets.data", ".datasets.descr", ".pipeline"),
        *(".linear_model", ".metrics", ".model_selection", ".preprocessing", ".ensemble", ".tree", ".svm"),
        *(".neighbors", ".cluster", ".decomposition", ".neural_network"),
    ),
    "torch": (
        *(".nn.functional", ".optim", ".optim.lr_scheduler", ".utils.data", "._tensor_str"),
        *("._subclasses.schema_check_mode", ".autograd.graph", ".profiler._cupti_monitor"),
    ),
}

MENTIONED = {"torch": (("optim", "torch._dynamo"),)}
"""By profile: a word in a program's text, and what a program with that word also imports when it runs.

The first optimizer imports PyTorch's compiler, which takes a second, and half as much memory again.
"""

_WARM_UP = """
import json
class Thing:
    def method(self, *words, **names):
        return [f"{word!r}" for word in words if word] + sorted(names)
try:
    with open(os.devnull) as file:
        file.read(); Thing().method(1, key=2)
    raise ValueError("warm")
except ValueError as error:
    json.loads(json.dumps({"text": traceback.format_exc(), "numbers": [1, 2.5, None, True]}))
"""


def load(profile: str, more: list[str], variables: dict[str, str | None]) -> dict[str, str]:
    """Import a profile's modules and make ready what programs would else each make for themselves.

    ``more`` is imported as far as it is there. ``variables`` are those of the environment that change
    once all is imported. Returns versions by package. Nothing is computed with the packages: what
    started a thread pool couldn't be forked. Raises ImportError for what is missing and OSError if a
    thread was started.
    """
    for name in (*_ALWAYS, *PROFILES[profile]):
        importlib.import_module(name)
    for package, parts in _LAZY.items():
        for part in parts:
            if package in sys.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(part, package)
    for name in more:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _warm_up()
    # What was imported must be closed in no program, only what programs make themselves.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    change_environment(variables)
    pools.set_sizes()
    # What started threads at that stops them before a fork, and begins anew when it is used.
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    _await_single_thread()
    # A version of a package that lacks what this needs must fail here, not in each program.
    renew()
    gc.collect()
    gc.freeze()
    pages.gather()
    tops = dict.fromkeys(name.partition(".")[0] for name in PROFILES[profile])
    return {top: str(getattr(sys.modules[top], "__version__", "")) for top in tops}


def _warm_up() -> None:
    import linecache
    import traceback

    exec(compile(_WARM_UP, "warm-up", "exec"), {"os": os, "traceback": traceback})
    # Programs that ended with an exception would each copy the pages of a full cache.
    linecache.clearcache()


def _await_single_thread() -> None:
    """Some imports start a timer; its thread ends when the timer is cancelled, but not at once."""
    for _ in range(200):
        if len(os.listdir("/proc/self/task")) == 1:
            return
        time.sleep(0.01)
    raise OSError("an import started a thread")


def change_environment(changes: dict[str, str | None]) -> None:
    """Set variables; None unsets one."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def renew() -> None:
    """In a forked program: what would be equal in all of them, or is the zygote's own."""
    loaded = sys.modules
    if "numpy.random" in loaded:
        # Not from the system's source directly, which takes three times as long.
        loaded["numpy.random"].seed(int.from_bytes(os.urandom(4), "little"))
    if "torch" in loaded:
        # Not torch.manual_seed, which looks for every kind of accelerator.
        loaded["torch"].default_generator.manual_seed(int.from_bytes(os.urandom(8), "little"))
    if "tempfile" in loaded:
        tempfile: Any = loaded["tempfile"]
        tempfile.tempdir = tempfile._name_sequence = None
    if "multiprocessing.process" in loaded:
        process: Any = loaded["multiprocessing.process"]
        process.current_process().authkey = os.urandom(32)
    if "matplotlib" in loaded:
        for function in (loaded["matplotlib"].get_configdir, loaded["matplotlib"].get_cachedir):
            _forget(function)


def _forget(function: Any) -> None:
    """Let a function that remembers its first answer find it again."""
    function.__closure__[function.__code__.co_freevars.index("called")].cell_contents = False
