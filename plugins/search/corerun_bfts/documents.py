"""Reads ``job_config.yaml`` and ``bfts_config.yaml`` into settings of the common shape."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from corerun.config import Key, Layer, Settings, path_keys, read_yaml, resolve_paths
from corerun.errors import ConfigError, UsageError
from corerun.interfaces import Invocation
from corerun_bfts.settings import MOVED, NOT_READ, BftsSettings

JOB_FILE = "job_config.yaml"
SEARCH_FILE = "bfts_config.yaml"
DATA_DIR: Key = ("bfts", "data_dir")
EXAMPLE = Path(__file__).parent / "example"


def job_file(invocation: Invocation) -> tuple[Path, bool]:
    """The job file of this start, and whether it is the packaged example."""
    if invocation.config_file is not None:
        # Not Path.resolve, which a link to itself makes raise.
        return Path(os.path.realpath(invocation.config_file)), False
    here = invocation.cwd / JOB_FILE
    return (here, False) if here.is_file() else (EXAMPLE / JOB_FILE, True)


def layers(invocation: Invocation) -> list[Layer]:
    """Settings of both documents, the job file's first."""
    path, example = job_file(invocation)
    named_ideas = ("bfts", "load_ideas") in invocation.flags
    if example and named_ideas:
        # A person's own ideas run on defaults, not on the example's limits.
        return _search_layers(invocation, {}, path)
    job = _job_layer(path)
    return [job, *_search_layers(invocation, job, path)]


def _job_layer(path: Path) -> Layer:
    layer: Layer = {}
    for key, entry in read_yaml(path).items():
        if key[0] == "job" and len(key) > 1:
            moved = MOVED.get(key[1:], ("bfts", *key[1:]))
            layer[moved] = entry
        elif key[0] == "env":
            continue  # documentation, checked by `required_variables`
        elif key[0] in Settings.model_fields:
            layer[key] = entry
        elif key == ("job",):
            raise ConfigError("'job' must be a mapping of keys to values", where=entry.where)
        else:
            near = difflib.get_close_matches(key[0], ["job", "env", *Settings.model_fields], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "known here: job, env and the common keys"
            raise ConfigError(f"unknown key {key[0]!r}", where=entry.where, hint=hint)
    return resolve_paths(layer, _paths(), path.parent)


def _search_layers(invocation: Invocation, job: Layer, job_path: Path) -> list[Layer]:
    flag = invocation.flags.get(("bfts", "bfts_config"))
    entry = job.get(("bfts", "bfts_config"))
    named = flag or (entry.value if entry and entry.value else None)
    if named is not None:
        path = Path(str(named))
        if not path.is_file():
            where = "--bfts_config" if flag else (entry.where if entry else "")
            raise UsageError(f"no such file: {path}", where=where)
    else:
        path = job_path.parent / SEARCH_FILE if job else invocation.cwd / SEARCH_FILE
        if not path.is_file():
            return []
    return [search_layer(path)]


def search_layer(path: Path) -> Layer:
    """The settings of one ``bfts_config.yaml``; keys without effect are left out."""
    layer: Layer = {}
    for key, entry in read_yaml(path).items():
        if key in NOT_READ:
            continue
        moved = _moved(key)
        layer[moved] = entry
    resolved = resolve_paths(layer, _paths(), path.parent)
    if _gone(resolved) is not None:
        # AI-Scientist-v2's own file names a folder that only its launcher makes.
        del resolved[DATA_DIR]
    return resolved


def missing_data(path: Path) -> str | None:
    """The ``data_dir`` of a ``bfts_config.yaml``, if it names a folder that isn't there."""
    entry = read_yaml(path).get(("data_dir",))
    return _gone(resolve_paths({DATA_DIR: entry}, [DATA_DIR], path.parent)) if entry else None


def _gone(layer: Layer) -> str | None:
    entry = layer.get(DATA_DIR)
    found = str(entry.value) if entry is not None and entry.value else None
    return found if found is not None and not Path(found).is_dir() else None


def _moved(key: Key) -> Key:
    for length in range(len(key), 0, -1):
        target = MOVED.get(key[:length])
        if target is not None:
            return (*target, *key[length:])
    return ("bfts", *key)


def not_read(path: Path) -> list[str]:
    """Keys of a ``bfts_config.yaml`` that are accepted and have no effect."""
    return [".".join(key) for key, entry in read_yaml(path).items() if key in NOT_READ and entry.value]


def required_variables(path: Path) -> list[str]:
    """Names that the job file's ``env.required`` lists."""
    entry = read_yaml(path).get(("env", "required"))
    return [str(name) for name in entry.value or []] if entry else []


def _paths() -> list[Key]:
    return [*path_keys(Settings), *path_keys(BftsSettings, ("bfts",))]
