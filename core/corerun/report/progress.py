"""What a terminal shows while a run goes on: a live display, plain lines, every event, or nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from corerun.errors import UsageError
from corerun.interfaces import Event
from corerun.report.fold import Facts, NodeFacts, best_of, mapping, metric_of, primary, secondary
from corerun.report.results import number, outcome
from corerun.report.wording import clean, node_line, status_line, summary_line
from corerun.runs import events as kinds

MODES = ("auto", "rich", "plain", "log", "none")
QUIET_S = 10.0
_LAST_LINES = 6
_LOGGED = ("message", "reason", "scope", "node", "status", "purpose", "model", "label", "path", "feature")


def choose(mode: str, stream: TextIO, environ: Mapping[str, str]) -> str:
    """``auto`` resolved: live on a terminal, plain lines in a log file, under CI or on a dumb one."""
    if mode not in MODES:
        raise UsageError(
            f"unknown display {mode!r}", hint=f"use one of: {', '.join(MODES)}", where="--display"
        )
    if mode != "auto":
        return mode
    dumb = environ.get("TERM") == "dumb" or environ.get("CI", "") not in ("", "0", "false")
    return "rich" if stream.isatty() and not dumb else "plain"


class Progress:
    """Turns events into what a person sees on ``stream``. ``mode`` is one of `MODES`.

    Plain lines carry no carriage return and no colour; a status line comes at most every 10 s. Text
    of programs and models is shown as it is, with its control characters replaced.
    """

    def __init__(
        self, stream: TextIO, mode: str = "auto", *, environ: Mapping[str, str] | None = None
    ) -> None:
        self._stream = stream
        self._mode = choose(mode, stream, os.environ if environ is None else environ)
        self._facts = Facts()
        self._metric: tuple[str, bool] = ("score", True)
        self._spent: dict[str, float] = {"tokens": 0, "usd": 0.0}
        self._last_line: float | None = None
        self._lines: list[str] = []
        self._live: Any = None
        self._clock = (0.0, time.monotonic())
        # The live display draws in a thread of its own, which must not see a half-folded event.
        self._lock = threading.Lock()

    def restore(self, events: Iterable[Event]) -> None:
        """Take in what happened before this process, without showing it."""
        for event in events:
            self._take(event)

    def on_event(self, event: Event) -> None:
        """Take in one event and show what is worth showing."""
        self._take(event)
        if self._mode == "none":
            return
        if self._mode == "log":
            self._print(clean(self._log_line(event)), event.t)
            return
        line = self._line(event)
        if line:
            self._show(line, event.t)
        elif self._mode == "plain" and self._is_quiet(event.t):
            self._print(self._status(), event.t)
        if self._mode == "rich" and self._live is None:
            self._start_live()

    def close(self) -> None:
        """End the display and say what came of the run."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._mode != "none" and self._facts.done is not None:
            self._print(self._summary(), self._last_line or 0.0)

    def _take(self, event: Event) -> None:
        with self._lock:
            self._fold(event)

    def _fold(self, event: Event) -> None:
        self._facts.add(event)
        self._clock = (self._facts.clock.now, time.monotonic())
        if event.type == kinds.CALL_ANSWERED:
            usage = mapping(event.data.get("usage"))
            self._spent["tokens"] += (number(usage.get("prompt")) or 0) + (
                number(usage.get("completion")) or 0
            )
            self._spent["usd"] += number(event.data.get("cost_usd")) or 0.0
        elif event.type == kinds.NODE_DONE and self._metric[0] == "score":
            done = self._facts.nodes.get(str(event.data.get("node", "")))
            self._metric = metric_of([done] if done is not None else [])

    def _line(self, event: Event) -> str:
        data = event.data
        if event.type == kinds.NODE_DONE:
            node = self._facts.nodes.get(str(data.get("node", "")))
            return self._node(node) if node is not None else ""
        if event.type == kinds.STAGE_STARTED:
            limit = f", at most {data['max_nodes']} nodes" if data.get("max_nodes") else ""
            return f"stage {data.get('number', '')} {data.get('title') or data.get('scope', '')}{limit}"
        if event.type == kinds.WARNING:
            return f"warning: {data.get('message', '')}"
        if event.type == kinds.DEGRADED:
            return f"degraded: {data.get('model', '')} works without {data.get('feature', '')}"
        if event.type == kinds.CALL_FAILED:
            return (
                f"call failed: {data.get('purpose', '')}: {data.get('kind', '')}: {data.get('message', '')}"
            )
        if event.type == kinds.PAUSED:
            return f"paused: {data.get('reason', '')}"
        return ""

    def _node(self, node: NodeFacts) -> str:
        parent = self._facts.nodes.get(node.parent or "")
        value = node.value(self._metric[1])
        before = parent.value(self._metric[1]) if parent is not None else None
        tokens = sum(call["prompt"] + call["completion"] for call in node.calls)
        prices = [call["cost_usd"] for call in node.calls if call["cost_usd"] is not None]
        return node_line(
            stage=self._stage_name(node.scope),
            node=node.id,
            parent=node.parent,
            op=str(node.data.get("op") or "node"),
            status="planted" if node.planted else node.status,
            score=value,
            delta=value - before if value is not None and before is not None else None,
            tokens=tokens,
            usd=sum(prices) if prices or not node.calls else None,
            seconds=(node.done or node.asked) - node.asked,
            reason=node.reason,
        )

    def _stage_name(self, scope: str) -> str:
        shown = self._facts.scopes.get(primary(scope, self._facts.scopes), {})
        name = f"s{shown['number']}" if shown.get("number") is not None else scope
        return f"{name.removesuffix('.seeds')}.seeds" if scope.endswith(".seeds") else name

    def _counted(self) -> list[NodeFacts]:
        return [node for node in self._facts.nodes.values() if node.counted and not secondary(node.scope)]

    def _best(self) -> float | None:
        best = best_of(node for node in self._facts.nodes.values() if not secondary(node.scope))
        return best.value(self._metric[1]) if best is not None else None

    def _elapsed(self) -> float:
        worked, since = self._clock
        return worked + time.monotonic() - since

    def _status(self) -> str:
        current = primary(next(reversed(self._facts.scopes), ""), self._facts.scopes)
        counted = self._counted()
        here = [node for node in counted if node.scope == current]
        return status_line(
            stage=self._stage_name(current) if current else "",
            good=sum(node.status == "good" for node in here),
            failed=sum(node.status == "failed" for node in here),
            running=sum(node.status == "running" for node in self._facts.nodes.values()),
            limit=self._facts.scopes.get(current, {}).get("max_nodes"),
            metric=self._metric[0],
            best=self._best(),
            tokens=int(self._spent["tokens"]),
            usd=self._spent["usd"],
            seconds=self._elapsed(),
        )

    def _summary(self) -> str:
        done = self._facts.done or {}
        counted = self._counted()
        best = self._facts.nodes.get(str(mapping(done.get("best")).get("id")))
        return summary_line(
            status=str(done.get("status") or ""),
            metric=self._metric[0],
            maximize=self._metric[1],
            best=best.value(self._metric[1]) if best is not None else self._best(),
            result=outcome(done, self._metric[1]),
            nodes=len(counted),
            failed=sum(node.status == "failed" for node in counted),
            planted=sum(node.planted for node in counted),
        )

    def _log_line(self, event: Event) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.t))
        facts = " ".join(
            f"{key}={event.data[key]}" for key in _LOGGED if event.data.get(key) not in (None, "")
        )
        return f"{stamp} {event.seq} {event.type} {facts}".rstrip()

    def _is_quiet(self, now: float) -> bool:
        if self._last_line is None:
            self._last_line = now
        return now - self._last_line >= QUIET_S

    def _show(self, line: str, now: float) -> None:
        if self._mode == "rich":
            self._lines = [*self._lines, clean(line)][-_LAST_LINES:]
        else:
            self._print(clean(line), now)

    def _print(self, line: str, now: float) -> None:
        """A terminal that is gone must not end the run, so from then on nothing is shown."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        text = line.encode(encoding, "replace").decode(encoding)
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._mode = "none"
        self._last_line = now

    def _start_live(self) -> None:
        from corerun.report.live import live_display

        def state() -> tuple[str, list[str]]:
            with self._lock:
                return self._status(), self._lines

        self._live = live_display(self._stream, state)
        self._live.start()
