"""The job ``bfts``: checks its input, walks through the stages, derives its files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from corerun.config import Layer, Settings
from corerun.errors import EnvironmentRefused, UsageError
from corerun.execution.collect import remove_tree
from corerun.inputs.archives import extract
from corerun.inputs.documents import read_text
from corerun.inputs.names import safe_name
from corerun.interfaces import Event, Invocation, Prepared, Run
from corerun.redaction import redact_value
from corerun.runs import io
from corerun_bfts import documents
from corerun_bfts.flow import Walk
from corerun_bfts.ideas import choose_idea, load_ideas, markdown, with_code
from corerun_bfts.outputs import manifest_part, result, write_run
from corerun_bfts.preview import preview_of
from corerun_bfts.record import fold_record
from corerun_bfts.settings import BftsSettings

NEEDED = {"numpy": "numpy", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}
RECIPES = ("few_labels", "calibration", "regression")


class ExperimentSearch:
    """Fits `corerun.interfaces.Job`."""

    config_model = BftsSettings

    def __init__(self) -> None:
        self._idea: dict[str, Any] = {}

    def layers(self, invocation: Invocation) -> Sequence[Layer]:
        """Settings from ``job_config.yaml`` and ``bfts_config.yaml``."""
        return documents.layers(invocation)

    # ------------------------------------------------------------------------------- prepare

    def prepare(self, settings: Settings, invocation: Invocation) -> Prepared:
        """Check idea, packages and models; name the run directory."""
        own: BftsSettings = settings.section("bfts")
        _check_packages(own)
        if own.data_dir is not None and not own.data_dir.is_dir():
            raise UsageError(f"no such folder: {own.data_dir}", where="data_dir")
        notices, warnings = _document_remarks(invocation, own)
        self._choose(own, invocation, warnings)
        roles = own.roles(settings.model)
        model = roles["code"].model
        if model is None:
            from corerun.llm.models import default_model

            model = default_model(invocation.environ)[0]
        alias = settings.models.get(model)
        if alias is not None:
            model = f"{alias.api_type}::{model}" if alias.api_type else alias.model or model
        if model.startswith("recipes::"):
            self._check_recipe(own, warnings)
        name = safe_name(str(self._idea["Name"]))
        started = time.strftime("%Y-%m-%d_%H-%M-%S")
        run_id = safe_name(settings.run_id) if settings.run_id else started
        directory = settings.out_root / "experiments" / f"{run_id}_{name}_attempt_{own.attempt_id}"
        body = json.dumps(self._idea, sort_keys=True).encode()
        strategy = settings.strategy or "bfts"
        return Prepared(
            directory=directory.resolve(),
            fresh=settings.run_id is None,
            roles=roles,
            inputs=_inputs(settings, own, invocation),
            identity={"idea": hashlib.sha256(body).hexdigest()[:16], "strategy": strategy},
            notices=tuple(notices),
            warnings=tuple(warnings),
        )

    def _choose(self, own: BftsSettings, invocation: Invocation, warnings: list[str]) -> None:
        named = {("bfts", "load_ideas"), ("bfts", "idea_idx")} & set(invocation.flags)
        if invocation.resume is not None and invocation.config_file is None and not named:
            kept = invocation.resume / "idea.json"
            if kept.is_file():
                _, self._idea = choose_idea(load_ideas(kept), 0, str(kept))
                return
        for key in ("load_ideas", "idea_idx"):
            if getattr(own, key) is None:
                raise UsageError(f"{key} is not set", hint=f"give --{key}, or set job.{key} in the job file")
        assert own.load_ideas is not None and own.idea_idx is not None
        _, raw = choose_idea(load_ideas(own.load_ideas), own.idea_idx, str(own.load_ideas))
        pieces = []
        if own.add_dataset_ref or own.dataset_ref:
            path = own.dataset_ref or invocation.cwd / "hf_dataset_reference.py"
            pieces.append(_text(path, "dataset reference", warnings))
        if own.load_code:
            path = own.load_ideas.with_suffix(".py")
            pieces.append(_text(path, "program beside the ideas file", warnings))
        # Its files hold no secret, and a resumed run must find the same idea in them.
        self._idea = redact_value(with_code(raw, pieces))

    def _check_recipe(self, own: BftsSettings, warnings: list[str]) -> None:
        if self._idea.get("Recipe") not in RECIPES:
            raise UsageError(
                "recipes::default can't work on this idea: its key 'Recipe' names none of "
                f"{', '.join(RECIPES)}",
                hint="set a model (OPENAI_API_KEY or --model), or use one of the three ideas that come along",
            )
        if "Code" in self._idea:
            warnings.append("the recipes don't use the program that was loaded with the idea")

    def estimate(self, settings: Settings) -> Mapping[str, Any]:
        """Bounds of what a run takes, stage by stage."""
        own: BftsSettings = settings.section("bfts")
        stages = {str(number): own.agent.stages.limit(number) for number in own.agent.stages.order}
        nodes = sum(stages.values())
        seeds = (len(stages) + 1) * own.agent.multi_seed_eval.num_seeds
        return {
            "nodes_at_most": stages,
            "programs_at_most": {"experiments": nodes + seeds + 1, "each_with": ["reader", "plot"]},
            "model_calls": {"per_good_node": [4, 5], "at_most": nodes * 8 + own.plot_agg_reflections + 40},
            "wall_s_at_most": own.exec.timeout * 3 * (nodes + seeds) / settings.workers,
            "seed_reruns": seeds,
        }

    # ----------------------------------------------------------------------------------- run

    async def run(self, run: Run, settings: Settings) -> None:
        """The whole search; files that exist already are left as they are."""
        own: BftsSettings = settings.section("bfts")
        if run.noted("idea") is None:
            run.write("idea.md", markdown(self._idea, self._idea.get("Code")))
            run.write("idea.json", json.dumps(self._idea, indent=4, ensure_ascii=False) + "\n")
            run.write("bfts_config.yaml", run_config(settings, own, run.dir))
            _bring_data(run, own)
            # Noted last: a run that is killed before this does all of it again.
            run.note("idea", self._idea)
        data = run.dir / "data"
        preview = preview_of(data) if own.agent.data_preview and data.is_dir() else ""
        try:
            await Walk(run, settings, own, run.noted("idea"), preview).go()
            if not own.keep_workspaces:
                _remove_workspaces(run.dir / "nodes")
        finally:
            run.note("result", result(fold_record(run.events()), run.dir))

    def derive(self, directory: Path, events: Sequence[Event]) -> Mapping[str, Any]:
        """Write what follows from the journal; the manifest's own part."""
        record = fold_record(events)
        write_run(directory, record)
        return manifest_part(directory, record)


