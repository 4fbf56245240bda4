"""Puts texts and calls of tools together from the fragments in which servers stream them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from corerun.interfaces import Delta, Json
from corerun.llm.messages import printable


@dataclass(slots=True)
class GrowingText:
    """Text that comes in pieces; the first half of a surrogate pair waits for the second."""

    kind: str
    pieces: list[str] = field(default_factory=list)
    half: str = ""

    def add(self, piece: Json) -> Iterator[Delta]:
        """Take a piece in, if it is text, and give what can be handed out now."""
        if not isinstance(piece, str) or not piece:
            return
        piece = self.half + piece
        self.half = piece[-1] if "\ud800" <= piece[-1] <= "\udbff" else ""
        piece = printable(piece.removesuffix(self.half))
        if piece:
            self.pieces.append(piece)
            yield Delta(self.kind, piece)

    def close(self) -> Iterator[Delta]:
        """Give what waits for a second half that won't come."""
        if self.half:
            self.half = ""
            self.pieces.append("\ufffd")
            yield Delta(self.kind, "\ufffd")

    @property
    def whole(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: GrowingText = field(default_factory=lambda: GrowingText("tool_args"))

    def rename(self, name: str) -> None:
        """Servers send a name once, again with every fragment, longer each time, or cut in pieces."""
        if name.startswith(self.name):
            self.name = name
        elif name and not self.arguments.pieces:
            self.name += name

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are an object that is closed."""
        text = self.arguments.whole
        if not text.rstrip().endswith("}"):
            return False
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
        return True


class GrowingCalls:
    """The calls of one answer. Fragments belong together by index, else by id, else by their order."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def add(self, fragment: Mapping[str, Json]) -> Iterator[Delta]:
        """Take in one item of ``tool_calls``, and give what it adds to arguments."""
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        call_id = fragment["id"] if isinstance(fragment.get("id"), str) else ""
        name = printable(function["name"]) if isinstance(function.get("name"), str) else ""
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        index = fragment.get("index")
        call = self._find(index, call_id)
        if call is None or _is_another(call, index, call_id, name, arguments or ""):
            call = _Call()
            self._calls.append(call)
        if isinstance(index, int):
            self._by_index[index] = call
        call.id = call.id or call_id
        call.rename(name)
        yield from call.arguments.add(arguments)

    def close(self) -> Iterator[Delta]:
        """Give what waits in the arguments."""
        for call in self._calls:
            yield from call.arguments.close()

    @property
    def arguments(self) -> str:
        """The arguments of all calls so far."""
        return "".join(call.arguments.whole for call in self._calls)

    def document(self) -> list[dict[str, Json]]:
        """The calls as ``tool_calls`` of a message."""
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments.whole},
            }
            for call in self._calls
        ]

    def _find(self, index: Json, call_id: str) -> _Call | None:
        if isinstance(index, int):
            return self._by_index.get(index)
        same = [call for call in self._calls if call_id and call.id == call_id]
        found = same or self._calls
        return found[-1] if found else None


def _is_another(call: _Call, index: Json, call_id: str, name: str, arguments: str) -> bool:
    """Whether a fragment that should belong to ``call`` starts a call of its own.

    Some servers give every call the index 0, others leave index and id out; a call whose arguments
    are closed can't go on.
    """
    if not name:
        return False
    if call_id and call.id and call_id != call.id:
        return call.is_whole
    if isinstance(index, int) or (call_id and call_id == call.id):
        return False
    if name != call.name and call.arguments.pieces:
        return True
    return bool(arguments.strip()) and call.is_whole
