"""The job ``plots``: draws a finished run's figures again, with a journal of its own inside the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from corerun.config import Section, Settings
from corerun.errors import UsageError
from corerun.interfaces import Event, Invocation, Prepared, Role, Run
from corerun.runs.directory import refuse_links
from corerun.runs.fold import fold
from corerun.runs.lock import RunLock
from corerun_bfts.figures import aggregate_figures, figure_files
from corerun_bfts.record import fold_record, load_run
from corerun_bfts.settings import BftsSettings


class PlotsSettings(Section):
    """The section ``plots``."""

    folder: Path | None = Field(None, description="run directory")
    reflections: int = Field(5, ge=0, description="rounds after the first script")
    max_figures: int = Field(12, ge=1, description="target number of figures")
    max_tokens: int | None = Field(None, description="output tokens of the model; <= 0: no cap")


class PlotAggregation:
    """Fits `corerun.interfaces.Job`."""

    config_model = PlotsSettings

    def prepare(self, settings: Settings, invocation: Invocation) -> Prepared:
        own: PlotsSettings = settings.section("plots")
        if own.folder is None or not own.folder.is_dir():
            raise UsageError(f"no such run directory: {own.folder}", where="--folder")
        logs = own.folder / "logs"
        if not logs.is_dir():
            raise UsageError(f"{own.folder} is no run of bfts: it has no logs/", where="--folder")
        number = len(list(logs.glob("plots-*")))
        cap = own.max_tokens if own.max_tokens and own.max_tokens > 0 else None
        role = Role(settings.model, 0.7, cap)
        return Prepared(
            directory=(logs / f"plots-{number}").resolve(),
            fresh=True,
            roles={"plots": role},
            code_role="plots",
            inputs={"folder": str(own.folder.resolve()), **own.model_dump(mode="json", exclude={"folder"})},
        )

    async def run(self, run: Run, settings: Settings) -> None:
        own: PlotsSettings = settings.section("plots")
        assert own.folder is not None
        folder = own.folder.resolve()
        journal = folder / "events.jsonl"
        record = load_run(folder) if journal.is_file() else fold_record([])
        saved = dict(record.settings.get("bfts", {})) | {
            "plot_agg_reflections": own.reflections,
            "plot_agg_max_figures": own.max_figures,
            "keep_experiment_results": True,
        }
        # A run that still goes on draws its figures itself.
        refuse_links(folder)
        lock = RunLock(folder)
        try:
            await aggregate_figures(run, BftsSettings.model_validate(saved), record, folder=folder)
        finally:
            lock.release()

    def derive(self, directory: Path, events: Sequence[Event]) -> Mapping[str, Any]:
        state = fold(events)
        folder = Path(state.started.data["inputs"]["folder"]) if state.started else directory
        files = [str(path) for path in figure_files(folder)]
        return {
            "paths": {"figures_dir": str(folder / "figures") if files else None, "idea_dir": str(folder)},
            "artifacts": {"figure_files": files},
        }
