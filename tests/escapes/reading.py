"""Programs that try to read what isn't theirs: files, keys, memory of others."""

from __future__ import annotations

from tests.support.containment import Escape, escape, leaks

ESCAPES: list[Escape] = []


@escape("fs_read", evidence=leaks, into=ESCAPES)
def read_private_key(home_key: str) -> None:
    with open(home_key) as file:
        print(file.read())


@escape("fs_read", evidence=leaks, into=ESCAPES)
def read_files_everywhere(hidden_files: list) -> None:
    for path in hidden_files:
        try:
            with open(path) as file:
                print(file.read())
        except OSError as error:
            print(error)


@escape("fs_read", evidence=leaks, into=ESCAPES)
def read_by_way_of_parent_folders(secret_file: str) -> None:
    import os

    folder = os.open(".", os.O_PATH)
    for _ in range(40):
        folder = os.open("..", os.O_PATH, dir_fd=folder)
    file = os.open(secret_file.lstrip("/"), os.O_RDONLY, dir_fd=folder)
    print(os.read(file, 1000))


@escape("fs_read", evidence=leaks, into=ESCAPES)
def read_through_own_link(secret_file: str) -> None:
    import os

    os.symlink(secret_file, "harmless.txt")
    with open("harmless.txt") as file:
        print(file.read())


@escape("fs_read", evidence=leaks, into=ESCAPES)
def read_by_a_child_without_python(secret_file: str) -> None:
    import subprocess

    subprocess.run(["/bin/sh", "-c", 'cat < "$1"', "sh", secret_file])


@escape("fs_read", evidence=leaks, into=ESCAPES)
def read_sibling_workspace(sibling: str) -> None:
    import os

    for name in os.listdir(sibling):
        with open(os.path.join(sibling, name)) as file:
            print(file.read())


@escape("fs_read", evidence=leaks, into=ESCAPES)
def read_journal(journal: str) -> None:
    with open(journal) as file:
        print(file.read())


@escape("fs_read", evidence=leaks, into=ESCAPES, rights="root")
def read_by_file_handle(handle: bytes, handle_type: int) -> None:
    # The number of the file in its file system is enough; no path leads there.
    import ctypes
    import os

    class Handle(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("body", ctypes.c_ubyte * 128))

    wanted = Handle(len(handle), handle_type, (ctypes.c_ubyte * 128)(*handle))
    place = os.open(".", os.O_RDONLY)
    file = ctypes.CDLL(None, use_errno=True).open_by_handle_at(place, ctypes.byref(wanted), os.O_RDONLY)
    if file < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    print(os.read(file, 1000))


@escape("fs_read", evidence=leaks, into=ESCAPES, rights="root")
def read_kernel_log_by_own_device(in_kernel_log: str) -> None:
    import os
    import stat

    os.mknod("messages", 0o600 | stat.S_IFCHR, os.makedev(1, 11))
    file = os.open("messages", os.O_RDONLY | os.O_NONBLOCK)
    while True:
        line = os.read(file, 8192)
        if in_kernel_log.encode() in line:
            print(line)
            return


@escape("proc_isolation", evidence=leaks, into=ESCAPES, rights="root")
def read_kernel_log_by_system_call(in_kernel_log: str) -> None:
    import ctypes

    room = ctypes.create_string_buffer(1 << 20)
    size = ctypes.CDLL(None).klogctl(3, room, len(room))
    print(room.raw[: max(size, 0)].decode("utf-8", "replace"))


@escape("env", evidence=leaks, into=ESCAPES)
def read_own_environment() -> None:
    import os
    import subprocess

    print(dict(os.environ))
    with open("/proc/self/environ") as file:
        print(file.read())
    subprocess.run(["/usr/bin/env"])


@escape("env", "proc_isolation", evidence=leaks, into=ESCAPES)
def read_environment_of_parents() -> None:
    import os

    pid = os.getppid()
    while pid > 0:
        try:
            with open(f"/proc/{pid}/environ") as file:
                print(pid, file.read())
        except OSError as error:
            print(pid, error)
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])


@escape("proc_isolation", evidence=leaks, into=ESCAPES)
def read_environment_of_everyone() -> None:
    import os

    for name in os.listdir("/proc"):
        for part in ("environ", "cmdline") if name.isdigit() else ():
            try:
                with open(f"/proc/{name}/{part}", errors="replace") as file:
                    print(file.read()[:20_000])
            except OSError:
                pass


@escape("proc_isolation", evidence=leaks, into=ESCAPES)
def read_command_lines(bystander: dict) -> None:
    with open(f"/proc/{bystander['pid']}/cmdline") as file:
        print(file.read())


@escape("proc_isolation", evidence=leaks, into=ESCAPES)
def read_memory_of_parent() -> None:
    import os
    import re

    pid = os.getppid()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if " rw" not in line or end - start > 1 << 28:
                continue
            try:
                memory.seek(start)
                print(set(re.findall(rb"canary-[0-9a-f]+", memory.read(end - start))))
            except (OSError, OverflowError):
                pass


@escape("proc_isolation", evidence=leaks, into=ESCAPES)
def read_descriptors_of_others(bystander: dict) -> None:
    import os

    for pid in {os.getppid(), bystander["pid"]}:
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                target = os.open(f"/proc/{pid}/fd/{name}", os.O_RDONLY | os.O_NONBLOCK)
                try:
                    print(os.pread(target, 1000, 0))
                except OSError as error:
                    print(error)
        except OSError as error:
            print(error)


@escape("proc_isolation", evidence=leaks, into=ESCAPES)
def read_through_root_of_another_process(bystander: dict, secret_file: str) -> None:
    with open(f"/proc/{bystander['pid']}/root{secret_file}") as file:
        print(file.read())


@escape("proc_isolation", evidence=leaks, into=ESCAPES)
def trace_another_process(bystander: dict) -> None:
    import ctypes
    import os

    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    library.ptrace.restype = ctypes.c_long
    pid = bystander["pid"]
    if library.ptrace(16, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "attach")
    os.waitpid(pid, 0x40000000)
    words = [library.ptrace(2, pid, bystander["address"] + 8 * place, None) for place in range(6)]
    library.ptrace(17, pid, None, None)
    print(b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word in words))


@escape("proc_isolation", evidence=leaks, into=ESCAPES)
def read_memory_by_system_call(bystander: dict) -> None:
    import ctypes

    class Span(ctypes.Structure):
        _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))

    room = ctypes.create_string_buffer(64)
    here = Span(ctypes.addressof(room), 64)
    there = Span(bystander["address"], 64)
    read = ctypes.CDLL(None, use_errno=True).process_vm_readv
    if read(bystander["pid"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
    print(room.raw)


@escape("proc_isolation", evidence=leaks, into=ESCAPES)
def take_descriptor_of_another_process(bystander: dict, numbers: dict) -> None:
    import ctypes
    import os

    library = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(bystander["pid"])
    taken = library.syscall(numbers["pidfd_getfd"], handle, bystander["descriptor"], 0)
    if taken < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    print(os.pread(taken, 1000, 0))


@escape("env", evidence=leaks, into=ESCAPES)
def read_inherited_descriptors() -> None:
    # Who runs the program holds a file with a secret open, inheritable by mistake.
    import os

    for number in range(3, 256):
        try:
            os.set_blocking(number, False)
            print(number, os.pread(number, 1000, 0))
        except OSError:
            pass
