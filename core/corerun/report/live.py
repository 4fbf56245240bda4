"""The live display on a terminal; imported only when one is wanted, since rich takes its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text


def live_display(stream: TextIO, state: Callable[[], tuple[str, Sequence[str]]]) -> Live:
    """A display of a status line and the last lines of ``state``, drawn again twice a second.

    All text goes in as `Text`, never as markup: a program may print ``[red]`` and mean it.
    """
    console = Console(file=stream, markup=False, highlight=False, emoji=False)

    def draw() -> Group:
        status, lines = state()
        shown = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines]
        return Group(*shown, Text(status, style="bold", no_wrap=True, overflow="ellipsis"))

    return Live(
        console=console,
        get_renderable=draw,
        refresh_per_second=2,
        redirect_stdout=False,
        redirect_stderr=False,
    )
