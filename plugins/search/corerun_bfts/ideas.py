"""Research ideas: reading the list, choosing one, and its two files ``idea.md`` and ``idea.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corerun.errors import UsageError
from corerun.inputs.documents import read_json

Prose = str | list[str] | list[dict[str, Any]]


class Idea(BaseModel):
    """One idea. Keys beyond these are kept and copied."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    name: str = Field(alias="Name", min_length=1)
    title: str = Field(alias="Title")
    abstract: str = Field(alias="Abstract")
    hypothesis: str = Field(alias="Short Hypothesis")
    experiments: Prose = Field(alias="Experiments")
    risks: Prose = Field(alias="Risk Factors and Limitations")
    related: str | None = Field(None, alias="Related Work")
    code: str | None = Field(None, alias="Code")
    recipe: str | None = Field(None, alias="Recipe")


def load_ideas(path: Path) -> list[Any]:
    """The ideas of a file; a single object counts as a list of one."""
    data = read_json(path, where="load_ideas")
    ideas = [data] if isinstance(data, dict) else data
    if not isinstance(ideas, list) or not ideas:
        raise UsageError("an ideas file is a JSON list of at least one idea", where=str(path))
    return ideas


def choose_idea(ideas: list[Any], index: int, source: str) -> tuple[Idea, dict[str, Any]]:
    """The idea at ``index``: typed, and as it stands in the file."""
    if not 0 <= index < len(ideas):
        raise UsageError(
            f"idea_idx {index!s:.20} is out of range: {source} holds {len(ideas)} idea(s), "
            f"0 to {len(ideas) - 1}",
            where="idea_idx",
        )
    raw = ideas[index]
    if not isinstance(raw, dict):
        raise UsageError(f"idea {index} is a {type(raw).__name__}, not an object", where=source)
    try:
        return Idea.model_validate(raw), raw
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("list[", "str")))
        raise UsageError(f"idea {index}: key {key!r}: {problem['msg'].lower()}", where=source) from error


def with_code(raw: Mapping[str, Any], pieces: list[str]) -> dict[str, Any]:
    """The idea with the loaded texts as its ``Code``."""
    found = [piece for piece in pieces if piece]
    return {**raw, "Code": "\n".join(found)} if found else dict(raw)


def prose(value: Prose) -> str:
    """A list as lines; dictionaries as ``key: value`` lines."""
    if isinstance(value, str):
        return value
    lines: list[str] = []
    for item in value:
        if isinstance(item, dict):
            lines += [f"{key}: {text}" for key, text in item.items()]
        else:
            lines.append(str(item))
    return "\n".join(lines)


def markdown(raw: Mapping[str, Any], code: str | None = None) -> str:
    """``idea.md``: one section per key, in the file's order, and the loaded program last."""
    sections: list[str] = []
    for key, value in raw.items():
        if key == "Code":
            continue
        sections.append(f"## {key.replace('_', ' ').title()}\n\n{_body(value)}\n")
    if code:
        program = code.rstrip("\n")
        sections.append(f"## Code To Potentially Use\n\n```python\n{program}\n```\n")
    return "\n".join(sections)


def _body(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(f"- {_item(item)}" for item in value)
    if isinstance(value, dict):
        return "\n\n".join(f"### {key}\n\n{inner}" for key, inner in value.items())
    return str(value)


def _item(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False) if isinstance(item, dict) else str(item)
