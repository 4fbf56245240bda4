"""Started by path in a program's own interpreter: sets limits, runs the program, reports its end.

Standard library only; it must work in any Python 3.8+ that a request names. The one argument is
JSON: ``kind``, ``parent`` (pid), ``folder``, ``command``, ``result`` (descriptor), ``limits``.
"""

from __future__ import annotations

import sys

# The folder of this file must not be searched for modules: neither by us nor by the program.
if sys.path and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

import atexit
import json
import os
import resource
import signal
from types import ModuleType, TracebackType
from typing import Any, NoReturn

RECORD_BYTES = 65536
MESSAGE_CHARS = 16384
FRAMES = 100
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> NoReturn:
    spec = json.loads(sys.argv[1])
    result = spec["result"]
    os.set_inheritable(result, False)
    try:
        _prepare(spec)
    except Exception as error:
        _report(result, {"infra": f"{type(error).__name__}: {error}"})
        os._exit(125)
    command = spec["command"]
    if spec["kind"] != "python":
        try:
            os.execvp(command[0], command)
        except (OSError, ValueError) as error:
            os.write(2, f"{command[0]}: {error}\n".encode("utf-8", "backslashreplace"))
            _report(result, _describe(error, None))
            os._exit(127)
    code = _run_file(command[0], result)
    os._exit(_finish(code))


def _prepare(spec: Any) -> None:
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != spec["parent"]:
        os._exit(125)
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name, (soft, hard) in spec["limits"].items():
        number = getattr(resource, name)
        most = resource.getrlimit(number)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(number, (soft, hard))
    os.umask(0o077)
    os.chdir(spec["folder"])


def _run_file(path: str, result: int) -> int:
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(path))
    module = ModuleType("__main__")
    module.__dict__.update({"__file__": path, "__cached__": None, "__annotations__": {}})
    sys.modules["__main__"] = module
    try:
        with open(path, "rb") as file:
            source = file.read()
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as stop:
        code = _exit_code(stop)
        _report(result, _describe(stop, _own_frames(stop)) if code else {})
        return code
    except BaseException as error:
        frames = _own_frames(error)
        _show(error.with_traceback(frames))
        _report(result, _describe(error, frames))
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    _report(result, {})
    return 0


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    try:
        sys.stderr.write(f"{stop.code}\n")
    except Exception:
        os.write(2, b"the program's exit message can't be printed\n")
    return 1


def _show(error: BaseException) -> None:
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException:
        sys.__excepthook__(type(error), error, error.__traceback__)


def _own_frames(error: BaseException) -> TracebackType | None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


def _describe(error: BaseException, frames: TracebackType | None) -> dict[str, Any]:
    trace: list[dict[str, Any]] = []
    try:
        import traceback

        for frame in traceback.extract_tb(frames)[-FRAMES:]:
            trace.append(
                {
                    "file": frame.filename[-300:],
                    "line": frame.lineno,
                    "func": frame.name[:200],
                    "text": (frame.line or "")[:300],
                }
            )
        message = str(error)[:MESSAGE_CHARS]
    except BaseException:
        message = "the exception can't be printed"
    return {"exc_type": type(error).__name__[:200], "exc_msg": message, "exc_trace": trace}


def _report(result: int, record: dict[str, Any]) -> None:
    record["peak_kb"] = _peak_kb()
    data = json.dumps(record).encode()
    while len(data) > RECORD_BYTES:
        record["exc_msg"] = record["exc_msg"][: len(record["exc_msg"]) // 2]
        record["exc_trace"] = record["exc_trace"][len(record["exc_trace"]) // 2 :]
        data = json.dumps(record).encode()
    try:
        os.write(result, data)
        os.close(result)
    except OSError:
        pass  # The program closed it: the record is a courtesy, the exit code still tells.


def _peak_kb() -> int:
    # Not ru_maxrss: that one begins with the memory of the process that started us.
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1])
    except Exception:
        pass
    return 0


def _finish(code: int) -> int:
    """What the interpreter does at its end, without the slow taking apart of modules."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
    except BaseException as error:
        _show(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception:
            code = code or 120
    return code


if __name__ == "__main__":
    main()
