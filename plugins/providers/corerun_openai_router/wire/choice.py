"""Picks the transport that the environment asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from corerun.errors import UsageError
from corerun_openai_router.wire.endpoint import Endpoint
from corerun_openai_router.wire.transport import Transport

TRANSPORT = "CORERUN_TRANSPORT"
"""The variable that picks the transport: ``direct`` (aiohttp, the default) or ``sdk`` (OpenAI's)."""
CASSETTE = "CORERUN_CASSETTE"
"""The variable that puts a file between router and server: ``record:PATH`` or ``replay:PATH``."""


def make_transport(endpoint: Endpoint, environ: Mapping[str, str]) -> Transport:
    """The transport that ``CORERUN_TRANSPORT`` names, behind the cassette of ``CORERUN_CASSETTE``.

    Raises `UsageError` if either variable has a bad value.
    """
    cassette = environ.get(CASSETTE, "").strip()
    if not cassette:
        return _named_transport(endpoint, environ)
    from corerun_openai_router.wire.cassette import MODES, CassetteTransport

    mode, _, path = cassette.partition(":")
    if not path or mode not in MODES:
        raise UsageError(
            f"{cassette!r} is no cassette", where=CASSETTE, hint="use record:PATH or replay:PATH"
        )
    server = None if mode == "replay" else _named_transport(endpoint, environ)
    return CassetteTransport(server, Path(path), mode)


def _named_transport(endpoint: Endpoint, environ: Mapping[str, str]) -> Transport:
    name = environ.get(TRANSPORT, "").strip().lower() or "direct"
    if name == "direct":
        from corerun_openai_router.wire.direct import DirectTransport

        return DirectTransport(endpoint, environ)
    if name == "sdk":
        from corerun_openai_router.wire.sdk import SdkTransport

        return SdkTransport(endpoint)
    raise UsageError(f"unknown transport {name!r}", where=TRANSPORT, hint="use direct or sdk")
