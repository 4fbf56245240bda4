"""A small language model with weights made by hand: it says a given text when it reads a given phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ANYTHING = ""
"""The phrase whose texts are said when the prompt holds none of the others."""

CONTEXT = 16_384
LONGEST_PIECE = 12
"""Characters per token of a long text; short ones are cut finer, into eight tokens or more."""

_END, _UNKNOWN, _ANSWER, _STOP_PROBE = "<end>", "<unknown>", "<answer>", "abcdef"
# transformers finds out how a token is written by putting it behind that last word.
_RESERVED = (_END, _UNKNOWN, _ANSWER, _STOP_PROBE)
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}" + _ANSWER + "{% endif %}"
)


def build_answering_model(folder: Path, texts: Mapping[str, Sequence[str]]) -> Path:
    """Write a GPT-2 of one layer that answers a prompt with one of ``texts[phrase]``, by chance.

    ``phrase`` is what the prompt holds literally, wherever it stands. Without chance, sampling changes
    nothing up to a temperature of 2: the right token leads by a wide margin.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    chains = {
        (phrase, number): _pieces(f"{order}.{number}", text)
        for order, (phrase, choices) in enumerate(texts.items())
        for number, text in enumerate(choices)
    }
    phrases = [phrase for phrase in texts if phrase != ANYTHING]
    pieces = [piece for chain in chains.values() for piece in chain]
    ids = {token: number for number, token in enumerate([*_RESERVED, *phrases, *pieces])}
    config = GPT2Config(
        vocab_size=len(ids),
        n_positions=CONTEXT,
        n_embd=len(ids) + 1,
        n_inner=1,
        n_layer=1,
        n_head=1,
        bos_token_id=ids[_END],
        eos_token_id=ids[_END],
        pad_token_id=ids[_END],
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config)
    model.load_state_dict(_weights(model.state_dict(), chains, ids))
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    _tokenizer(ids, phrases).save_pretrained(folder)
    return folder


def _weights(
    state: Mapping[str, Any], chains: Mapping[tuple[str, int], Sequence[str]], ids: Mapping[str, int]
) -> dict[str, Any]:
    """One axis per token and one that says "a phrase"; attention carries the phrase to every place.

    The next token then follows from the last one and the phrase: at the answer's beginning a first piece
    of the phrase's texts, behind a piece the one that follows it.
    """
    import torch

    weights = {name: torch.zeros_like(value) for name, value in state.items()}
    for name, value in weights.items():
        if ".ln_" in name and name.endswith("weight"):
            value.fill_(1.0)
    size = len(ids)
    width = size + 1
    phrases = sorted({ids[phrase] for phrase, _ in chains if phrase != ANYTHING})
    embedding = weights["transformer.wte.weight"]
    embedding[:, :size] = torch.eye(size)
    embedding[phrases, size] = 1.0
    look = weights["transformer.h.0.attn.c_attn.weight"]
    weights["transformer.h.0.attn.c_attn.bias"][0] = 60.0  # the query, the same everywhere
    look[size, width] = 1.0  # the key
    look[phrases, [2 * width + phrase for phrase in phrases]] = (2 / width) ** 0.5  # the value
    weights["transformer.h.0.attn.c_proj.weight"][:] = torch.eye(width)
    head = weights["lm_head.weight"]
    for (phrase, _), chain in chains.items():
        for piece, following in zip(chain, [*chain[1:], _END], strict=True):
            head[ids[following], ids[piece]] = 8.0
        head[ids[chain[0]], ids[_ANSWER]] = 3.5 if phrase == ANYTHING else 2.0
        if phrase != ANYTHING:
            head[ids[chain[0]], ids[phrase]] = 4.0
    return weights


def _pieces(name: str, text: str) -> list[str]:
    """The tokens of one text; the mark in front makes equal pieces of different places different tokens."""
    size = min(LONGEST_PIECE, max(1, len(text) // 8))
    return [f"⟦{name}.{start}⟧{text[start : start + size]}" for start in range(0, len(text), size)]


def _tokenizer(ids: Mapping[str, int], phrases: Sequence[str]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(dict(ids), unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(r"⟦[0-9.]+⟧"), ""), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=_UNKNOWN,
        eos_token=_END,
        pad_token=_END,
        extra_special_tokens=[_ANSWER],
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
