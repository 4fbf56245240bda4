"""Programs that leave something for the next one, or look at the one beside them."""

from __future__ import annotations

from tests.support.containment import Escape, escape, leaks

ESCAPES: list[Escape] = []


def _look_in_temporary_folders(token: str) -> None:
    import os
    import tempfile

    for folder in ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir()):
        try:
            with open(os.path.join(folder, token)) as file:
                print(file.read())
        except OSError as error:
            print(error)


@escape("fs_write", evidence=leaks, into=ESCAPES, second=_look_in_temporary_folders)
def leave_files_in_temporary_folders(token: str, secret: str) -> None:
    import os
    import tempfile

    for folder in ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir()):
        try:
            with open(os.path.join(folder, token), "w") as file:
                file.write(secret)
        except OSError as error:
            print(error)


def _look_at_home(token: str) -> None:
    import os

    try:
        with open(os.path.expanduser(f"~/{token}")) as file:
            print(file.read())
    except OSError as error:
        print(error)


@escape("fs_write", evidence=leaks, into=ESCAPES, second=_look_at_home)
def leave_file_at_home(token: str, secret: str) -> None:
    import os

    with open(os.path.expanduser(f"~/{token}"), "w") as file:
        file.write(secret)


def _look_at_segment(segment_key: int) -> None:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.shmat.restype = ctypes.c_void_p
    place = library.shmat(library.shmget(segment_key, 4096, 0), None, 0)
    if place not in (None, ctypes.c_void_p(-1).value):
        print(ctypes.string_at(place, 100))


@escape("proc_isolation", evidence=leaks, into=ESCAPES, second=_look_at_segment)
def leave_text_in_shared_memory(segment_key: int, secret: str) -> None:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.shmat.restype = ctypes.c_void_p
    place = library.shmat(library.shmget(segment_key, 4096, 0o1666), None, 0)
    ctypes.memmove(ctypes.c_void_p(place), secret.encode(), len(secret))


def _look_around_in_interpreter() -> None:
    import builtins
    import codecs
    import gc
    import linecache
    import logging
    import os
    import signal
    import sys
    import warnings

    print("hello")
    print(dict(os.environ), os.getcwd(), sys.path, sys.argv, os.umask(0o77), sorted(sys.modules))
    print(vars(builtins).keys(), signal.getsignal(signal.SIGUSR1), warnings.filters, sys.excepthook)
    print(logging.getLogger().handlers, linecache.cache.keys(), sys.meta_path, codecs.lookup("ascii"))
    import json

    print(
        json.dumps({"a": 1}),
        [item for item in gc.get_objects() if type(item) is str and "canary" in item][:9],
    )


@escape(evidence=leaks, into=ESCAPES, second=_look_around_in_interpreter)
def leave_traces_in_interpreter(secret: str) -> None:
    import atexit
    import builtins
    import json
    import logging
    import os
    import signal
    import sys
    import types
    import warnings

    plain_print = builtins.print
    os.environ[f"LEFT_{secret[-6:]}"] = secret
    sys.path.append(f"/{secret}")
    sys.argv.append(secret)
    sys.modules[f"planted_{secret}"] = types.ModuleType("planted")
    setattr(builtins, f"planted_{secret}", 1)
    builtins.print = lambda *words, **options: plain_print(secret, *words, **options)
    json.dumps = lambda value: secret
    signal.signal(signal.SIGUSR1, lambda *_: None)
    warnings.filterwarnings("ignore", message=secret)
    logging.getLogger().addHandler(logging.FileHandler(secret, delay=True))
    atexit.register(lambda: plain_print(secret))


def _answer_from_abstract_socket(token: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(3)
        connection.connect(f"\0{token}")
        print(connection.recv(100))


@escape("tree_kill", evidence=leaks, into=ESCAPES, second=_answer_from_abstract_socket)
def leave_server_behind(token: str, secret: str) -> None:
    import os
    import socket

    server = socket.socket(socket.AF_UNIX)
    server.bind(f"\0{token}")
    server.listen()
    if os.fork() == 0:
        os.setsid()
        server.settimeout(4)
        server.accept()[0].sendall(secret.encode())
        os._exit(0)
    # Where both programs are one process, the descriptor goes with it, not the child.
    server.close()


def _look_at_the_program_beside() -> None:
    import os
    import re

    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        for part in ("environ", "cmdline", "root/etc/hostname", "cwd/private.txt"):
            try:
                with open(f"/proc/{name}/{part}", errors="replace") as file:
                    print(set(re.findall("canary-[0-9a-f]+", file.read())))
            except OSError:
                pass
        try:
            with open(f"/proc/{name}/maps") as maps, open(f"/proc/{name}/mem", "rb", 0) as memory:
                for line in maps:
                    start, end = (int(number, 16) for number in line.split()[0].split("-"))
                    if "[heap]" in line:
                        memory.seek(start)
                        print(set(re.findall(rb"canary-[0-9a-f]+", memory.read(end - start))))
        except OSError:
            pass


@escape("proc_isolation", evidence=leaks, into=ESCAPES, second=_look_at_the_program_beside, order="beside")
def have_a_secret_of_its_own(secret: str) -> None:
    import os
    import time

    with open("private.txt", "w") as file:
        file.write(secret)
    with open("ready", "w"):
        pass
    end = time.monotonic() + 6
    while time.monotonic() < end and not os.path.exists("enough"):
        time.sleep(0.02)
