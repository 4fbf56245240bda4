"""Chooses the next token of one request from the model's scores, by that request's own rules and dice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corerun.errors import RequestRefused
from corerun.interfaces import ChatRequest

GREEDY_BELOW = 1e-5
"""Temperatures below this give the likeliest token: dividing by them would overflow."""


class Chooser:
    """Picks tokens for one request: what it leaves open is as the model's ``generation`` config says.

    A seed fixes the choice whatever else is in the batch: the random numbers come from a generator
    of this request. Raises `RequestRefused` for values that no sampling knows.
    """

    def __init__(self, request: ChatRequest, generation: Any, device: Any) -> None:
        import torch
        from transformers import LogitsProcessorList

        temperature, top_p = request.temperature, request.top_p
        if temperature is not None and temperature < 0:
            raise RequestRefused(f"temperature must be at least 0, not {temperature}")
        if top_p is not None and not 0 <= top_p <= 1:
            raise RequestRefused(f"top_p must be between 0 and 1, not {top_p}")
        if temperature is None:
            temperature = (generation.temperature or 1.0) if generation.do_sample else 0.0
        self._sampled = temperature >= GREEDY_BELOW
        self.repeats = not self._sampled or request.seed is not None
        self._rules = LogitsProcessorList(_rules(generation))
        self._warpers = LogitsProcessorList()
        self._device = device
        if self._sampled:
            top_p = generation.top_p if top_p is None else top_p
            self._warpers += _warpers(temperature, top_p, generation)
            self._generator = torch.Generator(device=device)
            if request.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(request.seed % 2**63)

    def choose(self, tokens: Sequence[int], scores: Any) -> Any:
        """The next token, as a tensor of one, after ``tokens``, from the ``scores`` of the vocabulary."""
        import torch

        scores = scores.float().unsqueeze(0)
        if self._rules:
            scores = self._rules(torch.tensor([tokens], device=self._device), scores)
        if not self._sampled:
            return scores[0].argmax(dim=-1, keepdim=True)
        scores = self._warpers(None, scores)
        return torch.multinomial(scores.softmax(dim=-1)[0], 1, generator=self._generator)


def _rules(generation: Any) -> list[Any]:
    """What the model's publisher wants in any case: penalties, tokens that are never said."""
    from transformers import (
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SuppressTokensLogitsProcessor,
    )

    found: list[Any] = []
    if generation.repetition_penalty not in (None, 1.0):
        found.append(RepetitionPenaltyLogitsProcessor(float(generation.repetition_penalty)))
    if generation.no_repeat_ngram_size:
        found.append(NoRepeatNGramLogitsProcessor(generation.no_repeat_ngram_size))
    if generation.suppress_tokens:
        found.append(SuppressTokensLogitsProcessor(generation.suppress_tokens))
    return found


def _warpers(temperature: float, top_p: float | None, generation: Any) -> list[Any]:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found: list[Any] = []
    if temperature != 1.0:
        found.append(TemperatureLogitsWarper(float(temperature)))
    if generation.top_k:
        found.append(TopKLogitsWarper(generation.top_k))
    if top_p is not None and top_p < 1.0:
        found.append(TopPLogitsWarper(top_p))
    if generation.min_p is not None:
        found.append(MinPLogitsWarper(generation.min_p))
    return found
