"""Where the router's servers are, whom it tells what, and how long servers want it to wait."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import UsageError
from corerun.interfaces import Connection
from corerun.llm.address import address_problem, ip_address, is_local_url
from corerun.llm.retry_after import wished_wait
from corerun.redaction import redact
from corerun_openai_router.provider import OpenAIRouter
from corerun_openai_router.wire.endpoint import AZURE_API_VERSION, Endpoint, endpoint_of
from tests.support.openai_server import OpenAIServer
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


def at(provider: str = "default", /, **fields: Any) -> Endpoint:
    """The endpoint of a provider; names in capitals are variables, others fields of the connection."""
    environ = {name: value for name, value in fields.items() if name.isupper()}
    rest = {name: value for name, value in fields.items() if not name.isupper()}
    return endpoint_of(Connection(provider, environ, **rest))


def test_places_and_keys_of_the_providers() -> None:
    ollama = at("ollama")
    assert (ollama.base_url, ollama.key, ollama.is_local) == ("http://localhost:11434/v1", "ollama", True)
    assert at("ollama", OLLAMA_API_KEY="k").key == "k"
    assert at("ollama", OLLAMA_API_KEY="k", OAIC_OLLAMA_API_KEY="own").key == "own"
    local = at(OPENAI_BASE_URL="http://10.0.0.7:8000/v1/")
    assert (local.base_url, local.key, local.needs_key) == ("http://10.0.0.7:8000/v1", "none", False)
    assert not local.problem
    own = at("x.ai", OAIC_X_AI_API_KEY=KEY, OAIC_X_AI_BASE_URL="https://h/v1/chat/completions")
    assert own.base_url == "https://h/v1" and len(own.warnings) == 1
    old = at(OPENAI_API_KEY=KEY, OPENAI_API_BASE="https://h/v1")
    assert old.base_url == "https://h/v1" and "OPENAI_API_BASE" in old.warnings[0]
    assert at("openai", OPENAI_API_KEY=KEY).base_url == "https://api.openai.com/v1"
    mine = at("openai", OPENAI_API_KEY=KEY, OAIC_OPENAI_API_KEY="mine", OAIC_OPENAI_BASE_URL="https://h/v1")
    assert (mine.base_url, mine.key) == ("https://h/v1", "mine")
    assert at("Silicon-Flow", OAIC_SILICON_FLOW_BASE_URL="http://[::1]:1/v1").provider == "silicon-flow"
    assert KEY not in repr(own)


def test_what_the_configuration_says_wins_over_variables() -> None:
    variables = {"OPENAI_API_KEY": "from-the-environment", "OPENAI_BASE_URL": "https://variable/v1"}
    endpoint = at(base_url="https://config/v1", api_key=KEY, **variables)
    assert (endpoint.base_url, endpoint.key) == ("https://config/v1", KEY)
    assert at(base_url="https://config/v1", **variables).key == "from-the-environment"
    assert not at("x", base_url="https://config/v1", api_key=KEY).problem
    assert "base_url is not" in at("x", base_url="config/v1", api_key=KEY).problem


def test_every_key_that_is_read_is_hidden_from_then_on() -> None:
    at("x", OAIC_X_API_KEY="an-unusual-key", OAIC_X_BASE_URL="https://me:open-sesame@h/v1")
    shown = redact("the server says: an-unusual-key, open-sesame")
    assert "an-unusual-key" not in shown and "open-sesame" not in shown


@pytest.mark.parametrize("key", ["  spaces-around-1234 ", "newline-after-1234\n"])
def test_blanks_around_a_key_are_no_part_of_it(key: str) -> None:
    assert at(OPENAI_API_KEY=key).key == key.strip()


@pytest.mark.parametrize("key", ["two\nlines-1234", "schlüssel-1234", "nul\0inside-1234"])
def test_a_key_that_no_header_can_carry_is_told_without_showing_it(key: str) -> None:
    problem = at(OPENAI_API_KEY=key).problem
    assert "characters" in problem and key not in problem


def test_a_blank_variable_counts_as_missing() -> None:
    assert "Missing OPENAI_API_KEY" in at(OPENAI_API_KEY=" ").problem
    assert at(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=" ").base_url == "https://api.openai.com/v1"


def test_a_login_in_an_address_is_neither_sent_nor_shown() -> None:
    endpoint = at(OPENAI_API_KEY=KEY, OPENAI_BASE_URL="https://me:open-sesame@host:8/v1?key=abcdefghijk")
    assert endpoint.base_url == "https://host:8/v1" and "login" in endpoint.warnings[0]
    assert endpoint.say("x") == "host:8: x"
    assert endpoint.chat_url("m") == "https://host:8/v1/chat/completions?key=abcdefghijk"
    assert "sesame" not in repr(endpoint) and "abcdefghijk" not in repr(endpoint)


# ------------------------------------------------------------------------------------------- Azure


def test_an_azure_deployment_gets_a_version_and_its_own_header() -> None:
    base = "https://res.openai.azure.com/openai/deployments/dep"
    endpoint = at("azure", OAIC_AZURE_API_KEY=KEY, OAIC_AZURE_BASE_URL=f"{base}/", api_version="2025-01-01")
    assert endpoint.chat_url("gpt-4o") == f"{base}/chat/completions?api-version=2025-01-01"
    assert endpoint.models_url == "https://res.openai.azure.com/openai/models?api-version=2025-01-01"
    assert endpoint.headers == {"api-key": KEY}
    assert endpoint.is_openai


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"OPENAI_BASE_URL": "https://r.openai.azure.com/openai/deployments/d"}, AZURE_API_VERSION),
        ({"OPENAI_BASE_URL": "https://r.openai.azure.com/openai/deployments/d?api-version=7"}, "7"),
        (
            {"OPENAI_BASE_URL": "https://r.openai.azure.com/openai/deployments/d", "OPENAI_API_VERSION": "8"},
            "8",
        ),
        (
            {"OPENAI_BASE_URL": "https://gateway.example/openai/deployments/d/chat/completions"},
            AZURE_API_VERSION,
        ),
        ({"OPENAI_BASE_URL": "https://r.openai.azure.com/openai/v1/", "api_version": "preview"}, ""),
        ({"OPENAI_BASE_URL": "https://plain.example/v1", "OPENAI_API_VERSION": "8"}, ""),
        ({}, ""),
    ],
)
def test_which_addresses_are_azures_by_deployment(fields: dict[str, str], version: str) -> None:
    endpoint = at(OPENAI_API_KEY=KEY, **fields)
    assert endpoint.api_version == version and not endpoint.problem
    assert ("api-key" in endpoint.headers) is bool(version)
    assert ("api-version=" in endpoint.chat_url("m")) is bool(version)


def test_a_resource_has_an_address_for_each_deployment() -> None:
    endpoint = at(OPENAI_API_KEY=KEY, base_url="https://r.openai.azure.com", api_version="7")
    deployment = "https://r.openai.azure.com/openai/deployments"
    assert endpoint.chat_url("my model") == f"{deployment}/my%20model/chat/completions?api-version=7"


@pytest.mark.parametrize(
    ("url", "is_openai"),
    [
        ("https://api.openai.com/v1", True),
        ("https://res.openai.azure.com/openai/v1", True),
        ("https://api.openai.com.example/v1", False),
        ("http://localhost:1/v1", False),
    ],
)
def test_whose_newest_words_are_understood(url: str, is_openai: bool) -> None:
    assert at(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=url).is_openai is is_openai


# ----------------------------------------------------------------- where a prompt and a key may go


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1:8080",
        "2852039166",
        "0xa9fea9fe",
        "0xA9.0xFE.0xA9.0xFE",
        "0251.0376.0251.0376",
        "169.254.43518",
        "[::ffff:a9fe:a9fe]",
        "[::ffff:169.254.169.254]",
        "[2002:a9fe:a9fe::1]",
        "[fe80::1%25eth0]",
        "[fd00:ec2::254]",
        "me:password@169.254.169.254",
    ],
)
def test_link_local_addresses_are_refused_in_every_spelling(host: str) -> None:
    router = OpenAIRouter(Connection(environ={"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"http://{host}/v1"}))
    with pytest.raises(UsageError, match="OPENAI_BASE_URL is a link-local address"):
        router.check()


@pytest.mark.parametrize(
    ("url", "is_refused"),
    [
        ("http://api.openai.com/v1", True),
        ("http://8.8.8.8/v1", True),
        ("http://134744072/v1", True),
        ("https://8.8.8.8/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://2130706433/v1", False),
        ("http://192.168.1.5/v1", False),
        ("http://[fd12:3456::1]/v1", False),
        ("http://vllm:8000/v1", False),
        ("http://vllm.models.svc.cluster.internal/v1", False),
    ],
)
def test_plain_http_goes_to_private_hosts_alone(url: str, is_refused: bool) -> None:
    refused = at(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=url)
    assert ("plain http" in refused.problem) is is_refused
    assert ("CORERUN_ALLOW_INSECURE_HTTP" in refused.hint) is is_refused
    assert not at(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=url, CORERUN_ALLOW_INSECURE_HTTP="1").problem


@pytest.mark.parametrize(
    "url",
    [
        "h/v1",
        "ftp://h/v1",
        "https://",
        "https://h:0/v1",
        "https://h:x/v1",
        "http://[::1",
        "https://<host>/v1",
        "https://two words/v1",
        "YOUR_BASE_URL",
        "https://a..b/v1",
        f"https://{'a' * 64}.com/v1",
    ],
)
def test_what_is_no_address(url: str) -> None:
    assert "is not an http(s) address" in at(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=url).problem


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    for provider in ("default", "ollama", "x"):
        endpoint = endpoint_of(Connection(provider, base_url=text, api_key=KEY))
        assert endpoint.problem or address_problem(endpoint.base_url) == ""


@given(st.ip_addresses())
def test_every_address_is_its_own_spelling(address: IPv4Address | IPv6Address) -> None:
    found = ip_address(str(address))
    assert found == address or (address.version == 6 and found is not None and found.version == 4)


def test_settings_to_correct_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    login = "https://me:password@host/v1/chat/completions"
    OpenAIRouter(Connection(environ={"OPENAI_API_KEY": KEY, "OPENAI_API_BASE": login}))
    assert len(caplog.records) == 3
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
