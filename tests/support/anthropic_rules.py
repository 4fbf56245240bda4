"""The rules that Anthropic's API has for the body of a request, in its own words."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

FIELDS = frozenset(
    {
        "model",
        "max_tokens",
        "messages",
        "system",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "stream",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "metadata",
        "service_tier",
    }
)
EFFORTS = ("low", "medium", "high", "xhigh", "max")
IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
LARGEST_IMAGE = 10 * 1024 * 1024

_ID = re.compile(r"[A-Za-z0-9_-]+")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SCHEMA_WORDS = frozenset(
    {
        "type",
        "description",
        "enum",
        "const",
        "required",
        "anyOf",
        "properties",
        "additionalProperties",
        "items",
    }
)


class Broken(ValueError):
    """A rule is broken; the text is what the API says to it."""


def check_body(body: Any) -> None:
    """Raises `Broken` at the first rule that ``body`` breaks."""
    need(isinstance(body, dict), "the body must be a JSON object")
    for name in body:
        need(name in FIELDS, f"{name}: Extra inputs are not permitted")
        need(body[name] is not None, f"{name}: Input should not be null")
    for name in ("model", "max_tokens", "messages"):
        need(name in body, f"{name}: Field required")
    need(isinstance(body["model"], str) and body["model"], "model: String should have at least 1 character")
    need(is_count(body["max_tokens"]), "max_tokens: Input should be a valid integer")
    need(body["max_tokens"] >= 1, "max_tokens: must be greater than or equal to 1")
    for name in ("temperature", "top_p"):
        if name in body:
            value = body[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            need(is_number and 0 <= value <= 1, f"{name}: range: 0..1")
    for text in body.get("stop_sequences", ()):
        need(text.strip(), "stop_sequences: each stop sequence must contain non-whitespace")
    if "system" in body:
        need(
            isinstance(body["system"], str) and body["system"],
            "system: text content blocks must be non-empty",
        )
    thinks = check_thinking(body)
    names = check_tools(body, thinks)
    check_output_config(body.get("output_config"))
    check_messages(body["messages"], has_tools=bool(names))


def need(holds: Any, message: str) -> None:
    if not holds:
        raise Broken(message)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def only(value: Any, where: str, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    need(isinstance(value, dict), f"{where}: Input should be a valid dictionary")
    for name in required:
        need(name in value, f"{where}.{name}: Field required")
    for name in value:
        need(name in (*required, *optional), f"{where}.{name}: Extra inputs are not permitted")


def check_thinking(body: Mapping[str, Any]) -> bool:
    thinking = body.get("thinking")
    if thinking is None:
        return False
    kind = thinking.get("type")
    need(kind in ("enabled", "disabled", "adaptive"), "thinking: Input tag found using 'type' is unknown")
    if kind == "enabled":
        only(thinking, "thinking.enabled", ("type", "budget_tokens"))
        need(thinking["budget_tokens"] >= 1024, "thinking.enabled.budget_tokens: must be at least 1024")
        need(thinking["budget_tokens"] < body["max_tokens"], "`max_tokens` must be greater than the budget")
        need(body.get("temperature", 1) == 1, "`temperature` may only be set to 1 when thinking is enabled.")
    return bool(kind != "disabled")


def check_tools(body: Mapping[str, Any], thinks: bool) -> list[str]:
    tools = body.get("tools", [])
    for number, tool in enumerate(tools):
        only(tool, f"tools.{number}.custom", ("name", "input_schema"), ("description", "strict", "type"))
        name, schema = tool["name"], tool["input_schema"]
        need(_TOOL_NAME.fullmatch(name), f"tools.{number}.custom.name: String should match pattern")
        need(schema.get("type") == "object", f"tools.{number}.custom.input_schema.type: Field required")
    names = [tool["name"] for tool in tools]
    need(len(set(names)) == len(names), "tools: Tool names must be unique.")
    choice = body.get("tool_choice")
    if choice is not None:
        need(tools, "tool_choice may only be specified while providing tools.")
        need(
            choice.get("type") in ("auto", "any", "tool", "none"),
            "tool_choice: Input tag found using 'type' is unknown",
        )
        if choice["type"] == "tool":
            only(choice, "tool_choice.tool", ("type", "name"), ("disable_parallel_tool_use",))
            need(choice["name"] in names, f"Tool '{choice['name']}' not found in provided tools")
        forced = choice["type"] in ("any", "tool")
        need(not (forced and thinks), "Thinking may not be enabled when tool_choice forces tool use.")
    return names


def check_output_config(config: Any) -> None:
    if config is None:
        return
    only(config, "output_config", (), ("effort", "format"))
    need(config, "output_config: must not be empty")
    if "effort" in config:
        listed = ", ".join(f"'{effort}'" for effort in EFFORTS)
        need(config["effort"] in EFFORTS, f"output_config.effort: Input should be {listed}")
    if "format" in config:
        only(config["format"], "output_config.format", ("type", "schema"))
        need(
            config["format"]["type"] == "json_schema",
            "output_config.format.type: Input should be 'json_schema'",
        )
        check_schema(config["format"]["schema"])


def check_schema(schema: Any) -> None:
    """The dialect of structured outputs."""
    where = "output_config.format.schema"
    need(isinstance(schema, dict), f"{where}: Input should be a valid dictionary")
    kind = schema.get("type")
    for word in schema:
        need(word in _SCHEMA_WORDS, f"{where}: For '{kind}' type, property '{word}' is not supported")
    need(kind or "anyOf" in schema or "enum" in schema, f"{where}: a schema needs a type")
    if kind == "object":
        closed = schema.get("additionalProperties") is False
        need(closed, f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false")
        for name in schema.get("required", ()):
            need(name in schema["properties"], f"{where}: required name {name} is no property")
    for inner in (*schema.get("properties", {}).values(), *schema.get("anyOf", ())):
        check_schema(inner)
    if kind == "array":
        need("items" in schema, f"{where}: For 'array' type, 'items' is required")
        check_schema(schema["items"])


# ---------------------------------------------------------------------------------------- messages


def check_messages(messages: Any, *, has_tools: bool) -> None:
    need(isinstance(messages, list) and messages, "messages: at least one message is required")
    need(messages[0].get("role") == "user", 'messages: first message must use the "user" role')
    open_ids: list[str] = []
    seen: set[str] = set()
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        only(message, where, ("role", "content"))
        role = message["role"]
        need(role in ("user", "assistant"), f"{where}.role: Input should be 'user' or 'assistant'")
        alternates = number == 0 or messages[number - 1]["role"] != role
        need(alternates, 'messages: roles must alternate between "user" and "assistant"')
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        need(blocks, f"{where}: all messages must have non-empty content")
        uses = [block for block in blocks if block["type"] == "tool_use"]
        results = [block for block in blocks if block["type"] == "tool_result"]
        need(has_tools or not (uses or results), "Requests which have tool blocks must define tools")
        answered = [block["tool_use_id"] for block in results]
        missing = [call for call in open_ids if call not in answered]
        need(
            not missing,
            f"messages.{number - 1}: `tool_use` ids were found without `tool_result` blocks immediately "
            f"after: {', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` "
            "block in the next message.",
        )
        strange = [call for call in answered if call not in open_ids]
        need(not strange, f"{where}: unexpected `tool_use_id` found in `tool_result` blocks: {strange}")
        need(len(set(answered)) == len(answered), f"{where}: each tool_use must have a single result")
        need(blocks[: len(results)] == results, f"{where}: tool_result blocks must come first")
        open_ids = [block["id"] for block in uses]
        for call in open_ids:
            need(_ID.fullmatch(call), f"{where}: tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
            need(call not in seen, "messages: `tool_use` ids must be unique")
            seen.add(call)
        for block in blocks:
            check_block(block, where, role)
    need(not open_ids, "messages: `tool_use` ids were found without `tool_result` blocks at the end")


def check_block(block: Any, where: str, role: str) -> None:
    match block["type"]:
        case "text":
            only(block, f"{where}.text", ("type", "text"))
            need(block["text"], "messages: text content blocks must be non-empty")
            need(block["text"].strip(), "messages: text content blocks must contain non-whitespace text")
        case "image":
            need(role == "user", f"{where}: image blocks may only be in user messages")
            only(block, f"{where}.image", ("type", "source"))
            only(block["source"], f"{where}.image.source", ("type", "media_type", "data"))
            check_image(block["source"], f"{where}.image.source.base64")
        case "tool_use":
            need(role == "assistant", f"{where}: tool_use blocks may only be in assistant messages")
            only(block, f"{where}.tool_use", ("type", "id", "name", "input"))
            need(
                isinstance(block["input"], dict),
                f"{where}.tool_use.input: Input should be a valid dictionary",
            )
        case "tool_result":
            need(role == "user", f"{where}: tool_result blocks may only be in user messages")
            only(block, f"{where}.tool_result", ("type", "tool_use_id", "content"), ("is_error",))
            if not isinstance(block["content"], str):
                for inner in block["content"]:
                    need(inner["type"] in ("text", "image"), f"{where}.tool_result: wrong block")
                    check_block(inner, where, role)
        case other:
            raise Broken(f"{where}: Input tag '{other}' found using 'type' does not match any of the tags")


def check_image(source: Mapping[str, Any], where: str) -> None:
    need(source["type"] == "base64", f"{where}.type: Input should be 'base64'")
    listed = " or ".join(f"'{kind}'" for kind in IMAGE_TYPES)
    need(source["media_type"] in IMAGE_TYPES, f"{where}.media_type: Input should be {listed}")
    size = len(source["data"])
    need(size <= LARGEST_IMAGE, f"{where}: image exceeds 10 MB maximum: {size} bytes > {LARGEST_IMAGE} bytes")
    try:
        data = base64.b64decode(source["data"], validate=True)
    except binascii.Error:
        raise Broken(f"{where}.data: Invalid base64 data") from None
    need(data, f"{where}.data: image cannot be empty")
