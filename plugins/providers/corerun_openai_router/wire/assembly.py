"""Puts the chunks of a streamed answer together into the document that a plain answer would be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from corerun.interfaces import Delta, Json
from corerun_openai_router.wire.fragments import GrowingCalls, GrowingText

_COPIED = ("id", "created", "model", "system_fingerprint", "service_tier")


class Assembly:
    """One answer in the making. Of several choices, the one that came first is read."""

    def __init__(self) -> None:
        self._fields: dict[str, Json] = {}
        self._usage: Json = None
        self._choice: Json = None
        self._finish: Json = None
        self._content = GrowingText("text")
        self._reasoning = GrowingText("reasoning")
        self._refusal = GrowingText("refusal")
        self._calls = GrowingCalls()

    @property
    def has_finished(self) -> bool:
        """Whether the server said why the answer ends."""
        return self._finish is not None

    @property
    def text(self) -> str:
        """The answer's text so far; where it has none, the arguments of its calls."""
        return self._content.whole or self._calls.arguments

    def add(self, chunk: Mapping[str, Json]) -> Iterator[Delta]:
        """Take one chunk in and give what it adds."""
        for name in _COPIED:
            if chunk.get(name) is not None:
                self._fields.setdefault(name, chunk[name])
        self._take_usage(chunk.get("x_groq"))
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and self._is_ours(choice):
                self._take_usage(choice)
                yield from self._add_choice(choice)
        self._take_usage(chunk)

    def close(self) -> Iterator[Delta]:
        """Give what still waited for its second half."""
        yield from self._reasoning.close()
        yield from self._content.close()
        yield from self._calls.close()

    def document(self) -> dict[str, Json]:
        """The whole answer, in the form of one that wasn't streamed."""
        message: dict[str, Json] = {"role": "assistant", "content": self._content.whole or None}
        if self._reasoning.whole:
            message["reasoning_content"] = self._reasoning.whole
        if self._refusal.whole:
            message["refusal"] = self._refusal.whole
        calls = self._calls.document()
        if calls:
            message["tool_calls"] = calls
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        return {"object": "chat.completion", **self._fields, "choices": [choice], "usage": self._usage}

    def _take_usage(self, holder: Json) -> None:
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            self._usage = holder["usage"]

    def _is_ours(self, choice: Mapping[str, Json]) -> bool:
        index = choice.get("index")
        if self._choice is None:
            self._choice = index
        return index is None or index == self._choice

    def _add_choice(self, choice: Mapping[str, Json]) -> Iterator[Delta]:
        if choice.get("finish_reason") is not None:
            self._finish = choice["finish_reason"]
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice.get("message")
        if not isinstance(delta, dict):
            return
        yield from self._reasoning.add(delta.get("reasoning_content") or delta.get("reasoning"))
        yield from self._add_content(delta.get("content"))
        for _ in self._refusal.add(delta.get("refusal")):
            pass  # it is no part of an answer: the reader of the whole document raises it
        fragments = delta.get("tool_calls")
        if isinstance(fragments, list) and fragments:
            for fragment in fragments:
                if isinstance(fragment, dict):
                    yield from self._calls.add(fragment)
        elif isinstance(delta.get("function_call"), dict):
            yield from self._calls.add({"index": 0, "function": delta["function_call"]})

    def _add_content(self, content: Json) -> Iterator[Delta]:
        """Text, or parts: of text, and of thinking as Mistral streams it."""
        if not isinstance(content, list):
            yield from self._content.add(content)
            return
        for part in content:
            if not isinstance(part, dict):
                yield from self._content.add(part)
            elif part.get("type") == "thinking":
                thoughts = part.get("thinking")
                for thought in thoughts if isinstance(thoughts, list) else [{"text": thoughts}]:
                    yield from self._reasoning.add(thought.get("text") if isinstance(thought, dict) else "")
            else:
                yield from self._content.add(part.get("text"))
