"""Turns a `ChatRequest` into the body of ``POST /v1/messages``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from corerun.errors import RequestRefused, Unsupported
from corerun.interfaces import ChatRequest, Degradation, Json
from corerun.llm.messages import has_images, printable
from corerun_anthropic.dialect import output_schema
from corerun_anthropic.history import write_messages

DEFAULT_MAX_TOKENS = 8192
DEFAULT_SCHEMA_NAME = "answer"
REQUIRED = frozenset({"model", "max_tokens", "messages", "stream"})


@dataclass(slots=True)
class Refusals:
    """What one model takes no more of: ``features`` and the reason for each, learned or configured.

    A feature is named by the request's word for it; beside these there are ``json_schema`` (the
    channel for structured answers; ``json_schema NAME`` for one schema alone), ``tool_choice`` (a
    forced tool) and ``temperature&top_p`` (both at once). ``max_tokens``: the largest that it takes.
    ``kept``: features that are sent whatever the model says.
    """

    features: dict[str, str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    max_tokens: int | None = None


def schema_tool_name(request: ChatRequest) -> str:
    """The name of the one tool whose arguments are the answer to ``request.schema``."""
    return request.schema_name or DEFAULT_SCHEMA_NAME


def build_body(request: ChatRequest, refusals: Refusals) -> tuple[dict[str, Json], tuple[Degradation, ...]]:
    """The body for ``request`` without what the model refuses, and what was left out or changed.

    ``max_tokens`` is required by the API: `DEFAULT_MAX_TOKENS` is sent where the request has none.
    Raises `RequestRefused` for a request that no server could answer, `Unsupported` for one that
    can't be written without what is refused.
    """
    return _Builder(request, refusals).build()


class _Builder:
    def __init__(self, request: ChatRequest, refusals: Refusals) -> None:
        self._request = request
        self._refusals = refusals
        self._refused: Mapping[str, str] = refusals.features
        self._degraded: dict[str, str] = {}
        self._extra = {name: value for name, value in request.extra.items() if value is not None}
        self._thinks = request.reasoning_effort is not None or _is_on(self._extra.get("thinking"))

    def build(self) -> tuple[dict[str, Json], tuple[Degradation, ...]]:
        request = self._request
        if not request.messages:
            raise RequestRefused("a model was asked with no message")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise RequestRefused(f"max_tokens must be positive, not {request.max_tokens}")
        if request.tools and "tools" in self._refused:
            raise Unsupported(f"tools are asked for but can't be used: {self._refused['tools']}")
        if request.seed is not None:
            self._degraded["seed"] = "Anthropic's API has no seed"
        body: dict[str, Json] = {
            "model": request.model,
            "max_tokens": self._max_tokens(),
            "stream": True,
            **self._sampling(),
            **self._choice(),
        }
        config = body["output_config"] = {}
        tools = [_tool(tool) for tool in request.tools]
        instruction = self._put_schema(body, tools)
        if request.reasoning_effort is not None and self._is_taken("reasoning_effort"):
            config["effort"] = request.reasoning_effort
        body["tools"] = tools
        body["system"], body["messages"] = self._messages(bool(tools), instruction)
        for name, value in self._extra.items():
            if name in REQUIRED or self._is_taken(name):
                body[name] = {**config, **value} if name == "output_config" else value
        return (
            {
                name: value
                for name, value in body.items()
                if name in REQUIRED or value not in (None, [], {}, "")
            },
            tuple(Degradation(feature, reason) for feature, reason in self._degraded.items()),
        )

    def _is_taken(self, feature: str) -> bool:
        """Whether the model takes a feature that the request wants; if not, that is noted."""
        if feature not in self._refused:
            return True
        self._degraded[feature] = self._refused[feature]
        return False

    def _max_tokens(self) -> int:
        wanted, most = self._request.max_tokens, self._refusals.max_tokens
        if most is None:
            return wanted or DEFAULT_MAX_TOKENS
        if wanted is not None and wanted > most:
            self._degraded["max_tokens"] = f"the model takes at most {most}"
        return min(wanted or DEFAULT_MAX_TOKENS, most)

    def _sampling(self) -> dict[str, Json]:
        request = self._request
        found: dict[str, Json] = {}
        if request.temperature is not None and self._is_taken("temperature"):
            found["temperature"] = min(request.temperature, 1.0)
            if request.temperature > 1:
                self._degraded["temperature"] = "Anthropic's API takes at most 1"
        if request.top_p is not None and self._is_taken("top_p"):
            found["top_p"] = request.top_p
        if len(found) == 2 and "temperature&top_p" in self._refused:
            self._degraded["top_p"] = self._refused["temperature&top_p"]
            del found["top_p"]
        if request.stop and self._is_taken("stop"):
            found["stop_sequences"] = [printable(text) for text in request.stop if text.strip()]
            if len(found["stop_sequences"]) < len(request.stop):
                self._degraded["stop"] = "Anthropic's API takes no stop text of blanks alone"
        return found

    def _choice(self) -> dict[str, Json]:
        """A choice among the request's own tools, in whichever API's words it was given."""
        choice = self._extra.pop("tool_choice", None)
        if choice is None or not self._request.tools:
            return {}
        written = _tool_choice(choice)
        if written["type"] in ("any", "tool") and not self._may_force():
            written = {"type": "auto"}
        return {"tool_choice": written}

    def _may_force(self) -> bool:
        # The API refuses a forced tool to a model that thinks.
        return not self._thinks and self._is_taken("tool_choice")

    def _put_schema(self, body: dict[str, Json], tools: list[Json]) -> str:
        """Chooses the channel of a structured answer; returns what the prompt has to say for it."""
        request = self._request
        if request.schema is None:
            return ""
        own = f"json_schema {request.schema_name}"
        schema = output_schema(request.schema)
        if own in self._refused:
            self._degraded["json_schema"] = self._refused[own]
        elif self._is_taken("json_schema") and schema is not None:
            body["output_config"]["format"] = {"type": "json_schema", "schema": schema}
            return ""
        if "tools" in self._refused:
            text = json.dumps(request.schema, ensure_ascii=False)
            return f"Answer with one JSON object and nothing else. It must fit this JSON Schema:\n{text}"
        name = schema_tool_name(request)
        tool = {"name": name, "input_schema": request.schema}
        if request.schema.get("description"):
            tool["description"] = request.schema["description"]
        tools.insert(0, tool)
        if self._may_force():
            body["tool_choice"] = {"type": "tool", "name": name, "disable_parallel_tool_use": True}
            return ""
        body["tool_choice"] = {"type": "auto"}
        return f"Give your answer by calling the tool {name}."

    def _messages(self, tools: bool, instruction: str) -> tuple[str, list[Json]]:
        images = not has_images(self._request.messages) or self._is_taken("images")
        # Calls need the definitions of tools beside them, and for a model that is made to think, the
        # thoughts that led to them.
        as_blocks = tools and not _is_on(self._extra.get("thinking"))
        system, turns = write_messages(self._request.messages, tools=as_blocks, images=images)
        if instruction:
            block = {"type": "text", "text": printable(instruction)}
            if turns[-1]["role"] == "user":
                turns[-1]["content"].append(block)
            else:
                turns.append({"role": "user", "content": [block]})
        return system, turns


def _is_on(thinking: Json) -> bool:
    return isinstance(thinking, dict) and thinking.get("type") != "disabled"


def _tool(tool: Json) -> Json:
    """A tool in Anthropic's shape, from that, from OpenAI's, or from a bare function."""
    if "function" not in tool and "parameters" not in tool and ("input_schema" in tool or "type" in tool):
        return tool
    function = tool.get("function", tool)
    found = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object"}}
    if function.get("description"):
        found["description"] = function["description"]
    return found


def _tool_choice(choice: Json) -> dict[str, Json]:
    if isinstance(choice, str):
        return {"type": "any" if choice == "required" else choice}
    name = choice["function"]["name"] if "function" in choice else choice.get("name")
    return {"type": "tool", "name": name} if choice.get("type") == "function" else dict(choice)
