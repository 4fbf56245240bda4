"""Everything a report shows of a run, as one JSON-able object: a pure fold of its journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corerun.interfaces import Event, Json
from corerun.report.fold import Facts, NodeFacts, best_of, mapping, metric_of, primary, secondary
from corerun.report.images import Images
from corerun.report.results import disclosure, isolation, model_label, outcome
from corerun.report.strict import strict

SCHEMA = "corerun.report/1"
_MAX_OUTPUT = 16_000
_MAX_TEXT = 200_000
_MAX_SEARCH = 200
_MAX_PLOTS = 100
_PASSED_ON = (
    *("plan", "code", "output", "analysis", "metric", "exec_time", "exc_type", "exc_info", "exc_stack"),
    *("plot_code", "setting", "timing", "tokens", "faults", "seed", "origin_id", "vlm_feedback_summary"),
)


def report_data(
    events: Sequence[Event], *, run_dir: Path | None = None, max_mb: float = 20.0
) -> dict[str, Any]:
    """Fold ``events`` into what the page shows.

    Pictures below ``run_dir`` become data URLs until ``max_mb`` megabytes are spent (best nodes
    first), the rest are listed as paths. Prompts and answers of models are left out. Numbers that
    are not finite become None, and ``nonfinite`` of the node names their places.
    """
    facts = Facts.of(events)
    metric, maximize = metric_of(facts.nodes.values())
    stages = _stages(facts)
    best = _best_id(facts)
    done = facts.done or {}
    nodes = [_summary(node, facts, maximize) for node in facts.nodes.values()]
    images = Images(run_dir, max_mb)
    figures = [path for path in dict.fromkeys(facts.files) if path.startswith("figures/")]
    shown = _pictures(figures, images)
    important = {best, *(stage["best"] for stage in stages)}
    details: dict[str, dict[str, Json]] = {}
    for node in sorted(facts.nodes.values(), key=lambda item: item.id not in important):
        details[node.id] = _detail(node, images)
    for entry in nodes:
        entry["detail"] = details[entry["id"]]
        if entry["detail"]["nonfinite"]:
            entry["nonfinite"] = True
    found: list[str] = []
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "header": _header(facts, maximize, metric, best),
        "result": outcome(done, maximize),
        "stages": stages,
        "curve": _curve(facts, maximize),
        "timeline": _timeline(facts),
        "cost": {name: _cost(facts, name) for name in ("model", "role", "purpose", "stage")},
        "figures": shown,
        "log": {"entries": facts.notices, "left_out": facts.notices_left_out},
    }
    result = strict(result, found)
    result["nodes"] = nodes
    return result


def _best_id(facts: Facts) -> str | None:
    """The run's own word, else the best so far; a node carried over stands for the one it copies."""
    named = mapping((facts.done or {}).get("best")).get("id")
    if named is not None and str(named) not in facts.nodes:
        return str(named)
    searched = (node for node in facts.nodes.values() if not secondary(node.scope))
    best = facts.nodes[str(named)] if named is not None else best_of(searched)
    seen: set[str] = set()
    while best is not None and best.id not in seen and best.data.get("op") == "carried":
        seen.add(best.id)
        best = facts.nodes.get(str(best.data.get("origin_id")), best)
    return best.id if best is not None else None


def _group(node: NodeFacts, facts: Facts) -> str:
    return primary(node.scope, facts.scopes)


def _count(nodes: Sequence[NodeFacts]) -> dict[str, int]:
    return {
        "nodes": len(nodes),
        "good": sum(node.status == "good" for node in nodes),
        "failed": sum(node.status == "failed" for node in nodes),
        "planted": sum(node.planted for node in nodes),
        "running": sum(node.status == "running" for node in nodes),
    }


def _stages(facts: Facts) -> list[dict[str, Json]]:
    """The stages in the order in which they began; seed reruns are part of the stage they rerun."""
    stages = []
    for scope in facts.scopes.values():
        if primary(scope["scope"], facts.scopes) != scope["scope"]:
            continue
        members = [node for node in facts.nodes.values() if node.scope == scope["scope"]]
        group = [node for node in facts.nodes.values() if _group(node, facts) == scope["scope"]]
        best = best_of(members)
        ends = [node.done for node in group if node.done is not None]
        stages.append(
            scope
            | _count([node for node in members if node.counted])
            | {
                "best": scope["best"] or (best.id if best else None),
                "started": scope["started"] if scope["started"] is not None else _first_ask(members),
                "ended": scope["ended"] if scope["ended"] is not None else max(ends, default=None),
                "secondary": secondary(scope["scope"]),
                "reruns": len(group) - len(members),
            }
        )
    return stages


