"""Where prompts and keys may go: no spelling, name or redirect leads them to another place."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corerun.errors import CorerunError, UsageError
from corerun.interfaces import CallContext, ChatRequest, Connection, Message, Provider
from corerun.llm import address
from corerun.llm.address import address_problem, check_name, ip_address, is_forbidden, without_login
from corerun_anthropic.provider import AnthropicProvider
from corerun_openai_router.provider import OpenAIRouter
from tests.support.anthropic_server import KEY as ANTHROPIC_KEY
from tests.support.anthropic_server import AnthropicServer, Said
from tests.support.http_server import fault
from tests.support.openai_server import OpenAIServer

KEY = "sk-a-very-secret-key-0123456789"
QUESTION = ChatRequest("test-model", (Message("user", "How deep?"),), max_tokens=20)
WAYS = ("direct", "sdk", "anthropic")

METADATA = [
    "169.254.169.254",
    "169.254.169.254.",
    "169.254.0.0",
    "169.254.255.255:80",
    "2852039166",
    "0xa9fea9fe",
    "0xA9FEA9FE",
    "025177524776",
    "0251.0376.0251.0376",
    "0xa9.0xfe.0xa9.0xfe",
    "169.0xfe.43518",
    "169.16689662",
    "169\u3002254\u3002169\u3002254",
    "169\uff0e254\uff0e169\uff0e254",
    "169\uff61254\uff61169\uff61254",
    "\uff11\uff16\uff19.254.169.254",
    "\u2460\u2465\u2468.254.169.254",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:169.254.169.254]",
    "[0:0:0:0:0:ffff:a9fe:a9fe]",
    "[::a9fe:a9fe]",
    "[::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b::169.254.169.254]",
    "[::ffff:0:a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "[fe80::1]",
    "[fe80::a9fe:a9fe%25eth0]",
    "[febf:ffff::1]",
    "[fd00:ec2::254]",
    "[fd00:0ec2:0:0:0:0:0:254]",
    "[fd20:ce::254]",
    "100.100.100.200",
    "192.0.0.192",
]
NO_ADDRESS = [
    "http://169%2e254.169.254/",
    "http://169.254.169.254%00.api.example/",
    "https://h\\@169.254.169.254/",
    "https://api.example\t/",
    "https://api.example\r\nx: y/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://api.example",
    "unix:///var/run/docker.sock",
    "javascript:alert(1)",
    "//169.254.169.254/",
    "http:169.254.169.254",
    "http://",
    "https://[::1",
    "https://h:0/",
    "https://h:65536/",
    "",
]


@pytest.mark.parametrize("host", METADATA)
@pytest.mark.parametrize("login", ["", "api.openai.com@", "api.openai.com:443@"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_spelling_leads_to_a_metadata_service(host: str, login: str, scheme: str) -> None:
    url = f"{scheme}://{login}{host}/latest/meta-data"
    for insecure in (False, True):
        assert "is a link-local address" in address_problem(url, allow_insecure=insecure)
    for provider in (OpenAIRouter, AnthropicProvider):
        with pytest.raises(UsageError, match="is a link-local address"):
            provider(Connection("openai", {}, base_url=url, api_key=KEY)).check()


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_what_is_no_http_address_is_refused(url: str) -> None:
    assert address_problem(url, allow_insecure=True) == "is not an http(s) address"


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:8000/v1", "http://127.1/v1"),
        *("https://api.openai.com/v1", "https://m\u00fcnchen.example/v1", "https://8.8.8.8/v1"),
        *("https://[2606:4700::1111]/v1", "https://169-254-169-254.example/v1"),
    ],
)
def test_honest_addresses_are_taken(url: str) -> None:
    assert address_problem(url) == ""


@pytest.mark.parametrize(
    "host", ["api.openai.com", "8.8.8.8", "134744072", "[2606:4700::1111]", "[::ffff:808:808]"]
)
def test_plain_http_to_a_public_host_is_asked_for(host: str) -> None:
    assert address_problem(f"http://{host}/v1") == "is plain http to a public host"
    assert address_problem(f"http://{host}/v1", allow_insecure=True) == ""


@given(st.ip_addresses(v=4))
def test_every_number_is_read_as_the_system_reads_it(number: ipaddress.IPv4Address) -> None:
    a, b, c, d = number.packed
    value = int(number)
    spellings = [
        str(value),
        hex(value),
        f"{a:#x}.{b:#o}.{c}.{d}".replace("0o", "0"),
        f"{a}.{value & 0xFFFFFF}",
    ]
    spellings += [f"::ffff:{number}", f"64:ff9b::{number}", f"{number}.", f"{a}\u3002{b}\u3002{c}\u3002{d}"]
    assert {ip_address(text) for text in spellings} == {number}


def test_a_login_is_taken_out_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_login("https://me:hunter2-hunter2@h:8/v1?x=a@b") == "https://h:8/v1?x=a@b"
    assert without_login("https://h/v1/a@b") == "https://h/v1/a@b"
    assert "hunter2" not in address.said_by("https://h/", "it was hunter2-hunter2")


# ------------------------------------------------------------------- by name, on real connections


def lead_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name below ``.example`` leads to this machine; other names are looked up."""
    really = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **named: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else str(host)
        return really("127.0.0.1" if text.endswith(".example") else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def provider_by(way: str, url: str) -> Provider:
    environ = {"CORERUN_TRANSPORT": way}
    if way == "anthropic":
        return AnthropicProvider(Connection("anthropic", environ, base_url=url, api_key=ANTHROPIC_KEY))
    return OpenAIRouter(Connection("openai", environ, base_url=f"{url}/v1", api_key=KEY))


def server_for(way: str, answer: Callable[[Any], Any]) -> OpenAIServer | AnthropicServer:
    return AnthropicServer(answer, models=["test-model"]) if way == "anthropic" else OpenAIServer(answer)


async def ask(way: str, url: str) -> str:
    """The answer's text, or the class and message of the error."""
    provider = provider_by(way, url)
    try:
        reply = await provider.complete(QUESTION, CallContext("r", "p", deadline=time.monotonic() + 30))
        return reply.text
    except CorerunError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        await provider.aclose()


def answer_of(way: str, text: str) -> Any:
    return Said(text) if way == "anthropic" else text


@pytest.mark.parametrize("way", WAYS)
async def test_a_name_that_leads_to_a_metadata_service_is_never_asked(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_to_loopback(monkeypatch)
    async with server_for(way, lambda _: answer_of(way, "credentials")) as server:
        url = f"http://innocent.example:{server.port}"
        assert await ask(way, url) == "credentials"
        asked = len(server.requests)
        monkeypatch.setattr(address, "_METADATA", frozenset({ipaddress.ip_address("127.0.0.1")}))
        assert "innocent.example is the name of a link-local address" in await ask(way, url)
        assert len(server.requests) == asked == 1


async def test_names_are_judged_by_all_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("93.184.216.34", 0), ("fe80::1", 0, 0, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", place) for place in found])
    with pytest.raises(OSError, match=r"both\.example is the name"):
        await check_name("both.example")
    found.pop()
    await check_name("both.example")

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    await check_name("behind-a-proxy.example")
    await check_name("127.0.0.1")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_carries_a_key_or_a_prompt_away(way: str, status: int) -> None:
    async with server_for(way, lambda _: answer_of(way, "stolen")) as thief:
        targets = [
            f"http://127.0.0.1:{thief.port}/v1/chat/completions",
            "http://169.254.169.254/",
            "//evil.example/",
        ]
        for target in targets:
            async with server_for(way, lambda _, to=target: fault(status, b"", {"location": to})) as server:
                said = await ask(way, f"http://127.0.0.1:{server.port}")
                assert "stolen" not in said and ": " in said
                assert server.requests
        assert thief.requests == []


@given(st.ip_addresses(v=6))
def test_any_address_of_ipv6_is_judged(number: ipaddress.IPv6Address) -> None:
    assert address_problem(f"https://[{number}]/", allow_insecure=True) in (
        "",
        "is a link-local address, where machines keep their own credentials",
    )
    assert is_forbidden(ip_address(str(number))) is bool(address_problem(f"https://[{number}]/"))
