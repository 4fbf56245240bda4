"""Turns a `ChatRequest` into the JSON body of ``POST /chat/completions``."""

from __future__ import annotations

import json
from dataclasses import dataclass

from corerun.errors import RequestRefused, Unsupported
from corerun.interfaces import ChatRequest, Json
from corerun_openai_router.history import write_messages
from corerun_openai_router.text import clean

DEFAULT_SCHEMA_NAME = "answer"

_NEW_LIMIT_NAME = ("gpt-5", "o1", "o3", "o4")


@dataclass(frozen=True, slots=True)
class Features:
    """What may be asked of a server; a feature that is off is left out or written in another way."""

    tools: bool = True
    images: bool = True


def schema_tool_name(request: ChatRequest) -> str:
    """The name of the one function whose arguments are the answer to ``request.schema``."""
    return request.schema_name or DEFAULT_SCHEMA_NAME


def build_body(request: ChatRequest, features: Features) -> dict[str, Json]:
    """The body for ``request``. What isn't set isn't sent: null is no value to any server.

    Raises `RequestRefused` for a request that no server could answer and `Unsupported` for one
    that ``features`` rule out.
    """
    if not request.messages:
        raise RequestRefused("a model was asked with no message")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise RequestRefused(f"max_tokens must be positive, not {request.max_tokens}")
    if request.tools and not features.tools:
        raise Unsupported(
            "tools are asked for but OAIC_DISABLE_TOOLS is set", hint="unset OAIC_DISABLE_TOOLS"
        )
    messages = write_messages(request.messages, tools=features.tools, images=features.images)
    body: dict[str, Json] = {"model": request.model, "messages": messages}
    tools = [_tool(tool) for tool in request.tools]
    if request.schema is not None:
        if features.tools:
            tools.insert(0, _schema_tool(request))
            body["tool_choice"] = {"type": "function", "function": {"name": schema_tool_name(request)}}
        else:
            body["response_format"] = {"type": "json_object"}
            messages.insert(0, {"role": "system", "content": _schema_instruction(request)})
    optional = {
        "tools": tools or None,
        _limit_name(request.model): request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "reasoning_effort": request.reasoning_effort,
        **request.extra,
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    return body


def _limit_name(model: str) -> str:
    return "max_completion_tokens" if model.startswith(_NEW_LIMIT_NAME) else "max_tokens"


def _tool(tool: Json) -> Json:
    """A tool in OpenAI's shape; a bare function ``{name, description, parameters}`` is wrapped."""
    return tool if "function" in tool else {"type": "function", "function": tool}


def _schema_tool(request: ChatRequest) -> Json:
    schema: Json = request.schema
    function = {"name": schema_tool_name(request), "parameters": schema}
    if schema.get("description"):
        function["description"] = schema["description"]
    return {"type": "function", "function": function}


def _schema_instruction(request: ChatRequest) -> str:
    # Several servers refuse `json_object` unless the prompt holds the word JSON.
    schema = json.dumps(request.schema, ensure_ascii=False)
    return clean(f"Answer with one JSON object and nothing else. It must fit this JSON Schema:\n{schema}")