def _first_ask(nodes: Sequence[NodeFacts]) -> float | None:
    return min((round(node.asked, 2) for node in nodes), default=None)


def _header(facts: Facts, maximize: bool, metric: str, best: str | None) -> dict[str, Json]:
    started, done = facts.started, facts.done
    named = mapping(started.get("models"))
    models = {str(name): kind for name, kind in named.items()}
    idea = mapping(mapping(started.get("inputs")).get("idea"))
    counted = [node for node in facts.nodes.values() if node.counted and not secondary(node.scope)]
    chosen = facts.nodes.get(best or "")
    error = (done or {}).get("error")
    priced = [call["cost_usd"] for call in facts.calls if call["cost_usd"] is not None]
    answered = [call for call in facts.calls if not call["failed"]]
    status = str(done.get("status", "success")) if done else ("paused" if facts.paused else "unfinished")
    return {
        "run": str(started.get("run") or ""),
        "job": str(started.get("job") or ""),
        "title": str(idea.get("Title") or idea.get("title") or ""),
        "seed": started.get("seed"),
        "status": status,
        "error": str(mapping(error).get("message") or error) if error else "",
        "started_at": facts.started_at,
        "wall_s": round(facts.clock.now, 2),
        "models": [{"name": name, "label": model_label(name, kind)} for name, kind in models.items()],
        "disclosure": str((done or {}).get("disclosure") or started.get("disclosure") or disclosure(models)),
        "isolation": isolation(facts.sandboxes),
        "metric": {"name": metric, "maximize": maximize},
        "best": {"id": best, "value": chosen.value(maximize)} if chosen else {"id": best, "value": None},
        "tokens": {key: sum(call[key] for call in facts.calls) for key in ("prompt", "completion", "cached")},
        "calls": len(facts.calls),
        "cost_usd": sum(priced),
        "unpriced": sum(call["cost_usd"] is None for call in answered),
        "warnings": facts.warnings,
        "degradations": facts.degradations,
        "resumes": len(facts.resumes),
    } | _count(counted)


def _summary(node: NodeFacts, facts: Facts, maximize: bool) -> dict[str, Any]:
    """What the index says of a node: enough to draw, to filter and to search it."""
    data = node.data
    op = str(data.get("op") or "")
    parent = facts.nodes.get(node.parent or "")
    if not op:
        op = "draft" if parent is None else "debug" if parent.status == "failed" else "improve"
    plan = str(data.get("plan") or "").strip()
    return {
        "id": node.id,
        "parent": node.parent,
        "scope": node.scope,
        "group": _group(node, facts),
        "secondary": secondary(node.scope),
        "seq": node.seq,
        "order": node.order,
        "status": node.status,
        "op": op,
        "score": node.score,
        "value": node.value(maximize),
        "name": str(data.get("name") or "")[:_MAX_SEARCH],
        "text": plan[:_MAX_SEARCH],
        "reason": node.reason[:_MAX_SEARCH],
        "asked": round(node.asked, 2),
        "done": round(node.done, 2) if node.done is not None else None,
        "attempt": node.attempt,
        "counted": node.counted,
        "planted": node.planted,
        "written_by": str(data.get("written_by") or ""),
    }


def _detail(node: NodeFacts, images: Images) -> dict[str, Json]:
    """What is read only when a node is opened."""
    found: list[str] = []
    detail = {key: node.data[key] for key in _PASSED_ON if node.data.get(key) is not None}
    for key in ("plan", "code", "analysis", "plot_code", "vlm_feedback_summary"):
        if key in detail:
            detail[key] = str(detail[key])[:_MAX_TEXT]
    if "output" in detail:
        text = detail["output"]
        text = "".join(map(str, text)) if isinstance(text, list | tuple) else str(text)
        detail["output"] = text[-_MAX_OUTPUT:]
        detail["output_cut"] = max(0, len(text) - _MAX_OUTPUT)
    detail["reason"] = node.reason[:_MAX_TEXT]
    result: dict[str, Json] = strict(detail, found)
    if isinstance(node.raw_score, float) and node.score is None:
        found.append("score")
    hidden = {"node", "scope"}
    result["calls"] = [{key: call[key] for key in call if key not in hidden} for call in node.calls]
    result["programs"] = strict([{k: v for k, v in p.items() if k != "node"} for p in node.programs], found)
    result["plots"] = _plots(node.data, images)
    result["nonfinite"] = found
    return result


