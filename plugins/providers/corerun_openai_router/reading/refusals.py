"""Finds out which features of a request a server's sentence refuses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from corerun.inputs.patterns import found_in
from corerun.interfaces import Json
from corerun_openai_router import facts as known
from corerun_openai_router.asking.schema import DIALECTS, KEYWORDS
from corerun_openai_router.reading.details import Details, Place

Alternatives = tuple[str, ...]
"""Facts for one refused feature; the first that changes the request is the one that is meant."""

PARAMETERS = frozenset(
    {
        *("seed", "reasoning_effort", "max_tokens", "max_completion_tokens", "response_format", "stop"),
        *("tools", "functions", "tool_choice", "function_call", "parallel_tool_calls", "temperature"),
        *("top_p", "top_k", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "n"),
        *("logit_bias", "stream_options", "metadata", "user", "store", "service_tier", "thinking"),
        *("enable_thinking", "modalities", "prediction", "verbosity", "safety_identifier"),
    }
)
"""Names by which a sentence is known to speak of a parameter, whether it was sent or not."""

_INDISPENSABLE = frozenset({"model", "messages", "stream"})
_ANY_OF_TOOLS: Alternatives = (known.TOOLS, known.FUNCTIONS)
_ANY_FORMAT: Alternatives = (known.JSON_SCHEMA, known.JSON_OBJECT, known.RESPONSE_FORMAT)
_ANY_CHOICE: Alternatives = ("tool_choice=object", "tool_choice=required", "tool_choice")

_PAIRS: tuple[tuple[str, Alternatives], ...] = (
    (r"tools? with reasoning_effort (?:are|is) not supported", (known.EFFORT_WITH_TOOLS,)),
    (r"function calling with (?:a )?response mime type", (known.FORMAT_WITH_TOOLS,)),
    (
        r"json mode response is not supported when enable_thinking|thinking mode.{0,40}response_format",
        (known.FORMAT_WHEN_THINKING,),
    ),
    (r"tool_choice\b.{0,80}thinking|thinking.{0,80}\btool_choice", (known.CHOICE_WHEN_THINKING,)),
    (r"reasoning_content\W.{0,60}must be passed back", (known.REASONING_BACK,)),
    (r"must contain the word\W+json", (known.NO_JSON_WORD,)),
    (r"(?:message|one|least).{0,40}\brole of\W{0,2}user|no user query found", (known.NO_USER_TURN,)),
)
_SENTENCES: tuple[tuple[str, Alternatives], ...] = (
    (
        r"(?:does|do)(?: not|n't) support (?:tools?\b|tool (?:use|call)|function.?call)|support tool use"
        r"|tool choice requires|tools param requires|unsupported param: tools\b"
        r"|(?:tools?|tool calls?|tool calling|function calling|tool use) (?:are|is) not supported",
        _ANY_OF_TOOLS,
    ),
    (
        r"(?:does|do)(?: not|n't) support (?:image|vision|multimodal)|not a multimodal model"
        r"|(?:image|vision) inputs? (?:is|are) not supported|image_url is only supported"
        r"|support image input|cannot unmarshal array into go struct field"
        r"|unknown variant `?image_url|invalid type: sequence, expected a string"
        r"|(?:images?|image_url) (?:are|is) not supported|does not support image",
        (known.IMAGES,),
    ),
    (r"support the provided\W+tool_choice", _ANY_CHOICE),
    (
        r"unknown variant `?developer|(?:role\W+developer|developer\W+role).{0,60}(?:not|un)\w*\s*support",
        (known.DEVELOPER_ROLE,),
    ),
    (r"system\W{0,2} role (?:is )?not supported|role\W+does not support\W+system", (known.SYSTEM_ROLE,)),
    (
        r"response.?format\b.{0,120}?(?:unavailable|not support|unsupported|not (?:allowed|valid)|must be)"
        r"|invalid (?:schema for )?response.?format",
        _ANY_FORMAT,
    ),
)

_NAME = r"['\"`]?(?P<name>[A-Za-z_][\w.\[\]]*)['\"`]?"
_ITEM = r"['\"`]?[A-Za-z_][\w.\[\]]*['\"`]?"
_NAMES = rf"(?P<names>\[[^\]]*\]|\{{[^}}]*\}}|{_ITEM}(?:(?:,| and) {_ITEM})*)"
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"unsupported (?:parameter|param|argument|field)s?: {_NAMES}",
        rf"unrecognized request arguments? supplied: {_NAMES}",
        rf"(?:unknown|unrecognized|invalid|unexpected) (?:parameter|argument|field|key)s?:? {_NAME}",
        rf"(?:unsupported|invalid) value: {_NAME}",
        rf"additional properties are not allowed \({_NAMES} (?:was|were) unexpected",
        rf"unexpected fields in the request: {_NAMES}",
        rf"property {_NAME} is unsupported",
        rf"unknown name {_NAME}(?P<at> at ['\"][^'\"]*['\"])?[:.]?\s*cannot find field",
        rf"does not support (?:the )?parameters?:? {_NAMES}",
        rf"{_NAME} (?:parameter )?(?:is|are) (?:not supported|unsupported|not allowed|not permitted)",
        rf"{_NAME} (?:is|are) not (?:a )?(?:recognized|valid|known)",
        rf"{_NAME} (?:parameter )?does not support",
        rf"{_NAME} (?:param|parameter) requires",
        rf"{_NAME} (?:is )?too (?:large|high|big)",
        rf"{_NAME} (?:must|should) be",
        rf"range of {_NAME} should be",
        rf"{_NAME}: \d+ > \d+",
        rf"{_NAME}[^.\n]{{0,20}} exceeds",
        rf"^{_NAME}\n\s+\S",
    )
)
_QUOTED = re.compile(r"['\"`]([A-Za-z_][A-Za-z_0-9]*)(?:\.[\w.]*)?['\"`]")
_IS_REFUSAL = re.compile(
    r"(?:not|n't|un|never|only) ?(?:be )?(?:support|allow|permit|recogni|expect|accept|known|valid|available)"
    r"|invalid|unknown|cannot|can't|remove",
    re.IGNORECASE,
)
_ADVICE = re.compile(
    r"did you mean.*|expected one of.*|use ['\"`]?\w+['\"`]? instead.*"
    r"|(?:supported|allowed|valid|available) (?:parameters|fields|arguments|names) (?:are|include).*",
    re.IGNORECASE | re.DOTALL,
)

_WHOLE_KINDS = frozenset({"unsupported_parameter", "unknown_parameter", "extra_forbidden"})
_VALUE_KINDS = re.compile(
    r"unsupported_value|invalid_value|invalid_type|_error$|_parsing$|_type$|^enum$|^less_than|^greater_than"
)
_NOT_A_REFUSAL = frozenset({"missing", "json_invalid"})
_VALUE_WORDS = re.compile(
    r"unsupported value|invalid value|supported values? (?:are|is)|only the default"
    r"|too (?:large|high|big)|exceeds|\d > \d|(?:must|should) be|value (?:is|was) not|being set to"
    r"|does not support \S+ with this model",
    re.IGNORECASE,
)
_LARGEST = re.compile(
    r"(?:at most|less than or equal to|no more than|up to|<=|\d >|\[\d+,|maximum(?: value)?(?: is| of|:)?)"
    r"\s*(?P<largest>\d[\d,]*)",
    re.IGNORECASE,
)
_OF_A_SCHEMA = re.compile(r"schema|function_declarations|tools?\b.{0,3}\d|parameters", re.IGNORECASE)
_WORD = re.compile(r"\$?[A-Za-z]+")
_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")


def refused_features(
    details: Details, body: Mapping[str, Json], wording: Mapping[str, tuple[str, ...]]
) -> list[Alternatives]:
    """What ``details`` say is refused, all of it, in the order of the text.

    ``body`` is the request that was sent, ``wording`` are regular expressions by feature beside the
    known ones. A feature may be named that the request doesn't hold.
    """
    texts = [_ADVICE.sub("", message) for message in details.messages]
    text = "\n".join(texts)
    pairs = [facts for pattern, facts in _PAIRS if _search(pattern, text)]
    if pairs:
        return pairs
    found: list[Alternatives] = [
        (feature,) for feature, patterns in wording.items() if _any_in(patterns, details.text)
    ]
    found += [facts for facts in _from_places(details.places, body) if facts]
    words = list(_schema_words(texts))
    found += words
    for pattern, facts in _SENTENCES:
        if _search(pattern, text):
            found.append(facts)
    for message, full in zip(texts, details.messages, strict=True):
        found += [facts for facts in _from_patterns(message, full, body) if facts]
    if not found and _IS_REFUSAL.search(text):
        found += [
            facts
            for name in _QUOTED.findall(text)
            if (facts := _at(Place(name, "", text), body)) and _snake(name) in PARAMETERS
        ]
    if words:
        found = [facts for facts in found if facts != _ANY_FORMAT and facts[0] != known.PLAIN_SCHEMA]
    return list(dict.fromkeys(found))


def _any_in(patterns: Iterable[str], text: str) -> bool:
    return any(found_in(pattern, text) for pattern in patterns)


def _search(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE | re.DOTALL) is not None


def _from_places(places: Iterable[Place], body: Mapping[str, Json]) -> Iterator[Alternatives]:
    for place in places:
        if place.kind not in _NOT_A_REFUSAL:
            yield _at(place, body)


def _from_patterns(message: str, full: str, body: Mapping[str, Json]) -> Iterator[Alternatives]:
    for pattern in _PATTERNS:
        for match in pattern.finditer(message):
            groups = match.groupdict()
            if groups.get("at"):
                continue  # a word of a schema, which is read there
            names = re.findall(r"[A-Za-z_][\w.\[\]]*", groups["names"]) if "names" in groups else []
            for name in names or [groups.get("name") or ""]:
                head = _head(name)
                if head in PARAMETERS or (head in body and (head not in _INDISPENSABLE or head != name)):
                    yield _at(Place(name, "", full), body)


def _schema_words(texts: Iterable[str]) -> Iterator[Alternatives]:
    """Words of JSON Schema that are refused, with the rest of their dialect."""
    for text in texts:
        if not _OF_A_SCHEMA.search(text) or not _IS_REFUSAL.search(text):
            continue
        for word in dict.fromkeys(_WORD.findall(text)):
            if word not in KEYWORDS or not _is_refused_word(word, text):
                continue
            yield (f"schema.{word}",)
            for dialect in DIALECTS:
                if word in dialect:
                    yield from ((f"schema.{other}",) for other in sorted(dialect - {word}))


def _is_refused_word(word: str, text: str) -> bool:
    quoted = rf"(?<![\w$])['\"`]?{re.escape(word)}['\"`]?"
    after = r"[^.;\n]{0,80}?(?:not (?:supported|permitted|allowed)|unsupported|cannot find field)"
    before = r"(?:unknown name|unknown keyword|unsupported(?: keyword)?|unexpected)\W{1,3}"
    return _search(quoted + after, text) or _search(before + quoted, text)


def _at(place: Place, body: Mapping[str, Json]) -> Alternatives:
    """The facts for a place in the request; none if nothing there can be left out."""
    steps = [step for step in re.split(r"[.\[\]]+", place.path) if step and step != "body"]
    head = _snake(steps[0]) if steps else ""
    rest = steps[1:]
    if head == "messages":
        return _in_messages(rest, place.text, body)
    if head in ("tools", "functions"):
        if "strict" in rest:
            return (known.TOOLS_STRICT,)
        if "parameters" in rest:
            return (known.PLAIN_SCHEMA, *_ANY_OF_TOOLS)
        return _ANY_OF_TOOLS if head == "tools" else (known.FUNCTIONS,)
    if head == "response_format":
        return _in_response_format(rest, place)
    if head in ("tool_choice", "function_call"):
        if place.kind in _WHOLE_KINDS:
            return (head,)
        forced = known.value_fact(head, body.get(head, ""))
        return (forced, head) if forced else (head,)
    if not head or head in _INDISPENSABLE or (head not in body and head not in PARAMETERS):
        return ()
    if head in known.LIMIT_NAMES and _is_value(place):
        largest = _LARGEST.search(place.text)
        if largest:
            return (f"{known.CAP}{int(largest['largest'].replace(',', ''))}",)
    fact = known.value_fact(head, body.get(head)) if _is_value(place) else None
    return (fact, head) if fact else (head,)


def _in_messages(rest: list[str], text: str, body: Mapping[str, Json]) -> Alternatives:
    if "role" in rest:
        return _role(rest, text, body)
    if "tool_calls" in rest or "tool_call_id" in rest:
        return _ANY_OF_TOOLS
    is_part = "content" in rest and rest.index("content") < len(rest) - 1
    return (known.IMAGES,) if is_part or "image" in text.lower() else ()


def _role(rest: list[str], text: str, body: Mapping[str, Json]) -> Alternatives:
    """The role of the message that an error points at, or else the one that its text names."""
    messages = body.get("messages", ())
    number = int(rest[0]) if rest[0].isdecimal() else len(messages)
    role = messages[number]["role"] if number < len(messages) else ""
    facts = {"developer": known.DEVELOPER_ROLE, "system": known.SYSTEM_ROLE, "function": known.FUNCTIONS}
    if role in facts:
        return (facts[role],)
    if role == "tool":
        return _ANY_OF_TOOLS
    return (known.DEVELOPER_ROLE,) if "developer" in text else ()


def _in_response_format(rest: list[str], place: Place) -> Alternatives:
    if place.kind in _WHOLE_KINDS:
        return (known.RESPONSE_FORMAT,)
    if "strict" in rest:
        return (known.FORMAT_STRICT,)
    if rest[:1] == ["json_schema"] or re.search(r"invalid schema", place.text, re.IGNORECASE):
        return (known.PLAIN_SCHEMA, *_ANY_FORMAT)
    if re.search(r"unknown parameter|unrecognized request argument|unknown name", place.text, re.IGNORECASE):
        return (known.RESPONSE_FORMAT,)
    return _ANY_FORMAT


def _is_value(place: Place) -> bool:
    if place.kind in _WHOLE_KINDS:
        return False
    return bool(_VALUE_KINDS.search(place.kind) or _VALUE_WORDS.search(place.text))


def _head(name: str) -> str:
    return _snake(re.split(r"[.\[]", name)[0])


def _snake(name: str) -> str:
    """``reasoningEffort`` and ``reasoning_effort`` are the same parameter."""
    return _HUMP.sub(r"_\1", name).lower()
