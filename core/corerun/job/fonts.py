"""Matplotlib's font cache: made once in a run, so that no program has to, and a copy for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from corerun.execution.environment import HOME_FOLDER
from corerun.interfaces import ExecRequest, Json
from corerun.runs import io

_CODE = "import matplotlib.font_manager\n"
_WORD = "matplotlib"


class FontCache:
    """The cache of a run, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with io.reported(folder):
            io.make_folder(folder)
        self._filling: asyncio.Task[Json] | None = None

    def files(self, request: ExecRequest) -> dict[str, str]:
        """The cache as inputs of a program, where Matplotlib looks for it.

        ``MPLCONFIGDIR`` won't do: a folder in which it can't write is none to Matplotlib, which says so
        on the program's error output and makes the cache anew.
        """
        if _WORD not in request.code:
            return {}
        place = f"{HOME_FOLDER}/.cache/matplotlib"
        return {f"{place}/{path.name}": str(path) for path in self.folder.glob("fontlist*.json")}

    async def fill(self, request: ExecRequest, run: Callable[[ExecRequest], Awaitable[Json]]) -> None:
        """Make the cache before the first program that draws. Without it programs are slow, not wrong, so
        a failure is nobody's business.

        It is made in the sandbox and by the interpreter of ``request``.
        """
        if _WORD not in request.code or any(self.folder.glob("fontlist*.json")):
            return
        if self._filling is None:
            maker = ExecRequest(
                code=_CODE,
                python=request.python,
                limits=replace(request.limits, wall_s=120),
                label="fonts",
                workspace=str(self.folder),
                env={"MPLCONFIGDIR": str(self.folder)},
                fresh=True,
            )
            self._filling = asyncio.ensure_future(run(maker))
        await asyncio.shield(self._filling)
