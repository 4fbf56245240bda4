"""What the manifest says of the answers that a run got: what models had to do without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corerun.interfaces import Event
from corerun.job.manifest import build_manifest


def manifest(*degraded: dict[str, Any]) -> dict[str, Any]:
    events = [Event(1, 0.0, "run_started", {"job": "probe", "models": {}})]
    events += [Event(number, 0.0, "degraded", data) for number, data in enumerate(degraded, 2)]
    return build_manifest(Path("run"), events, {})


def test_a_run_whose_models_take_everything_is_reproducible() -> None:
    made = manifest()
    assert (made["degradations"], made["reproducible"]) == ([], True)


def test_every_feature_that_was_left_out_is_named_with_its_reason() -> None:
    tools = {"model": "a", "feature": "tools", "reason": "HTTP 400: no tools"}
    made = manifest(tools)
    assert (made["degradations"], made["reproducible"]) == ([tools], True)


def test_without_its_seed_a_run_is_not_reproducible() -> None:
    seed = {"model": "b", "feature": "seed", "reason": "HTTP 400: no seed"}
    assert manifest(seed)["reproducible"] is False
