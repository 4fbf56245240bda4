"""Models in this process: what they answer, alone and in company, and what is refused instead of loaded."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from corerun.errors import (
    AuthFailed,
    BadAnswer,
    CallFailed,
    ContextTooLong,
    EnvironmentRefused,
    ModelError,
    ModelNotFound,
    ModelUnusable,
    RequestRefused,
    StreamCut,
    Transient,
    Unsupported,
    UnsupportedParameter,
)
from corerun.interfaces import (
    CallContext,
    ChatReply,
    ChatRequest,
    Connection,
    Degradation,
    Delta,
    Message,
    Part,
    ToolCall,
)
from corerun.testing.contract import provider_contract
from corerun_transformers import loading
from corerun_transformers.batch import Batch
from corerun_transformers.provider import TransformersProvider
from corerun_transformers.row import Job, Row
from corerun_transformers.text import ProseFilter, TextWriter, read_calls
from corerun_transformers.worker import MOST_ROWS
from tests.support.tiny_model import (
    CONTEXT_TOKENS,
    build_adapter,
    build_parrot_model,
    build_tiny_model,
    render_chat,
)

CONTEXT = CallContext("p")
OFFLINE = {"CORERUN_OFFLINE": "true"}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
}
CALLING = 'Look: <tool_call>{"name": "weather", "arguments": {"city": "Kyoto"}}</tool_call>'


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return build_adapter(tmp_path_factory.mktemp("models") / "adapter", tiny)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_parrot_model(tmp_path_factory.mktemp("models") / "endless", "na na ", endless=True)


@pytest.fixture(scope="session")
def loaded(tiny: Path) -> loading.LoadedModel:
    return loading.load(loading.Source(str(tiny)), offline=True, token=None)


@pytest.fixture
async def provider() -> AsyncIterator[TransformersProvider]:
    made = TransformersProvider(Connection("transformers", OFFLINE))
    yield made
    await made.aclose()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("corerun-")]


def request(model: object, text: str = "What is it?", **options: Any) -> ChatRequest:
    options.setdefault("max_tokens", 24)
    return ChatRequest(str(model), (Message("user", text),), **options)


def generated(loaded: loading.LoadedModel, text: str, max_tokens: int = 24, **options: Any) -> str:
    """What the library's own ``generate`` answers to a chat of one user's turn."""
    import torch

    tokenizer = loaded.tokenizer
    inputs = tokenizer(render_chat(tokenizer, text), return_tensors="pt", add_special_tokens=False)
    options.setdefault("do_sample", False)
    tokens = loaded.model.generate(**inputs, max_new_tokens=max_tokens, **options)[0]
    assert isinstance(tokens, torch.Tensor)
    answer = tokens[inputs.input_ids.shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True)).rstrip("\ufffd")


async def collect(stream: AsyncIterator[Delta]) -> tuple[list[str], ChatReply]:
    deltas = [delta async for delta in stream]
    assert [delta.kind for delta in deltas] == ["text"] * (len(deltas) - 1) + ["reply"]
    reply = deltas[-1].reply
    assert reply is not None
    return [delta.text for delta in deltas[:-1]], reply


# ------------------------------------------------------------------------------ what is answered


async def test_the_contract_is_fulfilled(provider: TransformersProvider, tmp_path: Path) -> None:
    parrot = build_parrot_model(tmp_path, '{"word": "yes"}')
    await provider_contract(provider, str(parrot))
    assert (provider.info.is_local, provider.info.needs_key, provider.info.vision) == (True, False, False)


TEXTS = ["a", "What is the river?", "fox " * 40, "1, 2, 3 and so on", "élan 🎉", "def add", "", "dog " * 9]


async def test_greedy_answers_are_those_of_generate_alone_and_in_a_batch(
    provider: TransformersProvider, tiny: Path, loaded: loading.LoadedModel
) -> None:
    expected = [generated(loaded, text) for text in TEXTS]
    asked = [request(tiny, text, temperature=0.0) for text in TEXTS]
    assert [(await provider.complete(one, CONTEXT)).text for one in asked[:3]] == expected[:3]
    together = await asyncio.gather(*(provider.complete(one, CONTEXT) for one in asked))
    assert [reply.text for reply in together] == expected
    assert len(set(expected)) == len(expected)
    # Without a temperature the model's own configuration decides, which is greedy here.
    assert (await provider.complete(request(tiny, TEXTS[0]), CONTEXT)).text == expected[0]


async def test_sampled_answers_are_those_of_generate(
    provider: TransformersProvider, tiny: Path, loaded: loading.LoadedModel
) -> None:
    import torch

    ways: list[dict[str, Any]] = [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}]
    for options in ways:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            expected = generated(loaded, "Say it", do_sample=True, top_k=0, **options)
        reply = await provider.complete(request(tiny, "Say it", seed=11, **options), CONTEXT)
        assert reply.text == expected


async def test_a_seeded_answer_does_not_depend_on_its_company(
    provider: TransformersProvider, tiny: Path
) -> None:
    seeded = [request(tiny, text, seed=5, temperature=1.0, max_tokens=48) for text in TEXTS[:4]]
    alone = [(await provider.complete(one, CONTEXT)).text for one in seeded]
    others = [request(tiny, text, temperature=2.0, max_tokens=size) for size, text in enumerate(TEXTS, 1)]
    for company in (others[:4], others[4:], seeded[1:]):
        together = await asyncio.gather(
            *(provider.complete(one, CONTEXT) for one in (*company[:2], *seeded, *company[2:]))
        )
        assert [reply.text for reply in together[2:6]] == alone
    free = [request(tiny, "a", temperature=1.0) for _ in range(4)]
    replies = await asyncio.gather(*(provider.complete(one, CONTEXT) for one in free))
    assert len({reply.text for reply in replies}) == 4, "calls without a seed throw new dice"


async def test_the_publishers_sampling_is_kept(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    path = folder / "generation_config.json"
    own = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    model = loading.load(loading.Source(str(folder)), offline=True, token=None)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = generated(model, "Go", do_sample=True)
    greedy = generated(model, "Go")
    provider = TransformersProvider(Connection("transformers", OFFLINE))
    assert (await provider.complete(request(folder, "Go", seed=3), CONTEXT)).text == expected
    assert (await provider.complete(request(folder, "Go", temperature=0.0), CONTEXT)).text == greedy
    assert greedy != expected
    await provider.aclose()


async def test_tokens_are_counted_and_limited(provider: TransformersProvider, endless: Path) -> None:
    reply = await provider.complete(request(endless, max_tokens=7), CONTEXT)
    assert (reply.finish, reply.usage.completion, reply.usage.estimated) == ("length", 7, False)
    assert reply.usage.prompt == len(render(endless, "What is it?"))
    assert (reply.model, reply.degradations) == (str(endless), ())
    default = await provider.complete(request(endless, max_tokens=None), CONTEXT)
    assert default.usage.completion == 1024
    long = "🎉" * ((CONTEXT_TOKENS - 200) // 4)
    rest = await provider.complete(request(endless, long, max_tokens=5000), CONTEXT)
    assert rest.finish == "length"
    assert rest.usage.prompt + rest.usage.completion == CONTEXT_TOKENS


def render(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return list(tokenizer.encode(render_chat(tokenizer, text), add_special_tokens=False))


async def test_an_end_token_ends_and_counts(provider: TransformersProvider, tmp_path: Path) -> None:
    parrot = build_parrot_model(tmp_path, "yes")
    reply = await provider.complete(request(parrot), CONTEXT)
    assert (reply.text, reply.finish) == ("yes", "stop")
    assert reply.usage.completion == len(render(parrot, "yes")) - len(render(parrot, "")) + 1


async def test_stop_strings_are_cut_off(provider: TransformersProvider, tmp_path: Path) -> None:
    parrot = build_parrot_model(tmp_path, "one, two; three.")
    reply = await provider.complete(request(parrot, stop=("four", "o; th")), CONTEXT)
    assert (reply.text, reply.finish) == ("one, tw", "stop")
    pieces, streamed = await collect(provider.stream(request(parrot, stop=("four", "o; th")), CONTEXT))
    assert "".join(pieces) == streamed.text == "one, tw"
    assert (await provider.complete(request(parrot, stop=("",)), CONTEXT)).text == "one, two; three."


class Verdict(BaseModel):
    is_bug: bool
    summary: str
    scores: list[int]


async def test_a_structured_question_is_answered_end_to_end(
    provider: TransformersProvider, tmp_path: Path
) -> None:
    from corerun.llm.messages import system, user
    from corerun.llm.structured import validate

    verdict = {"is_bug": False, "summary": "all fine", "scores": [1, 1, 2]}
    parrot = build_parrot_model(tmp_path, f"Here it is:\n```json\n{json.dumps(verdict)}\n```")
    models = language_models(provider, f"transformers::{parrot}")
    answer = await models.ask("r", "review", [system("Be exact."), user("Judge.")], schema=Verdict)
    assert answer.value == validate(Verdict, verdict)
    assert answer.reply.usage.prompt > len("Answer with one JSON object")
    again = await models.ask("r", "review", [user("Judge again.")], parse=lambda text: text.split()[0])
    assert again.value == "Here"


class Unwritten:
    """A recorder that keeps nothing."""

    def __init__(self) -> None:
        self.answered: dict[str, Any] = {}

    def emit(self, type: str, **data: Any) -> int:
        return 0

    def blob(self, data: bytes) -> str:
        return "blob"


def language_models(provider: TransformersProvider, name: str) -> Any:
    from corerun.llm.client import LanguageModels
    from corerun.llm.directory import ModelDirectory
    from corerun.llm.settings import LlmSettings
    from corerun.plugins import PluginManager

    directory = ModelDirectory(PluginManager(), OFFLINE)
    directory.use("transformers", provider)
    return LanguageModels(
        record=Unwritten(),
        directory=directory,
        roles={},
        default_model=name,
        settings=LlmSettings(),
        environ=OFFLINE,
    )


async def test_the_schema_stands_at_the_end_of_the_last_users_turn(loaded: loading.LoadedModel) -> None:
    from corerun_transformers.prompt import build_prompt

    asked = request("m", "Where?", schema={"type": "object"})
    text = build_prompt(loaded.tokenizer, asked).text
    turn = text.split("<|im_start|>user\n")[-1]
    assert turn.startswith("Where?\n\nAnswer with one JSON object")
    assert '{"type": "object"}<|im_end|>' in turn
    history = (Message("user", "Where?"), Message("assistant", "There."))
    text = build_prompt(loaded.tokenizer, ChatRequest("m", history, schema={})).text
    assert text.split("<|im_start|>user\n")[-1].startswith("Answer with one JSON object")


# ---------------------------------------------------------------------------------------- tools


async def test_a_call_in_the_text_becomes_a_tool_call(provider: TransformersProvider, tmp_path: Path) -> None:
    parrot = build_parrot_model(tmp_path, CALLING)
    asked = request(parrot, tools=(WEATHER,), max_tokens=200)
    pieces, reply = await collect(provider.stream(asked, CONTEXT))
    assert reply.tool_calls == (ToolCall("call_0", "weather", '{"city": "Kyoto"}'),)
    assert (reply.finish, reply.text, reply.degradations) == ("tool", "Look: ", ())
    assert "".join(pieces) == reply.text
    history = (
        *asked.messages,
        Message("assistant", "", reply.tool_calls),
        Message("tool", "22", (), "call_0"),
    )
    next_call = await provider.complete(
        ChatRequest(str(parrot), history, tools=(WEATHER,), max_tokens=200), CONTEXT
    )
    assert next_call.tool_calls[0].id == "call_1"
    untouched = await provider.complete(request(parrot, max_tokens=200), CONTEXT)
    assert (untouched.text, untouched.tool_calls) == (CALLING, ())


def test_tools_and_their_results_go_through_the_template(loaded: loading.LoadedModel) -> None:
    from corerun_transformers.prompt import build_prompt

    calls = (ToolCall("a", "weather", '{"city": "Oslo"}'), ToolCall("b", "weather", "not JSON"))
    messages = (
        Message("user", (Part("text", "Is it"), Part("text", "cold?"))),
        Message("assistant", "", calls),
        Message("tool", "-3", tool_call_id="a"),
    )
    prompt = build_prompt(loaded.tokenizer, ChatRequest("m", messages, tools=(WEATHER["function"],)))
    assert prompt.degradations == ()
    assert '"type": "function"' in prompt.text and "Is it\ncold?" in prompt.text
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>' in prompt.text
    assert '{"_invalid": "not JSON"}' in prompt.text
    assert "<tool_response>-3</tool_response>" in prompt.text


NO_TOOLS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [(NO_TOOLS, "ignores tools"), (ALTERNATING, "refuses tools"), (None, "no chat template")],
)
async def test_where_the_template_has_no_tools_the_system_turn_tells_of_them(
    provider: TransformersProvider, tmp_path: Path, template: str | None, reason: str
) -> None:
    folder = build_tiny_model(tmp_path, chat_template=template)
    messages = (
        Message("system", "Be brief."),
        Message("user", "Is it cold?"),
        Message("assistant", "", (ToolCall("a", "weather", "{}"),)),
        Message("tool", "-3", tool_call_id="a"),
        Message("user", "So?"),
    )
    asked = ChatRequest(str(folder), messages, tools=(WEATHER,), max_tokens=4)
    reply = await provider.complete(asked, CONTEXT)
    assert [(item.feature, reason in item.reason) for item in reply.degradations] == [("tools", True)]
    with pytest.raises(UnsupportedParameter, match=reason) as caught:
        await provider.complete(asked, CallContext("p", strict=True))
    assert (caught.value.parameter, caught.value.status) == ("tools", 0)

    from transformers import AutoTokenizer

    from corerun_transformers.prompt import build_prompt

    text = build_prompt(AutoTokenizer.from_pretrained(folder, local_files_only=True), asked).text
    for needed in ("Be brief.\n\nYou can call", '{"name": "weather", "parameters"', "result of weather: -3"):
        assert needed in text
    assert '<tool_call>{"name": "weather", "arguments": {}}</tool_call>' in text


async def test_a_model_without_a_template_reads_plain_lines(
    provider: TransformersProvider, tmp_path: Path
) -> None:
    folder = build_tiny_model(tmp_path, chat_template=None)
    reply = await provider.complete(request(folder, "hello"), CONTEXT)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert reply.usage.prompt == len(tokenizer.encode("user: hello\nassistant:"))


async def test_options_without_a_meaning_are_said(provider: TransformersProvider, tiny: Path) -> None:
    asked = request(tiny, reasoning_effort="low", extra={"enable_thinking": False, "guided_choice": ["a"]})
    reply = await provider.complete(asked, CONTEXT)
    assert {item.feature for item in reply.degradations} == {"reasoning_effort", "guided_choice"}
    assert all(isinstance(item, Degradation) and item.reason for item in reply.degradations)


async def test_the_template_is_given_its_variables(loaded: loading.LoadedModel) -> None:
    from corerun_transformers.prompt import build_prompt

    tokenizer = types.SimpleNamespace(
        chat_template="{{ reasoning_effort }}",
        apply_chat_template=lambda turns, tools, **variables: json.dumps(variables),
    )
    extra = {"enable_thinking": False, "chat_template_kwargs": {"x": 1}}
    prompt = build_prompt(tokenizer, request("m", reasoning_effort="low", extra=extra))
    given = json.loads(prompt.text)
    assert (given["enable_thinking"], given["x"], given["reasoning_effort"]) == (False, 1, "low")
    assert prompt.degradations == ()


# ------------------------------------------------------------------------------------- streaming


async def test_a_stream_is_the_answer_in_whole_characters(
    provider: TransformersProvider, tmp_path: Path
) -> None:
    parrot = build_parrot_model(tmp_path, "naïf 🎉!")
    pieces, reply = await collect(provider.stream(request(parrot), CONTEXT))
    assert pieces == ["n", "a", "ï", "f", " ", "🎉", "!"]
    assert reply.text == (await provider.complete(request(parrot), CONTEXT)).text == "naïf 🎉!"
    # Cut in the middle of a character: the half of it is not shown.
    pieces, reply = await collect(provider.stream(request(parrot, max_tokens=8), CONTEXT))
    assert ("".join(pieces), reply.finish) == ("naïf ", "length")


async def test_a_random_models_stream_is_its_answer(provider: TransformersProvider, tiny: Path) -> None:
    for seed in range(6):
        asked = request(tiny, seed=seed, temperature=1.5, max_tokens=80, tools=(WEATHER,) * (seed % 2))
        pieces, reply = await collect(provider.stream(asked, CONTEXT))
        assert "".join(pieces) == reply.text
        assert reply.text == (await provider.complete(asked, CONTEXT)).text


async def test_a_stream_that_ends_too_early_carries_what_was_said(
    provider: TransformersProvider, endless: Path
) -> None:
    stream = provider.stream(request(endless, max_tokens=1500), CONTEXT)
    first = await anext(stream)
    closing = asyncio.ensure_future(provider.aclose())
    with pytest.raises(StreamCut, match="closed before it answered") as caught:
        async for delta in stream:
            first = Delta("text", first.text + delta.text)
    await closing
    assert caught.value.partial == first.text


# ----------------------------------------------------------------------------- company and leaving


async def test_more_calls_than_a_batch_holds_are_all_answered(
    provider: TransformersProvider, tiny: Path, loaded: loading.LoadedModel
) -> None:
    asked = [
        request(tiny, f"number {i}", temperature=0.0, max_tokens=3 + i) for i in range(MOST_ROWS * 2 + 3)
    ]
    replies = await asyncio.gather(*(provider.complete(one, CONTEXT) for one in asked))
    expected = [generated(loaded, f"number {i}", 3 + i) for i in range(len(asked))]
    assert [reply.text for reply in replies] == expected


async def test_a_call_joins_those_that_run(provider: TransformersProvider, endless: Path) -> None:
    stream = provider.stream(request(endless, max_tokens=2000), CONTEXT)
    await anext(stream)
    reply = await provider.complete(request(endless, max_tokens=3), CONTEXT)
    assert reply.usage.completion == 3
    await stream.aclose()  # type: ignore[attr-defined]


def test_rows_join_leave_and_end_without_changing_each_other(loaded: loading.LoadedModel) -> None:
    import torch

    def row(text: str, max_tokens: int) -> Row:
        return Row(Job(request("m", text, temperature=0.0, max_tokens=max_tokens)), loaded)

    first = [row("fox " * 30, 30), row("a", 12), row("What?", 30)]
    late = [row("dog " * 50, 9), row("river", 5)]
    batch = Batch(loaded)
    with torch.inference_mode():
        batch.add(first)
        for _ in range(4):
            batch.step()
        batch.add(late)
        assert len(batch.rows) == 5
        batch.step()
        first[0].job.future.cancel()
        batch.step()
        assert {id(row) for row in batch.rows} == {id(row) for row in (*first[1:], *late)}
        while batch.rows:
            batch.step()
    for done, text, size in ((first[1], "a", 12), (first[2], "What?", 30), (late[1], "river", 5)):
        assert done.job.future.result(timeout=0).text == generated(loaded, text, size)
    assert late[0].job.future.result(timeout=0).text == generated(loaded, "dog " * 50, 9)


FAMILIES = {
    "absolute positions": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "sliding window": ("MistralConfig", {"sliding_window": 8, "head_dim": 16}),
    "mixed windows": ("Gemma3TextConfig", {"sliding_window": 8, "head_dim": 16, "num_hidden_layers": 6}),
    "recurrent layers": (
        "Qwen3NextConfig",
        {"num_experts": 2, "num_experts_per_tok": 1, "head_dim": 16, "num_hidden_layers": 4},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_other_families_answer_in_a_batch_as_alone(
    family: str, loaded: loading.LoadedModel, tmp_path: Path
) -> None:
    import torch
    import transformers

    name, sizes = FAMILIES[family]
    common = {
        "vocab_size": len(loaded.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.5,
        "max_position_embeddings": 256,
    }
    shape = sizes if name == "GPT2Config" else {**common, **sizes}
    config = getattr(transformers, name)(
        **{"vocab_size": len(loaded.tokenizer), **shape}, bos_token_id=None, eos_token_id=2, pad_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    other = loading.LoadedModel(model, loaded.tokenizer, loaded.device, 256, frozenset({2}), True)
    asked = [("fox " * 20, 16), ("a", 5), ("What is it?", 12)]
    rows = [Row(Job(request("m", text, temperature=0.0, max_tokens=size)), other) for text, size in asked]
    batch = Batch(other)
    with torch.inference_mode():
        batch.add(rows)
        while batch.rows:
            batch.step()
    answers = [row.job.future.result(timeout=0).text for row in rows]
    assert answers == [generated(other, text, size) for text, size in asked]


async def test_a_cancelled_call_leaves_and_the_others_go_on(
    provider: TransformersProvider, endless: Path
) -> None:
    stays = asyncio.ensure_future(provider.complete(request(endless, max_tokens=60), CONTEXT))
    goes = provider.stream(request(endless, max_tokens=1900), CONTEXT)
    await anext(goes)
    waiting = asyncio.ensure_future(anext(goes))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await stays).usage.completion == 60


async def test_a_call_past_its_deadline_is_transient(provider: TransformersProvider, endless: Path) -> None:
    with pytest.raises(Transient, match="before the call's deadline"):
        await provider.complete(request(endless), CallContext("p", deadline=time.monotonic() - 1))
    assert (await provider.complete(request(endless, max_tokens=2), CONTEXT)).usage.completion == 2


async def test_closing_ends_the_thread_and_its_calls(endless: Path) -> None:
    provider = TransformersProvider(Connection("transformers", OFFLINE))
    assert await provider.list_models() == []
    await provider.complete(request(endless, max_tokens=1), CONTEXT)
    assert await provider.list_models() == [str(endless)]
    stream = provider.stream(request(endless, max_tokens=1900), CONTEXT)
    await anext(stream)
    waiting = [
        asyncio.ensure_future(provider.complete(request(endless, max_tokens=1900), CONTEXT)) for _ in range(9)
    ]
    await asyncio.sleep(0)
    await provider.aclose()
    assert await provider.list_models() == []
    for call in waiting:
        with pytest.raises(CallFailed, match="was closed"):
            await call
    await stream.aclose()  # type: ignore[attr-defined]
    assert (await provider.complete(request(endless, max_tokens=1), CONTEXT)).usage.completion == 1
    await provider.aclose()


def test_one_provider_serves_event_loops_one_after_another(endless: Path) -> None:
    provider = TransformersProvider(Connection("transformers", OFFLINE))
    for _ in range(2):
        reply = asyncio.run(provider.complete(request(endless, max_tokens=2), CONTEXT))
        assert reply.usage.completion == 2
    asyncio.run(provider.aclose())


# ---------------------------------------------------------------------------------------- loading


async def test_an_adapters_folder_is_its_base_model_with_it(
    provider: TransformersProvider, tiny: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = (await provider.complete(request(tiny), CONTEXT)).text
    adapted = (await provider.complete(request(adapter), CONTEXT)).text
    both = loading.load(loading.Source(str(adapter)), offline=True, token=None)
    assert adapted == generated(both, "What is it?") != plain
    given = await provider.complete(request(tiny, extra={"adapter": str(adapter)}), CONTEXT)
    assert given.text == adapted
    shutil.copytree(tiny, tmp_path / "base")
    moved = shutil.copytree(adapter, tmp_path / "run/step_1")
    config = moved / "adapter_config.json"
    for base in ("../../base", "base"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": base}))
        monkeypatch.chdir(tmp_path)
        fresh = TransformersProvider(Connection("transformers", OFFLINE))
        assert (await fresh.complete(request("./run/step_1"), CONTEXT)).text == adapted
        await fresh.aclose()


async def test_weights_run_as_asked(tiny: Path) -> None:
    import torch

    halves = loading.load(loading.Source(str(tiny), dtype="bfloat16", device="cpu"), offline=True, token=None)
    assert next(halves.model.parameters()).dtype == torch.bfloat16
    assert not halves.exact
    whole = loading.load(loading.Source(str(tiny)), offline=True, token=None)
    assert next(whole.model.parameters()).dtype == torch.float32
    with pytest.raises(ModelUnusable, match="'int8' is no dtype"):
        loading.load(loading.Source(str(tiny), dtype="int8"), offline=True, token=None)


async def test_a_seeded_answer_in_half_precision_has_no_company(
    provider: TransformersProvider, tiny: Path
) -> None:
    halves = {"dtype": "bfloat16"}
    seeded = request(tiny, seed=4, temperature=1.0, max_tokens=40, extra=halves)
    alone = await provider.complete(seeded, CONTEXT)
    others = [request(tiny, text, temperature=1.0, extra=halves) for text in TEXTS[:4]]
    replies = await asyncio.gather(
        *(provider.complete(one, CONTEXT) for one in (*others[:2], seeded, *others[2:], seeded))
    )
    assert replies[2].text == replies[5].text == alone.text


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "broken")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def incomplete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def own_code(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    path.write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('this code was run')")


def no_base(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (no_weights, ModelNotFound, "holds no weights"),
        (pickled, ModelNotFound, r"only as pytorch_model\.bin, which is never loaded"),
        (truncated, ModelUnusable, "can't be loaded"),
        (incomplete, ModelUnusable, "lacks 1 of its weights, such as model.layers.1.mlp.up_proj.weight"),
        (own_code, ModelUnusable, "can't be loaded"),
        (no_base, ModelUnusable, "doesn't name a base model"),
    ],
)
async def test_what_cannot_be_loaded_is_said_in_a_line(
    provider: TransformersProvider, broken: Path, damage: Any, error: type[ModelError], message: str
) -> None:
    damage(broken)
    with pytest.raises(error, match=message) as caught:
        await provider.complete(request(broken), CONTEXT)
    assert "\n" not in str(caught.value)
    assert await provider.list_models() == []


async def test_a_model_that_comes_later_is_found(
    provider: TransformersProvider, tiny: Path, tmp_path: Path
) -> None:
    later = tmp_path / "later"
    with pytest.raises(ModelNotFound, match="there is no folder") as caught:
        await provider.complete(request(later), CONTEXT)
    assert str(Path.cwd()) in caught.value.hint
    shutil.copytree(tiny, later)
    assert (await provider.complete(request(later), CONTEXT)).finish in ("stop", "length")


@pytest.mark.parametrize("name", ["some-org/some-model-that-nobody-has", "./nowhere", "a/b/c", "../../x/y"])
@pytest.mark.parametrize("switch", ["CORERUN_OFFLINE", "HF_HUB_OFFLINE"])
async def test_offline_nothing_is_asked_of_the_network(
    name: str, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    provider = TransformersProvider(Connection("transformers", {switch: "yes"}))
    with pytest.raises(ModelNotFound) as caught:
        await provider.complete(request(name), CONTEXT)
    assert name in str(caught.value) and caught.value.hint
    await provider.aclose()


async def test_an_unreachable_hub_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **options: object) -> None:
        assert options["local_files_only"] is False
        assert options["token"] == "hf_" + "x" * 30
        raise ConnectionError("no route, said hf_" + "x" * 30)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    provider = TransformersProvider(Connection("transformers", {"HF_TOKEN": "hf_" + "x" * 30}))
    with pytest.raises(Transient, match="couldn't be loaded from the hub: no route") as caught:
        await provider.complete(request("org/model"), CONTEXT)
    assert "x" * 30 not in str(caught.value)
    await provider.aclose()


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        ("GatedRepoError", AuthFailed, "only approved accounts"),
        ("RepositoryNotFoundError", ModelNotFound, "nor a model on the hub"),
        ("LocalEntryNotFoundError", Transient, "couldn't be loaded from the hub"),
    ],
)
async def test_what_the_hub_refuses_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, raised: str, error: type[ModelError], message: str
) -> None:
    import huggingface_hub

    kind = getattr(huggingface_hub.errors, raised)

    def fail(*_: object, **__: object) -> None:
        raise kind.__new__(kind, "as the hub says it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    provider = TransformersProvider(Connection("transformers", {}))
    with pytest.raises(error, match=message):
        await provider.complete(request("org/model"), CONTEXT)
    await provider.aclose()


async def test_a_prompt_longer_than_the_context_is_refused(
    provider: TransformersProvider, tiny: Path
) -> None:
    with pytest.raises(ContextTooLong) as caught:
        await provider.complete(request(tiny, "🎉" * CONTEXT_TOKENS), CONTEXT)
    assert caught.value.limit == CONTEXT_TOKENS
    assert caught.value.used is not None and caught.value.used > CONTEXT_TOKENS * 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_tokens": 0}, RequestRefused),
        ({"temperature": -1.0}, RequestRefused),
        ({"top_p": 1.5, "temperature": 1.0}, RequestRefused),
        ({"messages": ()}, RequestRefused),
        ({"messages": (Message("user", (Part("image", data=b"x"),)),)}, Unsupported),
        ({"extra": {"chat_template_kwargs": 3}}, RequestRefused),
    ],
)
async def test_bad_requests_are_refused(
    provider: TransformersProvider, tiny: Path, options: dict[str, Any], error: type[ModelError]
) -> None:
    messages = options.pop("messages", (Message("user", "hi"),))
    with pytest.raises(error):
        await provider.complete(ChatRequest(str(tiny), messages, **options), CONTEXT)


async def test_an_empty_answer_is_an_error(provider: TransformersProvider, tmp_path: Path) -> None:
    parrot = build_parrot_model(tmp_path, " ")
    with pytest.raises(BadAnswer, match="before it said anything"):
        await provider.complete(request(parrot), CONTEXT)
    with pytest.raises(Transient, match="before it said anything"):
        await provider.complete(request(parrot, temperature=1.0), CONTEXT)


async def test_a_model_that_breaks_fails_its_calls_and_goes_on(
    provider: TransformersProvider, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provider.complete(request(tiny), CONTEXT)
    step = Batch.step

    def breaks(self: Batch) -> None:
        monkeypatch.setattr(Batch, "step", step)
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(Batch, "step", breaks)
    with pytest.raises(RequestRefused, match="the model failed: RuntimeError: two lines"):
        await provider.complete(request(tiny), CONTEXT)
    assert (await provider.complete(request(tiny), CONTEXT)).usage.completion > 0


async def test_missing_packages_are_named_without_a_traceback(
    provider: TransformersProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.check()
    real = importlib.util.find_spec
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(EnvironmentRefused, match="torch") as caught:
        await provider.complete(request("m"), CONTEXT)
    assert caught.value.hint == "pip install 'corerun[train]'"


def test_nothing_heavy_is_imported_before_a_question() -> None:
    script = (
        "import sys\n"
        "from corerun.interfaces import Connection\n"
        "import corerun_transformers\n"
        "from corerun_transformers.provider import TransformersProvider\n"
        "TransformersProvider(Connection('transformers', {})).check()\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "peft", "safetensors", "huggingface_hub"} & set(done.stdout.split())


# ------------------------------------------------------------------------------------------- text


def bytes_as_tokens(tokens: Any) -> str:
    return bytes(tokens).decode("utf-8", "replace")


@given(st.text(max_size=40))
def test_the_pieces_of_a_text_are_whole_characters(text: str) -> None:
    writer = TextWriter(bytes_as_tokens)
    pieces = [writer.push(byte) for byte in text.encode()] + [writer.finish()]
    assert "".join(pieces) == writer.text == text.rstrip("\ufffd")
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(st.lists(st.integers(0, 255), max_size=60), st.lists(st.text("abé", max_size=3), max_size=3))
def test_any_tokens_and_stops_give_one_text(tokens: list[int], stops: list[str]) -> None:
    writer = TextWriter(bytes_as_tokens, stops)
    told = ""
    for token in tokens:
        told += writer.push(token)
        if writer.stopped:
            break
    told += writer.finish()
    assert told == writer.text
    assert not any(stop in told for stop in stops if stop)
    assert bytes_as_tokens(tokens).startswith(told)


@given(st.lists(st.text("<tol_ca>x", max_size=12), max_size=8))
def test_prose_is_passed_on_until_a_call(pieces: list[str]) -> None:
    prose = ProseFilter()
    told = "".join(prose.push(piece) for piece in pieces)
    whole = "".join(pieces).partition("<tool_call>")[0]
    assert whole.startswith(told)
    assert len(told) >= len(whole) - len("<tool_call")


@given(st.text())
def test_any_text_is_read_for_calls(text: str) -> None:
    for whole in (text, f"<tool_call>{text}</tool_call>", f"{CALLING}{text}"):
        rest, calls = read_calls(whole, {"weather"})
        assert isinstance(rest, str) and isinstance(calls, tuple)


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": "{}"}', "", [("f", "{}")]),
        ('{"name": "f", "parameters": {}}', "", [("f", "{}")]),
        ('[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]', "", [("f", "{}")] * 2),
        ('{"name": "g", "parameters": {}}', '{"name": "g", "parameters": {}}', []),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        ('a <tool_call>{"name": "g", "arguments": {}}</tool_call> b', "a b", [("g", "{}")]),
        ('{"name": "f"}', '{"name": "f"}', []),
    ],
)
def test_calls_are_found_in_every_form(text: str, rest: str, calls: list[tuple[str, str]]) -> None:
    found = read_calls(text, {"f"})
    assert found == (rest, tuple(ToolCall(f"call_{n}", *call) for n, call in enumerate(calls)))
