"""What became of a program, out of how its processes ended and what they reported."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping

from corerun.execution.cgroups import Outcome
from corerun.execution.inside.program import BEGUN, RECORD_BYTES
from corerun.execution.streams import Stream
from corerun.execution.supervisor import Ended
from corerun.interfaces import ExecResult, Json

_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)


def read_record(descriptor: int) -> Mapping[str, Json]:
    """What the program's process reported; ``begun`` says whether it came to the program at all.

    From then on the program could have written it itself: nothing else in it is trusted.
    """
    os.set_blocking(descriptor, False)
    try:
        body = os.read(descriptor, RECORD_BYTES + len(BEGUN))
    except OSError:
        return {"begun": False}
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        record = {}
    return {**(record if isinstance(record, dict) else {}), "begun": body.startswith(BEGUN)}


def result_of(
    ended: Ended, record: Mapping[str, Json], stdout: Stream, stderr: Stream, group: Outcome, memory_mb: int
) -> ExecResult:
    """The result of a program; ``group`` is what its control group saw, ``record`` what it reported."""
    death = ended.death
    peak_mb = max(ended.peak_mb, group.peak_mb)
    status, message = _status(ended, record, group, memory_mb)
    if status == "infra_error" and "infra" not in record:
        # What makes the sandbox, or the interpreter, says there why it can't.
        message = ": ".join((message, *stderr.text.strip().splitlines()[-1:]))
    claimed = status == "error" and not message
    trace = record.get("exc_trace", ())
    peak_kb = record.get("peak_kb")
    own_mb = peak_kb / 1024 if isinstance(peak_kb, int) and 0 < peak_kb < 2**40 else 0.0
    return ExecResult(
        status=status,
        exit_code=death.exit_code,
        signal=death.signal,
        exc_type=str(record.get("exc_type", ""))[:200] if claimed else "",
        exc_msg=str(record.get("exc_msg", "")) if claimed else message,
        exc_trace=_frames(trace) if claimed else (),
        stdout=stdout.text,
        stdout_path=stdout.path,
        stdout_bytes=stdout.total,
        stdout_sha256=stdout.sha256,
        stderr=stderr.text,
        stderr_path=stderr.path,
        stderr_bytes=stderr.total,
        truncated=bool(stdout.cut or stderr.cut),
        wall_s=round(ended.wall_s, 6),
        cpu_s=round(death.cpu_s, 6),
        max_rss_mb=round(max(own_mb, ended.peak_mb) or death.max_rss_mb, 3),
        peak_tree_mb=round(peak_mb, 3),
        read_mb=round(death.read_mb, 3),
        written_mb=round(death.written_mb, 3),
        oom=_oom(ended, group, memory_mb, peak_mb) if status == "oom" else None,
        leftovers=death.leftovers,
        left=death.left,
        infra=message if status == "infra_error" else "",
    )


def _oom(ended: Ended, group: Outcome, memory_mb: int, peak_mb: float) -> Json:
    if group.oom_kills:
        by = "cgroup"
    elif ended.cause:
        by = "watchdog"
    else:
        by = "kernel" if ended.death.signal == signal.SIGKILL else "rlimit"
    return {"by": by, "limit_mb": memory_mb, "peak_mb": round(peak_mb, 3)}


def _frames(trace: Json) -> tuple[Json, ...]:
    """The frames of a traceback that have the launcher's form."""
    frames = trace if isinstance(trace, list) else ()
    return tuple(frame for frame in frames if isinstance(frame, dict) and isinstance(frame.get("file"), str))


def _status(ended: Ended, record: Mapping[str, Json], group: Outcome, memory_mb: int) -> tuple[str, str]:
    """Status, and a sentence where the program's own record has nothing to say."""
    death = ended.death
    # What fails to get memory crashes, or raises; else these mean what they say.
    # The peak of a group says nothing here: files that were read count there, and give way to memory.
    near_limit = ended.peak_mb >= 0.9 * memory_mb
    if ended.cause in ("timeout", "oom", "disk", "output_limit"):
        return ended.cause, ended.detail
    if ended.cause:
        return "killed", ended.detail
    if group.oom_kills and (death.signal is not None or death.exit_code or death.broken):
        return "oom", f"used more than {memory_mb} MB of memory"
    if death.broken:
        return "infra_error", death.broken
    if death.signal is not None:
        message = f"ended by signal {death.signal} ({signal.strsignal(death.signal) or 'unknown'})"
        if death.signal == signal.SIGXFSZ:
            return "disk", message
        if death.signal == signal.SIGXCPU:
            return "timeout", message
        if death.signal == signal.SIGKILL and near_limit:
            return "oom", message
        if death.signal in _CRASHES:
            return ("oom" if near_limit else "error"), message
        return "killed", message
    if not record["begun"]:
        return "infra_error", str(record.get("infra") or f"the interpreter ended with code {death.exit_code}")
    if death.exit_code and near_limit and record.get("exc_type") == "MemoryError":
        return "oom", str(record.get("exc_msg", ""))[:200] or f"used more than {memory_mb} MB of memory"
    return ("error" if death.exit_code else "ok"), ""
