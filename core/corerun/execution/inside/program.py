"""Runs a program in this interpreter and reports how it ended."""

from __future__ import annotations

import atexit
import os
import sys

from . import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, NoReturn

RECORD_BYTES = 65536
MESSAGE_CHARS = 16384
FRAMES = 100
BEGUN = b"\n"
"""Stands before the record of a program that was begun: from then on the record is only its word."""
REFUSED = 125
"""Exit code of a program that was never begun."""


def run(launch: Any) -> NoReturn:
    """Confine this process as ``launch`` says (see `confine`), then become its program."""
    result = launch["result"]
    os.set_inheritable(result, False)
    try:
        confine.confine(launch)
    except Exception as error:
        refuse(result, error)
    os.write(result, BEGUN)
    command = launch["command"]
    if launch["kind"] != "python":
        try:
            os.execvp(command[0], command)
        except (OSError, ValueError) as error:
            os.write(2, f"{command[0]}: {error}\n".encode("utf-8", "backslashreplace"))
            _report(result, _describe(error, None))
            os._exit(127)
    code = _run_file(command[0], result)
    os._exit(_finish(code))


def refuse(result: int, error: Exception) -> NoReturn:
    """Report that the program could not be begun."""
    _report(result, {"infra": f"{type(error).__name__}: {error}"})
    os._exit(REFUSED)


def _run_file(path: str, result: int) -> int:
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(path))
    module = type(sys)("__main__")
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
    peak_kb = _peak_kb()
    data = b'{"peak_kb": %d}' % peak_kb if not record else _encoded({**record, "peak_kb": peak_kb})
    try:
        os.write(result, data)
        os.close(result)
    except OSError:
        pass  # The program closed it: the record is a courtesy, the exit code still tells.


def _encoded(record: dict[str, Any]) -> bytes:
    import json

    data = json.dumps(record).encode()
    while len(data) > RECORD_BYTES:
        record["exc_msg"] = record["exc_msg"][: len(record["exc_msg"]) // 2]
        record["exc_trace"] = record["exc_trace"][len(record["exc_trace"]) // 2 :]
        data = json.dumps(record).encode()
    return data


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
