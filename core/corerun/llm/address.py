"""Which addresses a key and a prompt may go to, and which hosts are on this machine or its network."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from corerun.redaction import redact

ALLOW_INSECURE_HTTP = "CORERUN_ALLOW_INSECURE_HTTP"
"""The variable that lets prompts and keys go to a public host by plain http."""

_LONGEST_LINE = 400

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# The address under which cloud machines hand out their own credentials, in its IPv6 form.
_METADATA = ipaddress.ip_address("fd00:ec2::254")
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
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_url = parts.scheme in ("http", "https") and host != "" and parts.port != 0
        host.encode("idna")
    except ValueError:
        is_url = False
    if not is_url or any(character.isspace() or character in '<>"\\' for character in url):
        return "is not an http(s) address"
    if is_forbidden(ip_address(host)):
        return "is a link-local address, where machines keep their own credentials"
    if parts.scheme == "http" and not allow_insecure and not _is_private_host(host):
        return "is plain http to a public host"
    return ""


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
    return address is not None and (address.is_link_local or address == _METADATA)


def ip_address(host: str) -> IpAddress | None:
    """The address that ``host`` spells, in any spelling that the system would connect to; None: a name.

    The system's resolver also reads ``0xa9fea9fe``, ``2852039166`` and ``0251.0376.0251.0376``.
    """
    try:
        address: IpAddress = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _is_private_host(host: str) -> bool:
    address = ip_address(host)
    if address is not None:
        return address.is_loopback or address.is_private
    return "." not in host or host.endswith(_PRIVATE_SUFFIXES)
