"""Lets one request of a kind go first, so that many calls at once don't all meet the same refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from corerun.interfaces import Json

LONGEST_WAIT_S = 0.5
"""Servers refuse before they think; whoever waits longer would wait for an answer."""
LONGEST_WAIT_FOR_REFUSALS_S = 3.0
"""A server that was slow to refuse one request is given as much time for the next, up to this."""

HELD_UP_S = 0.05
"""An event loop that is so late was held up: the refusal may lie there unread, so it is waited for."""

Kind = tuple[object, ...]


def kind_of(body: Mapping[str, Json], *, images: bool) -> Kind:
    """The features that a body uses: what one request learns holds for all of its kind."""
    choice, form = body.get("tool_choice"), body.get("response_format")
    return (
        body["model"],
        frozenset(body),
        images,
        choice if isinstance(choice, str) else type(choice),
        form.get("type") if isinstance(form, dict) else None,
        str(body.get("reasoning_effort")),
    )


@dataclass(slots=True)
class _First:
    """The first request of a kind on its way; others wait for it ``until`` that time of the event loop."""

    until: float
    over: asyncio.Event = field(default_factory=asyncio.Event)


_Firsts = dict[tuple[Kind, asyncio.AbstractEventLoop], _First]


class Gate:
    """Which kinds of requests are known to be answered, and which are on their way for the first time."""

    def __init__(self) -> None:
        self._proven: set[Kind] = set()
        self._firsts: _Firsts = {}

    def passage(self) -> Passage:
        """The way of one call through the gate; close it at the end, whatever happened."""
        return Passage(self._proven, self._firsts)


class Passage:
    """One call's way: it waits for others' first requests, and others wait for its own."""

    def __init__(self, proven: set[Kind], firsts: _Firsts) -> None:
        self._proven = proven
        self._firsts = firsts
        self._led: list[tuple[Kind, asyncio.AbstractEventLoop]] = []
        self._waits_until: dict[Kind, float] = {}
        self._patience_s = LONGEST_WAIT_S
        self._sent_at = 0.0

    async def waited(self, kind: Kind) -> bool:
        """Wait while the first request of ``kind`` is on its way, but not long.

        False: this request may go now. True: it waited, and what is known may have changed.
        """
        if kind in self._proven:
            return False
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        key = (kind, loop)
        first = self._firsts.get(key)
        if first is None:
            # Whoever takes over from one that got no answer has only the time that was left.
            until = self._waits_until.get(kind, self._sent_at + self._patience_s)
            self._firsts[key] = _First(until)
            self._led.append(key)
            return False
        if key in self._led or self._sent_at >= first.until:
            return False
        while not first.over.is_set() and loop.time() < first.until:
            self._waits_until[kind] = first.until
            try:
                async with asyncio.timeout_at(first.until):
                    await first.over.wait()
            except TimeoutError:
                late = loop.time() - first.until
                if late > HELD_UP_S:
                    first.until = loop.time() + late
        return True

    def refused(self, *, is_guessing: bool) -> None:
        """The request that was let through was refused: the next one may take as long.

        ``is_guessing``: nothing is learned yet that others could go on with, so they wait on.
        """
        now = asyncio.get_running_loop().time()
        self._patience_s = min(max(LONGEST_WAIT_S, 2 * (now - self._sent_at)), LONGEST_WAIT_FOR_REFUSALS_S)
        if not is_guessing:
            self.close()
        for key in self._led:
            self._firsts[key].until = now + self._patience_s

    def answered(self, kind: Kind) -> None:
        """A request of ``kind`` got a good answer."""
        self._proven.add(kind)
        self.close()

    def close(self) -> None:
        """Let those go who wait for this call."""
        for key in self._led:
            self._firsts.pop(key).over.set()
        self._led.clear()
