"""`python -m benchmarks.router_client NAME ADDRESS`: what one client costs per call, measured in itself.

Runs in the interpreter of any peer, so nothing of corerun is imported unless it is the one measured.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.metadata
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

SYSTEM = "You judge experiments."
QUESTION = (
    "Here is the outcome of experiment {number}: the validation loss fell from 0.31 to 0.25 in ten epochs, "
    "then it rose. Say how good that is."
)
MODEL = "bench"

Ask = Callable[[int], Awaitable[Any]]
"""Asks question ``number`` and waits for its answer."""


def messages(number: int) -> list[dict[str, str]]:
    """The question as every peer is asked it."""
    question = {"role": "user", "content": QUESTION.format(number=number)}
    return [{"role": "system", "content": SYSTEM}, question]


@asynccontextmanager
async def corerun_client(address: str, concurrency: int, transport: str) -> AsyncIterator[Ask]:
    """The whole path: names, capabilities, limits, budget, call, redaction, a journal on disk, validation,
    ledger."""
    from pydantic import BaseModel

    from corerun.llm.budget import Budget
    from corerun.llm.client import LanguageModels
    from corerun.llm.directory import ModelDirectory
    from corerun.llm.messages import system, user
    from corerun.llm.settings import LlmSettings
    from corerun.plugins import PluginManager
    from corerun.redaction import remember_environment
    from corerun.runs import io
    from corerun.runs.journal import Journal

    class Verdict(BaseModel):
        score: float
        comment: str

    class Record:
        answered: dict[str, Any]

        def __init__(self, journal: Journal) -> None:
            self.answered = {}
            self._journal = journal

        def emit(self, type: str, **data: Any) -> int:
            return self._journal.emit(type, data).seq

        def blob(self, data: bytes) -> str:
            return io.store_blob(self._journal.blobs, data)

    with tempfile.TemporaryDirectory(prefix="corerun-bench-") as place:
        environ = {
            "OAIC_BENCH_BASE_URL": f"{address}/v1",
            "OAIC_BENCH_API_KEY": "a-key-that-is-not-one-of-any-vendor",
            "OAIC_OTHER_API_KEY": "another-key-that-no-answer-holds",
            "CORERUN_TRANSPORT": transport,
            "CORERUN_CAPS_PATH": f"{place}/caps.sqlite",
            "XDG_CACHE_HOME": place,
        }
        remember_environment(environ)
        directory = ModelDirectory(PluginManager(), environ)
        journal = Journal(Path(place, "run"))
        models = LanguageModels(
            record=Record(journal),
            directory=directory,
            roles={},
            default_model=f"bench::{MODEL}",
            settings=LlmSettings(concurrency=concurrency),
            environ=environ,
            budget=Budget(usd=1e6, tokens=10**12),
            prices={},
        )

        async def ask(number: int) -> Any:
            question = (system(SYSTEM), user(QUESTION.format(number=number)))
            answer = await models.ask("judge", "bench.judge", question, schema=Verdict, node=f"node{number}")
            assert answer.value.score == 0.25
            return answer

        try:
            yield ask
        finally:
            await directory.aclose()
            journal.close()


@asynccontextmanager
async def aiohttp_client(address: str, concurrency: int) -> AsyncIterator[Ask]:
    """The floor: one POST, one parse."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(number: int) -> Any:
            body = {"model": MODEL, "messages": messages(number)}
            async with session.post(f"{address}/v1/chat/completions", json=body) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        yield ask


@asynccontextmanager
async def openai_client(address: str, concurrency: int) -> AsyncIterator[Ask]:
    import openai

    async with openai.AsyncOpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0) as client:

        async def ask(number: int) -> Any:
            question: Any = messages(number)
            reply = await client.chat.completions.create(model=MODEL, messages=question)
            return reply.choices[0].message.content

        yield ask


@asynccontextmanager
async def litellm_client(address: str, concurrency: int) -> AsyncIterator[Ask]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches prices while it is imported
    import litellm

    async def ask(number: int) -> Any:
        reply = await litellm.acompletion(
            model=f"openai/{MODEL}",
            api_base=f"{address}/v1",
            api_key="none",
            messages=messages(number),
            num_retries=0,
        )
        return reply.choices[0].message.content

    yield ask


CLIENTS: dict[str, Callable[[str, int], Any]] = {
    "corerun": lambda address, concurrency: corerun_client(address, concurrency, "direct"),
    "corerun-sdk": lambda address, concurrency: corerun_client(address, concurrency, "sdk"),
    "aiohttp": aiohttp_client,
    "openai": openai_client,
    "litellm": litellm_client,
}


def cpu_s() -> float:
    """CPU seconds of this process so far, all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(name: str, address: str, concurrency: int, calls: int) -> dict[str, Any]:
    """CPU per call after a first round that opens all connections, and what it took to get there.

    Without counted ``calls`` the first round starts cold, all calls at once.
    """
    before = cpu_s()
    async with CLIENTS[name](address, concurrency) as ask:
        if calls:
            await ask(-1)
        first_answer_s = cpu_s() - before
        modules = len(sys.modules)
        numbers = iter(range(calls + concurrency))

        async def lane() -> None:
            for number in numbers:
                await ask(number)

        started = time.monotonic()
        await asyncio.gather(*(ask(next(numbers)) for _ in range(concurrency)))
        first_round_s = time.monotonic() - started
        gc.collect()
        before = cpu_s()
        await asyncio.gather(*(lane() for _ in range(concurrency)))
        spent = cpu_s() - before
    return {
        "version": importlib.metadata.version(name.partition("-")[0]),
        "ms_per_call": 1000 * spent / max(calls, 1),
        "first_answer_cpu_s": first_answer_s,
        "modules": modules,
        "first_round_s": first_round_s,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.router_client", description=__doc__)
    parser.add_argument("name", choices=CLIENTS)
    parser.add_argument("address", help="of the server, without /v1")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument(
        "--calls", type=int, default=1000, help="calls that are counted; 0: the first round only"
    )
    options = parser.parse_args()
    found = asyncio.run(measure(options.name, options.address, options.concurrency, options.calls))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
