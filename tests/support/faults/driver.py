"""Asks the questions of the table's rows in a process of its own and prints what came, a JSON line each.

Reads ``{"base_url", "dead_url", "caps", "rows", "repeat", "environ"}`` from standard input.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from pydantic import BaseModel, Field

from corerun.errors import CorerunError
from corerun.interfaces import CallContext, ChatReply, Connection, Event, Provider
from corerun.llm.client import LanguageModels, LlmSettings
from corerun.llm.directory import ModelTarget
from corerun_openai_router.provider import OpenAIRouter
from tests.support.faults import ROWS
from tests.support.faults.rows import KEY, Row, address

AT_ONCE = 16
"""Rows under way together; each has a model and a router of its own, so none sees another."""


class Depth(BaseModel):
    """The answer of most rows."""

    metres: float


class NotedDepth(Depth):
    """An answer whose schema has a keyword that some servers refuse."""

    notes: list[str] = Field(min_length=1)


class Memory:
    """A journal in memory."""

    answered: Mapping[str, Event]

    def __init__(self) -> None:
        self.answered = {}
        self._records = 0

    def emit(self, type: str, **data: Any) -> int:
        self._records += 1
        return self._records

    def blob(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()


class OneProvider:
    """Every model belongs to one provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def target(self, name: str) -> ModelTarget:
        return ModelTarget(name, "default", name)

    def provider(self, name: str) -> Provider:
        return self._provider


def connection(row: Row, addresses: Mapping[str, Any]) -> Connection:
    """How a row's provider reaches its server."""
    environ = {
        "OPENAI_BASE_URL": address(addresses["dead_url" if row.dead else "base_url"], row.connection),
        "OPENAI_API_KEY": KEY,
        "CORERUN_CAPS_PATH": addresses["caps"],
        **addresses.get("environ", {}),
        **row.environ,
    }
    return Connection(environ=environ, **row.connection)


async def through_client(router: OpenAIRouter, row: Row) -> tuple[Any, ChatReply]:
    """Asks with the core's retries and re-asks, which wait for nothing here."""

    async def at_once(seconds: float) -> None:
        await asyncio.sleep(0)

    models = LanguageModels(
        record=Memory(),
        directory=OneProvider(router),
        roles={},
        default_model=row.name,
        settings=LlmSettings(),
        environ={},
        sleep=at_once,
    )
    asked = row.request
    schema: type[BaseModel] | None = None
    if asked.schema is not None:
        schema = NotedDepth if "notes" in asked.schema["properties"] else Depth
    own = {"model", "messages", "schema", "schema_name"}
    options = {item.name: getattr(asked, item.name) for item in fields(asked) if item.name not in own}
    answer = await models.ask("asker", "test.ask", asked.messages, schema=schema, **options)
    value = answer.value.model_dump() if isinstance(answer.value, BaseModel) else answer.value
    return value, answer.reply


async def ask(row: Row, router: OpenAIRouter) -> dict[str, Any]:
    """What came of one row."""
    try:
        if row.client:
            value, reply = await through_client(router, row)
        else:
            reply = await router.complete(replace(row.request, model=row.name), CallContext("test.ask"))
            value = reply.text
    except CorerunError as error:
        shown = {
            key: value for key, value in vars(error).items() if isinstance(value, int | float | str | None)
        }
        return {"row": row.name, "error": type(error).__name__, "message": str(error), **shown}
    except Exception as error:
        return {"row": row.name, "error": type(error).__name__, "message": repr(error)}
    usage = reply.usage
    return {
        "row": row.name,
        "error": None,
        "value": value,
        "calls": [call.name for call in reply.tool_calls],
        "degradations": [[item.feature, item.reason] for item in reply.degradations],
        "requests": reply.requests,
        "estimated": usage.estimated,
        "prompt": usage.prompt,
        "completion": usage.completion,
    }


async def main(task: Mapping[str, Any]) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def repeat(row: Row) -> None:
        async with places:
            router = OpenAIRouter(connection(row, task))
            try:
                for _ in range(task["repeat"]):
                    print(json.dumps(await ask(row, router)), flush=True)
            finally:
                await router.aclose()

    await asyncio.gather(*(repeat(ROWS[name]) for name in task["rows"]))


if __name__ == "__main__":
    asyncio.run(main(json.load(sys.stdin)))
