"""A server on a real socket that refuses features of a request the way a given vendor does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.openai_server import (
    Fault,
    OpenAIServer,
    Reply,
    forced_tool,
    serve_in_thread,
    text,
    tool,
)

Body = Mapping[str, Any]
ANSWER = {"metres": 10935}
PROSE = "It is 10,935 metres deep."


# -------------------------------------------------------------------------- what a request holds


def functions(body: Body) -> list[Body]:
    """The functions that a request offers, in either dialect."""
    offered = [item["function"] for item in body.get("tools") or ()]
    return [*offered, *(body.get("functions") or ())]


def parts(body: Body) -> list[Body]:
    """All parts of all messages whose content is a list."""
    contents = [message.get("content") for message in body["messages"]]
    return [part for content in contents if isinstance(content, list) for part in content]


def words(body: Body) -> str:
    """The text of all messages."""
    plain = [message["content"] for message in body["messages"] if isinstance(message.get("content"), str)]
    return "\n".join([*plain, *(part.get("text", "") for part in parts(body))])


def images(body: Body) -> int:
    """How many images a request carries."""
    return sum(part.get("type") in ("image_url", "input_image", "image") for part in parts(body))


def format_type(body: Body) -> str:
    """The type of the response format; empty without one."""
    return str((body.get("response_format") or {}).get("type", ""))


def schemas(body: Body) -> list[Any]:
    """The JSON Schemas that a request carries outside its prompt."""
    found = [function.get("parameters") for function in functions(body)]
    if format_type(body) == "json_schema":
        found.append(body["response_format"]["json_schema"].get("schema"))
    return found


def keywords(schema: Any) -> Iterator[str]:
    """All keys at any depth."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            yield from keywords(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from keywords(value)


def _called_before(body: Body) -> list[Body]:
    return [message for message in body["messages"] if message.get("tool_calls")]


SPECIAL: Mapping[str, Callable[[Body], bool]] = {
    "always": lambda body: True,
    "images": lambda body: images(body) > 0,
    "parts": lambda body: bool(parts(body)),
    "developer": lambda body: any(message["role"] == "developer" for message in body["messages"]),
    "no user turn": lambda body: all(message["role"] != "user" for message in body["messages"]),
    "no word JSON": lambda body: format_type(body) == "json_object" and "json" not in words(body).lower(),
    "null": lambda body: any(value is None for value in body.values()),
    "null content": lambda body: any(
        "content" in message and message["content"] is None for message in body["messages"]
    ),
    "no reasoning": lambda body: any("reasoning_content" not in turn for turn in _called_before(body)),
    "tools.strict": lambda body: any("strict" in function for function in functions(body)),
    "tool_choice.object": lambda body: isinstance(body.get("tool_choice"), dict),
    "tool_choice.required": lambda body: body.get("tool_choice") == "required",
    "response_format.json_schema": lambda body: format_type(body) == "json_schema",
    "response_format.json_object": lambda body: format_type(body) == "json_object",
}


def present(feature: str, body: Body) -> bool:
    """Whether a request carries ``feature``.

    A feature is a key of `SPECIAL`, the name of a parameter, ``parameter=JSON`` (that value),
    ``parameter>number``, ``schema.keyword``, or several of these joined by ``&``.
    """
    if "&" in feature:
        return all(present(part, body) for part in feature.split("&"))
    if feature in SPECIAL:
        return SPECIAL[feature](body)
    if feature.startswith("schema."):
        return any(feature.removeprefix("schema.") in keywords(schema) for schema in schemas(body))
    if "=" in feature:
        name, _, value = feature.partition("=")
        return name in body and body[name] == json.loads(value)
    if ">" in feature:
        name, _, value = feature.partition(">")
        return isinstance(body.get(name), int) and body[name] > int(value)
    return body.get(feature) is not None


# -------------------------------------------------------------------------------------- vendors


@dataclass(frozen=True)
class Vendor:
    """What a server refuses, in the order in which it looks, and what it says to each.

    ``together`` writes one answer for all refused features of a request, for vendors that list them.
    """

    refuses: Mapping[str, Fault]
    together: Callable[[Sequence[str]], Fault] | None = None

    def refused(self, body: Body) -> list[str]:
        """The features of a request that this vendor refuses."""
        return [feature for feature in self.refuses if present(feature, body)]

    def judge(self, body: Body) -> Fault | None:
        """The refusal of a request; None: it is fine."""
        found = self.refused(body)
        if not found:
            return None
        return self.together(found) if self.together else self.refuses[found[0]]


# --------------------------------------------------------------------------------- a good answer


def good_answer(body: Body, value: Any = ANSWER) -> Reply:
    """``value`` through the channel that a request opens, or prose when it asks for no structure.

    A prompt opens a channel only if it asks for JSON and names the first key of ``value``.
    """
    key = next(iter(value))
    offered = functions(body)
    if body.get("tools"):
        return tool(forced_tool(body) or offered[0]["name"], value)
    if offered:
        choice = body.get("function_call")
        name = choice["name"] if isinstance(choice, dict) else offered[0]["name"]
        call = {"name": name, "arguments": json.dumps(value)}
        return Reply(message={"function_call": call}, finish="function_call")
    prompt = words(body)
    asked = "json" in prompt.lower() and f'"{key}"' in prompt
    if format_type(body) == "json_schema" or asked:
        wrapped = '"tool"' in prompt and '"arguments"' in prompt
        return text(json.dumps({"tool": "submit_depth", "arguments": value} if wrapped else value))
    return text(PROSE)


# --------------------------------------------------------------------------------------- server


@dataclass(slots=True)
class Desk:
    """One model of the fault server: its vendor, what it says first, and the requests it got.

    ``first`` are answers that come before anything else, one per request, in each pass anew.
    """

    vendor: Vendor = field(default_factory=lambda: Vendor({}))
    first: Sequence[Any] = ()
    value: Any = field(default_factory=lambda: ANSWER)
    reply: Callable[[Body], Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> Any:
        self.log.append(body)
        if len(self.log) <= len(self.first):
            return self.first[len(self.log) - 1]
        return self.vendor.judge(body) or (self.reply(body) if self.reply else good_answer(body, self.value))

    def refused(self) -> list[dict[str, Any]]:
        """The requests that the vendor refused."""
        return [body for body in self.log[len(self.first) :] if self.vendor.refused(body)]

    def faults(self) -> set[str]:
        """The refused features that any request carried."""
        return {feature for body in self.log for feature in self.vendor.refused(body)}


def desk_server(desk: Desk) -> OpenAIServer:
    """A server with one desk, whatever the model's name, for tests inside the event loop."""
    return OpenAIServer(desk.answer)


@contextmanager
def fault_server(desks: Mapping[str, Desk]) -> Iterator[OpenAIServer]:
    """A server in a thread; a request's ``model`` names the desk that answers it."""
    with serve_in_thread(lambda body: desks[body["model"]].answer(body), models=sorted(desks)) as server:
        yield server
