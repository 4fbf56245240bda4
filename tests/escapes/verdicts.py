"""Runs all escapes in one setting, watches from outside, and says which got through."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.escapes.batch import Batch
from tests.escapes.listeners import Listeners
from tests.escapes.remains import end
from tests.escapes.surroundings import Missing, Place
from tests.support.accounts import PROJECT, Account
from tests.support.containment import Attack, Escape, Trace, program_text

SANDBOXES = {
    "local": "corerun.execution.local:LocalSandbox",
    "landlock": "corerun_sandboxes:LandlockSandbox",
    "bwrap": "corerun_sandboxes:BwrapSandbox",
}


@dataclass(frozen=True)
class Setting:
    """One way to run programs: "api", "command" or "plain", in the sandbox of that name."""

    way: str
    sandbox: str = ""
    preload: str | None = None
    sample: bool = False

    @property
    def target(self) -> str:
        return SANDBOXES.get(self.sandbox, "")


@dataclass
class Verdicts:
    """What became of each escape: true where it got through. ``missing``: what this machine lacks for it."""

    through: dict[str, bool] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    traces: dict[str, Trace] = field(default_factory=dict)
    guarantees: frozenset[str] = frozenset()
    zombies: int = 0
    descriptors: int = 0
    said: str = ""


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A folder that every account can enter, and nobody else can list."""
    folder = Path(tempfile.mkdtemp(prefix="escapes-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=False, capture_output=True)


def run_all(
    escapes: Sequence[Escape], setting: Setting, account: Account, folder: Path, listeners: Listeners
) -> Verdicts:
    """Runs those of ``escapes`` that make sense for the account and the setting.

    Raises:
        AssertionError: who runs the programs ended before its time, but for an attack on just that.
    """
    batch, found = Batch(folder, account, listeners), Verdicts()
    jobs: list[dict[str, Any]] = []
    places: list[Place] = []
    try:
        for escape in escapes:
            if escape.rights not in ("", "root" if account.uid == 0 else "user"):
                continue
            if setting.way == "command" and not escape.by_command:
                continue
            place = Place(batch, escape.name)
            places.append(place)
            try:
                jobs.append(_job(escape, place, setting))
                found.traces[escape.name] = Trace(escape, place)
            except Missing as error:
                found.missing[escape.name] = str(error)
        for trace in found.traces.values():
            trace.place.watch()
        _run(jobs, batch, found)
        for name, trace in found.traces.items():
            found.through[name] = trace.escape.evidence(trace)
    finally:
        for place in places:
            place.close()
        batch.close()
    return found


def _job(escape: Escape, place: Place, setting: Setting) -> dict[str, Any]:
    texts = [(_text(escape.attack, place), place.workspace)]
    if escape.second is not None:
        workspace = place.workspace if escape.order == "again" else place.second_workspace
        texts.append((_text(escape.second, place), workspace))
        if setting.way == "plain" and escape.order == "then":
            # One interpreter for both, as where programs run inside who runs them.
            texts = [
                (texts[0][0] + texts[1][0].replace("from __future__ import annotations\n", ""), workspace)
            ]
    fields = {**escape.fields}
    if "files" in fields:
        fields["files"] = {name: str(place.batch.input) for name in fields["files"]}
    programs = [
        {"code": code, "workspace": str(workspace), "limits": escape.all_limits(), "fields": fields}
        for code, workspace in texts
    ]
    return {
        "name": escape.name,
        "way": setting.way,
        "sandbox": setting.sandbox,
        "target": setting.target,
        "preload": setting.preload,
        "order": escape.order,
        "alone": escape.alone,
        "last": escape.last,
        "programs": programs,
    }


def _text(attack: Attack, place: Place) -> str:
    return program_text(attack, _Values(place))


class _Values(dict[str, Any]):
    """Values of parameters, made when a program asks for them; both programs of a pair get the same."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def __missing__(self, name: str) -> Any:
        if name not in self._place.values:
            self._place.values[name] = self._place.value(name)
        return self._place.values[name]


def _run(jobs: list[dict[str, Any]], batch: Batch, found: Verdicts) -> None:
    jobs_file = batch.file(batch.folder / "jobs.json", json.dumps(jobs))
    results = batch.file(batch.folder / "results.jsonl", "")
    command = batch.account.command(
        sys.executable,
        "-m",
        "tests.escapes.runner",
        *map(str, (jobs_file, results, batch.terminal.path, batch.folder / "inherited.txt")),
    )
    said = (batch.folder / "said.txt").open("w+")
    runner = subprocess.Popen(
        command, cwd=PROJECT, env=batch.environment(), stdin=subprocess.DEVNULL, stdout=said, stderr=said
    )
    watch = Watch(found.traces)
    read, ended = 0, False
    while runner.poll() is None or read < results.stat().st_size:
        watch.look()
        body = results.read_bytes()
        whole = body.rfind(b"\n") + 1
        for line in body[read:whole].splitlines():
            record = json.loads(line)
            ended = ended or record.get("end", False)
            watch.told(record, found)
        read = whole
        time.sleep(0.02)
    limit = time.monotonic() + 1.5
    while time.monotonic() < limit and watch.look():
        time.sleep(0.05)
    end(watch.pids)
    watch.reap()
    said.seek(0)
    found.said = said.read()[-4000:]
    said.close()
    running = [trace for trace in found.traces.values() if not trace.outcomes]
    for trace in running:
        trace.runner_died = not ended
    assert ended or all(trace.escape.last for trace in running), found.said


class Watch:
    """Looks at the processes of all programs, by the names that they gave themselves."""

    def __init__(self, traces: dict[str, Trace]) -> None:
        self.traces, self.by_token = traces, {trace.place.token: trace for trace in traces.values()}
        self.pids: set[int] = set()

    def told(self, record: dict[str, Any], found: Verdicts) -> None:
        """Takes in one line of who runs the programs."""
        trace = self.traces.get(record["name"])
        if trace is None:
            found.guarantees = frozenset(record.get("guarantees", found.guarantees))
            found.zombies = record.get("zombies", found.zombies)
            found.descriptors = record.get("descriptors", found.descriptors)
        elif "outcomes" in record:
            trace.outcomes, trace.ended = record["outcomes"], time.monotonic()

    def reap(self) -> None:
        """Waits for the dead that came to this process when their parents had ended."""
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for name in listed:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{name}/comm").read_text().strip() in self.by_token:
                    os.waitpid(int(name), os.WNOHANG)

    def look(self) -> int:
        """Measures every program that is there now; returns how many processes there are."""
        there: dict[str, list[int]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    token = Path(f"/proc/{name}/comm").read_text().strip()
                    if token in self.by_token:
                        there.setdefault(token, []).append(int(name))
        now = time.monotonic()
        self.pids = {pid for pids in there.values() for pid in pids}
        for token, pids in there.items():
            trace = self.by_token[token]
            trace.seen = now
            if trace.escape.measure is not None:
                with contextlib.suppress(OSError, IndexError, ValueError):
                    trace.samples.append((now, trace.escape.measure(pids)))
        return len(self.pids)
