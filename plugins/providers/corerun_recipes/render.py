"""Turns points and facts into the text of programs, by the templates beside this file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from .points import Point


def render(template: str, **values: Any) -> str:
    """The template's text; a name that it needs and does not get is a `jinja2.UndefinedError`."""
    return _environment().get_template(template).render(**values)


def program(point: Point) -> str:
    """The experiment program of a point; its first line is the point itself."""
    idea = point.idea
    sets = [(name, f"load_{name}") for name in idea.sets[: point.sets]]
    imports = {loader for _, loader in sets} | ({"load_wine", "load_iris"} if idea.regression else set())
    config = point.config
    settings = {
        "hidden": config["hidden"],
        "step_size": config["lr"],
        "batch_size": config["batch"],
        "epochs": config["epochs"],
    } | {knob: config[knob] for knob in ("decay", "dropout") if config[knob]}
    return render(
        "program.py.j2",
        point=point,
        idea=idea,
        c=config,
        settings=settings,
        faults=point.faults,
        sets=sets,
        imports=imports,
        metric_name=idea.metric,
        nets="slow" if config["average"] == "ema" else "nets",
        data=f"{{{_literal(point.outer)}: results}}" if point.outer else "results",
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["py"] = _literal
    return environment


def _literal(value: Any) -> str:
    """A value as Python source; texts in double quotes, like the rest of the templates."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
