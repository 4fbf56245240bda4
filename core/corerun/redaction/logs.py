"""Log lines, tracebacks and last words of a process without secrets."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType

from corerun.redaction.terminal import one_line, shown
from corerun.redaction.texts import redact


class CleanFormatter(logging.Formatter):
    """A formatter whose records are one line each, and a traceback's lines, without secrets and controls."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(redact(super().formatMessage(record)))

    def format(self, record: logging.LogRecord) -> str:
        return shown(redact(super().format(record)))


def clean_traceback(error: BaseException) -> str:
    """The traceback of ``error`` as Python prints it, without secrets and control characters."""
    return shown(redact("".join(traceback.format_exception(error))))


def clean_last_words() -> None:
    """Let what Python itself writes to stderr hold no secret: uncaught errors, and log lines that no
    handler takes. Hooks that somebody else has set stay."""

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(clean_traceback(error))

    def in_thread(caught: threading.ExceptHookArgs) -> None:
        if caught.exc_value is not None:
            name = caught.thread.name if caught.thread else "?"
            sys.stderr.write(f"Exception in thread {name}:\n{clean_traceback(caught.exc_value)}")

    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = in_thread
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(CleanFormatter())
