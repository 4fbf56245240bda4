"""Turns a `ChatRequest` and what a server is known to refuse into the JSON body of a chat completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from corerun.errors import RequestRefused
from corerun.interfaces import ChatRequest, Json
from corerun.llm.messages import has_images
from corerun_openai_router import facts as known
from corerun_openai_router.asking import schema
from corerun_openai_router.asking.channels import (
    FUNCTION,
    OBJECT,
    PROMPT,
    SCHEMA,
    TOOL,
    choose_channel,
    choose_form,
    is_thinking,
)
from corerun_openai_router.asking.history import (
    GO_ON,
    CallForm,
    Manner,
    add_to_last_user_turn,
    write_messages,
)
from corerun_openai_router.asking.instructions import ask_for_calls, ask_for_json, ask_for_the_word
from corerun_openai_router.facts import Facts, Refusals

DEFAULT_SCHEMA_NAME = "answer"

_DEFAULTS: Mapping[str, Json] = {"presence_penalty": 0, "frequency_penalty": 0, "n": 1}
_OF_TOOLS = frozenset({"tool_choice", "parallel_tool_calls"})


@dataclass(frozen=True, slots=True)
class Built:
    """A body, and how it came about.

    ``channel`` is the way in which the schema is asked for, empty without one. ``applied`` are the
    facts without which the body would be another one. ``strict_schema``: optional keys of the
    answer may be null. ``calls_in_text``: the answer's text may be a call of a function.
    """

    body: dict[str, Json]
    channel: str
    applied: tuple[str, ...]
    strict_schema: bool = False
    calls_in_text: bool = False


def schema_tool_name(request: ChatRequest) -> str:
    """The name of the function whose arguments are the answer to ``request.schema``."""
    return request.schema_name or DEFAULT_SCHEMA_NAME


def build(
    request: ChatRequest, facts: Facts = known.NOTHING, *, openai: bool = False, stream: bool = False
) -> Built:
    """The body for ``request`` without what ``facts`` rule out. What isn't set isn't sent.

    ``openai``: the server is OpenAI's or Azure's, which prefer other words than their followers.
    Raises `RequestRefused` for a request that no server could answer.
    """
    if not request.messages:
        raise RequestRefused("a model was asked with no message")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise RequestRefused(f"max_tokens must be positive, not {request.max_tokens}")
    return _Builder(request, facts, openai).build(stream)


class _Builder:
    def __init__(self, request: ChatRequest, facts: Facts, openai: bool) -> None:
        self._request = request
        self._facts = facts
        self._openai = openai
        self._refusals = Refusals(facts)
        self._refused = self._refusals.hold
        self._schema: Json = None
        if request.schema is not None:
            try:
                self._schema = schema.prepared(request.schema, facts)
            except schema.Recursive:
                self._schema = None
        self._thinking = is_thinking(request)
        self._strict_schema = False

    def build(self, stream: bool) -> Built:
        request = self._request
        channel = ""
        if request.schema is not None:
            channel = choose_channel(request, self._schema, self._refusals, openai=self._openai)
        form = choose_form(request, channel, self._refusals)
        body: dict[str, Json] = {"model": request.model, "messages": []}
        self._add_parameters(body, with_tools=form is CallForm.TOOLS)
        if form is CallForm.TOOLS:
            self._add_tools(body, channel)
        elif form is CallForm.FUNCTIONS:
            self._add_functions(body, channel)
        self._add_response_format(body, channel)
        self._drop_what_excludes_tools(body)
        body["messages"] = self._messages(channel, form, body)
        if stream:
            body["stream"] = True
            if not self._refused(known.STREAM_OPTIONS):
                body["stream_options"] = {"include_usage": True}
        if channel in (TOOL, SCHEMA, FUNCTION):
            self._note_refused_words()
        calls_in_text = bool(request.tools) and form is CallForm.TEXT
        return Built(body, channel, self._refusals.applied, self._strict_schema, calls_in_text)

    def _note_refused_words(self) -> None:
        words = [fact for fact in self._facts if fact.startswith(schema.PREFIX)]
        if words:
            used = set(schema.keywords_of(self._request.schema))
            for fact in sorted(words):
                if fact == known.PLAIN_SCHEMA or fact.removeprefix(schema.PREFIX) in used:
                    self._refused(fact)

    # ------------------------------------------------------------------------------- parameters

    def _add_parameters(self, body: dict[str, Json], *, with_tools: bool) -> None:
        request = self._request
        asked: dict[str, Json] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stop": list(request.stop),
            "reasoning_effort": request.reasoning_effort,
            **request.extra,
        }
        if request.max_tokens is not None:
            self._add_limit(body, request.max_tokens)
        for name, value in asked.items():
            if value is None or value == [] or (name in _DEFAULTS and value == _DEFAULTS[name]):
                continue
            if name in _OF_TOOLS and not with_tools:
                continue
            if name == known.RESPONSE_FORMAT:
                value = self._response_format(value)
            elif name == "tool_choice":
                value = self._tool_choice(value)
            elif self._refused(name) or self._refused(known.value_fact(name, value)):
                continue
            if value is not None:
                body[name] = value

    def _add_limit(self, body: dict[str, Json], limit: int) -> None:
        names = known.LIMIT_NAMES[::-1] if self._openai else known.LIMIT_NAMES
        for name in names:
            if not self._refused(name):
                break
        else:
            return
        cap = known.cap_of(self._facts)
        if cap is not None and cap < limit:
            self._refused(f"{known.CAP}{cap}")
            limit = cap
        if not self._refused(known.value_fact(name, limit)):
            body[name] = limit

    def _response_format(self, value: Json) -> Json | None:
        """A caller's own response format, or the nearest one that isn't refused."""
        if self._refused(known.RESPONSE_FORMAT):
            return None
        if self._thinking and self._refused(known.FORMAT_WHEN_THINKING):
            return None
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == SCHEMA and self._refused(known.JSON_SCHEMA):
            value, kind = {"type": OBJECT}, OBJECT
        return None if kind == OBJECT and self._refused(known.JSON_OBJECT) else value

    def _add_response_format(self, body: dict[str, Json], channel: str) -> None:
        if channel == OBJECT:
            body[known.RESPONSE_FORMAT] = {"type": OBJECT}
        elif channel == SCHEMA:
            described: dict[str, Json] = {"name": schema_tool_name(self._request), "schema": self._schema}
            is_open = known.OPEN_OBJECTS in self._facts
            closed = None if is_open else schema.strict(self._schema)
            if closed is not None and not self._refused(known.FORMAT_STRICT):
                described.update(schema=closed, strict=True)
                self._strict_schema = True
            body[known.RESPONSE_FORMAT] = {"type": SCHEMA, "json_schema": described}

    def _drop_what_excludes_tools(self, body: dict[str, Json]) -> None:
        if "tools" not in body:
            return
        if known.RESPONSE_FORMAT in body and self._refused(known.FORMAT_WITH_TOOLS):
            del body[known.RESPONSE_FORMAT]
        if "reasoning_effort" in body and self._refused(known.EFFORT_WITH_TOOLS):
            del body["reasoning_effort"]

    # ------------------------------------------------------------------------------------ tools

    def _add_tools(self, body: dict[str, Json], channel: str) -> None:
        request = self._request
        tools = [{"type": "function", "function": function} for function in self._functions(channel)]
        if not tools:
            body.pop("tool_choice", None)
            return
        body["tools"] = tools
        if channel != TOOL:
            return
        own = {"type": "function", "function": {"name": schema_tool_name(request)}}
        choice = self._tool_choice("required" if request.tools else own)
        if choice is not None:
            body["tool_choice"] = choice

    def _tool_choice(self, choice: Json) -> Json | None:
        if choice != "none" and choice != "auto":
            forced = known.value_fact("tool_choice", choice)
            if self._refused(forced) or (self._thinking and self._refused(known.CHOICE_WHEN_THINKING)):
                choice = "auto"
        if self._refused("tool_choice") or self._refused(f"tool_choice={choice}"):
            return None
        return choice

    def _add_functions(self, body: dict[str, Json], channel: str) -> None:
        functions = self._functions(channel)
        if not functions:
            return
        body["functions"] = [
            {key: value for key, value in function.items() if key != "strict"} for function in functions
        ]
        asked = self._request.extra.get("tool_choice")
        name = asked["function"]["name"] if isinstance(asked, dict) and "function" in asked else None
        if channel == FUNCTION and not self._request.tools:
            name = schema_tool_name(self._request)
        choice: Json = {"name": name} if name else "none" if asked == "none" else "auto"
        if name and self._refused("function_call=object"):
            choice = "auto"
        if not self._refused("function_call"):
            body["function_call"] = choice

    def _functions(self, channel: str) -> list[dict[str, Json]]:
        """The functions that may be called, the one that takes the answer first."""
        functions = [self._schema_function()] if channel in (TOOL, FUNCTION) else []
        for tool in self._request.tools:
            function = dict(tool.get("function", tool))
            if "parameters" in function:
                function["parameters"] = self._dialect(function["parameters"])
            if "strict" in function and self._refused(known.TOOLS_STRICT):
                del function["strict"]
            functions.append(function)
        return functions

    def _schema_function(self) -> dict[str, Json]:
        parameters = self._schema
        function: dict[str, Json] = {"name": schema_tool_name(self._request), "parameters": parameters}
        if parameters.get("description"):
            function["description"] = parameters["description"]
        return function

    def _dialect(self, parameters: Json) -> Json:
        """A caller's own schema, changed only where a word of it is refused."""
        if not any(fact.startswith(schema.PREFIX) for fact in self._facts):
            return parameters
        try:
            return schema.prepared(parameters, self._facts)
        except schema.Recursive:
            return parameters

    # --------------------------------------------------------------------------------- messages

    def _messages(self, channel: str, form: CallForm, body: Mapping[str, Json]) -> list[Json]:
        request = self._request
        messages = request.messages
        images = not (has_images(messages) and self._refused(known.IMAGES))
        thinking = known.REASONING_BACK in self._facts and any(
            message.role == "assistant" for message in messages
        )
        manner = Manner(form, images, thinking and self._refused(known.REASONING_BACK), self._roles())
        written = write_messages(messages, manner)
        if known.NO_USER_TURN in self._facts and not any(turn["role"] == "user" for turn in written):
            self._refused(known.NO_USER_TURN)
            written.append({"role": "user", "content": GO_ON})
        instruction = self._instruction(channel, form, body)
        if instruction:
            add_to_last_user_turn(written, instruction)
        return written

    def _instruction(self, channel: str, form: CallForm, body: Mapping[str, Json]) -> str:
        """What is said in words because the server can't be told otherwise, or didn't listen."""
        request = self._request
        if request.tools and form is CallForm.TEXT:
            functions = [tool.get("function", tool) for tool in request.tools]
            if request.schema is not None:
                functions.insert(0, {"name": schema_tool_name(request), "parameters": request.schema})
            return ask_for_calls(functions, optional=request.schema is None)
        ignored = any(fact.startswith(known.CHANNEL) for fact in self._refusals.applied)
        if channel in (OBJECT, PROMPT) or (channel and ignored):
            return ask_for_json(request.schema)
        if known.RESPONSE_FORMAT in body and self._refused(known.NO_JSON_WORD):
            return ask_for_the_word()
        return ""

    def _roles(self) -> dict[str, str]:
        """Other names for roles that are refused: the nearest role that isn't."""
        used = {message.role for message in self._request.messages}
        roles: dict[str, str] = {}
        if "developer" in used and self._refused(known.DEVELOPER_ROLE):
            roles["developer"] = "user" if self._refused(known.SYSTEM_ROLE) else "system"
        if "system" in used and self._refused(known.SYSTEM_ROLE):
            developer = self._openai and not self._refused(known.DEVELOPER_ROLE)
            roles["system"] = "developer" if developer else "user"
        return roles
