"""What the programs of one batch have in common: an account, a run directory, a bystander, a terminal."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.escapes.listeners import Listeners, Terminal
from tests.support.accounts import Account

BYSTANDER = """\
import ctypes, os, sys, time
secret = sys.argv[1].encode()
room = ctypes.create_string_buffer(secret + b" " * 32)
file = os.open(sys.argv[2], os.O_RDONLY)
ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)
print(ctypes.addressof(room), file, flush=True)
time.sleep(600)
"""


def new_secret() -> str:
    return f"canary-{secrets.token_hex(12)}"


class Batch:
    """What the programs of one batch have in common: an account, a run directory, listeners, a bystander."""

    def __init__(self, folder: Path, account: Account, listeners: Listeners) -> None:
        self.account, self.listeners = account, listeners
        self.folder = account.owns(made(folder))
        self.nodes = account.owns(made(account.owns(made(folder / "run")) / "nodes"))
        self.secret, inherited, journal = (new_secret() for _ in range(3))
        self.inherited = self.file(folder / "inherited.txt", inherited)
        self.journal = self.file(folder / "run" / "events.jsonl", journal)
        self.input = self.file(folder / "input.txt", "an input\n")
        # Far from the temporary folder, which a sandbox may hide for other reasons.
        self.outside = account.owns(Path(tempfile.mkdtemp(prefix="outside-", dir="/var/tmp")))
        self.elsewhere = [self.outside]
        for place in ("/srv", "/run", "/home", "/root"):
            with contextlib.suppress(OSError):
                self.elsewhere.append(account.owns(Path(tempfile.mkdtemp(prefix="outside-", dir=place))))
        self.secrets = {self.secret, inherited, journal}
        self.terminal = Terminal(account)
        self.bystander = self._start_bystander()

    def file(self, path: Path, text: str) -> Path:
        path.write_text(text)
        return self.account.owns(path)

    def environment(self) -> dict[str, str]:
        """What who runs the programs has in its environment."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.account.home),
            "LANG": "C.UTF-8",
            "EXAMPLE_API_KEY": self.secret,
            "EXAMPLE_SETTING": self.secret,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def as_account(self) -> dict[str, Any]:
        """Keyword arguments of `Popen`."""
        if self.account.uid == os.geteuid():
            return {}
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}

    def close(self) -> None:
        self.bystander_process.kill()
        self.bystander_process.communicate()
        self.terminal.close()
        for folder in self.elsewhere:
            shutil.rmtree(folder, ignore_errors=True)
        # Folders nested a thousand deep are more than the library's own removal can do.
        subprocess.run(["rm", "-rf", str(self.folder)], check=False, capture_output=True)

    def _start_bystander(self) -> dict[str, int]:
        text, hidden = new_secret(), self.file(self.folder / "hidden.txt", new_secret())
        self.secrets |= {text, hidden.read_text()}
        command = self.account.command(sys.executable, "-I", "-c", BYSTANDER, text, str(hidden))
        self.bystander_process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.bystander_process.stdout is not None
        address, descriptor = map(int, self.bystander_process.stdout.readline().split())
        hidden.unlink()
        return {"pid": self.bystander_process.pid, "address": address, "descriptor": descriptor}


def made(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path
