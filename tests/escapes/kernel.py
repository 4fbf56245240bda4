"""Programs that reach for rarely used doors of the kernel, each of which has led out of a sandbox once."""

from __future__ import annotations

from tests.escapes import measures
from tests.support.containment import Escape, changes, escape, reaches

ESCAPES: list[Escape] = []
RING = measures.holds_descriptor("io_uring")
TABLE = measures.holds_descriptor("bpf-map")
COUNTER = measures.holds_descriptor("perf_event")
FAULTS = measures.holds_descriptor("userfaultfd")


@escape("proc_isolation", evidence=reaches(0), into=ESCAPES, measure=RING)
def open_io_ring(token: str, numbers: dict) -> None:
    # Work put into a ring is done by the kernel past every filter of system calls.
    import ctypes
    import time

    room = ctypes.create_string_buffer(120)
    if ctypes.CDLL(None).syscall(numbers["io_uring_setup"], 8, room) >= 0:
        time.sleep(1.5)


@escape("proc_isolation", evidence=reaches(0), into=ESCAPES, measure=TABLE, rights="root")
def load_into_kernel(token: str, numbers: dict) -> None:
    import ctypes
    import struct
    import time

    wish = ctypes.create_string_buffer(struct.pack("<IIIII", 1, 4, 4, 1, 0).ljust(120, b"\0"), 120)
    if ctypes.CDLL(None).syscall(numbers["bpf"], 0, wish, 120) >= 0:
        time.sleep(1.5)


@escape("proc_isolation", evidence=reaches(0), into=ESCAPES, measure=COUNTER)
def open_performance_counter(token: str, numbers: dict) -> None:
    import ctypes
    import struct
    import time

    # A software counter of this program alone, the kernel's own part left out.
    wish = struct.pack("<IIQQQQQ", 1, 112, 0, 0, 0, 0, (1 << 5) | (1 << 6)).ljust(112, b"\0")
    room = ctypes.create_string_buffer(wish, 112)
    if ctypes.CDLL(None).syscall(numbers["perf_event_open"], room, 0, -1, -1, 0) >= 0:
        time.sleep(1.5)


@escape("proc_isolation", evidence=reaches(0), into=ESCAPES, measure=FAULTS)
def handle_own_page_faults(token: str, numbers: dict) -> None:
    import ctypes
    import time

    if ctypes.CDLL(None).syscall(numbers["userfaultfd"], 1) >= 0:
        time.sleep(1.5)


@escape("proc_isolation", evidence=changes, into=ESCAPES)
def leave_key_in_kernel(key_name: str, numbers: dict) -> None:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    kept = library.syscall(numbers["add_key"], b"user", key_name.encode(), b"was here", 8, -4)
    print(kept, ctypes.get_errno())


@escape("proc_isolation", evidence=reaches(0), into=ESCAPES, measure=measures.fixed_addresses)
def switch_random_addresses_off(token: str) -> None:
    import ctypes
    import time

    if ctypes.CDLL(None).personality(0x0040000) >= 0:
        time.sleep(1.5)


@escape("proc_isolation", evidence=reaches(1), into=ESCAPES, measure=measures.user_namespaces)
def become_root_of_own_namespace(token: str) -> None:
    import ctypes
    import os
    import time

    if os.fork() == 0:
        if ctypes.CDLL(None).unshare(0x10000000) == 0:
            time.sleep(1.5)
        os._exit(0)
    os.wait()


@escape("proc_isolation", evidence=reaches(1), into=ESCAPES, measure=measures.user_namespaces)
def become_root_of_own_namespace_by_clone(token: str, numbers: dict) -> None:
    import ctypes
    import os
    import time

    child = ctypes.CDLL(None).syscall(numbers["clone"], 0x10000000 | 17, 0, 0, 0, 0)
    if child == 0:
        time.sleep(1.5)
        os._exit(0)
    if child > 0:
        os.waitpid(child, 0)


@escape("proc_isolation", evidence=reaches(1), into=ESCAPES, measure=measures.user_namespaces)
def become_root_of_own_namespace_by_clone3(token: str, numbers: dict) -> None:
    # The flags lie in memory, where no filter can look at them.
    import ctypes
    import os
    import struct
    import time

    wish = ctypes.create_string_buffer(struct.pack("<QQQQQ", 0x10000000, 0, 0, 0, 17).ljust(88, b"\0"), 88)
    child = ctypes.CDLL(None).syscall(numbers["clone3"], wish, 88)
    if child == 0:
        time.sleep(1.5)
        os._exit(0)
    if child > 0:
        os.waitpid(child, 0)


@escape("proc_isolation", evidence=reaches(0), into=ESCAPES, measure=measures.mounts_of_its_own)
def mount_a_file_system(token: str) -> None:
    import ctypes
    import os
    import time

    if os.fork() == 0:
        library = ctypes.CDLL(None)
        library.unshare(0x10000000 | 0x00020000)
        library.mount(None, b"/", None, 0x4000 | (1 << 18), None)
        os.makedirs("place", exist_ok=True)
        if library.mount(token.encode(), b"place", b"tmpfs", 0, None) == 0:
            time.sleep(1.5)
        os._exit(0)
    os.wait()


@escape("proc_isolation", evidence=changes, into=ESCAPES, rights="root")
def set_the_clock(watched_clock: bool) -> None:
    # To the very time that it shows.
    import time

    time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME))


@escape("proc_isolation", evidence=changes, into=ESCAPES)
def leave_shared_memory_segment(segment_key: int) -> None:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.shmget(segment_key, 4096, 0o1666) < 0:
        raise OSError(ctypes.get_errno(), "shmget")


@escape("proc_isolation", evidence=changes, into=ESCAPES)
def leave_message_in_a_queue(segment_key: int) -> None:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.msgget(segment_key, 0o1666) < 0:
        raise OSError(ctypes.get_errno(), "msgget")
