"""Which addresses a key and a prompt may go to, and which hosts are on this machine or its network."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
import unicodedata
from urllib.parse import urlsplit

from corerun.redaction import redact, remember

ALLOW_INSECURE_HTTP = "CORERUN_ALLOW_INSECURE_HTTP"
"""The variable that lets prompts and keys go to a public host by plain http."""

_LONGEST_LINE = 400
_LOGIN = re.compile(r"(\w+://)([^/?#]*)@")
_IDEOGRAPHIC_DOT = "\u3002"

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds hand out a machine's own credentials, beside the link-local range.
_METADATA = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192"))
)
# Networks whose addresses hold an IPv4 address in their last 32 bits: NAT64, and two that are out of use.
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
_LOCAL_NAMES = ("localhost", "host.docker.internal")
_LOCAL_SUFFIXES = (".localhost", ".local")
# Names that no public server can have: reserved by RFC 2606, 6761, 8375 and 9476 or by ICANN.
_PRIVATE_SUFFIXES = (
    *_LOCAL_SUFFIXES,
    ".internal",
    ".home.arpa",
    ".lan",
    ".test",
    ".example",
    ".invalid",
    ".alt",
)


def address_problem(url: str, *, allow_insecure: bool = False) -> str:
    """Why nothing may be sent to ``url``, as the end of a sentence; empty: it may.

    Refused are addresses that aren't http(s), link-local addresses, and plain http to a public host
    unless ``allow_insecure``: both the prompt and the key would be readable on the way.
    """
    host = ""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_url = parts.scheme in ("http", "https") and host != "" and parts.port != 0
        host.encode("idna")
    except ValueError:
        is_url = False
    # A percent sign would be decoded by some and not by others; only a zone of IPv6 has one.
    is_encoded = "%" in host and ":" not in host
    if not is_url or is_encoded or any(mark.isspace() or mark in '<>"\\' for mark in url):
        return "is not an http(s) address"
    if is_forbidden(ip_address(host)):
        return "is a link-local address, where machines keep their own credentials"
    if parts.scheme == "http" and not allow_insecure and not _is_private_host(host):
        return "is plain http to a public host"
    return ""


def without_login(url: str) -> str:
    """``url`` without a user's name and password; they are remembered as secrets and never sent."""
    login = _LOGIN.match(url)
    if login is None:
        return url
    remember(login[2], login[2].partition(":")[2])
    return login[1] + url[login.end() :]


def said_by(url: str, text: str) -> str:
    """One line for people about what the server at ``url`` says or does: shortened, and without secrets."""
    line = " ".join(redact(text).split())
    if len(line) > _LONGEST_LINE:
        line = line[: _LONGEST_LINE - 4] + " ..."
    return f"{urlsplit(url).netloc}: {line}"


def is_local_url(url: str) -> bool:
    """Whether the host is this machine or, by its number or name, one of a private network."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    address = ip_address(host)
    if address is None:
        return host in _LOCAL_NAMES or host.endswith(_LOCAL_SUFFIXES)
    return (address.is_loopback or address.is_private) and not is_forbidden(address)


def is_loopback_url(url: str) -> bool:
    """Whether the host is this machine."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    address = ip_address(host)
    return host == "localhost" or host.endswith(".localhost") or bool(address and address.is_loopback)


def is_forbidden(address: IpAddress | None) -> bool:
    """Whether this is a link-local address; cloud machines serve their credentials there."""
    return address is not None and (address.is_link_local or address in _METADATA)


async def check_name(host: str) -> None:
    """Raises `OSError` when ``host`` is a name that leads to a forbidden address, as the system resolves it.

    For clients that take no resolver, before each request. A name that can't be resolved passes: it may
    be one that only the proxy knows.
    """
    if ip_address(host) is not None:
        return
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    if any(is_forbidden(ip_address(str(place[0]))) for *_, place in found):
        raise forbidden_name(host)


def forbidden_name(host: str) -> OSError:
    """The error for a name that leads to a forbidden address."""
    return OSError(errno.EACCES, f"{host} is the name of a link-local address")


def ip_address(host: str) -> IpAddress | None:
    """The address that ``host`` spells, in any spelling that the system would connect to; None: a name.

    The system's resolver also reads ``0xa9fea9fe``, ``2852039166`` and ``0251.0376.0251.0376``, and the
    libraries before it digits and dots of other scripts.
    """
    host = unicodedata.normalize("NFKC", host).replace(_IDEOGRAPHIC_DOT, ".").removesuffix(".")
    try:
        address: IpAddress = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in _EMBEDDING) and int(address) > 1:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _is_private_host(host: str) -> bool:
    address = ip_address(host)
    if address is not None:
        return address.is_loopback or address.is_private
    return "." not in host or host.endswith(_PRIVATE_SUFFIXES)
