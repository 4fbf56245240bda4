"""Reads how many tokens a server says an answer took, in the words of every vendor."""

from __future__ import annotations

import math
from collections.abc import Mapping

from corerun.interfaces import ChatRequest, Json, Part, Usage
from corerun.llm.ledger import CHARACTERS_PER_TOKEN


def read_usage(data: Json, request: ChatRequest, answer: str) -> Usage:
    """Tokens as the vendors report them; what is missing or no number is estimated.

    OpenAI counts cached tokens inside the prompt, DeepSeek names them ``prompt_cache_hit_tokens``,
    Anthropic counts them beside ``input_tokens``; xAI counts reasoning beside the completion.
    """
    usage: Mapping[str, Json] = data if isinstance(data, dict) else {}
    prompt = _count(usage, "prompt_tokens")
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    if cached is None:
        cached = _count(usage, "prompt_cache_hit_tokens")
    if prompt is None:
        prompt = _count(usage, "input_tokens")
        if prompt is not None:
            read = _count(usage, "cache_read_input_tokens") or 0
            prompt += read + (_count(usage, "cache_creation_input_tokens") or 0)
            cached = cached or read
    completion = _count(usage, "completion_tokens")
    if completion is None:
        completion = _count(usage, "output_tokens")
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens") or 0
    if prompt is not None and completion is not None:
        total = _count(usage, "total_tokens")
        if reasoning and total == prompt + completion + reasoning:
            completion += reasoning
    estimated = prompt is None or completion is None
    if prompt is None:
        prompt = _estimate(sum(_characters(message.content) for message in request.messages))
    if completion is None:
        completion = _estimate(len(answer))
    return Usage(
        prompt=prompt,
        completion=completion,
        reasoning=min(reasoning, completion),
        cached=min(cached or 0, prompt),
        estimated=estimated,
        cost_usd=_amount(usage.get("cost")),
    )


def is_amount(value: Json) -> bool:
    """Whether a server's figure can be counted with: a finite number, not negative."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )


def _amount(value: Json) -> float | None:
    return value if is_amount(value) else None


def _count(usage: Mapping[str, Json], name: str) -> int | None:
    amount = _amount(usage.get(name))
    return None if amount is None else int(amount)


def _detail(usage: Mapping[str, Json], group: str, name: str) -> int | None:
    details = usage.get(group)
    return _count(details, name) if isinstance(details, dict) else None


def _estimate(characters: int) -> int:
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


def _characters(content: str | tuple[Part, ...]) -> int:
    return len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
