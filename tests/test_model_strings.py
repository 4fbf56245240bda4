"""Model strings: which provider a string names, and what a wrong one is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import UsageError
from corerun.llm.models import default_model, environment_key, parse_model, true_value

PROVIDERS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
MODELS = st.text(min_size=1, max_size=30).filter(lambda text: text == text.strip())


@pytest.mark.parametrize(
    ("text", "provider", "model"),
    [
        ("ollama/gpt-oss:20b", "ollama", "gpt-oss:20b"),
        ("ollama/library/x:1b", "ollama", "library/x:1b"),
        ("Ollama/qwen3:8b", "ollama", "qwen3:8b"),
        ("ollama/a::b", "ollama", "a::b"),
        ("groq::llama-3.3", "groq", "llama-3.3"),
        ("GROQ::Llama-3.3", "groq", "Llama-3.3"),
        ("x.ai::a::b", "x.ai", "a::b"),
        ("302.AI::m", "302.ai", "m"),
        ("p::a/b:c@d e", "p", "a/b:c@d e"),
        ("default::m", "default", "m"),
        ("  gpt-4o-mini \n", "default", "gpt-4o-mini"),
        ("deepseek-ai/DeepSeek-V3", "default", "deepseek-ai/DeepSeek-V3"),
        ("qwen3:8b", "default", "qwen3:8b"),
        ("bedrock/anthropic.x-v1:0", "default", "bedrock/anthropic.x-v1:0"),
        ("ollama", "default", "ollama"),
        ("ollama::x", "ollama", "x"),
    ],
)
def test_the_forms_of_a_model_string(text: str, provider: str, model: str) -> None:
    parsed = parse_model(text)
    assert (parsed.provider, parsed.model) == (provider, model)
    assert parsed.text == text.strip()


@pytest.mark.parametrize(
    "text", ["", "   ", "::x", "p::", "p::   ", "ollama/", "a b::x", "a/b::x", "-a::x", "é::x", "p::\udcff"]
)
def test_a_bad_model_string_is_a_usage_error_with_the_text(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_model(text)
    assert caught.value.message == (
        f"bad model string {text!r}: expected <model>, <provider>::<model> or ollama/<model>"
    )
    assert caught.value.exit_code == 2


@given(PROVIDERS, MODELS)
def test_the_first_double_colon_splits(provider: str, model: str) -> None:
    parsed = parse_model(f"{provider}::{model}")
    assert (parsed.provider, parsed.model) == (provider.lower(), model)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = parse_model(text)
    except UsageError:
        return
    assert parsed.provider and parsed.model and text.strip().endswith(parsed.model)


@pytest.mark.parametrize(
    ("provider", "key"),
    [("silicon-flow", "SILICON_FLOW"), ("x.ai", "X_AI"), ("302.ai", "302_AI"), ("a.-_b", "A_B")],
)
def test_environment_key(provider: str, key: str) -> None:
    assert environment_key(provider) == key


@given(PROVIDERS)
def test_environment_keys_are_names_of_variables(provider: str) -> None:
    key = environment_key(provider)
    assert key == key.upper() and "__" not in key
    assert all(character == "_" or (character.isascii() and character.isalnum()) for character in key)


@pytest.mark.parametrize("text", ["1", "true", "YES", "y", "On", " on "])
def test_true_values(text: str) -> None:
    assert true_value(text)


@pytest.mark.parametrize("text", [None, "", "0", "no", "off", "false", "2"])
def test_other_values_are_off(text: str | None) -> None:
    assert not true_value(text)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_BASE_URL"])
def test_the_default_model_with_an_openai_environment(name: str) -> None:
    model, why = default_model({name: "secret-value"})
    assert parse_model(model).provider == "default"
    assert name in why and model in why and "secret-value" not in why


def test_without_any_model_the_embedded_rules_answer() -> None:
    model, why = default_model({"OPENAI_API_KEY": ""})
    assert model == "recipes::default"
    assert "not a language model" in why
