"""Foreign programs try to get out of every sandbox, as root and as an ordinary account.

Whether one got through is seen from outside, never asked of the program. Each is first run with no sandbox
at all, where it has to get through: a test that can't fail would show.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.escapes.listeners import Listeners
from tests.escapes.programs import ESCAPES, HARMLESS
from tests.escapes.verdicts import Setting, Verdicts, run_all, working_folder
from tests.support.accounts import ordinary_account, this_account
from tests.support.containment import Escape

Case = tuple[Setting, str]
AS_ROOT = os.geteuid() == 0
PROGRAMS = {escape.name: escape for escape in [*ESCAPES, *HARMLESS]}
PLAIN = [(Setting("plain"), "user"), *([(Setting("plain"), "root")] if AS_ROOT else [])]
# By the command each program takes the start of a process more; a few show that it is the same sandbox.
BY_COMMAND = {
    "read_private_key",
    "read_own_environment",
    "read_memory_of_parent",
    "write_journal",
    "send_by_tcp",
    "kill_another_process",
    "leave_daemon_behind",
    "flood_of_forks",
    "one_huge_file",
    "become_root_of_own_namespace",
    "write_and_read_in_workspace",
}

# With no control group a process's own memory is all that can be counted, and nobody counts root's processes.
NEED_CGROUPS = {
    "much_memory_in_unnamed_files": "mem_total",
    "flood_of_forks": "pids",
    "flood_of_threads": "pids",
}


def cases() -> Iterator[tuple[Case, bool]]:
    """Sandbox, account and way, with whether the case is for the long run only."""
    for sandbox in ("bwrap", "landlock", "local"):
        for account in ("user", "root") if AS_ROOT else ("user",):
            long = account == "root" and sandbox != "bwrap"
            yield (Setting("api", sandbox), account), long
            yield (Setting("api", sandbox, preload="numpy"), account), (sandbox, account) != ("bwrap", "user")
            yield (Setting("command", sandbox), account), True
    yield (Setting("command", "bwrap", sample=True), "user"), False


def title(case: Case) -> str:
    setting, account = case
    warm = "warm" if setting.preload else ""
    return "-".join(filter(None, (setting.way, setting.sandbox, warm, "sample" * setting.sample, account)))


def programs_of(case: Case) -> list[Escape]:
    setting, account = case
    chosen = [
        program for program in PROGRAMS.values() if program.rights in ("", account if AS_ROOT else "user")
    ]
    if setting.way == "plain":
        # What an ordinary account can do, root can do as well.
        return [program for program in chosen if account == "user" or program.rights == "root"]
    if setting.way == "command":
        chosen = [program for program in chosen if program.by_command]
    if setting.sample:
        chosen = [program for program in chosen if program.name in BY_COMMAND]
    return chosen


class Bench:
    """Runs batches of programs ahead of the tests that ask for them, two at a time."""

    def __init__(self, folder: Path, ahead: list[Case]) -> None:
        self._folder, self._ahead = folder, ahead
        self._pool, self._listeners = ThreadPoolExecutor(2), Listeners()
        self._batches: dict[Case, Future[Verdicts]] = {}
        # Some of what root can change there is but once on a machine.
        self._root = threading.Lock()

    def __call__(self, case: Case) -> Verdicts:
        wanted = [case, *self._ahead] if case in self._ahead else [case]
        for other in wanted:
            if other not in self._batches:
                self._batches[other] = self._pool.submit(self._run, other)
        return self._batches[case].result()

    def _run(self, case: Case) -> Verdicts:
        setting, name = case
        folder = self._folder / title(case)
        folder.mkdir(mode=0o711)
        with self._root if name == "root" else nullcontext():
            if name == "root":
                return run_all(
                    programs_of(case), setting, this_account(folder), folder / "batch", self._listeners
                )
            with ordinary_account(folder) as account:
                return run_all(programs_of(case), setting, account, folder / "batch", self._listeners)

    def close(self) -> None:
        self._pool.shutdown()
        self._listeners.close()


SHORT = [*PLAIN, *(case for case, long in cases() if not long)]


@pytest.fixture(scope="module")
def verdicts() -> Iterator[Callable[[Case], Verdicts]]:
    with working_folder() as folder:
        bench = Bench(folder, SHORT)
        yield bench
        bench.close()


def parameters(kind: list[Escape], chosen: list[tuple[Case, bool]]) -> list[object]:
    return [
        pytest.param(case, program, id=f"{title(case)}-{program.name}", marks=[pytest.mark.soak] * long)
        for case, long in chosen
        for program in programs_of(case)
        if program in kind
    ]


def allowed(case: Case, program: Escape, found: Verdicts) -> bool:
    """Whether the program may get through here: nothing that this sandbox promises is about it."""
    gap = case[0].sandbox == "landlock" and program.landlock_gap
    return gap or bool(program.covers - found.guarantees)


@pytest.mark.parametrize(("case", "program"), parameters(ESCAPES, [(case, False) for case in PLAIN]))
def test_with_no_sandbox_it_gets_through(
    case: Case, program: Escape, verdicts: Callable[[Case], Verdicts]
) -> None:
    found = verdicts(case)
    if program.name in found.missing:
        pytest.skip(found.missing[program.name])
    assert found.through[program.name], found.traces[program.name].last


@pytest.mark.parametrize(("case", "program"), parameters(ESCAPES, list(cases())))
def test_a_sandbox_holds_what_it_promises_to(
    case: Case, program: Escape, verdicts: Callable[[Case], Verdicts]
) -> None:
    found = verdicts(case)
    if program.name in found.missing:
        pytest.skip(found.missing[program.name])
    through = found.through[program.name]
    assert not through or allowed(case, program, found), found.traces[program.name].last


@pytest.mark.parametrize(
    ("case", "program"), parameters(HARMLESS, [*((case, False) for case in PLAIN), *cases()])
)
def test_a_harmless_program_works(case: Case, program: Escape, verdicts: Callable[[Case], Verdicts]) -> None:
    found = verdicts(case)
    broken = found.through[program.name]
    assert not broken or (case[0].sandbox == "landlock" and program.landlock_gap), found.traces[
        program.name
    ].last


def of(*sandboxes: str, way: str = "", warm: bool = False) -> list[object]:
    return [
        pytest.param(case, id=title(case), marks=[pytest.mark.soak] * long)
        for case, long in cases()
        if case[0].sandbox in sandboxes and way in ("", case[0].way) and warm <= bool(case[0].preload)
    ]


@pytest.mark.parametrize("case", of("bwrap", "landlock"))
def test_next_to_nothing_gets_through(case: Case, verdicts: Callable[[Case], Verdicts]) -> None:
    """Whatever a sandbox reports as missing, only these few may lack."""
    found = verdicts(case)
    through = {name for name, escaped in found.through.items() if escaped and PROGRAMS[name] in ESCAPES}
    excused = {name for name, guarantee in NEED_CGROUPS.items() if guarantee not in found.guarantees}
    if case[0].sandbox == "landlock":
        excused |= {program.name for program in ESCAPES if program.landlock_gap}
    elif case[1] == "user":
        assert "pids" in found.guarantees
    assert through <= excused


@pytest.mark.parametrize("case", of("bwrap", warm=True))
def test_a_warm_start_holds_as_much_as_a_cold_one(case: Case, verdicts: Callable[[Case], Verdicts]) -> None:
    setting, account = case
    cold, warm = verdicts((Setting("api", setting.sandbox), account)), verdicts(case)
    # Who wins the race against a watchdog isn't the sandbox's doing.
    differing = {name for name in cold.through if cold.through[name] != warm.through[name]}
    assert differing <= NEED_CGROUPS.keys()
    assert "'numpy'" in warm.traces["tell_what_is_imported"].last["stdout"]
    assert "'numpy'" not in cold.traces["tell_what_is_imported"].last["stdout"]


@pytest.mark.parametrize("case", of("bwrap", "landlock", "local", way="api"))
def test_who_ran_the_programs_is_as_before(case: Case, verdicts: Callable[[Case], Verdicts]) -> None:
    found = verdicts(case)
    assert found.zombies == 0
    assert found.descriptors <= 8, found.descriptors


def test_there_is_a_program_for_each_guarantee() -> None:
    covered = set().union(*(program.covers for program in ESCAPES))
    known = "fs_read fs_write net env proc_isolation tree_kill mem_total mem_proc pids disk_total file_size"
    assert covered == {*known.split(), "unix_sockets"}
    assert len(ESCAPES) == len({program.name for program in ESCAPES}) >= 45
