"""Where runs lie: names of new ones, and how to find old ones."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path

from corerun.errors import EnvironmentRefused, StateError, UsageError
from corerun.inputs.names import safe_join
from corerun.runs import io

_PRIVATE = 0o700
_WRITTEN = ("events.jsonl", "run.lock", "run.log", ".ballast", "blobs", "nodes")


def new_directory(out_root: Path, job: str) -> Path:
    """The default place of a new run: ``<out_root>/runs/<job>/<time>-<6 hex>``."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return out_root / "runs" / job / f"{stamp}-{secrets.token_hex(3)}"


def make_directory(path: Path) -> None:
    """Make a run's directory, which only its owner may enter; a place that can't be written is the
    environment's refusal."""
    if path == Path(path.anchor) or path == Path.home():
        raise UsageError(f"a run can't live in {path}", hint="choose another --out_root")
    try:
        io.make_folder(path.parent)
        for folder in (path, path / "blobs", path / "nodes"):
            io.make_folder(folder, _PRIVATE)
    except OSError as error:
        raise _cannot_make(path, error) from error
    refuse_links(path)


def refuse_links(path: Path) -> None:
    """Raise `StateError` if something that every run writes is a link, in a run directory of somebody
    else perhaps to a file of ours."""
    for name in _WRITTEN:
        safe_join(path, name, error=StateError)


def claim(path: Path) -> Path:
    """Make a directory that is nobody else's: ``path``, or ``path`` with -2, -3, ... at its end."""
    place, number = path, 1
    try:
        io.make_folder(path.parent)
        while True:
            try:
                io.new_folder(place, _PRIVATE)
                return place
            except FileExistsError:
                number += 1
                place = path.with_name(f"{path.name}-{number}")
    except OSError as error:
        raise _cannot_make(path, error) from error


def _cannot_make(path: Path, error: OSError) -> EnvironmentRefused:
    return EnvironmentRefused(
        f"can't make the run directory {path}: {error.strerror or error}", hint="choose another --out_root"
    )


def list_runs(out_root: Path) -> list[Path]:
    """Run directories below ``out_root``, oldest first."""
    patterns = ("experiments/*/events.jsonl", "runs/*/*/events.jsonl")
    found = {journal.parent for pattern in patterns for journal in out_root.glob(pattern)}
    return sorted(found, key=lambda path: ((path / "events.jsonl").stat().st_mtime, path.name))


def find_run(text: str, out_root: Path) -> Path:
    """The run that ``text`` names: a directory, its name, or the beginning of one; '' is the newest."""
    if text:
        direct = Path(text)
        with contextlib.suppress(RuntimeError):  # a home that nobody has
            direct = direct.expanduser()
        if (direct / "events.jsonl").is_file():
            return direct.resolve()
    runs = list_runs(out_root)
    matching = [path for path in runs if path.name == text] or [
        path for path in runs if path.name.startswith(text)
    ]
    if not matching:
        raise UsageError(f"no run {text!r} below {out_root}" if text else f"no run below {out_root}")
    if text and len(matching) > 1:
        raise UsageError(f"{text!r} names {len(matching)} runs: {', '.join(p.name for p in matching[:3])}")
    return matching[-1].resolve()
