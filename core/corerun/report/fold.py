"""Folds a journal's records into plain facts: nodes, scopes, calls, programs, notices, and a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corerun.interfaces import Event, Json
from corerun.report.results import number
from corerun.runs import events as kinds

_MAX_NOTICES = 500
_MAX_NOTICE = 600


def mapping(value: Any) -> Mapping[str, Json]:
    """``value`` if it is an object, else an empty one: a plugin's data is not ours to trust."""
    return value if isinstance(value, Mapping) else {}


def primary(scope: str, scopes: Mapping[str, Any]) -> str:
    """The stage that a scope is shown under: seed reruns belong to the stage they rerun."""
    base = scope.removesuffix(".seeds")
    return base if base != scope and base in scopes else scope


def secondary(scope: str) -> bool:
    """Whether the scope reruns what other scopes found instead of searching."""
    return scope.endswith(".seeds") or scope.startswith("final")


class Clock:
    """Seconds of work since the run began: the time between a stop and a resume doesn't count."""

    def __init__(self) -> None:
        self._base = 0.0
        self._start: float | None = None
        self.now = 0.0

    def tick(self, event: Event) -> float:
        if self._start is None or event.type == kinds.RUN_RESUMED:
            self._base, self._start = self.now, event.t
        self.now = max(self.now, self._base + event.t - self._start)
        return self.now


@dataclass(slots=True)
class NodeFacts:
    """One node as the journal tells it. Times are seconds of work since the run began."""

    id: str
    parent: str | None
    scope: str
    seq: int
    asked: float
    attempt: int = 0
    counted: bool = True
    status: str = "running"
    score: float | None = None
    raw_score: Json = None
    reason: str = ""
    data: Mapping[str, Json] = field(default_factory=dict)
    done: float | None = None
    order: int | None = None
    calls: list[dict[str, Json]] = field(default_factory=list)
    programs: list[dict[str, Json]] = field(default_factory=list)

    def value(self, maximize: bool) -> float | None:
        """The metric in its own units; a score is turned so that higher is better."""
        value = number(mapping(self.data.get("metric")).get("value"))
        if value is not None or self.score is None:
            return value
        return self.score if maximize else -self.score

    @property
    def sets(self) -> int:
        """How many data sets the score covers, 0 when the node doesn't say."""
        return len(mapping(mapping(self.data.get("metric")).get("sets")))

    @property
    def planted(self) -> bool:
        return self.status == "failed" and bool(self.data.get("faults"))


def best_of(nodes: Iterable[NodeFacts]) -> NodeFacts | None:
    """The best good node: who covers more data sets is ahead, then the score; ties to the earlier."""
    scored = [node for node in nodes if node.status == "good" and node.score is not None]
    return max(scored, key=lambda node: (node.sets, node.score or 0.0), default=None)


def metric_of(nodes: Iterable[NodeFacts]) -> tuple[str, bool]:
    """Name and direction (True: higher is better) of the run's one metric, by the first that names it."""
    for node in nodes:
        metric = mapping(node.data.get("metric"))
        if metric.get("name"):
            return str(metric["name"]), bool(metric.get("maximize", True))
    return "score", True


