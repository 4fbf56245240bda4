"""Rows for every sentence with which servers refuse a parameter, and for every shape of its body."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from corerun.interfaces import Message
from tests.support.fault_server import ANSWER, Vendor, words
from tests.support.faults.rows import (
    FULL,
    PLAIN,
    SAMPLED,
    STRUCTURED,
    Row,
    carries,
    detail,
    extra,
    failure,
    forbidden,
    lacks,
    nested,
    openai,
    refusal,
)
from tests.support.openai_server import Fault, fault, text

VALUES: Mapping[str, Any] = {
    "seed": 7,
    "reasoning_effort": "low",
    "temperature": 0.2,
    "top_p": 0.9,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logprobs": True,
    "n": 2,
    "stream_options": {"include_usage": True},
    "parallel_tool_calls": False,
    "metadata": {"a": "b"},
    "user": "ada",
    "store": False,
}
"""Parameters that are left out only when an error names them, and two of the fixed order."""

SENTENCES: Mapping[str, Callable[[str], Fault]] = {
    "unsupported-parameter": lambda p: openai(f"Unsupported parameter: '{p}' is not supported here."),
    "unrecognized-argument": lambda p: openai(f"Unrecognized request argument supplied: {p}"),
    "unknown-parameter": lambda p: openai(f"Unknown parameter: '{p}'.", code="unknown_parameter"),
    "unsupported-value": lambda p: openai(
        f"Unsupported value: '{p}' does not support this value with this model.", code="unsupported_value"
    ),
    "additional-properties": lambda p: openai(
        f"Additional properties are not allowed ('{p}' was unexpected) - 'messages'"
    ),
    "extra-forbidden": lambda p: detail(forbidden(p)),
    "extra-inputs": lambda p: openai(f"1 validation error\n{p}\n  Extra inputs are not permitted"),
    "unexpected-fields": lambda p: detail(f"Unexpected fields in the request: {{'{p}'}}"),
    "property-unsupported": lambda p: openai(f"property '{p}' is unsupported"),
    "unknown-name": lambda p: openai(
        f'Invalid JSON payload received. Unknown name "{p}": Cannot find field.'
    ),
    "unknown-field": lambda p: openai(
        f"Failed to deserialize the JSON body into the target type: {p}: unknown field `{p}`, expected one"
    ),
    "no-support-parameter": lambda p: openai(f"Model x does not support parameter {p}."),
    "no-support-parameters": lambda p: openai(f"x does not support parameters: ['{p}'], for model=y"),
    "unsupported-param": lambda p: fault(501, {"error": {"message": f"Unsupported param: {p}"}}),
    "not-supported": lambda p: openai(f"{p} is not supported by this backend", status=415),
    "param-requires": lambda p: fault(
        500, {"error": {"code": 500, "message": f"{p} param requires --another flag", "type": "server_error"}}
    ),
    "only-param": lambda p: openai("This request is not valid.", param=p, code="unsupported_parameter"),
    "method-not-allowed": lambda p: openai(f"Unsupported parameter: '{p}'", status=405),
    "not-found": lambda p: openai(f"Unknown parameter: '{p}'", status=404),
}

SAID = "Unsupported parameter: 'temperature' is not supported with this model."


def shapes(said: str) -> dict[str, Any]:
    """One sentence in every shape of a body that servers send."""
    error = {"message": said, "type": "invalid_request_error", "param": None, "code": None}
    return {
        "error-object": {"error": error},
        "error-string": {"error": said},
        "error-string-code": {"code": "Client specified an invalid argument", "error": said},
        "top-level": {"object": "error", **error, "code": 400},
        "detail-string": {"detail": said},
        "detail-list": {"detail": [{"type": "value_error", "loc": ["body"], "msg": said, "input": {}}]},
        "array": [{"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}],
        "message-only": {"message": said},
        "mistral": {
            "object": "error",
            "message": {"detail": [{"type": "value_error", "loc": ["body"], "msg": said}]},
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
        "mistral-text": {
            "object": "error",
            "message": json.dumps({"detail": [{"type": "value_error", "loc": ["body"], "msg": said}]}),
            "type": "internal_error_proxy",
            "param": None,
            "code": "1000",
        },
        "json-in-json": nested({"error": error}, 1),
        "json-in-json-in-json": nested({"error": error}, 2),
        "openrouter-raw": {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": json.dumps({"error": error}), "provider_name": "x"},
            }
        },
        "code-number": {"error": {**error, "code": 400}},
        "code-text": {"error": {**error, "code": "400"}},
        "python-repr": {
            "error": {
                "message": f"litellm.BadRequestError: OpenAIException - {{'error': {error!r}}}",
                "type": None,
                "param": None,
                "code": "400",
            }
        },
        "plain-text": said,
    }


CONTEXT_SAID = (
    "This model's maximum context length is 8192 tokens. However, you requested 10020 tokens "
    "(9956 in the messages, 64 in the completion)."
)
QUOTA_SAID = "You exceeded your current quota, please check your plan and billing details."


def rows() -> Iterator[Row]:
    for kind, say in SENTENCES.items():
        for name, value in VALUES.items():
            asked = SAMPLED if name in ("seed", "reasoning_effort", "temperature", "top_p") else None
            yield refusal(
                f"{kind}-{name}", asked or extra(**{name: value}), {name: say(name)}, last=[lacks(name)]
            )
    yield refusal("accepts-everything", FULL, {}, requests=1)
    yield refusal("ignores-everything", FULL, {}, requests=1, reply=lambda body: text(json.dumps(ANSWER)))
    yield from _several_at_once()
    yield from _other_sentences()
    yield from _quoted()
    for shape, body in shapes(SAID).items():
        refused = {"temperature": fault(400, body)}
        yield refusal(f"shape-{shape}-temperature", SAMPLED, refused, requests=2)
    for shape, body in shapes(CONTEXT_SAID).items():
        yield failure(f"shape-{shape}-context", "ContextTooLong", fault(400, body), shows={"limit": 8192})
    for shape, body in shapes(QUOTA_SAID).items():
        yield failure(f"shape-{shape}-quota", "QuotaExceeded", fault(429, body))
    for kind, body in {"html": "<html><body>Bad Request</body></html>", "empty": b"", "words": "no"}.items():
        refused = {"seed": fault(400, body)}
        yield refusal(f"shape-{kind}-seed", SAMPLED, refused, blind=True, requests=2, last=[lacks("seed")])


def _several_at_once() -> Iterator[Row]:
    """Errors that name several parameters: all of them go at once."""
    every = dict.fromkeys(("seed", "reasoning_effort", "top_p"), fault(400))
    listing: Mapping[str, Callable[[Any], Fault]] = {
        "unrecognized-arguments": lambda names: openai(
            f"Unrecognized request arguments supplied: {', '.join(names)}"
        ),
        "extra-forbidden-list": lambda names: detail(forbidden(*names)),
        "unexpected-fields-set": lambda names: detail(
            "Unexpected fields in the request: {" + ", ".join(f"'{name}'" for name in names) + "}"
        ),
        "parameters-list": lambda names: openai(
            f"x does not support parameters: {list(names)!r}, for model=y"
        ),
        "unknown-names": lambda names: openai(
            "Invalid JSON payload received. "
            + "\n".join(f'Unknown name "{name}": Cannot find field.' for name in names)
        ),
    }
    for kind, say in listing.items():
        yield refusal(f"several-{kind}", SAMPLED, every, together=say, requests=2, last=[lacks(*every)])


def _other_sentences() -> Iterator[Row]:
    yield refusal(
        "camel-case-effort",
        SAMPLED,
        {"reasoning_effort": openai("Unknown parameter: 'reasoningEffort'.")},
        requests=2,
    )
    for number, said in enumerate(
        (
            "This model does not support image input",
            "the model does not support vision",
            "x/y is not a multimodal model",
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "Invalid content type. image_url is only supported by certain models.",
            "No endpoints found that support image input",
            "json: cannot unmarshal array into Go struct field Message.messages.content of type string",
            "messages[1].content[1]: unknown variant `image_url`, expected `text`",
        )
    ):
        yield refusal(f"image-sentence-{number}", FULL, {"images": openai(said)}, requests=2)
    for number, said in enumerate(
        (
            "registry.example/library/tiny does not support tools",
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            "No endpoints found that support tool use.",
            "Unsupported param: tools",
            "tools param requires --jinja flag",
        )
    ):
        yield refusal(f"tools-sentence-{number}", FULL, {"tools": openai(said)}, requests=2)
    json_object = replace(PLAIN, extra={"response_format": {"type": "json_object"}})
    word = (
        "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
        "'json_object'."
    )
    yield refusal(
        "json-word",
        json_object,
        {"no word JSON": openai(word, param="messages")},
        last=[
            carries("response_format", {"type": "json_object"}),
            lambda body: "json" in words(body).lower(),
        ],
    )
    nulls = replace(SAMPLED, extra={"user": None, "logprobs": None})
    yield refusal(
        "null-is-never-sent", nulls, {"null": openai("None is not of type 'string' - 'user'")}, requests=1
    )
    unset = replace(SAMPLED, stop=(), temperature=None, extra={"stop": None})
    yield refusal(
        "null-stop-is-never-sent",
        unset,
        {"null": openai("None is not of type 'array' - 'stop'")},
        requests=1,
        last=[lacks("stop", "temperature")],
    )
    no_user = replace(SAMPLED, messages=(Message("system", "Tell me how deep the sea is."),))
    said = "The messages must contain at least one turn with the role of user."
    yield refusal("user-turn-is-added", no_user, {"no user turn": openai(said)})
    developer = replace(SAMPLED, messages=(Message("developer", "Be brief."), PLAIN.messages[1]))
    said = (
        "messages[0].role: unknown variant `developer`, expected one of `system`, `user`, `assistant`, `tool`"
    )
    yield refusal("developer-becomes-system", developer, {"developer": openai(said)}, avoidable=True)


def _quoted() -> Iterator[Row]:
    """Servers that quote the prompt, and servers that name what nobody sent."""
    trap = (
        "Explain: Unsupported parameter: 'seed'. maximum context length, insufficient_quota, does "
        "not support tools"
    )
    request = replace(STRUCTURED, messages=(PLAIN.messages[0], Message("user", trap)))
    said = f"Unsupported parameter: 'temperature' is not supported with this model. Your prompt was: {trap}"
    yield refusal("quoted-prompt", request, {"temperature": openai(said)}, requests=2)
    yield failure(
        "quoted-prompt-in-input",
        "RequestRefused",
        detail([{"type": "value_error", "loc": ["body", "messages"], "msg": "Too odd", "input": trap}]),
        request=replace(PLAIN, messages=request.messages),
    )
    yield Row(
        "names-what-was-not-sent",
        STRUCTURED,
        Vendor({"always": openai("Unsupported parameter: 'logit_bias' is not supported with this model.")}),
        "RequestRefused",
        client=False,
        requests=1,
    )
    yield refusal(
        "configured-wording",
        SAMPLED,
        {"seed": openai("Random numbers are not for you.")},
        requests=2,
        connection={"wording": {"seed": (r"random numbers are not",)}},
    )
