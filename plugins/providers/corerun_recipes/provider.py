"""The provider `recipes`: looks a purpose up in the book, answers it, refuses what the book has not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from corerun.errors import ModelNotFound, Unsupported
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Connection,
    Message,
    Part,
    ProviderInfo,
    Usage,
)

from . import answers, experiments, figures
from .question import Question, question

MODELS = ("default", "default-no-faults")

_PURPOSES: Mapping[str, Callable[[Question], str]] = MappingProxyType(
    {
        "bfts.metric": experiments.metric,
        "bfts.draft": experiments.draft,
        "bfts.improve": experiments.improve,
        "bfts.tune_idea": experiments.tune_idea,
        "bfts.ablate_idea": experiments.ablate_idea,
        "bfts.tune": experiments.vary,
        "bfts.ablate": experiments.vary,
        "bfts.debug": experiments.debug,
        "bfts.review": answers.review,
        "bfts.read_metric": figures.read_metric,
        "bfts.parse_metric": answers.parse_metric,
        "bfts.plot": figures.plot,
        "bfts.stage_complete": answers.stage_complete,
        "bfts.substage_complete": answers.substage_complete,
        "bfts.overall_plan": answers.overall_plan,
        "bfts.draft_summary": answers.draft_summary,
        "bfts.node_summary": answers.node_summary,
        "bfts.seed_plot": figures.seed_plot,
        "bfts.aggregate_plots": figures.aggregate_plots,
    }
)
_GREETING = "recipes answers from built-in rules; it is not a language model."


def connect(connection: Connection) -> RecipesProvider:
    """The book of rules; there is nothing to configure."""
    return RecipesProvider()


class RecipesProvider:
    """Answers by rules from the call's facts; a pure function of purpose, facts, node and model.

    ``plant_faults``: some programs carry a fault, said in their prose, so that debugging is
    exercised; the model id ``default-no-faults`` leaves them out as well.
    """

    info = ProviderInfo(name="recipes", needs_key=False, is_local=True, vision=False, kind="rules")

    def __init__(self, plant_faults: bool = True) -> None:
        self._plant_faults = plant_faults

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        """The book's answer. Raises `ModelNotFound` and `Unsupported`, one line each."""
        if request.model not in MODELS:
            raise ModelNotFound(
                f"recipes has no model {request.model!r}; it has {', '.join(MODELS)}",
                hint="use recipes::default",
            )
        text = self._text(request, ctx)
        return ChatReply(text=text, usage=_usage(request, text), model=f"recipes::{request.model}")

    async def list_models(self) -> list[str]:
        """The two model ids."""
        return list(MODELS)

    def _text(self, request: ChatRequest, ctx: CallContext) -> str:
        if any(part.kind == "image" for message in request.messages for part in _parts(message)):
            raise Unsupported(
                f"recipes cannot look at images (asked for {ctx.purpose})",
                hint="set --model to a model with vision, or agent.vision: off",
            )
        if ctx.purpose == "models.test":
            return _GREETING
        answer = _PURPOSES.get(ctx.purpose)
        if answer is None:
            raise Unsupported(
                f"recipes has no answer for {ctx.purpose or 'free text'}: it knows the bfts experiments only",
                hint="set --model to ask a language model",
            )
        plant = self._plant_faults and request.model == "default"
        return answer(question(ctx, plant))


def _parts(message: Message) -> tuple[Part, ...]:
    return (Part("text", message.content),) if isinstance(message.content, str) else message.content


def _usage(request: ChatRequest, text: str) -> Usage:
    """Tokens estimated as a quarter of the characters, the usual figure for English text and code."""
    asked = sum(len(part.text) for message in request.messages for part in _parts(message))
    return Usage(prompt=asked // 4, completion=len(text) // 4, estimated=True, cost_usd=0.0)