class Facts:
    """The fold itself. Feed it records in order with `add`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.started: Mapping[str, Json] = {}
        self.done: Mapping[str, Json] | None = None
        self.paused = ""
        self.scopes: dict[str, dict[str, Json]] = {}
        self.nodes: dict[str, NodeFacts] = {}
        self.calls: list[dict[str, Json]] = []
        self.programs: list[dict[str, Json]] = []
        self.sandboxes: dict[str, frozenset[str]] = {}
        """What each sandbox that programs ran in gave all of them."""
        self.notices: list[dict[str, Json]] = []
        self.notices_left_out = 0
        self.resumes: list[float] = []
        self.degradations = 0
        self.warnings = 0
        self.started_at: float | None = None
        self.files: list[str] = []
        self._order = 0

    @classmethod
    def of(cls, events: Sequence[Event]) -> Facts:
        facts = cls()
        for event in events:
            facts.add(event)
        return facts

    def add(self, event: Event) -> None:
        now = self.clock.tick(event)
        handler = _HANDLERS.get(event.type)
        if handler is not None:
            handler(self, event.data, now)
        if self.started_at is None:
            self.started_at = event.t

    def scope_of(self, node: Json) -> str | None:
        known = self.nodes.get(node) if isinstance(node, str) else None
        return known.scope if known is not None else None

    def scope(self, name: str) -> dict[str, Json]:
        """The scope's facts; a scope without a ``stage_started`` record is made up from its name."""
        if name not in self.scopes:
            self.scopes[name] = {"scope": name, "title": name, "number": None, "goals": ""}
            self.scopes[name] |= {"max_nodes": None, "started": None, "ended": None, "best": None}
        return self.scopes[name]

    def notice(self, now: float, kind: str, message: str, node: Json = None) -> None:
        if len(self.notices) >= _MAX_NOTICES:
            self.notices_left_out += 1
            return
        self.notices.append(
            {"t": round(now, 2), "kind": kind, "message": message[:_MAX_NOTICE], "node": node}
        )

    def _run_started(self, data: Mapping[str, Json], now: float) -> None:
        self.started = data

    def _run_resumed(self, data: Mapping[str, Json], now: float) -> None:
        self.resumes.append(round(now, 2))
        self.done, self.paused = None, ""
        self.notice(now, "resumed", f"The run went on after a stop, with {data.get('workers', '?')} workers.")

    def _stage_started(self, data: Mapping[str, Json], now: float) -> None:
        scope = self.scope(str(data.get("scope", "")))
        scope |= {key: data[key] for key in ("title", "number", "goals", "max_nodes") if key in data}
        if scope["started"] is None:
            scope["started"] = round(now, 2)

    def _stage_done(self, data: Mapping[str, Json], now: float) -> None:
        best = data.get("best")
        best = best.get("id") if isinstance(best, Mapping) else best
        self.scope(str(data.get("scope", ""))).update(ended=round(now, 2), best=best)

    def _node_asked(self, data: Mapping[str, Json], now: float) -> None:
        identity, scope = str(data.get("node", "")), str(data.get("scope", ""))
        self.scope(scope)
        attempt = int(number(data.get("attempt")) or 0)
        known = self.nodes.get(identity)
        if known is not None:
            known.attempt = attempt
            self.notice(
                now, "asked again", "Infrastructure was lost, the node was asked once more.", identity
            )
            return
        parent = data.get("parent")
        self.nodes[identity] = NodeFacts(
            id=identity,
            parent=str(parent) if parent is not None else None,
            scope=scope,
            seq=int(number(data.get("seq")) or 0),
            asked=now,
            attempt=attempt,
            counted=bool(data.get("counted", True)),
        )

    def _node_done(self, data: Mapping[str, Json], now: float) -> None:
        node = self.nodes.get(str(data.get("node", "")))
        if node is None:
            return
        if data.get("status") == "void":
            # There was nothing to expand, so there is nothing to show.
            del self.nodes[node.id]
            return
        if node.order is None:
            node.order = self._order
            self._order += 1
        node.done = now
        node.status = str(data.get("status", "failed"))
        node.score, node.raw_score = number(data.get("score")), data.get("score")
        node.reason = str(data.get("reason") or "")
        node.data = mapping(data.get("data"))

    def _call(self, data: Mapping[str, Json], now: float, **more: Json) -> None:
        usage = mapping(data.get("usage"))
        latency = number(data.get("latency_s")) or 0.0
        node = data.get("node")
        call: dict[str, Json] = {
            "node": node,
            "scope": self.scope_of(node),
            "role": str(data.get("role") or ""),
            "purpose": str(data.get("purpose") or ""),
            "model": str(data.get("model_requested") or data.get("model") or ""),
            "start": round(max(0.0, now - latency), 2),
            "end": round(now, 2),
            "prompt": int(number(usage.get("prompt")) or 0),
            "completion": int(number(usage.get("completion")) or 0),
            "cached": int(number(usage.get("cached")) or 0),
            "estimated": bool(usage.get("estimated")),
            "cost_usd": number(data.get("cost_usd")),
            "latency_s": latency,
            "requests": int(number(data.get("requests")) or 1),
            "failed": "",
        } | more
        self.calls.append(call)
        if isinstance(node, str) and node in self.nodes:
            self.nodes[node].calls.append(call)

    def _call_answered(self, data: Mapping[str, Json], now: float) -> None:
        self._call(data, now)

    def _call_failed(self, data: Mapping[str, Json], now: float) -> None:
        kind = str(data.get("kind") or "error")
        self._call(data, now, failed=kind)
        message = f"{data.get('purpose', '')}: {kind}: {data.get('message', '')}"
        self.notice(now, "call failed", message, data.get("node"))

    def _execution_done(self, data: Mapping[str, Json], now: float) -> None:
        result = mapping(data.get("result"))
        wall = number(result.get("wall_s")) or 0.0
        node = data.get("node")
        program: dict[str, Json] = {
            "node": node,
            "label": str(data.get("label") or "program"),
            "status": str(result.get("status") or ""),
            "start": round(max(0.0, now - wall), 2),
            "end": round(now, 2),
            "queue_s": number(data.get("queue_s")) or 0.0,
            "wall_s": wall,
            "cpu_s": number(result.get("cpu_s")),
            "max_rss_mb": number(result.get("max_rss_mb")),
            "exit_code": result.get("exit_code"),
        }
        self.programs.append(program)
        sandbox = mapping(result.get("sandbox"))
        if sandbox:
            name, given = str(sandbox.get("name")), frozenset(map(str, sandbox.get("guarantees") or ()))
            self.sandboxes[name] = self.sandboxes.get(name, given) & given
        if isinstance(node, str) and node in self.nodes:
            self.nodes[node].programs.append(program)

    def _degraded(self, data: Mapping[str, Json], now: float) -> None:
        self.degradations += 1
        message = f"{data.get('model', '')} works without {data.get('feature', '')}: {data.get('reason', '')}"
        self.notice(now, "degraded", message)

    def _warning(self, data: Mapping[str, Json], now: float) -> None:
        self.warnings += 1
        self.notice(now, "warning", str(data.get("message") or ""))

    def _refused(self, data: Mapping[str, Json], now: float) -> None:
        self.notice(now, "refused", f"{data.get('what', '')}: {data.get('reason', '')}", data.get("node"))

    def _repaired(self, data: Mapping[str, Json], now: float) -> None:
        self.notice(now, "repaired", f"A torn journal line was set aside in {data.get('kept', '')}.")

    def _paused(self, data: Mapping[str, Json], now: float) -> None:
        self.paused = str(data.get("reason") or "paused")
        self.notice(now, "paused", self.paused)

    def _file_made(self, data: Mapping[str, Json], now: float) -> None:
        self.files.append(str(data.get("path") or ""))

    def _run_done(self, data: Mapping[str, Json], now: float) -> None:
        self.done = data


_HANDLERS: dict[str, Callable[[Facts, Mapping[str, Json], float], None]] = {
    kinds.RUN_STARTED: Facts._run_started,
    kinds.RUN_RESUMED: Facts._run_resumed,
    kinds.STAGE_STARTED: Facts._stage_started,
    kinds.STAGE_DONE: Facts._stage_done,
    kinds.NODE_ASKED: Facts._node_asked,
    kinds.NODE_DONE: Facts._node_done,
    kinds.CALL_ANSWERED: Facts._call_answered,
    kinds.CALL_FAILED: Facts._call_failed,
    kinds.EXECUTION_DONE: Facts._execution_done,
    kinds.DEGRADED: Facts._degraded,
    kinds.WARNING: Facts._warning,
    kinds.REFUSED: Facts._refused,
    kinds.REPAIRED: Facts._repaired,
    kinds.PAUSED: Facts._paused,
    kinds.FILE_MADE: Facts._file_made,
    kinds.RUN_DONE: Facts._run_done,
}
