"""Rows for what real servers were seen to say, vendor by vendor, in their own words and shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from corerun.interfaces import Message, Part, ToolCall
from tests.support.fault_server import parts
from tests.support.faults.rows import (
    AZURE,
    FULL,
    NO_TOOLS,
    PLAIN,
    STRUCTURED,
    Row,
    carries,
    detail,
    extra,
    forbidden,
    openai,
    refusal,
)
from tests.support.openai_server import Fault, fault

CALLED = (
    PLAIN.messages[1],
    Message("assistant", "", tool_calls=(ToolCall("call_1", "dive", '{"metres": 3}'),)),
    Message("tool", "Nothing seen.", tool_call_id="call_1"),
    Message("user", "And how deep is the sea?"),
)
LISTED = {
    "type": "object",
    "properties": {
        "metres": {"type": "number"},
        "notes": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
    "required": ["metres", "notes"],
    "additionalProperties": False,
}
NOTED = {"metres": 10935, "notes": ["Challenger Deep"]}


def rows() -> Iterator[Row]:
    yield from _local_servers()
    yield from _chinese()
    yield from _strict_fields()
    yield from _gateways()


def _local_servers() -> Iterator[Row]:
    tools = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    top = {"object": "error", "message": tools, "type": "BadRequestError", "param": None, "code": 400}
    yield refusal("vllm-tools-old", FULL, {"tools": fault(400, top)}, requests=2)
    new = fault(400, {"error": {"message": tools, "type": "BadRequestError", "param": None, "code": 400}})
    yield refusal("vllm-tools-new", FULL, {"tools": new}, requests=2)
    for status in (400, 500):
        answer = fault(
            status,
            {
                "object": "error",
                "message": "x/tiny is not a multimodal model",
                "type": "BadRequestError",
                "code": status,
            },
        )
        yield refusal(f"vllm-image-{status}", FULL, {"images": answer}, requests=2)
    for name, message in {
        "old": "Unsupported param: tools",
        "later": "tools param requires --jinja flag",
    }.items():
        answer = fault(500, {"error": {"code": 500, "message": message, "type": "server_error"}})
        yield refusal(f"llama-cpp-tools-{name}", FULL, {"tools": answer}, requests=2)
    answer = fault(500, {"code": 500, "message": "Unsupported param: tools", "type": "server_error"})
    yield refusal("llama-cpp-tools-top-level", FULL, {"tools": answer}, requests=2)
    hint = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
    answer = fault(500, {"error": {"code": 500, "message": hint, "type": "server_error"}})
    yield refusal("llama-cpp-image", FULL, {"images": answer}, requests=2)
    answer = openai("registry.example/library/gemma3:4b does not support tools", type="api_error")
    yield refusal("ollama-tools", FULL, {"tools": answer}, requests=2)
    answer = fault(400, {"error": "registry.example/library/gemma3:4b does not support tools"})
    yield refusal("ollama-tools-native", FULL, {"tools": answer}, requests=2)
    yield refusal(
        "ollama-image", FULL, {"images": openai("this model does not support image input")}, requests=2
    )
    said = "json: cannot unmarshal array into Go struct field Message.messages.content of type string"
    yield refusal("ollama-image-ancient", FULL, {"images": openai(said)}, requests=2)
    answer = fault(400, {"error": "'response_format.type' must be 'json_schema' or 'text'"})
    yield refusal(
        "lm-studio-json-object",
        STRUCTURED,
        {"response_format.json_object": answer},
        environ={"OAIC_DISABLE_TOOLS": "1"},
    )


def _chinese() -> Iterator[Row]:
    answer = openai("This response_format type is unavailable now", code="invalid_request_error")
    yield refusal("deepseek-json-schema", FULL, {"response_format.json_schema": answer}, connection=NO_TOOLS)
    answer = openai("This response_format type is unavailable now", status=422, code="invalid_request_error")
    yield refusal(
        "deepseek-json-schema-422", FULL, {"response_format.json_schema": answer}, connection=NO_TOOLS
    )
    text_only = (PLAIN.messages[0], Message("user", (Part("text", "How deep "), Part("text", "is the sea?"))))
    said = (
        "Failed to deserialize the JSON body into the target type: messages[1]: invalid type: "
        "sequence, expected a string"
    )
    sequence = openai(said, status=422)
    yield refusal(
        "deepseek-parts", replace(STRUCTURED, messages=text_only), {"parts": sequence}, avoidable=True
    )
    yield refusal("deepseek-parts-with-image", FULL, {"parts": sequence}, last=[lambda body: not parts(body)])
    said = (
        "Failed to deserialize the JSON body into the target type: messages[0].role: unknown "
        "variant `developer`, expected one of `system`, `user`, `assistant`, `tool`"
    )
    developer = replace(STRUCTURED, messages=(Message("developer", "Be brief."), PLAIN.messages[1]))
    yield refusal("deepseek-developer", developer, {"developer": openai(said)}, avoidable=True)
    said = "The `reasoning_content` in the thinking mode must be passed back to the API."
    yield refusal(
        "deepseek-reasoning-back", replace(STRUCTURED, messages=CALLED), {"no reasoning": openai(said)}
    )
    choice = openai("Thinking mode does not support this tool_choice")
    yield refusal("deepseek-tool-choice", FULL, {"tool_choice.object": choice}, requests=2)
    said = (
        "<400> InternalError.Algo.InvalidParameter: The tool_choice parameter does not support being set to "
        "required or object in thinking mode"
    )
    choice = openai(said, code="invalid_parameter_error")
    yield refusal(
        "qwen-tool-choice", FULL, {"tool_choice.object": choice, "tool_choice.required": choice}, requests=2
    )
    answer = openai(
        "Json mode response is not supported when enable_thinking is true", code="invalid_parameter_error"
    )
    yield refusal(
        "qwen-json-mode-thinking",
        replace(STRUCTURED, extra={"enable_thinking": True}),
        {"response_format&enable_thinking": answer},
        environ={"OAIC_DISABLE_TOOLS": "1"},
    )


def _strict_fields() -> Iterator[Row]:
    answer = fault(
        400,
        {
            "error": {
                "message": "property 'store' is unsupported, did you mean 'stop'?",
                "type": "invalid_request_error",
            }
        },
    )
    yield refusal(
        "groq-store", extra(store=True), {"store": answer}, requests=2, last=[carries("stop", ["END"])]
    )
    answer = openai(
        "invalid schema for response format: response_format/json_schema/submit_depth: minItems is "
        "not supported"
    )
    yield refusal(
        "groq-schema-keyword",
        replace(FULL, schema=LISTED),
        {"response_format.json_schema&schema.minItems": answer},
        value=NOTED,
        connection=NO_TOOLS,
    )
    answer = openai(
        "Invalid schema: 'minItems' is not permitted.", param="response_format.json_schema.schema"
    )
    yield refusal(
        "schema-keyword-by-path",
        replace(FULL, schema=LISTED),
        {"response_format.json_schema&schema.minItems": answer},
        value=NOTED,
        connection=NO_TOOLS,
    )
    every = dict.fromkeys(("seed", "reasoning_effort", "max_completion_tokens"), fault(422))
    yield refusal("mistral-extra-forbidden", STRUCTURED, every, together=_mistral, requests=2)
    yield refusal("mistral-extra-forbidden-text", STRUCTURED, every, together=_mistral_text, requests=2)
    yield refusal(
        "mistral-bare-detail", STRUCTURED, every, together=lambda names: detail(forbidden(*names)), requests=2
    )
    yield refusal(
        "mistral-max-completion-tokens",
        STRUCTURED,
        every,
        together=_mistral,
        connection=AZURE,
        requests=2,
        last=[carries("max_tokens", 64)],
    )
    penalties = extra(frequency_penalty=0.5, presence_penalty=0.5)
    fields = dict.fromkeys(("frequency_penalty", "presence_penalty", "seed"), fault(400))
    yield refusal("gemini-unknown-names", penalties, fields, together=_gemini, requests=2)
    place = "tools[0].function_declarations[0].parameters"
    answer = fault(400, [{"error": {"code": 400, "message": _unknown("additionalProperties", place)}}])
    yield refusal("gemini-schema-keyword", FULL, {"schema.additionalProperties": answer}, avoidable=True)
    answer = openai("Function calling with a response mime type: 'application/json' is unsupported")
    yield refusal(
        "gemini-tools-with-format",
        replace(STRUCTURED, extra={"response_format": {"type": "json_object"}}),
        {"tools&response_format": answer},
    )


def _gateways() -> Iterator[Row]:
    said = "No endpoints found that support tool use. To learn more about provider routing, see the docs."
    missing = fault(404, {"error": {"message": said, "code": 404}})
    yield refusal("openrouter-tools", FULL, {"tools": missing}, requests=2)
    missing = fault(404, {"error": {"message": "No endpoints found that support image input", "code": 404}})
    yield refusal("openrouter-image", FULL, {"images": missing}, requests=2)
    said = "No endpoints found that support the provided 'tool_choice' value."
    missing = fault(404, {"error": {"message": said, "code": 404}})
    yield refusal("openrouter-tool-choice", FULL, {"tool_choice.object": missing}, requests=2)
    said = "Model grok-4-latest does not support parameter reasoningEffort."
    camel = fault(400, {"code": "Client specified an invalid argument", "error": said})
    yield refusal("xai-effort", FULL, {"reasoning_effort": camel}, requests=2)
    said = (
        "1 validation error for ChatCompletionServerRequest\nreasoning_effort\n  Input should be "
        "'low', 'medium' or 'high'"
    )
    top = {
        "message": said,
        "type": "invalid_request_error",
        "param": "validation_error",
        "code": "wrong_api_format",
    }
    yield refusal(
        "cerebras-effort",
        replace(FULL, reasoning_effort="none"),
        {'reasoning_effort="none"': fault(400, top)},
        requests=2,
    )
    said = (
        "Failed to deserialize the JSON body into the target type: thinking: unknown field "
        "`thinking`, expected one of `messages`, `model`"
    )
    yield refusal(
        "bedrock-thinking", extra(thinking={"type": "enabled"}), {"thinking": openai(said)}, requests=2
    )
    said = (
        "litellm.UnsupportedParamsError: openai does not support parameters: ['reasoning_effort'], "
        "for model=x. To drop these, set `litellm.drop_params=True`"
    )
    yield refusal(
        "litellm-params", FULL, {"reasoning_effort": openai(said, type=None, code="400")}, requests=2
    )


def _mistral(names: Sequence[str]) -> Fault:
    fields: dict[str, Any] = {"type": "invalid_request_error", "param": None, "code": None}
    return fault(422, {"object": "error", "message": {"detail": forbidden(*names)}, **fields})


def _mistral_text(names: Sequence[str]) -> Fault:
    fields: dict[str, Any] = {"type": "internal_error_proxy", "param": None, "code": "1000"}
    return fault(422, {"object": "error", "message": json.dumps({"detail": forbidden(*names)}), **fields})


def _unknown(name: str, place: str = "") -> str:
    where = f" at '{place}'" if place else ""
    return f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.'


def _gemini(names: Sequence[str]) -> Fault:
    violations = [{"description": _unknown(name)} for name in names]
    error = {
        "code": 400,
        "message": "\n".join(_unknown(name) for name in names),
        "status": "INVALID_ARGUMENT",
        "details": [{"@type": "type.example/BadRequest", "fieldViolations": violations}],
    }
    return fault(400, [{"error": error}])
