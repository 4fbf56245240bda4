"""The GPUs of this machine, and which program has which of them now."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from corerun.errors import EnvironmentRefused

DRIVER = Path("/proc/driver/nvidia/gpus")
_UUID = re.compile(r"GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$", re.MULTILINE)
_EXCLUDED = re.compile(r"GPU Excluded:\s*Yes\b")


def visible_gpus(environ: Mapping[str, str], driver: Path = DRIVER) -> tuple[str, ...]:
    """Ids of the GPUs that programs may get: those that CUDA_VISIBLE_DEVICES names, else all.

    A UUID where the driver tells it, so that an id means the same card whatever else is hidden; else
    the number in the order of the bus.
    """
    listed = _listed(driver)
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return listed
    found: list[str] = []
    for part in named.split(","):
        if part.strip().startswith("-"):
            break  # As the driver reads it: an invalid id hides all that follow.
        if part.strip():
            found.append(_id(part.strip(), listed))
    return tuple(dict.fromkeys(found))


def _listed(driver: Path) -> tuple[str, ...]:
    try:
        texts = [(folder / "information").read_text() for folder in sorted(driver.iterdir())]
    except OSError:
        return ()
    texts = [text for text in texts if not _EXCLUDED.search(text)]
    found = [match[1] for text in texts if (match := _UUID.search(text))]
    # A card that nobody has used yet may hide its UUID; numbers and UUIDs can't be mixed.
    return tuple(found) if len(found) == len(texts) else tuple(map(str, range(len(texts))))


def _id(part: str, listed: tuple[str, ...]) -> str:
    """The listed id of a card that is named by its number or by the beginning of its UUID."""
    if part.isdecimal():
        return listed[int(part)] if int(part) < len(listed) else part
    same = [known for known in listed if known.startswith(part)]
    return same[0] if len(same) == 1 else part


class GpuLeases:
    """Hands out cards, each to one program at a time, to those who came first."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = tuple(ids)
        self._free = list(self.ids)
        self._waiting: deque[tuple[int, asyncio.Future[tuple[str, ...]]]] = deque()

    @contextlib.asynccontextmanager
    async def lease(self, count: int) -> AsyncIterator[tuple[str, ...]]:
        """Wait for ``count`` cards and hold them. Raises `EnvironmentRefused` if there never are so many."""
        if count > len(self.ids):
            raise EnvironmentRefused(
                f"a program wants {count} GPUs, and there are {len(self.ids)}",
                hint="corerun doctor lists them; CUDA_VISIBLE_DEVICES limits them",
            )
        if not count:
            yield ()
            return
        future: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, future))
        self._serve()
        try:
            yield await future
        finally:
            # Without an await: a second cancellation would keep the cards for ever.
            if not future.cancelled():
                self._free = sorted([*self._free, *future.result()], key=self.ids.index)
            self._serve()

    def _serve(self) -> None:
        while self._waiting:
            count, future = self._waiting[0]
            if not future.cancelled():
                if count > len(self._free):
                    return
                future.set_result(tuple(self._free[:count]))
                del self._free[:count]
            self._waiting.popleft()
