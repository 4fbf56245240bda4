"""Runs several requests through a model together: one token each per step, one cache of keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from corerun_transformers.loading import LoadedModel
from corerun_transformers.row import Row

MOST_PADDING = 0.25
"""Prompts are read together where no more than this part of the longest is padding in another."""

LEAST_PADDING = 16
"""Tokens of padding that cost less than reading two prompts one after the other."""


class Batch:
    """Rows of different lengths side by side, padded on the left; a row that ended leaves at once.

    Rows can join those that run already where each layer's cache is a plain list of keys and values.
    In other models (sliding windows, recurrent layers) a batch runs to its end as it began: rows that
    ended stay in it, unread.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        from transformers import DynamicCache

        self.rows: list[Row] = []
        self._loaded = loaded
        accepted = inspect.signature(loaded.model.forward).parameters
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self._positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._new_cache: Callable[[], Any] = lambda: DynamicCache(config=loaded.model.config)
        self._joinable = _is_plain(self._new_cache())
        self._slots: list[Row | None] = []
        self._cache: Any = None
        self._mask: Any = None
        self._following: Any = None

    @property
    def open(self) -> bool:
        """Whether rows can join now."""
        return self._joinable or not self.rows

    def add(self, rows: Sequence[Row]) -> None:
        """Reads the prompts of ``rows`` and chooses the first token of each."""
        for group in _of_like_length(rows) if self._joinable else [rows]:
            self._read(group)

    def _read(self, rows: Sequence[Row]) -> None:
        import torch

        longest = max(len(row.tokens) for row in rows)
        pads = [longest - len(row.tokens) for row in rows]
        device = self._loaded.device
        tokens = torch.tensor(
            [[0] * pad + row.tokens for pad, row in zip(pads, rows, strict=True)], device=device
        )
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=device)
        cache = self._new_cache()
        scores = self._forward(tokens, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        if self.rows:
            self._mask = torch.cat(_left_aligned(self._mask, mask, -1))
            _append(self._cache, cache)
        else:
            self._slots, self._cache, self._mask, self._following = [], cache, mask, None
        self._choose(rows, scores)

    def step(self) -> None:
        """One more token for every row; rows that nobody waits for are dropped first."""
        import torch

        self._settle([slot if slot is not None and not slot.job.cancelled else None for slot in self._slots])
        if not self.rows:
            return
        ones = self._mask.new_ones((len(self._slots), 1))
        positions = self._mask.sum(-1, keepdim=True)
        self._mask = torch.cat((self._mask, ones), dim=-1)
        scores = self._forward(self._following, self._mask, positions, self._cache)
        slots, self._slots, self._following = self._slots, [], None
        self._choose(slots, scores)

    def clear(self) -> None:
        """Forgets all rows and frees their cache."""
        self.rows, self._slots = [], []
        self._cache = self._mask = self._following = None

    def _forward(self, tokens: Any, mask: Any, positions: Any, cache: Any) -> Any:
        """The scores of the token after the last one, for each row."""
        where = {"position_ids": positions} if self._positions else {}
        output = self._loaded.model(
            input_ids=tokens,
            attention_mask=mask,
            use_cache=True,
            **where,
            **self._last_only,
            **{self._cache_name: cache},
        )
        return output.logits[:, -1]

    def _choose(self, slots: Sequence[Row | None], scores: Any) -> None:
        import torch

        chosen = torch.cat(
            [
                score.new_zeros(1, dtype=torch.long) if row is None else row.choose(score)
                for row, score in zip(slots, scores, strict=True)
            ]
        )
        following = chosen.unsqueeze(-1)
        self._following = following if self._following is None else torch.cat((self._following, following))
        left = [
            None if row is None or row.take(token) else row
            for row, token in zip(slots, chosen.tolist(), strict=True)
        ]
        self._settle([*self._slots, *left])

    def _settle(self, slots: list[Row | None]) -> None:
        """Keeps the rows of ``slots``, and of the tensors what they need."""
        self._slots, self.rows = slots, [row for row in slots if row is not None]
        if not self.rows:
            self.clear()
        elif len(self.rows) < len(slots) and self._joinable:
            import torch

            kept = torch.tensor(
                [place for place, row in enumerate(slots) if row is not None], device=self._mask.device
            )
            self._slots, self._following, mask = list(self.rows), self._following[kept], self._mask[kept]
            unused = int((mask.sum(0) > 0).int().argmax())
            self._mask = mask[:, unused:]
            for layer in self._cache.layers:
                layer.keys = layer.keys[:, :, unused:][kept]
                layer.values = layer.values[:, :, unused:][kept]


def _is_plain(cache: Any) -> bool:
    from transformers.cache_utils import DynamicLayer

    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def _of_like_length(rows: Sequence[Row]) -> list[list[Row]]:
    """``rows`` in groups that waste little on padding."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        size = len(row.tokens)
        if groups and size - len(groups[-1][0].tokens) <= max(LEAST_PADDING, MOST_PADDING * size):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _append(cache: Any, more: Any) -> None:
    """Adds the rows of the cache ``more`` to ``cache``."""
    import torch

    for layer, added in zip(cache.layers, more.layers, strict=True):
        layer.keys = torch.cat(_left_aligned(layer.keys, added.keys, -2))
        layer.values = torch.cat(_left_aligned(layer.values, added.values, -2))


def _left_aligned(first: Any, second: Any, dimension: int) -> tuple[Any, Any]:
    """Both tensors, the shorter one filled up with zeros on the left of ``dimension``."""
    import torch

    longest = max(first.shape[dimension], second.shape[dimension])

    def filled(tensor: Any) -> Any:
        shape = list(tensor.shape)
        shape[dimension] = longest - shape[dimension]
        return torch.cat((tensor.new_zeros(shape), tensor), dim=dimension) if shape[dimension] else tensor

    return filled(first), filled(second)
