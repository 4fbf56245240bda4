"""What this machine can do for corerun, check by check, and what to do about each gap."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from corerun.errors import CorerunError
from corerun.execution import cgroups, select
from corerun.execution.gpus import visible_gpus
from corerun.execution.inside.profiles import PROFILES
from corerun.interfaces import Probe
from corerun.job.environment import NAMES
from corerun.job.isolation import probe_all
from corerun.llm.sqlite import cache_folder
from corerun.plugins import PluginManager

_DISK_MB = 1024
_DEVELOPMENT = ("dev",)
_REQUIREMENT = re.compile(r"([\w.-]+).*?;.*?extra == ['\"]([\w-]+)['\"]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. ``hint`` says what to do where ``ok`` is false; ``essential``: without it a model's
    programs don't run here by default."""

    check: str
    ok: bool
    detail: str
    hint: str = ""
    essential: bool = False


def examine(manager: PluginManager, environ: Mapping[str, str], folder: Path) -> list[Finding]:
    """Every check that needs no network. Runs a tiny program in each sandbox; imports nothing heavy."""
    probes = probe_all(manager)
    return [
        _python(),
        *_sandboxes(probes),
        _chosen("model-written code", probes, select.MODEL_CODE_GUARANTEES, essential=True),
        _chosen("built-in recipes", probes, select.RULES_CODE_GUARANTEES),
        _cgroups(),
        *_extras(),
        *_profiles(),
        _keys(environ),
        _gpus(environ),
        _disk(folder),
        _cache(environ),
    ]


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()}, {sys.executable}")


def _sandboxes(probes: Mapping[str, Probe]) -> Iterator[Finding]:
    for name, probe in sorted(probes.items(), key=lambda item: (item[1].strength, item[0])):
        gives = ", ".join(sorted(probe.guarantees)) or "nothing"
        said = f"strength {probe.strength}; gives {gives}" if probe.ok else probe.reason
        yield Finding(f"sandbox {name}", probe.ok, said, "" if probe.ok else _remedy(probe.reason))


def _remedy(reason: str) -> str:
    found = re.search(r"\(((?:apt|pip) install [^)]+)\)", reason)
    return found[1] if found else ""


def _chosen(
    programs: str, probes: Mapping[str, Probe], require: frozenset[str], *, essential: bool = False
) -> Finding:
    try:
        choice = select.choose(probes, "auto", require)
    except CorerunError as error:
        hints = [remedy for probe in probes.values() if (remedy := _remedy(probe.reason))]
        hint = hints[0] if hints else f"run it in a container or virtual machine, with {select.OPT_OUT}"
        return Finding(f"auto for {programs}", False, str(error), hint, essential)
    missing = f", without {', '.join(choice.missing)}" if choice.missing else ""
    return Finding(f"auto for {programs}", True, f"{choice.name}{missing}", essential=essential)


def _cgroups() -> Finding:
    gives = sorted(cgroups.guarantees())
    if gives:
        return Finding("cgroups", True, f"hold {', '.join(gives)} of each program")
    return Finding(
        "cgroups",
        False,
        "none can be made here: memory and processes of a program are watched, not limited by the kernel",
        "run corerun as root or in a delegated group, for example with systemd-run --user --scope",
    )


def _extras() -> Iterator[Finding]:
    """Each extra of corerun with the packages it calls for."""
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("corerun") or ():
        if (match := _REQUIREMENT.match(line)) and match[2] not in _DEVELOPMENT:
            extras.setdefault(match[2], []).append(match[1])
    for extra, packages in extras.items():
        versions = {name: _version(name) for name in packages}
        absent = [name for name, version in versions.items() if not version]
        said = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
        hint = f"pip install 'corerun[{extra}]'" if absent else ""
        yield Finding(f"extra {extra}", not absent, said, hint, essential=extra == "experiments")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _profiles() -> Iterator[Finding]:
    """What a program can be forked with, already imported."""
    for name, parts in PROFILES.items():
        modules = list(dict.fromkeys(part.partition(".")[0] for part in parts))
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        said = f"no module {', '.join(absent)}" if absent else f"imports {', '.join(modules) or 'nothing'}"
        hint = f"pip install 'corerun[{'train' if name == 'torch' else 'experiments'}]'" if absent else ""
        yield Finding(f"preload {name}", not absent, said, hint)


def _keys(environ: Mapping[str, str]) -> Finding:
    """Names of what is set; never a value."""
    found = sorted(name for name, value in environ.items() if value and NAMES.match(name))
    keys = [name for name in found if name.endswith(("_API_KEY", "_TOKEN", "_BASE_URL"))]
    if keys:
        return Finding("models", True, f"{', '.join(keys)} set")
    return Finding(
        "models",
        False,
        "no key or address of a model is set: the built-in recipes answer",
        "set OPENAI_API_KEY or OPENAI_BASE_URL, or use --model ollama/MODEL",
    )


def _gpus(environ: Mapping[str, str]) -> Finding:
    cards = visible_gpus(environ)
    return Finding("gpus", True, ", ".join(cards) or "none: programs compute on the CPU")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free // 2**20
    hint = "" if free >= _DISK_MB else f"free some space: a run stops below {_DISK_MB} MB"
    return Finding("disk", not hint, f"{free} MB free in {folder}", hint, essential=True)


def _cache(environ: Mapping[str, str]) -> Finding:
    folder = cache_folder(environ)
    # What isn't there yet will be made below what is.
    there = next(path for path in (folder, *folder.parents) if path.exists())
    able = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    hint = "" if able else "set XDG_CACHE_HOME to a folder of yours"
    return Finding("cache", able, f"{folder}{'' if able else f': {there} is not writable'}", hint)
