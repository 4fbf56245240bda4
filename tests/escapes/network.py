"""Programs that try to talk to somebody: over every kind of socket there is."""

from __future__ import annotations

from tests.support.containment import Escape, arrives, escape

ESCAPES: list[Escape] = []


@escape("net", evidence=arrives, into=ESCAPES)
def send_by_tcp(token: str, tcp_port: int) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", tcp_port), 2) as connection:
        connection.sendall(token.encode())


@escape("net", evidence=arrives, into=ESCAPES)
def send_by_tcp_on_every_address(token: str, tcp_port: int, addresses: list) -> None:
    import socket

    for address in addresses:
        try:
            with socket.create_connection((address, tcp_port), 2) as connection:
                connection.sendall(token.encode())
        except OSError as error:
            print(address, error)


@escape("net", evidence=arrives, into=ESCAPES)
def send_by_tcp_version_6(token: str, tcp6_port: int) -> None:
    import socket

    with socket.create_connection(("::1", tcp6_port), 2) as connection:
        connection.sendall(token.encode())


@escape("net", evidence=arrives, into=ESCAPES)
def send_by_multipath_tcp(token: str, tcp_port: int) -> None:
    # A protocol of its own to the kernel, which rules for TCP don't name; it ends at any TCP listener.
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as connection:
        connection.connect(("127.0.0.1", tcp_port))
        connection.sendall(token.encode())


@escape("net", evidence=arrives, into=ESCAPES)
def send_by_fast_open(token: str, tcp_port: int) -> None:
    # The data goes along with the wish to connect: there is no call of connect to refuse.
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.sendto(token.encode(), 0x20000000, ("127.0.0.1", tcp_port))


@escape("net", evidence=arrives, into=ESCAPES)
def send_by_udp(token: str, udp_port: int) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(token.encode(), ("127.0.0.1", udp_port))


@escape("net", evidence=arrives, into=ESCAPES)
def send_by_a_program_without_python(token: str, tcp_port: int) -> None:
    import subprocess

    script = f"exec 3<>/dev/tcp/127.0.0.1/{tcp_port} && printf {token} >&3"
    subprocess.run(["/bin/bash", "-c", script])


@escape("net", evidence=arrives, into=ESCAPES)
def listen_for_others(token: str, open_port: int) -> None:
    import socket

    with socket.create_server(("127.0.0.1", open_port)) as server:
        server.settimeout(1.5)
        connection, _ = server.accept()
        connection.sendall(token.encode())
        connection.close()


@escape("net", evidence=arrives, into=ESCAPES)
def send_by_netlink(token: str, netlink_port: int) -> None:
    import socket

    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 2) as sender:
        sender.bind((0, 0))
        head = (16 + len(token)).to_bytes(4, "little") + bytes(12)
        sender.sendto(head + token.encode(), (netlink_port, 0))


@escape("net", evidence=arrives, into=ESCAPES, rights="root")
def send_by_raw_socket(token: str, udp_port: int) -> None:
    import socket
    import struct

    body = struct.pack("!HHHH", 9, udp_port, 8 + len(token), 0) + token.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sender:
        sender.sendto(body, ("127.0.0.1", 0))


@escape("net", evidence=arrives, into=ESCAPES, rights="root")
def send_by_packet_socket(token: str, packet_kind: int) -> None:
    import socket

    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sender:
        sender.sendto(token.encode(), ("lo", packet_kind, 0, 0, bytes(6)))


@escape("net", "unix_sockets", evidence=arrives, into=ESCAPES)
def send_to_abstract_socket(token: str, abstract_socket: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect("\0" + abstract_socket)
        connection.sendall(token.encode())


@escape("unix_sockets", evidence=arrives, into=ESCAPES, landlock_gap=True)
def send_to_socket_by_path(token: str, socket_path: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(socket_path)
        connection.sendall(token.encode())


@escape("unix_sockets", evidence=arrives, into=ESCAPES, landlock_gap=True)
def ask_container_engine(token: str, engine_socket: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(engine_socket)
        connection.sendall(f"POST /containers/create?name={token} HTTP/1.0\r\n\r\n".encode())


@escape("unix_sockets", evidence=arrives, into=ESCAPES, landlock_gap=True)
def send_datagram_by_socket_pair(token: str, datagram_path: str) -> None:
    # A pair needs no permission of its own, and each end of it may still send elsewhere.
    import socket

    end, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.sendto(token.encode(), datagram_path)
