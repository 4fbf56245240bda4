"""Lets one request of a kind go first, so that many calls at once don't all meet the same refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from corerun.interfaces import Json

LONGEST_WAIT_S = 0.5
"""Servers refuse before they think; whoever waits longer would wait for an answer."""

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
        body.get("reasoning_effort"),
    )


class Gate:
    """Which kinds of requests are known to be answered, and which are on their way for the first time."""

    def __init__(self) -> None:
        self._proven: set[Kind] = set()
        self._first: dict[tuple[Kind, asyncio.AbstractEventLoop], asyncio.Event] = {}

    def passage(self) -> Passage:
        """The way of one call through the gate; close it at the end, whatever happened."""
        return Passage(self._proven, self._first)


class Passage:
    """One call's way: it waits for others' first requests, and others wait for its own."""

    def __init__(
        self,
        proven: set[Kind],
        first: dict[tuple[Kind, asyncio.AbstractEventLoop], asyncio.Event],
    ) -> None:
        self._proven = proven
        self._first = first
        self._waited: set[Kind] = set()
        self._led: list[tuple[Kind, asyncio.AbstractEventLoop]] = []

    async def waited(self, kind: Kind) -> bool:
        """Wait while the first request of ``kind`` is on its way, but not long, and once.

        False: this request may go now. True: it waited, and what is known may have changed.
        """
        if kind in self._proven or kind in self._waited:
            return False
        key = (kind, asyncio.get_running_loop())
        if key in self._led:
            return False
        event = self._first.get(key)
        if event is None:
            self._first[key] = asyncio.Event()
            self._led.append(key)
            return False
        self._waited.add(kind)
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                await event.wait()
        except TimeoutError:
            pass
        return True

    def answered(self, kind: Kind) -> None:
        """A request of ``kind`` got a good answer."""
        self._proven.add(kind)
        self.close()

    def close(self) -> None:
        """Let those go who wait for this call."""
        for key in self._led:
            self._first.pop(key).set()
        self._led.clear()
