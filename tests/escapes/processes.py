"""Programs that harm other processes, or don't end when they should."""

from __future__ import annotations

from tests.support.containment import Escape, ends_runner, escape, outlasts, survives, touches_bystander

ESCAPES: list[Escape] = []
SHORT = {"wall_s": 1.0, "grace_s": 0.2}


@escape("proc_isolation", evidence=touches_bystander, into=ESCAPES)
def kill_another_process(victim: int) -> None:
    import os

    os.kill(victim, 9)


@escape("proc_isolation", evidence=touches_bystander, into=ESCAPES)
def stop_another_process(victim: int) -> None:
    import os

    os.kill(victim, 19)


@escape("proc_isolation", evidence=touches_bystander, into=ESCAPES)
def kill_by_process_descriptor(victim: int) -> None:
    import os
    import signal

    signal.pidfd_send_signal(os.pidfd_open(victim), 9)


@escape("proc_isolation", evidence=touches_bystander, into=ESCAPES)
def slow_another_process_down(victim: int) -> None:
    import os

    os.setpriority(os.PRIO_PROCESS, victim, 19)


@escape("proc_isolation", evidence=touches_bystander, into=ESCAPES)
def limit_another_process(victim: int) -> None:
    import resource

    resource.prlimit(victim, resource.RLIMIT_NOFILE, (7, 7))


@escape("proc_isolation", "fs_write", evidence=touches_bystander, into=ESCAPES)
def offer_another_process_to_memory_killer(victim: int) -> None:
    with open(f"/proc/{victim}/oom_score_adj", "w") as file:
        file.write("777")


@escape("proc_isolation", evidence=ends_runner, into=ESCAPES, last=True)
def kill_parent() -> None:
    import os

    # Small numbers are those of a namespace; a real machine's first process is never meant.
    if os.getppid() > 1 or os.getpid() < 50:
        os.kill(os.getppid(), 9)


@escape("tree_kill", evidence=survives, into=ESCAPES)
def leave_daemon_behind(token: str) -> None:
    import os
    import time

    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(60)
        os._exit(0)


@escape("tree_kill", evidence=survives, into=ESCAPES)
def leave_child_that_holds_output_open(token: str) -> None:
    import os
    import time

    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("done")


@escape("tree_kill", evidence=survives, into=ESCAPES)
def leave_stranger_behind(token: str) -> None:
    # Another program, another session, folder and environment, no descriptor in common.
    import os

    os.symlink("/bin/sleep", token)
    program = os.path.abspath(token)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 256)
            os.chdir("/")
            os.execve(program, [token, "60"], {})
        os._exit(0)
    os.wait()


@escape("tree_kill", evidence=survives, into=ESCAPES)
def leave_sister_of_itself(token: str, numbers: dict) -> None:
    # The child's parent is whoever started this program, not this program.
    import ctypes
    import time

    if ctypes.CDLL(None).syscall(numbers["clone"], 0x8000 | 17, 0, 0, 0, 0) == 0:
        time.sleep(60)


@escape("tree_kill", evidence=survives, into=ESCAPES)
def hop_from_child_to_child(token: str) -> None:
    # No process of it lives for long, so that a list of them is stale once made.
    import os
    import time

    end = time.monotonic() + 6
    if os.fork() == 0:
        os.setsid()
        while time.monotonic() < end:
            if os.fork():
                os._exit(0)
            time.sleep(0.002)
        os._exit(0)
    time.sleep(0.2)


@escape("tree_kill", evidence=outlasts, into=ESCAPES, limits=SHORT)
def ignore_polite_signals(token: str) -> None:
    import signal
    import time

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)


@escape("tree_kill", evidence=outlasts, into=ESCAPES, limits=SHORT)
def block_all_signals(token: str) -> None:
    import signal
    import time

    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(60)


@escape("tree_kill", evidence=outlasts, into=ESCAPES, limits=SHORT)
def stop_itself(token: str) -> None:
    import os

    os.kill(os.getpid(), 19)


@escape("tree_kill", evidence=outlasts, into=ESCAPES, limits=SHORT)
def stay_in_a_c_function(token: str) -> None:
    import re
    import signal

    signal.signal(signal.SIGTERM, lambda *_: None)
    re.match("(a+)+$", "a" * 40 + "b")


@escape("tree_kill", evidence=outlasts, into=ESCAPES, limits=SHORT)
def swallow_every_exception(token: str) -> None:
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except BaseException as error:
            print(type(error))


@escape("tree_kill", evidence=outlasts, into=ESCAPES, limits=SHORT)
def go_on_at_exit(token: str) -> None:
    import atexit
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def stay() -> None:
        time.sleep(60)

    atexit.register(stay)
    time.sleep(60)
