"""Accounts under which the tests run programs: the one that runs them, and an ordinary one made for them."""

from __future__ import annotations

import os
import pwd
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Account:
    """Whose rights a command gets. ``home`` exists and belongs to the account."""

    name: str
    uid: int
    gid: int
    home: Path

    def owns(self, path: Path) -> Path:
        """``path``, handed to the account."""
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        return path

    def command(self, *words: str) -> list[str]:
        """The command line that runs ``words`` with the rights of this account, and only those.

        Where the interpreter or the project lie in a folder that others can't enter (a home of root's),
        the command sees them through mounts of its own; nothing of the machine is changed.
        """
        if self.uid == os.geteuid():
            return list(words)
        drop = ["setpriv", "--reuid", str(self.uid), "--regid", str(self.gid), "--clear-groups", *words]
        script = _mounts_for(self)
        if not script:
            return drop
        script += "exec " + shlex.join(drop)
        return ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", script]


@contextmanager
def ordinary_account(folder: Path) -> Iterator[Account]:
    """An account with no rights of its own, its home in ``folder``.

    Without root it is the account that runs the tests.

    Raises:
        AssertionError: the account can't run the interpreter with the project, whatever is mounted.
    """
    home = folder / "home"
    home.mkdir()
    if os.geteuid() != 0:
        yield Account(pwd.getpwuid(os.geteuid()).pw_name, os.geteuid(), os.getegid(), home)
        return
    name = f"test-{secrets.token_hex(4)}"
    made = shutil.which("useradd") is not None
    if made:
        command = ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", name]
        subprocess.run(command, check=True, capture_output=True)
        entry = pwd.getpwnam(name)
        account = Account(name, entry.pw_uid, entry.pw_gid, home)
    else:
        unused = _unused_number()
        account = Account(name, unused, unused, home)
    try:
        account.owns(home)
        _check(account)
        yield account
    finally:
        if made:
            subprocess.run(["userdel", "--force", name], check=False, capture_output=True)


def this_account(folder: Path) -> Account:
    """The account that runs the tests, with a home of its own in ``folder``."""
    home = folder / "own-home"
    home.mkdir()
    return Account(pwd.getpwuid(os.geteuid()).pw_name, os.geteuid(), os.getegid(), home)


def _check(account: Account) -> None:
    command = account.command(sys.executable, "-c", "import corerun, tests.escapes")
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, (
        f"an ordinary account can't run {sys.executable} with the project in {PROJECT}; "
        f"make both readable for others: {done.stderr.strip()[-300:]}"
    )


def _unused_number() -> int:
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return next(number for number in range(61_000, 65_000) if number not in taken)


def _mounts_for(account: Account) -> str:
    """Shell lines that put what is needed into view, each shut folder covered by an empty one."""
    needed = {PROJECT, Path(sys.prefix), Path(sys.base_prefix)}
    needed |= {path.resolve() for path in needed}
    shut: dict[Path, set[Path]] = {}
    for path in needed:
        for parent in reversed(path.parents):
            if not _can_enter(account, parent):
                shut.setdefault(parent, set()).add(path)
                break
    lines = []
    for number, (folder, paths) in enumerate(sorted(shut.items())):
        stage = account.home.parent / f"mounts-{number}"
        outermost = [path for path in sorted(paths) if not any(other in path.parents for other in paths)]
        for place, path in enumerate(outermost):
            (stage / str(place)).mkdir(parents=True, exist_ok=True)
            lines.append(f"mount --bind {shlex.quote(str(path))} {shlex.quote(f'{stage}/{place}')}")
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(folder))}")
        for place, path in enumerate(outermost):
            lines.append(f"mkdir -p {shlex.quote(str(path))}")
            lines.append(f"mount --move {shlex.quote(f'{stage}/{place}')} {shlex.quote(str(path))}")
    return "".join(f"{line}\n" for line in lines)


def _can_enter(account: Account, folder: Path) -> bool:
    status = folder.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid == account.gid:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)
