"""Renders a report's data as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from corerun.interfaces import Json
from corerun.redaction import redact
from corerun.runs.content import compact_json

_STATIC = Path(__file__).parent / "static"
_SCRIPTS = ("base.js", "tree.js", "node.js", "charts.js", "report.js")
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def render_report(data: Mapping[str, Any], *, title: str) -> str:
    """The whole report. ``data`` is what `corerun.report.data.report_data` returns.

    Everything that a model wrote travels as escaped JSON and reaches the page as text nodes alone;
    the page's policy lets no other script run and nothing be loaded.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    index = {key: value for key, value in data.items() if key != "nodes"}
    index["nodes"] = [{key: node[key] for key in node if key != "detail"} for node in data["nodes"]]
    page: str = _template().render(
        title=redact(title),
        digest=digest,
        style=(_STATIC / "report.css").read_text(encoding="utf-8"),
        script=script,
        index=embedded(index),
        details=[embedded(node["detail"]) for node in data["nodes"]],
    )
    return page


def render_tree(data: Mapping[str, Any], scope: str) -> str:
    """The same page with the nodes of one stage, its seed reruns among them."""
    nodes = [node for node in data["nodes"] if node["group"] == scope]
    kept = {node["id"] for node in nodes}
    stages = [stage for stage in data["stages"] if stage["scope"] == scope]
    timeline = dict(data["timeline"])
    for name in ("programs", "calls"):
        timeline[name] = [bar for bar in timeline[name] if bar[4] in kept]
    part = dict(data) | {
        "nodes": nodes,
        "stages": stages,
        "curve": [point for point in data["curve"] if point["node"] in kept],
        "timeline": timeline,
        "figures": [],
    }
    name = str(stages[0]["title"]) if stages else scope
    return render_report(part, title=f"{name} - {data['header']['run']}")


def embedded(value: Json) -> str:
    """Strict JSON without secrets that cannot end its script element, open a comment or an entity in it."""
    return compact_json(value).translate(_ESCAPES)


def _script() -> str:
    parts = [(_STATIC / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    return '"use strict";\n' + "\n".join(parts)


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_STATIC),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")