def _remove_workspaces(nodes: Path) -> None:
    """What the search needs no more at its end; what a killed process forgot is among it."""
    for folder in nodes.iterdir():
        if not folder.name.startswith("."):
            remove_tree(str(folder))


def _check_packages(own: BftsSettings) -> None:
    if own.exec.python:
        return
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise EnvironmentRefused(
            f"bfts needs {', '.join(missing)} for its programs", hint="pip install 'corerun[experiments]'"
        )


def _document_remarks(invocation: Invocation, own: BftsSettings) -> tuple[list[str], list[str]]:
    notices: list[str] = []
    warnings: list[str] = []
    if invocation.resume is not None and invocation.config_file is None:
        return notices, warnings
    path, example = documents.job_file(invocation)
    if example and ("bfts", "load_ideas") not in invocation.flags:
        notices.append("No job file here: running the packaged example job (idea few_labels on digits).")
    required = documents.required_variables(path)
    unset = [name for name in required if not invocation.environ.get(name)]
    if unset:
        warnings.append(f"the job file requires variables that are not set: {', '.join(unset)}")
    search = own.bfts_config or path.parent / documents.SEARCH_FILE
    ignored = documents.not_read(search) if search.is_file() else []
    if ignored:
        warnings.append(f"keys of {search.name} without effect: {', '.join(ignored)}")
    data = documents.missing_data(search) if search.is_file() else None
    if data is not None:
        warnings.append(f"data_dir of {search.name} doesn't exist, going on without data: {data}")
    return notices, warnings


def _text(path: Path, what: str, warnings: list[str]) -> str:
    try:
        return read_text(path)
    except UsageError as error:
        warnings.append(f"no {what}, going on without it: {error}")
        return ""


def _inputs(settings: Settings, own: BftsSettings, invocation: Invocation) -> dict[str, Any]:
    shown = own.model_dump(mode="json")
    fields = ("exec", "agent", "experiment", "metric")
    inputs = {key: value for key, value in shown.items() if key not in fields}
    path, example = documents.job_file(invocation)
    source = "packaged example" if example else (str(path) if path.is_file() else None)
    return inputs | {
        "out_root": str(settings.out_root),
        "run_id": settings.run_id,
        "config": source,
        "strategy": settings.strategy or "bfts",
    }


def run_config(settings: Settings, own: BftsSettings, directory: Path) -> str:
    """The copy of ``bfts_config.yaml`` that is used: the file's own names, with the run's places."""
    section = own.model_dump(mode="json")
    agent = section["agent"]
    stages = agent["stages"]
    until = stages.pop("stage1_until")
    agent["num_workers"] = settings.workers
    agent["search"] |= {
        "strategy": settings.strategy or "bfts",
        "seed": settings.seed,
        "scheduler": settings.scheduler,
    }
    for role, chosen in (("code", "code"), ("feedback", "feedback"), ("vlm_feedback", "vision")):
        agent[role]["model"] = own.roles(settings.model)[chosen].model
    content = {
        "desc_file": str(directory / "idea.json"),
        "workspace_dir": str(directory),
        "data_dir": str(directory / "data"),
        "log_dir": str(directory / "logs"),
        "preprocess_data": section["preprocess_data"],
        "copy_data": section["copy_data"],
        "exp_name": "run",
        "exec": section["exec"],
        "generate_report": section["generate_report"],
        "experiment": section["experiment"],
        "agent": agent | {"stages": stages | {"stage1": {"until": until}}},
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _bring_data(run: Run, own: BftsSettings) -> None:
    if own.data_dir is None:
        return
    target = run.dir / "data"
    if not own.copy_data:
        target.unlink(missing_ok=True)
        with io.reported(target):
            io.link(target, own.data_dir.resolve())
        return
    io.copy_tree(own.data_dir, target)
    if own.preprocess_data:
        for archive in sorted(target.rglob("*.zip")):
            _unpack(run, archive, own.data_dir / archive.relative_to(target))
        for junk in [*target.rglob("__MACOSX"), *target.rglob(".DS_Store")]:
            remove_tree(str(junk))


def _unpack(run: Run, archive: Path, original: Path) -> None:
    """Unpack a copy of ``original`` beside itself, unless the person has done so already."""
    if original.with_suffix("").exists():
        return
    folder = archive.with_suffix("")
    # A process that was killed may have left a part.
    remove_tree(str(folder))
    try:
        extract(archive, folder)
    except UsageError as error:
        run.warn(f"{archive.relative_to(run.dir)} can't be unpacked: {error.message}")
