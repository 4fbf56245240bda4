"""What surrounds a program under test: files, listeners and processes that are none of its business."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.escapes.batch import Batch, made, new_secret
from tests.escapes.remains import kernel_objects, remove_kernel_objects, snapshot, state_of, was_set

NUMBERS = {
    "x86_64": {"clone": 56, "add_key": 248, "perf_event_open": 298, "bpf": 321, "userfaultfd": 323},
    "aarch64": {"clone": 220, "add_key": 217, "perf_event_open": 241, "bpf": 280, "userfaultfd": 282},
}
COMMON_NUMBERS = {"io_uring_setup": 425, "clone3": 435, "pidfd_getfd": 438}


class Missing(Exception):
    """The kernel or the account lacks what an attack is about."""


class Place:
    """Where one program runs, and all that it is told of; by the names of the programs' parameters."""

    def __init__(self, batch: Batch, name: str) -> None:
        self.batch, self.name, self.token = batch, name, secrets.token_hex(6)
        self.workspace = batch.account.owns(made(batch.nodes / f"{name}.0"))
        self.second_workspace = batch.account.owns(made(batch.nodes / f"{name}.1"))
        self.secret = new_secret()
        self.own_secrets = {self.secret}
        self.victim_process: subprocess.Popen[bytes] | None = None
        self.values: dict[str, Any] = {}
        self._evidence: list[Callable[[], Any]] = []
        self._undo: list[Callable[[], Any]] = []
        self._before: list[Any] = []

    def value(self, name: str) -> Any:
        """The value of a parameter; what it stands for is made, and watched, from now on."""
        found = getattr(self, f"make_{name}", None)
        return found() if found else getattr(self, name)

    def watch(self) -> None:
        """From here on each change counts as the program's."""
        self._before = [look() for look in self._evidence]

    def secrets(self) -> set[str]:
        """What no program was given, or only one that may not hand it on."""
        return self.own_secrets | self.batch.secrets

    def secret_digests(self) -> set[str]:
        return {hashlib.sha256(text.encode()).hexdigest() for text in self.own_secrets}

    def changed(self) -> bool:
        return [look() for look in self._evidence] != self._before

    def arrived(self) -> bool:
        return self.batch.listeners.got(self.token)

    def victim_changed(self) -> bool:
        victim = self.victim_process
        assert victim is not None
        return victim.poll() is not None or state_of(victim.pid) != self._victim_before

    def close(self) -> None:
        for folder in ("/dev/shm", "/tmp", "/var/tmp", tempfile.gettempdir()):
            self._undo += [path.unlink for path in Path(folder).glob(f"{self.token}*")]
        for undo in self._undo:
            with contextlib.suppress(OSError):
                undo()
        if self.victim_process is not None:
            self.victim_process.kill()
            self.victim_process.wait()

    # ------------------------------------------------------------------------------------ files

    def _new_secret_file(self, path: Path) -> str:
        text = new_secret()
        self.own_secrets.add(text)
        return str(self.batch.file(path, text))

    @property
    def outside_folder(self) -> Path:
        folder = self.batch.outside / self.name
        if not folder.exists():
            self.batch.account.owns(made(folder))
            self._evidence.append(lambda: snapshot(folder))
        return folder

    def make_outside(self) -> str:
        self.make_secret_file()
        return str(self.outside_folder)

    def make_secret_file(self) -> str:
        return self._new_secret_file(self.outside_folder / "notes.txt")

    def make_secret_file_beside(self) -> str:
        folder = self.batch.account.owns(made(self.batch.folder / f"beside-{self.name}"))
        self._evidence.append(lambda: snapshot(folder))
        return self._new_secret_file(folder / "notes.txt")

    def make_attributes_file(self) -> str:
        path = self.make_secret_file()
        try:
            os.setxattr(path, "user.try", b"1")
        except OSError as error:
            raise Missing(f"needs the kernel's attributes of files: {error}") from error
        return path

    def make_hidden_files(self) -> list[str]:
        return [self._new_secret_file(folder / f"{self.name}.txt") for folder in self.batch.elsewhere]

    def make_home_key(self) -> str:
        folder = self.batch.account.home / ".ssh"
        if not folder.exists():
            self.batch.account.owns(made(folder))
        return self._new_secret_file(folder / f"id_{self.name}")

    def make_sibling(self) -> str:
        folder = self.batch.account.owns(made(self.batch.nodes / f"{self.name}-sibling.0"))
        self._new_secret_file(folder / "result.txt")
        self._evidence.append(lambda: snapshot(folder))
        return str(folder)

    def make_journal(self) -> str:
        self._evidence.append(lambda: self.batch.journal.read_text())
        return str(self.batch.journal)

    def make_packages(self) -> str:
        return sysconfig.get_path("purelib")

    def make_packages_file(self) -> str:
        return self._must_not_exist(Path(self.make_packages()) / f"{self.token}.txt")

    def make_shared_file(self) -> str:
        return self._must_not_exist(Path("/dev/shm") / self.token)

    def make_system_files(self) -> list[str]:
        folders = ("/etc", "/usr/lib", "/usr/local/bin", "/opt", "/root", "/var/lib", "/run")
        return [self._must_not_exist(Path(folder) / self.token) for folder in folders]

    def _must_not_exist(self, path: Path) -> str:
        self._evidence.append(path.exists)
        self._undo.append(lambda: path.unlink(missing_ok=True))
        return str(path)

    def make_handle(self) -> bytes:
        room = ctypes.create_string_buffer((128).to_bytes(4, sys.byteorder), 200)
        mount, library = ctypes.c_int(), ctypes.CDLL(None, use_errno=True)
        # On the workspace's own file system: a handle is good for the one it was made on.
        path = self.make_secret_file_beside().encode()
        if library.name_to_handle_at(-100, path, room, ctypes.byref(mount), 0) < 0:
            raise Missing("needs the kernel's file handles on this file system")
        self.handle_type = int.from_bytes(room.raw[4:8], sys.byteorder)
        return room.raw[8 : 8 + int.from_bytes(room.raw[:4], sys.byteorder)]

    # --------------------------------------------------------------------------- machine, kernel

    def make_in_kernel_log(self) -> str:
        text = new_secret()
        self.own_secrets.add(text)
        try:
            Path("/dev/kmsg").write_text(f"{self.token} {text}\n")
        except OSError as error:
            raise Missing(f"needs the kernel's log: {error}") from error
        # The program knows what it looks for, not what follows.
        return self.token

    def make_kernel_setting(self) -> str:
        path = Path("/proc/sys/kernel/printk_ratelimit_burst")
        if not os.access(path, os.W_OK):
            raise Missing("needs the kernel's settings to be writable")
        before = path.read_text()
        self.kernel_value = str(int(before) + 1)
        self._evidence.append(path.read_text)
        self._undo.append(lambda: path.write_text(before))
        return str(path)

    def make_magic_keys(self) -> str:
        path = Path("/proc/sysrq-trigger")
        if not path.exists():
            raise Missing("needs the kernel's magic keys")
        self._evidence.append(lambda: subprocess.check_output(["dmesg"]).count(b"sysrq: HELP"))
        return str(path)

    def make_cgroup(self) -> str:
        for top in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
            folder = Path(top) / self.token
            with contextlib.suppress(OSError):
                folder.mkdir()
                self._undo.append(folder.rmdir)
                if (folder / "cgroup.procs").exists():
                    return str(folder)
        raise Missing("needs the kernel's cgroups to be writable")

    def make_watched_clock(self) -> bool:
        library = ctypes.CDLL(None, use_errno=True)
        timer = library.timerfd_create(0, os.O_NONBLOCK)
        far = (ctypes.c_long * 4)(0, 0, 1 << 33, 0)
        library.timerfd_settime(timer, 3, far, None)
        self._evidence.append(lambda: was_set(timer))
        self._undo.append(lambda: os.close(timer))
        return True

    def make_numbers(self) -> dict[str, int]:
        return {**NUMBERS.get(os.uname().machine, {}), **COMMON_NUMBERS}

    def make_key_name(self) -> str:
        self._evidence.append(lambda: self._has_key(self.token))
        return self.token

    def _has_key(self, name: str) -> bool:
        script = "import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall({}, 10, -4, b'user', {!r}, 0) > 0)"
        number = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, 250)
        text = script.format(number, name.encode())
        return bool(subprocess.run(self.batch.account.command(sys.executable, "-I", "-c", text)).returncode)

    def make_segment_key(self) -> int:
        key = int(self.token[:7], 16)
        self._evidence.append(lambda: kernel_objects(key))
        self._undo.append(lambda: remove_kernel_objects(key))
        return key

    def make_terminal(self) -> str:
        self._evidence.append(self.batch.terminal.shown)
        return self.batch.terminal.path

    def make_typing_terminal(self) -> str:
        self._evidence.append(self.batch.terminal.typed)
        return self.batch.terminal.path

    # ------------------------------------------------------------------------- network, processes

    def make_tcp_port(self) -> int:
        return self.batch.listeners.tcp

    def make_tcp6_port(self) -> int:
        if not self.batch.listeners.tcp6:
            raise Missing("needs the kernel's IPv6")
        return self.batch.listeners.tcp6

    def make_udp_port(self) -> int:
        return self.batch.listeners.udp

    def make_packet_kind(self) -> int:
        return self.batch.listeners.packet_kind

    def make_netlink_port(self) -> int:
        return self.batch.listeners.netlink

    def make_addresses(self) -> list[str]:
        name = socket.gethostname()
        with contextlib.suppress(OSError):
            return ["localhost", "127.0.0.2", "0.0.0.0", socket.gethostbyname(name)]
        return ["localhost", "127.0.0.2", "0.0.0.0"]

    def make_open_port(self) -> int:
        return self.batch.listeners.call_back()

    def make_abstract_socket(self) -> str:
        return self.batch.listeners.abstract

    def make_socket_path(self) -> str:
        return self.batch.listeners.by_path(self.outside_folder / "agent.sock")

    def make_datagram_path(self) -> str:
        return self.batch.listeners.by_path(self.outside_folder / "log.sock", socket.SOCK_DGRAM)

    def make_engine_socket(self) -> str:
        folder = next((place for place in self.batch.elsewhere if place.parent == Path("/run")), None)
        return self.batch.listeners.by_path((folder or self.outside_folder) / "docker.sock")

    def make_bystander(self) -> dict[str, int]:
        return self.batch.bystander

    def make_victim(self) -> int:
        self.victim_process = subprocess.Popen(
            ["/bin/sleep", "600"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self.batch.as_account(),
        )
        self._victim_before = state_of(self.victim_process.pid)
        return self.victim_process.pid
