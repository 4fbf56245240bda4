"""What may differ when a run is resumed: some settings freely, others with a warning, its identity never."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from corerun.config import layer_of
from corerun.errors import UsageError
from corerun.job.plan import Plan
from corerun.runs.fold import RunState, settings_of, started

FREE = frozenset(
    {
        "budget",
        "durability",
        "executor",
        "in_flight",
        "infra_retries",
        "llm",
        "min_free_mb",
        "models_file",
        "observers",
        "out_root",
        "plugins",
        "run_id",
        "workers",
    }
)
"""Settings that say how fast, how far and where a run works, not what it finds."""

PACE = frozenset({"concurrency", "prices", "rpm", "timeout", "tpm"})
"""The same of one model."""

_SHOWN = 60


def identity(plan: Plan) -> dict[str, Any]:
    """What makes a run this run: the job, its seed and strategy, and what the job names."""
    own = {"strategy": plan.settings.strategy, **plan.prepared.identity}
    return own | {"job": plan.name, "seed": plan.settings.seed}


def check_identity(plan: Plan, state: RunState) -> None:
    """Raises `UsageError` if the journal is that of another run."""
    before = started(state).get("identity", {})
    changed = [key for key, value in identity(plan).items() if key in before and before[key] != value]
    if changed:
        raise UsageError(
            f"a resumed run can't change its {', '.join(changed)}",
            where=str(plan.directory),
            hint="start a new run, with another --run_id",
        )


def warnings(state: RunState, settings: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[str]:
    """A sentence on the settings, and one on the models, that differ from those of the last process and
    that results may depend on. ``settings`` and ``models`` are as a journal holds them."""
    before, now = (layer_of(data, "") for data in (settings_of(state), settings))
    # A key that an older version didn't know has no old value.
    changed = [key for key in now if key in before and before[key] != now[key] and not _is_free(key)]
    gone = [key for key in before if key not in now and before[key].value and not _is_free(key)]
    parts = [f"{'.'.join(key)} {_short(before[key].value)} -> {_short(now[key].value)}" for key in changed]
    parts += [f"{'.'.join(key)} {_short(before[key].value)} -> unset" for key in gone]
    if parts:
        yield f"resumed with other settings, from here on: {'; '.join(parts)}"
    newest = next((event.data for event in reversed(state.resumed) if "models" in event.data), started(state))
    asked = newest.get("models", {})
    if set(asked) != set(models):
        yield f"resumed with other models, from here on: {_names(models)}, before {_names(asked)}"


def _is_free(key: tuple[str, ...]) -> bool:
    return key[0] in FREE or (key[0] == "models" and len(key) > 2 and key[2] in PACE)


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _names(models: Mapping[str, Any]) -> str:
    return ", ".join(sorted(models)) or "none"
