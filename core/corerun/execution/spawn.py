"""Starts a process, at the same price however large this one is."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from corerun.errors import InfrastructureError
from corerun.execution import processes


def spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    outputs: tuple[int, int],
    inherited: Sequence[int],
    *,
    stdin: str | None = None,
) -> int:
    """Start a process in a session of its own and return its pid; the caller waits for it.

    ``outputs`` are descriptors for its standard output and error. Raises OSError when it can't be
    started, `InfrastructureError` where orphans couldn't be found again.
    """
    if not processes.become_subreaper():
        raise InfrastructureError("this process can't become the parent of orphans (prctl refused)")
    with stdin_of(stdin) as standard_input:
        # No preexec_fn and no cwd: so the child is made by vfork. What runs in it does the rest.
        process = subprocess.Popen(
            argv,
            stdin=standard_input,
            stdout=outputs[0],
            stderr=outputs[1],
            env=environment,
            pass_fds=inherited,
            start_new_session=True,
        )
    # From here on the process is waited for by whoever asked, never by the module subprocess.
    process.returncode = 0
    return process.pid


@contextlib.contextmanager
def stdin_of(text: str | None) -> Iterator[int]:
    """A descriptor to read the text from: a memory file, so nobody has to feed a pipe. None: nothing."""
    if text is None:
        descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    else:
        descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        if text is not None:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(text.encode("utf-8", "backslashreplace"))
            os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
