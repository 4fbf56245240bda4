"""Every structured question of an experiment search, with the least that each needs to know."""

from __future__ import annotations

from corerun.interfaces import Part
from corerun_bfts import judgements
from corerun_bfts.prompts import Prompts
from corerun_bfts.questions import Question, context

IDEA = {
    "Name": "constant",
    "Title": "A constant prediction",
    "Abstract": "The mean of the training targets is predicted for every row.",
    "Experiments": "Compare constants.",
}
_METRIC = {"name": "validation_error", "maximize": False, "description": "mean error"}
_RECORD = {"score": -0.5, "plan": "a constant"}
_CODE = "print('error 0.5')"
_RAN = {"exc_type": "", "timed_out": False, "has_data": True, "finite": True, "output_tail": "error 0.5"}
_PIXEL = Part("image", data=b"\x89PNG\r\n\x1a\n", media_type="image/png")


def structured_questions() -> dict[str, Question]:
    """By the name of the answer that each asks for."""
    known = context(IDEA, 1, 1, 60)
    prompts = Prompts(
        IDEA, _METRIC, stage=1, stage_name="drafts", goals="It runs.", stage_sets=1, timeout_s=60
    )
    questions = (
        judgements.define_metric(known),
        prompts.next_idea("tune", _RECORD, _CODE, [_RECORD], []),
        prompts.review(_CODE, _RAN),
        prompts.parse_metric([{"set": "synth_a", "final": 0.5, "best": 0.5}], "synth_a 0.5"),
        judgements.plot_analysis(known, ["working/curves.png"], [_PIXEL]),
        judgements.select_plots(known, ["working/curves.png"]),
        judgements.select_best(known, [_RECORD, _RECORD]),
        judgements.stage_complete("stage", known, 1, "It runs.", _RECORD, [_RECORD]),
        judgements.substage_goals(known, "It runs.", _RECORD, [_RECORD]),
        judgements.overall_plan(known, "a constant", "another constant"),
        judgements.draft_summary(known, ["a constant"], [], []),
    )
    return {question.schema.__name__: question for question in questions if question.schema is not None}