def _items(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list | tuple) else ()


def _plots(data: Mapping[str, Json], images: Images) -> list[dict[str, Json]]:
    judged: dict[str, str] = {}
    for item in _items(data.get("plot_analyses")):
        if isinstance(item, Mapping):
            judged[str(item.get("plot_path", "")).rpartition("/")[2]] = str(item.get("analysis") or "")
    plots = _pictures([str(path) for path in _items(data.get("plots"))], images)
    return [plot | {"analysis": judged.get(plot["path"].rpartition("/")[2], "")} for plot in plots]


def _pictures(paths: Sequence[str], images: Images) -> list[dict[str, Json]]:
    pictures = []
    for path in paths[:_MAX_PLOTS]:
        source, why = images.embed(path)
        pictures.append({"path": path, "src": source, "note": why})
    return pictures


def _curve(facts: Facts, maximize: bool) -> list[dict[str, Json]]:
    """Finished nodes of the search in order, with the best of the stage so far.

    Stages may score on different data sets, so ``best`` starts anew with each of them, and ``sets``
    says how many data sets it covers: what differs in that isn't to be joined by a line.
    """
    curve: list[dict[str, Json]] = []
    leaders: dict[str, NodeFacts] = {}
    finished = [node for node in facts.nodes.values() if node.order is not None and not secondary(node.scope)]
    for index, node in enumerate(sorted(finished, key=lambda item: item.order or 0)):
        known = leaders.get(node.scope)
        leader = best_of([known, node] if known is not None else [node])
        best, sets = None, 0
        if leader is not None:
            leaders[node.scope] = leader
            best, sets = leader.value(maximize), leader.sets
        point = {"index": index, "node": node.id, "scope": node.scope, "value": node.value(maximize)}
        curve.append(point | {"best": best, "sets": sets})
    return curve


def _lanes(bars: Sequence[Mapping[str, Json]]) -> list[int]:
    """A lane per bar so that no two bars of a lane overlap, with as few lanes as there were at once."""
    lanes: list[float] = []
    chosen = [0] * len(bars)
    for index in sorted(range(len(bars)), key=lambda item: bars[item]["start"]):
        start, end = bars[index]["start"], bars[index]["end"]
        lane = next((number for number, free in enumerate(lanes) if free <= start), len(lanes))
        if lane == len(lanes):
            lanes.append(end)
        lanes[lane] = end
        chosen[index] = lane
    return chosen


def _timeline(facts: Facts) -> dict[str, Json]:
    """Bars ``[lane, start, end, name, node, failed, queued]`` in seconds of work since the start."""

    def bars(items: Sequence[Mapping[str, Json]], name: str) -> list[list[Json]]:
        rows = []
        for item, lane in zip(items, _lanes(items), strict=True):
            failed = bool(item["failed"]) if "failed" in item else item["status"] != "ok"
            row = [lane, item["start"], item["end"], item[name], item["node"], failed]
            rows.append([*row, item.get("queue_s", 0.0)])
        return rows

    return {
        "programs": bars(facts.programs, "label"),
        "calls": bars(facts.calls, "purpose"),
        "resumes": facts.resumes,
        "end": round(facts.clock.now, 2),
    }


def _cost(facts: Facts, by: str) -> list[dict[str, Json]]:
    """Calls, tokens and money: stages as they came, all else dearest first."""
    rows: dict[str, dict[str, Json]] = {}
    for call in facts.calls:
        if by == "stage":
            scope = call["scope"]
            key = str(facts.scopes[primary(scope, facts.scopes)]["title"]) if scope else "outside nodes"
        else:
            key = call[by] or "unknown"
        empty = {"key": key, "calls": 0, "failed": 0, "prompt": 0, "completion": 0, "cached": 0}
        row = rows.setdefault(key, empty | {"extra": 0, "cost_usd": 0.0, "unpriced": 0, "latency_s": 0.0})
        row["calls"] += 1
        row["failed"] += bool(call["failed"])
        row["extra"] += call["requests"] - 1
        for name in ("prompt", "completion", "cached", "latency_s"):
            row[name] += call[name]
        if call["cost_usd"] is not None:
            row["cost_usd"] += call["cost_usd"]
        elif not call["failed"]:
            row["unpriced"] += 1
    if by == "stage":
        return list(rows.values())
    return sorted(rows.values(), key=lambda row: (-row["cost_usd"], -row["prompt"], row["key"]))
