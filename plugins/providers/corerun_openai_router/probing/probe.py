"""Asks a server one question per feature and tells which of them it honours, ignores or refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from corerun.errors import ModelError
from corerun.interfaces import ChatRequest, Json, ProbeRow
from corerun.llm.messages import printable
from corerun.redaction import redact
from corerun_openai_router.probing.cases import CASES, LIMITS, PLAIN, Answer, Case, judge_seeds, seeded
from corerun_openai_router.reading.details import read_details
from corerun_openai_router.wire.endpoint import Endpoint
from corerun_openai_router.wire.transport import Response, Transport

ANSWER_TOKENS = 64
"""Limit of the answers: enough for a short sentence or a call."""

_EVIDENCE = 160
_BUSY = frozenset({408, 409, 425, 429, 502, 503, 504, 529})
_NO_SERVER = 0
_NOTHING = ChatRequest("", ())


async def probe(transport: Transport, endpoint: Endpoint, model: str) -> Sequence[ProbeRow]:
    """The matrix of what the server at ``endpoint`` does with each feature, for ``model``.

    Some thirty short requests, one after the other. A server that doesn't answer a plain question gives
    one row, ``chat``. Never raises for what a server does.
    """
    return await _Probe(transport, endpoint, model).rows()


class _Probe:
    def __init__(self, transport: Transport, endpoint: Endpoint, model: str) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._model = model
        self._first = Answer({})
        self._limit: dict[str, Json] = {}

    async def rows(self) -> list[ProbeRow]:
        plain, answer = await self._ask(PLAIN)
        if answer is None:
            # Without one good answer the others' failures would tell nothing.
            said = (
                f"{plain.evidence} ({self._endpoint.version_hint})" if plain.status == 404 else plain.evidence
            )
            return [replace(plain, evidence=said)]
        self._first = answer
        rows = [plain]
        for case in LIMITS:
            rows.append(await self._row(case))
        self._limit = _best_limit(rows[1:])
        rows += [await self._row(case) for case in CASES]
        rows.append(await self._seeds())
        rows.append(await self._models())
        return rows + await self._stream()

    async def _row(self, case: Case) -> ProbeRow:
        row, answer = await self._ask(case)
        if row.verdict != "accepted" or not case.again:
            return row
        again, answer = await self._ask(replace(case, fields=case.again))
        if answer is None:
            said = f"an impossible value is refused: {again.evidence}"
            return row if again.verdict == "failed" else replace(row, evidence=self._line(said))
        return replace(row, verdict="ignored", evidence="an impossible value is taken too")

    async def _ask(self, case: Case) -> tuple[ProbeRow, Answer | None]:
        """One request's row, and its answer if it is one."""
        try:
            response = await self._transport.chat(case.body(self._model, self._limit))
        except ModelError as error:
            return self._new(case.feature, "failed", _NO_SERVER, error.message), None
        refusal = self._refusal(case.feature, response)
        if refusal is not None:
            return refusal, None
        answer = Answer(_object(response.text))
        if not answer.choices:
            return self._new(case.feature, "failed", response.status, f"no answer: {response.text}"), None
        verdict, evidence = case.judge(answer, self._first)
        return self._new(case.feature, verdict, response.status, evidence), answer

    def _refusal(self, feature: str, response: Response) -> ProbeRow | None:
        """The row of a response that is no success; an error object under status 200 is none either."""
        if response.is_success and not _object(response.text).get("error"):
            return None
        verdict = "failed" if response.status in _BUSY else "refused"
        said = read_details(response.text, _NOTHING).message or response.text
        return self._new(feature, verdict, response.status, said)

    async def _seeds(self) -> ProbeRow:
        answers = []
        for seed in (1, 1, 2):
            row, answer = await self._ask(seeded(seed))
            if answer is None:
                return row
            answers.append(answer)
        verdict, evidence = judge_seeds(answers)
        return self._new("seed", verdict, row.status, evidence)

    async def _models(self) -> ProbeRow:
        feature = "list of models"
        try:
            response = await self._transport.models()
        except ModelError as error:
            return self._new(feature, "failed", _NO_SERVER, error.message)
        refusal = self._refusal(feature, response)
        if refusal is not None:
            return refusal
        data = _object(response.text).get("data")
        if not isinstance(data, list):
            return self._new(feature, "failed", response.status, f"no list: {response.text}")
        named = any(isinstance(item, dict) and item.get("id") == self._model for item in data)
        own = "this one is among them" if named else "this one isn't among them"
        return self._new(feature, "honoured", response.status, f"{len(data)} models, {own}")

    async def _stream(self) -> list[ProbeRow]:
        names = ("stream", "stream [DONE]", "stream_options.include_usage")
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = {**PLAIN.body(self._model, self._limit), **options}
        try:
            async with self._transport.stream(body) as streamed:
                status = streamed.status
                text = b"".join([chunk async for chunk in streamed.chunks]).decode("utf-8", "replace")
        except ModelError as error:
            return [self._new(name, "failed", _NO_SERVER, error.message) for name in names]
        refusal = self._refusal(names[0], Response(status, {}, text.encode()))
        if refusal is not None:
            return [replace(refusal, feature=name) for name in names]
        lines = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
        chunks = [_object(line) for line in lines]
        finished = any(Answer(chunk).choice.get("finish_reason") for chunk in chunks)
        counted = any(chunk.get("usage") for chunk in chunks)
        facts = (
            (bool(chunks), f"{len(lines)} events, {'with' if finished else 'without'} a finish_reason"),
            ("[DONE]" in lines, "the last event" if "[DONE]" in lines else "it never comes"),
            (counted, "usage came" if counted else "no usage came"),
        )
        return [
            self._new(name, "honoured" if is_so else "ignored", status, evidence)
            for name, (is_so, evidence) in zip(names, facts, strict=True)
        ]

    def _new(self, feature: str, verdict: str, status: int, evidence: str) -> ProbeRow:
        return ProbeRow(feature, verdict, status, self._line(evidence))

    def _line(self, text: str) -> str:
        line = " ".join(printable(redact(text)).split())
        return line if len(line) <= _EVIDENCE else line[: _EVIDENCE - 4] + " ..."


def _best_limit(rows: Sequence[ProbeRow]) -> dict[str, Json]:
    """The name under which a limit works, or at least isn't refused."""
    for verdict in ("honoured", "accepted"):
        for row in rows:
            if row.verdict == verdict:
                return {row.feature: ANSWER_TOKENS}
    return {}


def _object(text: str) -> Mapping[str, Json]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
