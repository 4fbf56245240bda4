"""Programs that try to change what lies outside their workspace."""

from __future__ import annotations

from tests.escapes.measures import in_named_cgroup
from tests.support.containment import Escape, changes, escape, reaches

ESCAPES: list[Escape] = []


@escape("fs_write", evidence=changes, into=ESCAPES)
def write_new_file_outside(outside: str) -> None:
    with open(f"{outside}/new.txt", "w") as file:
        file.write("was here")


@escape("fs_write", evidence=changes, into=ESCAPES)
def overwrite_file_outside(secret_file: str) -> None:
    with open(secret_file, "a") as file:
        file.write("was here")


@escape("fs_write", evidence=changes, into=ESCAPES)
def truncate_file_outside(secret_file: str) -> None:
    import os

    os.truncate(secret_file, 0)


@escape("fs_write", evidence=changes, into=ESCAPES)
def remove_file_outside(secret_file: str) -> None:
    import os

    os.unlink(secret_file)


@escape("fs_write", evidence=changes, into=ESCAPES)
def move_file_into_workspace(secret_file: str) -> None:
    import os

    os.rename(secret_file, "taken.txt")


@escape("fs_write", evidence=changes, into=ESCAPES)
def make_folder_and_pipe_outside(outside: str) -> None:
    import os

    for make, name in ((os.mkdir, "folder"), (os.mkfifo, "pipe")):
        try:
            make(f"{outside}/{name}")
        except OSError as error:
            print(error)


@escape("fs_write", evidence=changes, into=ESCAPES, landlock_gap=True)
def change_rights_outside(secret_file: str) -> None:
    import os

    os.chmod(secret_file, 0o666)


@escape("fs_write", evidence=changes, into=ESCAPES, landlock_gap=True, rights="root")
def change_owner_outside(secret_file: str) -> None:
    import os

    os.chown(secret_file, 65534, 65534)


@escape("fs_write", evidence=changes, into=ESCAPES, landlock_gap=True)
def change_times_outside(secret_file: str) -> None:
    import os

    os.utime(secret_file, (0, 0))


@escape("fs_write", evidence=changes, into=ESCAPES, landlock_gap=True)
def change_attributes_outside(attributes_file: str) -> None:
    import os

    os.setxattr(attributes_file, "user.was", b"here")


@escape("fs_write", evidence=changes, into=ESCAPES)
def write_through_own_link(secret_file: str) -> None:
    import os

    os.symlink(secret_file, "mine.txt")
    with open("mine.txt", "a") as file:
        file.write("was here")


@escape("fs_write", evidence=changes, into=ESCAPES)
def write_through_hard_link(secret_file_beside: str) -> None:
    # On the workspace's own file system, so that a hard link could be made.
    import os

    os.link(secret_file_beside, "mine.txt")
    with open("mine.txt", "a") as file:
        file.write("was here")


@escape("fs_write", evidence=changes, into=ESCAPES)
def write_through_root_of_another_process(bystander: dict, secret_file: str) -> None:
    with open(f"/proc/{bystander['pid']}/root{secret_file}", "a") as file:
        file.write("was here")


@escape("fs_write", evidence=changes, into=ESCAPES)
def write_sibling_workspace(sibling: str) -> None:
    with open(f"{sibling}/score.json", "w") as file:
        file.write('{"score": 1.0}')


@escape("fs_write", evidence=changes, into=ESCAPES)
def write_journal(journal: str) -> None:
    with open(journal, "a") as file:
        file.write('{"type": "node_done"}\n')


@escape("fs_write", evidence=changes, into=ESCAPES, rights="root")
def plant_file_in_interpreter(packages_file: str) -> None:
    with open(packages_file, "w") as file:
        file.write("was here")


@escape("fs_write", evidence=changes, into=ESCAPES, rights="root")
def remount_interpreter_writable(packages_file: str, packages: str) -> None:
    import ctypes
    import os

    library = ctypes.CDLL(None, use_errno=True)
    place = packages
    while place != "/":
        library.mount(None, place.encode(), None, 0x20 | 0x1000, None)
        place = os.path.dirname(place)
    with open(packages_file, "w") as file:
        file.write("was here")


@escape("fs_write", evidence=changes, into=ESCAPES, rights="root")
def write_in_system_folders(system_files: list) -> None:
    for path in system_files:
        try:
            with open(path, "w") as file:
                file.write("was here")
        except OSError as error:
            print(error)


@escape("fs_write", evidence=changes, into=ESCAPES, rights="root")
def change_kernel_setting(kernel_setting: str, kernel_value: str) -> None:
    with open(kernel_setting, "w") as file:
        file.write(kernel_value)


@escape("fs_write", evidence=changes, into=ESCAPES, rights="root")
def press_magic_key(magic_keys: str) -> None:
    # The harmless one: the kernel lists the others in its log.
    with open(magic_keys, "w") as file:
        file.write("h")


@escape("fs_write", evidence=reaches(0), into=ESCAPES, rights="root", measure=in_named_cgroup)
def move_to_another_cgroup(token: str, cgroup: str) -> None:
    import os
    import time

    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1.5)


@escape("fs_write", evidence=changes, into=ESCAPES)
def leave_file_in_shared_memory(shared_file: str) -> None:
    with open(shared_file, "w") as file:
        file.write("was here")


@escape("fs_write", evidence=changes, into=ESCAPES)
def type_into_terminal(typing_terminal: str) -> None:
    # What is put into the queue is read by the shell of whoever started the run.
    import fcntl
    import os
    import termios

    for path in ("/dev/tty", typing_terminal):
        try:
            file = os.open(path, os.O_RDWR | os.O_NOCTTY)
            for letter in b"was here\n":
                fcntl.ioctl(file, termios.TIOCSTI, bytes([letter]))
        except OSError as error:
            print(path, error)


@escape("fs_write", evidence=changes, into=ESCAPES)
def write_on_terminal(terminal: str) -> None:
    import os

    os.write(os.open(terminal, os.O_WRONLY | os.O_NOCTTY), b"\x1b]52;c;d2FzIGhlcmU=\x07was here\n")
