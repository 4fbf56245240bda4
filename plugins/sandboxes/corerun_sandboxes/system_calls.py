"""Numbers of the system calls that programs are refused, for the machines whose filter we can build."""

from __future__ import annotations

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What the kernel calls each machine's own calling convention (AUDIT_ARCH_*)."""

X32 = 0x40000000
"""From here on numbers are of x86_64's second convention, which would pass a filter for the first."""

# Number on x86_64, number on aarch64; None: it has no such call. From 424 on all machines share one.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Mounts and namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    # Ways around the rules on paths and sockets.
    "open_by_handle_at": (304, 265),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    # Parts of the kernel that programs have no use for and attackers have.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "personality": (135, 92),
    "lookup_dcookie": (212, 18),
    "uselib": (134, None),
    # The machine itself.
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
}

_OWNERS: dict[str, tuple[int | None, int | None]] = {
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}

_LASTING: dict[str, tuple[int | None, int | None]] = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}

_MODES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}

_ARGUMENTS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "prlimit64": (302, 261),
    "socket": (41, 198),
    "socketpair": (53, 199),
}

_PACES: dict[str, tuple[int | None, int | None]] = {
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
}

_PACES_OF_KINDS: dict[str, tuple[int | None, int | None]] = {
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
}


def refused(machine: str) -> dict[str, int]:
    """Calls that no program may make, by name."""
    return _numbers(_REFUSED, machine)


def owner_changes(machine: str) -> dict[str, int]:
    """Calls that change a file's owner or attributes, by name."""
    return _numbers(_OWNERS, machine)


def lasting(machine: str) -> dict[str, int]:
    """Calls that share memory and queues with the whole machine, which stay when a program ends, by name."""
    return _numbers(_LASTING, machine)


def mode_changes(machine: str) -> dict[str, int]:
    """Calls that change a file's permissions or times, by name."""
    return _numbers(_MODES, machine)


def paces(machine: str) -> dict[str, int]:
    """Calls that change how fast a process runs, by name; the first argument says which, 0 is oneself."""
    return _numbers(_PACES, machine)


def paces_of_kinds(machine: str) -> dict[str, int]:
    """The same where the first argument is a kind (a process, a group, an account) and the second says
    which."""
    return _numbers(_PACES_OF_KINDS, machine)


def examined(machine: str) -> dict[str, int]:
    """Calls that are refused or not by what they are called with, by name."""
    return _numbers(_ARGUMENTS, machine)


def _numbers(table: dict[str, tuple[int | None, int | None]], machine: str) -> dict[str, int]:
    column = list(MACHINES).index(machine)
    return {name: number for name, row in table.items() if (number := row[column]) is not None}
