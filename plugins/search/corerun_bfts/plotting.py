"""A node's plots: the program that draws them, and a model's look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from corerun.errors import BadAnswer, CallFailed, ContextTooLong, RequestRefused, Unsupported
from corerun.interfaces import ExecResult, Node, Part
from corerun.runs import events as kinds
from corerun_bfts import judgements
from corerun_bfts.laboratory import Laboratory, ask, exception, output
from corerun_bfts.metric import Reading
from corerun_bfts.prompts import Prompts

MAX_SEEN = 10
"""Plots that a model is shown."""
MAX_BYTES = 4_000_000
"""Size of one plot beyond which it isn't shown."""
TRIES = 3


async def draw(
    lab: Laboratory, node: Node, prompts: Prompts, code: str, base: str, reading: Reading
) -> dict[str, Any]:
    """Let the code model plot what ``code`` saved, starting from the plot program ``base``, and let the
    vision model look. Returns the node's data about plots; a failure costs the plots, not the node."""
    error, plan, plot_code, result = "", "", "", None
    problem = ""
    for _ in range(TRIES):
        question = prompts.plot(code, base, reading.structure, sorted(reading.sets), error)
        try:
            plan, plot_code = await lab.ask(question, node.id)
        except CallFailed as bad:
            problem = bad.message
            break
        result = await _run(lab, node, plot_code)
        if result.status == "ok":
            break
        error = lab.shown(node, f"{exception(result)}: {result.exc_msg}\n{result.stderr}")
    data = _described(lab, node, plot_code, result, reading)
    data["plot_plan"] = plan
    if problem:
        data["plot_output"] = problem
    if sees(lab):
        data |= await _look(lab, node, prompts, data["plot_files"])
    elif lab.settings.agent.vision != "off" and lab.run.provider_info("vision").kind == "model":
        _tell_of_blindness(lab, "its model takes no images")
    return data


async def redraw(lab: Laboratory, node: Node, plot_code: str, reading: Reading) -> dict[str, Any]:
    """Run a known plot program on a rerun's data; nobody looks."""
    result = await _run(lab, node, plot_code) if plot_code else None
    return _described(lab, node, plot_code, result, reading)


async def _run(lab: Laboratory, node: Node, plot_code: str) -> ExecResult:
    return await lab.execute(node, "plot", plot_code, collect=("working/*.png",))


def _described(
    lab: Laboratory, node: Node, plot_code: str, result: ExecResult | None, reading: Reading
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "plot_code": plot_code,
        "plot_files": [],
        "is_buggy_plots": None,
        "vision": "off",
        "datasets_successfully_tested": sorted(reading.sets),
    }
    if result is not None:
        data["plot_files"] = [item["path"] for item in result.files if item["path"].endswith(".png")]
        data["plot_exec_time"] = round(result.wall_s, 3)
        data["plot_output"] = lab.shown(node, output(result))
        data["plot_exc_type"] = exception(result)
    return data


def sees(lab: Laboratory) -> bool:
    """Whether plots are shown to a model."""
    if lab.settings.agent.vision == "off" or lab.run.noted("vision_degraded"):
        return False
    return lab.run.provider_info("vision").vision is not False


async def _look(lab: Laboratory, node: Node, prompts: Prompts, paths: list[str]) -> dict[str, Any]:
    if not paths:
        return {"is_buggy_plots": True, "vision": "ok", "vlm_feedback_summary": "there are no plots"}
    try:
        chosen = await _selected(lab, node, prompts, paths)
        images = [Part("image", data=_body(lab, node, path), media_type="image/png") for path in chosen]
        answer = await ask(lab.run, judgements.plot_analysis(prompts.context, chosen, images), node.id)
    except BadAnswer:
        return {"vision": "degraded"}
    except (Unsupported, RequestRefused, ContextTooLong) as error:
        return _blind(lab, error.message)
    if any(dropped.feature == "images" for dropped in answer.reply.degradations):
        return _blind(lab, "the images were left out on their way to the model")
    seen = answer.value
    # A model may describe more plots than it was shown.
    pairs = zip([item.analysis for item in seen.plot_analyses], chosen, strict=False)
    return {
        "plot_analyses": [{"analysis": text, "plot_path": path} for text, path in pairs],
        "vlm_feedback_summary": seen.vlm_feedback_summary,
        "datasets_successfully_tested": seen.datasets_successfully_tested,
        "is_buggy_plots": not seen.valid_plots_received,
        "vision": "ok",
    }


def _blind(lab: Laboratory, reason: str) -> dict[str, Any]:
    """Nobody saw the plots, and from now on nobody is asked to."""
    _tell_of_blindness(lab, reason)
    return {"vision": "degraded"}


def _tell_of_blindness(lab: Laboratory, reason: str) -> None:
    if not lab.run.noted("vision_degraded"):
        lab.run.note("vision_degraded", True)
        lab.run.emit(kinds.DEGRADED, model="vision", feature="vision", reason=reason)
        lab.run.warn(f"vision is degraded, nobody looks at plots from here on: {reason}")


async def _selected(lab: Laboratory, node: Node, prompts: Prompts, paths: list[str]) -> list[str]:
    shown = [path for path in paths if (lab.workspace(node) / path).stat().st_size <= MAX_BYTES]
    if len(shown) <= MAX_SEEN:
        return shown
    try:
        answer = await lab.ask(judgements.select_plots(prompts.context, shown), node.id)
    except BadAnswer:
        return shown[:MAX_SEEN]
    chosen = [path for path in dict.fromkeys(answer.selected_plots) if path in shown][:MAX_SEEN]
    return chosen or shown[:MAX_SEEN]


def _body(lab: Laboratory, node: Node, path: str) -> bytes:
    return Path(lab.workspace(node), path).read_bytes()
