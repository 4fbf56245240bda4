"""Real models of a few hundred kilobytes, made in a second: a random one, an adapter for it, a parrot."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEED = 7
CONTEXT_TOKENS = 2048

CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}You may call these functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one by writing <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% elif message.role == 'assistant' and message.tool_calls %}<|im_start|>assistant
{{ message.content }}
{%- for call in message.tool_calls %}{% set made = call.function %}
<tool_call>{"name": "{{ made.name }}", "arguments": {{ made.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% elif message.role != 'system' %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_LINES = (
    "The quick brown fox jumps over the lazy dog and runs back to the river.",
    "A model answers a question with a number, a word or a JSON object.",
    '{"name": "value", "items": [1, 2, 3], "flag": true, "nothing": null}',
    "def add(first, second):\n    return first + second\n",
    "user assistant system tool function call arguments result",
)


def build_tiny_model(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Save a random Qwen2 with two layers and its tokenizer to ``folder``; returns ``folder``."""
    import torch
    from transformers import Qwen2ForCausalLM

    tokenizer = _tokenizer(chat_template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen2ForCausalLM(_config(tokenizer))
    return _save(folder, model, tokenizer)


def build_adapter(folder: Path, base: Path) -> Path:
    """Save a LoRA adapter for the model in ``base`` whose weights change its answers; returns ``folder``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)
        model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
        get_peft_model(model, config).save_pretrained(folder, safe_serialization=True)
    return folder


def build_parrot_model(folder: Path, answer: str, *, endless: bool = False) -> Path:
    """Save a model that writes ``answer`` to every chat and stops, or says it again and again.

    Its layers do nothing; the head maps each token to the next one of the answer. So tokens of the
    answer must differ: where they don't, its pieces become tokens of their own.
    """
    import torch
    from transformers import Qwen2ForCausalLM

    tokenizer = _tokenizer(CHAT_TEMPLATE)
    start = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)[-1]
    chain = tokenizer.encode(answer, add_special_tokens=False)
    if len({start, *chain}) <= len(chain):
        from tokenizers import AddedToken

        pieces = _unlike_pieces(answer)
        tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
        chain = [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]
    after = chain[0] if endless else tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = Qwen2ForCausalLM(_config(tokenizer))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings = torch.randn_like(model.model.embed_tokens.weight)
        model.model.embed_tokens.weight.copy_(embeddings)
        model.lm_head.weight.zero_()
        for this, following in zip([start, *chain], [*chain, after], strict=True):
            model.lm_head.weight[following] += 10 * embeddings[this]
    return _save(folder, model, tokenizer)


def _unlike_pieces(text: str) -> list[str]:
    """``text`` cut into the shortest pieces of which no two are equal."""
    pieces: list[str] = []
    current = ""
    for character in text:
        current += character
        if current not in pieces and current != "\n":
            pieces.append(current)
            current = ""
    if current:
        pieces[-1] += current
    return pieces


def _tokenizer(chat_template: str | None) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    raw.train_from_iterator(_LINES, trainer)
    raw.add_tokens([AddedToken(tag, normalized=False) for tag in ("<tool_call>", "</tool_call>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_TOKENS,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _config(tokenizer: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.4,
    )


def _save(folder: Path, model: Any, tokenizer: Any) -> Path:
    with _quiet():
        model.eval().save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor the deprecations of one library that another one runs into."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def render_chat(tokenizer: Any, text: str) -> str:
    """The prompt of a chat that is one turn of the user's."""
    turns = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
