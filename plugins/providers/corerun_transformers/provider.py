"""The provider: one question to a model in this process, one answer, no retry."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from corerun.errors import CallFailed, StreamCut, Transient
from corerun.interfaces import CallContext, ChatReply, ChatRequest, Connection, Delta, ProviderInfo
from corerun.llm.models import true_value
from corerun.redaction import remember
from corerun_transformers.loading import Source, load, require
from corerun_transformers.row import Job
from corerun_transformers.worker import ModelWorker

HUB_TOKEN = "HF_TOKEN"

T = TypeVar("T")


class TransformersProvider:
    """Loads a model when it is first asked and keeps it, with its thread, until `aclose`.

    Models are named by a folder, relative to the working directory, or by their id on the Hugging
    Face hub; a folder with an adapter stands for its base model and the adapter. `ChatRequest.extra`
    may hold ``device``, ``dtype``, ``adapter`` (a folder), ``trust_remote_code`` (``REPO@COMMIT``),
    ``enable_thinking`` and ``chat_template_kwargs``.
    """

    def __init__(self, connection: Connection) -> None:
        environ = connection.environ
        self._name = connection.provider
        self._offline = true_value(environ.get("CORERUN_OFFLINE")) or true_value(
            environ.get("HF_HUB_OFFLINE")
        )
        self._token = environ.get(HUB_TOKEN) or None
        remember(self._token or "")
        self._workers: dict[Source, ModelWorker] = {}

    @property
    def info(self) -> ProviderInfo:
        return ProviderInfo(self._name, env=(HUB_TOKEN,), needs_key=False, is_local=True, vision=False)

    def check(self) -> None:
        """Raise `EnvironmentRefused` naming what isn't installed; imports nothing heavy."""
        require("torch", "transformers", "safetensors")

    async def complete(self, request: ChatRequest, ctx: CallContext) -> ChatReply:
        """Ask once. Raises classes below `ModelError`, or `EnvironmentRefused` from `check`."""
        job = self._start(request, ctx)
        try:
            return await self._before(ctx, asyncio.wrap_future(job.future))
        finally:
            job.future.cancel()

    async def stream(self, request: ChatRequest, ctx: CallContext) -> AsyncIterator[Delta]:
        """As `complete`, with the text as it comes. Raises `StreamCut` once a part was handed out."""
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        put = _threadsafe(pieces.put_nowait)
        job = self._start(request, ctx, put)
        job.future.add_done_callback(lambda _: put(None))
        told = ""
        try:
            while (piece := await self._before(ctx, pieces.get())) is not None:
                told += piece
                yield Delta("text", piece)
            reply = job.future.result(timeout=0)
            if rest := reply.text.removeprefix(told) if reply.text.startswith(told) else "":
                yield Delta("text", rest)
            yield Delta("reply", reply=reply)
        except CallFailed as error:
            if told:
                raise StreamCut(error.message, partial=told, hint=error.hint) from error
            raise
        finally:
            job.future.cancel()

    async def list_models(self) -> list[str]:
        """The models that are loaded now."""
        return sorted({source.model for source, worker in self._workers.items() if worker.loaded})

    async def aclose(self) -> None:
        """End the threads and let go of the models; calls that still wait fail."""
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            await asyncio.to_thread(worker.close)

    def _start(
        self, request: ChatRequest, ctx: CallContext, tell: Callable[[str], None] | None = None
    ) -> Job:
        self.check()
        extra = request.extra
        source = Source(
            request.model,
            *(str(extra.get(key) or "") for key in ("adapter", "device", "dtype", "trust_remote_code")),
        )
        job = Job(request, ctx.strict, tell)
        worker = self._workers.get(source)
        if worker is None or not worker.submit(job):
            self._workers[source] = ModelWorker(
                request.model, lambda: load(source, offline=self._offline, token=self._token), job
            )
        return job

    async def _before(self, ctx: CallContext, waiting: Awaitable[T]) -> T:
        left = None if math.isinf(ctx.deadline) else ctx.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await waiting
        except TimeoutError:
            raise Transient("the model gave no answer before the call's deadline") from None


def _threadsafe(put: Callable[[str | None], None]) -> Callable[[str | None], None]:
    """``put`` for other threads; they outlive the loop where a program ends in the middle of an answer."""
    loop = asyncio.get_running_loop()

    def call(item: str | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(put, item)

    return call
