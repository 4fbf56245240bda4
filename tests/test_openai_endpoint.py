"""Where the router's servers are, whom it tells what, and how long servers want it to wait."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import (
    UsageError,
)
from corerun.interfaces import Connection
from corerun_openai_router.endpoint import endpoint_of, is_local_url
from corerun_openai_router.provider import OpenAIRouter
from corerun_openai_router.redaction import redact
from corerun_openai_router.retry_after import wished_wait
from tests.support.openai_server import (
    OpenAIServer,
)
from tests.support.router import CONTEXT, KEY, QUESTION

# ---------------------------------------------------------------------------- waits, keys, places


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, "", 0.25),
        ({"retry-after": "1.5"}, "", 1.5),
        ({"retry-after": formatdate(1_000_030, usegmt=True)}, "", 30.0),
        ({"retry-after": formatdate(999_000, usegmt=True)}, "", 0.0),
        ({"retry-after": "nan", "llm_provider-retry-after": "4"}, "", 4.0),
        ({"x-ratelimit-reset-requests": "6m0s"}, "", 360.0),
        ({"x-ratelimit-reset-tokens": "250ms"}, "", 0.25),
        (
            {
                "x-ratelimit-remaining-requests": "12",
                "x-ratelimit-reset-requests": "9s",
                "x-ratelimit-reset-tokens": "2s",
            },
            "",
            2.0,
        ),
        ({"x-ratelimit-reset": "1000000005000"}, "", 0.0),
        ({}, "Please try again in 1m3s.", 63.0),
        ({}, "try again in 120ms", 0.12),
        ({}, "try again in 46.72s. Visit", 46.72),
        ({}, "Please retry after 7 seconds.", 7.0),
        ({}, '{"retryDelay": "37s"}', 37.0),
        ({}, "try again in 5 more attempts", None),
        ({"retry-after": "soon"}, "", None),
    ],
)
def test_how_long_a_server_wants_us_to_wait(
    headers: Mapping[str, str], body: str, seconds: float | None
) -> None:
    now = 1_000_000.0 if "retry-after" in headers else 1_000_000_005.0
    found = wished_wait(429, headers, body, now)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_epochs_are_moments_and_other_statuses_have_no_rate_limit() -> None:
    now = 1_700_000_000.0
    assert wished_wait(429, {"x-ratelimit-reset": "1700000009"}, "", now) == 9.0
    assert wished_wait(429, {"x-ratelimit-reset": "1700000009500"}, "", now) == 9.5
    assert wished_wait(503, {"x-ratelimit-reset-requests": "6m0s"}, "", now) is None


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text(max_size=9)), st.text())
def test_any_wish_is_seconds_or_nothing(headers: Mapping[str, str], body: str) -> None:
    found = wished_wait(429, headers, body, 0.0)
    assert found is None or 0.0 <= found < float("inf")


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefgh12345",
        "gsk_abcdefgh1234",
        "xai-abcdefgh1234",
        "AIza" + "b" * 30,
        "hf_" + "c" * 24,
        "plain-own-key",
    ],
)
def test_keys_are_cut_out_of_any_text(secret: str) -> None:
    shown = redact(f"bad key '{secret}' at https://me:{secret}@host/?key={secret}&a=1", ("plain-own-key",))
    assert secret not in shown and "host" in shown and "a=1" in shown
    assert secret not in redact(f"Authorization: Bearer {secret}")


def test_ordinary_text_stays() -> None:
    sentence = "the task-force none https://host/v1 key: value"
    assert redact(sentence, ("none", "")) == sentence


def test_missing_variables_are_named_all_at_once() -> None:
    cases = [
        ("default", {}, "Missing OPENAI_API_KEY for default provider."),
        ("openai", {}, "Missing OPENAI_API_KEY for default provider."),
        ("x", {}, "Missing OAIC_X_BASE_URL, OAIC_X_API_KEY for provider 'x'."),
        ("x", {"OAIC_X_BASE_URL": "https://h/v1"}, "Missing OAIC_X_API_KEY for provider 'x'."),
        ("x", {"OAIC_X_API_KEY": KEY, "OAIC_X_BASE_URL": ""}, "Missing OAIC_X_BASE_URL for provider 'x'."),
        (
            "x",
            {"OAIC_X_API_KEY": KEY, "OAIC_X_BASE_URL": "h/v1"},
            "OAIC_X_BASE_URL is not an http(s) address",
        ),
        ("openai", {"OAIC_OPENAI_API_KEY": KEY}, "Missing OAIC_OPENAI_BASE_URL for provider 'openai'."),
    ]
    for provider, environ, message in cases:
        with pytest.raises(UsageError) as caught:
            OpenAIRouter(Connection(provider, environ)).check()
        assert caught.value.message.startswith(message) and caught.value.hint
        assert KEY not in f"{caught.value} {caught.value.hint}"


async def test_a_call_without_variables_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Missing OPENAI_API_KEY"):
        await OpenAIRouter(Connection(environ={})).complete(QUESTION, CONTEXT)


def test_places_and_keys_of_the_providers() -> None:
    ollama = endpoint_of("ollama", {})
    assert (ollama.base_url, ollama.key, ollama.is_local) == ("http://localhost:11434/v1", "ollama", True)
    assert endpoint_of("ollama", {"OLLAMA_API_KEY": "k"}).key == "k"
    assert endpoint_of("ollama", {"OLLAMA_API_KEY": "k", "OAIC_OLLAMA_API_KEY": "own"}).key == "own"
    local = endpoint_of("default", {"OPENAI_BASE_URL": "http://10.0.0.7:8000/v1/"})
    assert (local.base_url, local.key, local.needs_key) == ("http://10.0.0.7:8000/v1", "none", False)
    assert not local.problem
    own = endpoint_of(
        "x.ai", {"OAIC_X_AI_API_KEY": KEY, "OAIC_X_AI_BASE_URL": "https://h/v1/chat/completions"}
    )
    assert own.base_url == "https://h/v1" and len(own.warnings) == 1
    old = endpoint_of("default", {"OPENAI_API_KEY": KEY, "OPENAI_API_BASE": "https://h/v1"})
    assert old.base_url == "https://h/v1" and "OPENAI_API_BASE" in old.warnings[0]
    assert KEY not in repr(own)


def test_settings_to_correct_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    login = "https://me:password@host/v1/chat/completions"
    OpenAIRouter(Connection(environ={"OPENAI_API_KEY": KEY, "OPENAI_API_BASE": login}))
    assert len(caplog.records) == 2
    assert "password" not in caplog.text and KEY not in caplog.text


def test_what_people_are_told_of_a_provider() -> None:
    info = OpenAIRouter(Connection("Groq")).info
    assert (info.name, info.needs_key, info.is_local, info.vision) == ("groq", True, False, None)
    assert info.env == ("OAIC_GROQ_BASE_URL", "OAIC_GROQ_API_KEY")
    assert OpenAIRouter(Connection(environ={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})).info.is_local


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://localhost:1", True),
        ("http://[::1]:1/v1", True),
        ("http://192.168.1.5/v1", True),
        ("http://box.local/v1", True),
        ("https://api.openai.com/v1", False),
        ("https://8.8.8.8/v1", False),
        ("http://localhost.example.com", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_local_addresses(url: str, is_local: bool) -> None:
    assert is_local_url(url) is is_local


async def test_the_organization_goes_to_the_default_provider_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-1")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin-key-1234")
    async with OpenAIServer(lambda body: "x") as server:
        own = {"OAIC_X_BASE_URL": server.base_url, "OAIC_X_API_KEY": KEY, "OPENAI_ORG_ID": "org-1"}
        for router in (
            OpenAIRouter(Connection("x", own)),
            OpenAIRouter(Connection(environ=own | server.environ(KEY))),
        ):
            await router.complete(QUESTION, CONTEXT)
            await router.aclose()
        sent = [request.headers.get("openai-organization") for request in server.requests]
        assert sent == [None, "org-1"]
        assert all("openai-project" not in request.headers for request in server.requests)
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
