"""Sockets of every kind, and a terminal, that note what reaches them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import secrets
import selectors
import socket
import termios
import threading
import tty
from pathlib import Path

from tests.support.accounts import Account


class Listeners:
    """Listens on the host from the first call until `close`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._got = bytearray()
        self._callers: list[int] = []
        self._end = threading.Event()
        self.tcp = self._serve(socket.create_server(("0.0.0.0", 0)))
        self.udp = self._note(socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0))
        self.netlink = self._note(socket.AF_NETLINK, socket.SOCK_RAW, (0, 0), 2)
        self.abstract = f"escapes-{secrets.token_hex(6)}"
        self._serve(_unix_server(f"\0{self.abstract}"))
        self.tcp6 = 0
        with contextlib.suppress(OSError):
            self.tcp6 = self._serve(socket.create_server(("::1", 0), family=socket.AF_INET6))
        # A kind of packet set aside for trials.
        self.packet_kind = 0x88B5
        with contextlib.suppress(OSError):
            self._note(
                socket.AF_PACKET, socket.SOCK_DGRAM, ("lo", self.packet_kind), socket.htons(self.packet_kind)
            )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def got(self, token: str) -> bool:
        return token.encode() in bytes(self._got)

    def by_path(self, path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> str:
        """A new socket at ``path``, open for everybody."""
        if kind == socket.SOCK_STREAM:
            self._serve(_unix_server(str(path)))
        else:
            self._note(socket.AF_UNIX, kind, str(path))
        path.chmod(0o777)
        return str(path)

    def call_back(self) -> int:
        """A port that nobody listens on yet; from now on somebody outside tries to connect to it."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = int(server.getsockname()[1])
        self._callers.append(port)
        return port

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _serve(self, server: socket.socket) -> int:
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ, "server")
        name = server.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def _note(self, family: int, kind: int, address: object, protocol: int = 0) -> int:
        receiver = socket.socket(family, kind, protocol)
        receiver.bind(address)  # type: ignore[arg-type]
        receiver.setblocking(False)
        self._selector.register(receiver, selectors.EVENT_READ, "receiver")
        name = receiver.getsockname()
        return int(name[0] if family == socket.AF_NETLINK else name[1]) if isinstance(name, tuple) else 0

    def _run(self) -> None:
        while not self._end.is_set():
            for key, _ in self._selector.select(0.05):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                with contextlib.suppress(OSError):
                    if key.data == "server":
                        connection = ready.accept()[0]
                        connection.setblocking(False)
                        self._selector.register(connection, selectors.EVENT_READ, "connection")
                        continue
                    body = ready.recv(1 << 16)
                    self._got += body
                    if body or key.data == "receiver":
                        continue
                if key.data == "connection":
                    self._selector.unregister(ready)
                    ready.close()
            for port in self._callers:
                with contextlib.suppress(OSError):
                    caller = socket.create_connection(("127.0.0.1", port), 0.2)
                    with caller:
                        caller.settimeout(3)
                        self._got += caller.recv(1 << 10)


class Terminal:
    """The terminal of whoever runs the programs. ``path`` belongs to the account."""

    def __init__(self, account: Account) -> None:
        self.master, self.slave = pty.openpty()
        self.path = os.ttyname(self.slave)
        account.owns(Path(self.path))
        tty.setraw(self.slave, termios.TCSANOW)
        for descriptor in (self.master, self.slave):
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_NONBLOCK)
        self._typed, self._shown = bytearray(), bytearray()

    def typed(self) -> int:
        """How often the mark was put into the terminal's input."""
        return _read(self.slave, self._typed).count(b"was here")

    def shown(self) -> int:
        """How often the mark came onto its screen."""
        return _read(self.master, self._shown).count(b"was here")

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


def _unix_server(address: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    return server


def _read(descriptor: int, found: bytearray) -> bytearray:
    with contextlib.suppress(BlockingIOError):
        while body := os.read(descriptor, 1 << 12):
            found += body
    return found
