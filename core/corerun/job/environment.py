"""Variables from a ``.env`` file, and the stream of events to a file."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from corerun.errors import UsageError
from corerun.inputs.documents import read_bytes
from corerun.interfaces import Event

_MOST_BYTES = 2**20
logger = logging.getLogger("corerun.run")
NAMES = re.compile(
    r"(OPENAI_(API_KEY|BASE_URL|API_BASE|API_VERSION|ORG_ID|PROJECT_ID)|ANTHROPIC_(API_KEY|BASE_URL)"
    r"|OAIC_\w+|OLLAMA_API_KEY|HF_TOKEN|CORERUN_\w+)$"
)
QUOTED = re.compile(r"""(["'])(.*?)\1\s*(?:#.*)?$""")
LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*$")


def read_env_file(path: Path, environ: dict[str, str], *, required: bool = False) -> list[str]:
    """Add the provider and corerun variables of a ``.env`` file; a set variable always wins.

    Returns sentences for the person; values are never among them.
    """
    if not path.is_file():
        if required:
            raise UsageError(f"no such file: {path}", where="--env-file")
        return []
    taken: list[str] = []
    # Other programs' variables may be in any encoding.
    text = read_bytes(path, limit=_MOST_BYTES, where="--env-file").decode("utf-8", "replace")
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        name, value = match.groups()
        quoted = QUOTED.match(value)
        value = quoted[2] if quoted else value.partition(" #")[0].strip()
        if value and NAMES.match(name) and name not in environ:
            environ[name] = value
            taken.append(name)
    return [f"{', '.join(taken)} taken from {path}"] if taken else []


def event_writer(stream: TextIO) -> Callable[[Event], None]:
    """A listener that copies every event to ``stream``, one JSON line each.

    A reader that went away or a full disk ends the copy, not the run.
    """
    gone = False

    def write(event: Event) -> None:
        nonlocal gone
        record = {"seq": event.seq, "t": event.t, "type": event.type, "data": event.data}
        if not gone:
            try:
                stream.write(json.dumps(record) + "\n")
                stream.flush()
            except OSError as error:
                gone = True
                logger.warning("the copy of the events ends here: %s", error)

    return write
