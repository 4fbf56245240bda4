"""What runs where an executor says: one program in one sandbox, and the loop of a worker process."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from corerun.errors import CorerunError, UsageError
from corerun.execution.inside import kernel
from corerun.execution.lines import Channel
from corerun.interfaces import ExecRequest, Handler, Json, Limits, Policy, Sandbox

RUN_PROGRAM = "corerun.execution.worker:run_program"
"""The target that executors are given for programs."""

LINE_BYTES = 256 * 1024 * 1024


def program_spec(request: ExecRequest, sandbox: str, policy: Policy | None = None) -> Json:
    """The spec of `run_program`. ``sandbox`` is a component's target; the policy's limits, by default
    the request's own, can only make the request's tighter.
    """
    policy = policy or Policy(limits=request.limits)
    return {
        "request": request.to_json(),
        "sandbox": sandbox,
        "policy": {
            "require": sorted(policy.require),
            "read": policy.read,
            "write": policy.write,
            "pass_env": policy.pass_env,
            "pass_env_unsafe": policy.pass_env_unsafe,
            "zygote": policy.zygote,
            "image": policy.image,
            "network": policy.network,
            "limits": asdict(policy.limits),
        },
    }


async def run_program(spec: Json, serve: Handler | None = None) -> Json:
    """Run one program; the answer is an `ExecResult` as JSON.

    ``mem_mb`` in the spec, set by the executor, is used where the request names no limit.
    """
    parsed = ExecRequest.from_json(spec["request"])
    if parsed.limits.mem_mb is None:
        parsed = replace(parsed, limits=replace(parsed.limits, mem_mb=spec.get("mem_mb")))
    session = await _sandbox(spec["sandbox"]).open(_policy(spec.get("policy", {}), parsed), parsed.workspace)
    try:
        result = await session.run(parsed, serve)
    finally:
        await session.close()
    return result.to_json()


def _policy(data: Mapping[str, Json], request: ExecRequest) -> Policy:
    values: dict[str, Any] = dict(data)
    for name in ("read", "write", "pass_env", "pass_env_unsafe"):
        values[name] = tuple(data.get(name, ()))
    values["require"] = frozenset(data.get("require", ()))
    values["limits"] = Limits(**data["limits"]) if "limits" in data else request.limits
    return Policy(**values)


@functools.cache
def _sandbox(target: str) -> Sandbox:
    sandbox: Sandbox = load(target)()
    return sandbox


def load(target: str) -> Any:
    """Import ``"module:attribute"``; `UsageError` when there is no such thing."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"can't load {target!r}: {error}") from None


def with_memory(spec: Json, memory_mb: int) -> Json:
    """The spec with an executor's share of memory, unless it has one or isn't an object."""
    return {"mem_mb": memory_mb, **spec} if isinstance(spec, Mapping) else spec


class Worker:
    """Answers ``{id, target, spec}`` with ``{id, result}`` or ``{id, error}``.

    ``serve: true`` in a task offers the way back: ``{id, call, serve: request}`` goes out and
    ``{id, call, answer}`` or ``{id, call, refusal}`` comes in. ``{id, cancel: true}`` ends a task.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._tasks: dict[Json, asyncio.Task[None]] = {}
        self._calls: dict[int, asyncio.Future[Json]] = {}
        self._last_call = 0
        self._over = asyncio.Event()
        self._channel = Channel(incoming, outgoing, self._receive, self._close, line_bytes=LINE_BYTES)

    async def run(self) -> None:
        """Work until the other side closes; what is under way then is cancelled."""
        await self._over.wait()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _close(self, reason: str) -> None:
        self._over.set()

    def _receive(self, message: dict[str, Json]) -> None:
        number = message.get("id")
        if "target" in message:
            self._tasks[number] = asyncio.ensure_future(self._work(number, message))
        elif "cancel" in message and number in self._tasks:
            self._tasks[number].cancel()
        elif (call := self._calls.pop(message.get("call", 0), None)) is not None and not call.done():
            if "answer" in message:
                call.set_result(message["answer"])
            else:
                call.set_exception(CorerunError(str(message.get("refusal", ""))))

    async def _work(self, number: Json, message: dict[str, Json]) -> None:
        async def ask(request: Json) -> Json:
            self._last_call += 1
            call = self._last_call
            self._calls[call] = asyncio.get_running_loop().create_future()
            self._channel.send({"id": number, "call": call, "serve": request})
            return await self._calls[call]

        try:
            work: Callable[..., Awaitable[Json]] = load(message["target"])
            result = await work(message.get("spec"), ask if message.get("serve") else None)
            self._channel.send({"id": number, "result": result})
        except asyncio.CancelledError:
            self._channel.send({"id": number, "error": {"type": "CancelledError", "message": "cancelled"}})
        except Exception as error:
            self._channel.send({"id": number, "error": describe(error)})
        finally:
            self._tasks.pop(number, None)


def describe(error: Exception) -> Json:
    """An error as JSON; the other side of a pipe raises the same class again."""
    message = error.message if isinstance(error, CorerunError) else str(error)
    return {"type": type(error).__name__, "message": message, "hint": getattr(error, "hint", "")}


def main() -> None:
    """Serve JSON lines on standard input and output until the input ends or the parent dies."""
    if len(sys.argv) > 1:
        kernel.die_with(int(sys.argv[1]))
    # Ctrl-C reaches the whole group of the terminal; the parent decides what ends here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming, outgoing = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # Whatever prints in this process must not break the protocol.
    os.dup2(2, 1)

    async def serve() -> None:
        await Worker(incoming, outgoing).run()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
