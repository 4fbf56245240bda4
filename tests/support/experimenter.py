"""Plays a researcher over the wire: answers every question of the experiment search, quickly."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.support.openai_server import Reply, text, tool
from tests.support.programs import aggregate_program, experiment_program, plot_program

METRIC = "validation_rmse"
DATA_SETS = ("synth_a", "synth_b", "synth_c")

_ASKS_FOR_CODE = re.compile(r"```python|python (?:program|script|code)", re.IGNORECASE)
_ASKS_FOR_PLOT = re.compile(r"\bplot(?:ting)?[ _](?:program|script|code)\b|\bvisuali[sz]", re.IGNORECASE)
_IN_WORDS = "must fit this JSON Schema:\n"
_DATA_FILE = re.compile(r"[\w./-]*experiment_data\w*\.npy")
_MANIFEST = re.compile(r"[\w./-]*plot_agg_manifest\.json")
_ROW = re.compile(rf"({'|'.join(DATA_SETS)})\D[^\n]*?(-?\d+\.\d+)")


class Experimenter:
    """An ``answer`` for `tests.support.openai_server`; see there.

    Structured questions are told by the schema that they ask for, in whatever way; programs by a Python
    fence or program being asked for: a plotting program where the text speaks of a plotting program,
    script or code, an aggregation script where it names ``plot_agg_manifest.json``, otherwise an
    experiment. Each experiment has another regularisation strength; ``faulty`` > 0 lets every n-th one
    raise. ``nonsense`` answers with rubbish of four kinds in turn.
    """

    def __init__(self, seed: int = 0, nonsense: bool = False, *, faulty: int = 0) -> None:
        self._random = random.Random(seed)
        self._nonsense = nonsense
        self._faulty = faulty
        self._programs = itertools.count(1)
        self._names = itertools.count(1)
        self._turns = itertools.count()
        self._answers: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "is_bug": self._review,
            "valid_metrics_received": self._metrics,
            "plot_analyses": self._plot_analysis,
            "selected_plots": self._plot_selection,
        }

    def __call__(self, body: dict[str, Any]) -> Reply:
        name, schema = asked_for(body)
        if self._nonsense:
            return self._rubbish(name)
        if schema is None:
            return text(self._written(all_text(body)))
        instance = self._structured(schema, body)
        if name is None:
            return text(json.dumps(instance))
        if "functions" in body:
            call = {"name": name, "arguments": json.dumps(instance)}
            return Reply(message={"function_call": call}, finish="function_call")
        return tool(name, instance)

    # -------------------------------------------------------------------------------- structured

    def _structured(self, schema: Mapping[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        instance: dict[str, Any] = smallest_instance(schema, number=next(self._names))
        allowed = schema.get("properties", {})
        for key, answer in self._answers.items():
            if key in allowed:
                instance.update({name: value for name, value in answer(body).items() if name in allowed})
                return instance
        if "maximize" in instance and "name" in instance:
            instance["name"] = METRIC
        return instance

    def _review(self, body: dict[str, Any]) -> dict[str, Any]:
        failed = "Traceback" in all_text(body)
        summary = "The program raised an exception." if failed else "The program ran and learned something."
        return {"is_bug": failed, "summary": summary}

    def _metrics(self, body: dict[str, Any]) -> dict[str, Any]:
        values = dict(_ROW.findall(all_text(body)))
        rows = [
            {"dataset_name": name, "final_value": float(value), "best_value": float(value)}
            for name, value in sorted(values.items())
        ]
        metric = {
            "metric_name": METRIC,
            "lower_is_better": True,
            "description": "root mean squared error on validation rows",
            "data": rows,
        }
        return {"valid_metrics_received": bool(rows), "metric_names": [metric] if rows else []}

    def _plot_analysis(self, body: dict[str, Any]) -> dict[str, Any]:
        count = sum(part["type"] == "image_url" for part in all_parts(body))
        return {
            "plot_analyses": [
                {"analysis": f"Plot {number}: the error falls."} for number in range(1, count + 1)
            ],
            "valid_plots_received": True,
            "vlm_feedback_summary": "The plots are readable and the error falls on every data set.",
            "datasets_successfully_tested": list(DATA_SETS),
        }

    def _plot_selection(self, body: dict[str, Any]) -> dict[str, Any]:
        paths = re.findall(r"[\w./-]+\.png", all_text(body))
        return {"selected_plots": list(dict.fromkeys(paths))[:10]}

    # ----------------------------------------------------------------------------------- written

    def _written(self, question: str) -> str:
        manifest = _MANIFEST.search(question)
        if manifest:
            return _answer("The script draws three figures.", aggregate_program(manifest[0]))
        if not _ASKS_FOR_CODE.search(question):
            return "The results support the idea; there is nothing to add."
        if _ASKS_FOR_PLOT.search(question):
            paths = list(dict.fromkeys(_DATA_FILE.findall(question)))
            return _answer("Two plots of what was saved.", plot_program(paths))
        number = next(self._programs)
        strength = 10 ** self._random.uniform(-3.0, 1.5)
        is_faulty = self._faulty > 0 and number % self._faulty == 0
        plan = f"Ridge regression by gradient descent with strength {strength:.4g}."
        return _answer(plan, experiment_program(strength, DATA_SETS, is_faulty=is_faulty))

    def _rubbish(self, name: str | None) -> Reply:
        kind = next(self._turns) % 4
        if kind == 0:
            return text("I would rather talk about the weather.")
        if kind == 1:
            half = '{"is_bug": fal'
            return tool(name, half) if name else text(half)
        if kind == 2:
            return text("")
        return tool("order_pizza", {"size": "large"})


def asked_for(body: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any] | None]:
    """The function that a request wants to be called, and the schema of the answer; each None if none.

    The schema may come as a tool, a function, a response format or in the words of the last turn.
    """
    functions = [item["function"] for item in body.get("tools", ())] or body.get("functions", ())
    if functions:
        return functions[0]["name"], functions[0]["parameters"]
    shape = body.get("response_format", {}).get("json_schema")
    if shape is not None:
        return None, shape["schema"]
    written = all_text({"messages": body["messages"][-1:]}).rpartition(_IN_WORDS)[2]
    if _IN_WORDS not in all_text(body) or not written.startswith("{"):
        return None, None
    return None, json.JSONDecoder().raw_decode(written)[0]


def all_parts(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every part of every message; a plain string is one text part."""
    parts: list[dict[str, Any]] = []
    for message in body["messages"]:
        content = message.get("content") or ""
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


def all_text(body: Mapping[str, Any]) -> str:
    """The texts of all messages, one below the other."""
    return "\n".join(part["text"] for part in all_parts(body) if part["type"] == "text")


def smallest_instance(schema: Mapping[str, Any], key: str = "", number: int = 1) -> Any:
    """The smallest value that fits ``schema``: required keys alone, booleans false, lists short.

    Strings are filled, with ``number`` in those called ``name`` so that answers differ.
    """
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return smallest_instance(schema[union][0], key, number)
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        known = schema.get("properties", {})
        return {
            name: smallest_instance(known.get(name, {}), name, number) for name in schema.get("required", ())
        }
    if kind == "array":
        item = schema.get("items", {})
        return [smallest_instance(item, key, number) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        filled = (
            f"{key or 'text'}_{number}" if key.endswith("name") else f"A {key.replace('_', ' ') or 'text'}."
        )
        return filled.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
    if kind in ("integer", "number"):
        lowest = schema.get("minimum", 0)
        return max(lowest, schema.get("exclusiveMinimum", lowest - 1) + 1)
    return None if kind == "null" else False


def _answer(plan: str, program: str) -> str:
    return f"{plan}\n\n```python\n{program}```\n"
