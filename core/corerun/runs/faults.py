"""Faults on purpose at named points of durable work, to show that a run survives every one of them."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

from corerun.errors import UsageError

VARIABLE = "CORERUN_FAULT"
KINDS = ("kill", "enospc", "eio", "short_write", "delay")
DELAY_S = 0.2


class _Fault:
    """One fault and how often its point was passed already."""

    def __init__(self, place: str, number: int, kind: str) -> None:
        self._place, self._left, self._kind = place, number, kind
        self._lock = threading.Lock()

    def pass_by(self, place: str, descriptor: int | None, body: bytes) -> None:
        if place != self._place:
            return
        with self._lock:
            self._left -= 1
            if self._left:
                return
        os.write(2, f"{VARIABLE}: {self._kind} at {place}\n".encode())
        match self._kind:
            case "delay":
                time.sleep(DELAY_S)
            case "enospc" | "eio":
                code = errno.ENOSPC if self._kind == "enospc" else errno.EIO
                raise OSError(code, os.strerror(code))
            case _:
                if self._kind == "short_write" and descriptor is not None:
                    os.write(descriptor, body[: len(body) // 2])
                os.kill(os.getpid(), signal.SIGKILL)


_fault: _Fault | None = None


def plan(text: str) -> None:
    """Arm the one fault that ``text`` names, ``<point>:<n>:<kind>``; nothing if it is empty.

    The n-th time that this process passes the point it is killed (``kill``), the operation fails as on
    a full or broken disk (``enospc``, ``eio``), half of the bytes are written before the process is
    killed (``short_write``), or `DELAY_S` seconds go by (``delay``). A line on stderr says so.

    Raises `UsageError` for a text that isn't of this form.
    """
    global _fault
    if not text:
        _fault = None
        return
    place, _, rest = text.partition(":")
    number, _, kind = rest.partition(":")
    if not place or not (number.isascii() and number.isdigit() and int(number)) or kind not in KINDS:
        raise UsageError(
            f"{text!r} names no fault",
            where=VARIABLE,
            hint=f"write <point>:<n>:<{'|'.join(KINDS)}>, such as append.write:3:kill",
        )
    _fault = _Fault(place, int(number), kind)


def point(place: str, descriptor: int | None = None, body: bytes = b"") -> None:
    """Pass the point ``place``, right before the operation that it is named for.

    ``descriptor`` and ``body`` say what is about to be written where. Raises OSError, or ends the
    process, if a fault is planned for this passage.
    """
    if _fault is not None:
        _fault.pass_by(place, descriptor, body)


plan(os.environ.get(VARIABLE, ""))
