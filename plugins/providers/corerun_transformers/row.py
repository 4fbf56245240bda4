"""One request on its way to an answer: its prompt's tokens, those of its answer, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from corerun.errors import BadAnswer, ContextTooLong, RequestRefused, Transient, UnsupportedParameter
from corerun.interfaces import ChatReply, ChatRequest, Degradation, ToolCall, Usage
from corerun_transformers.loading import LoadedModel
from corerun_transformers.prompt import build_prompt
from corerun_transformers.sampling import Chooser
from corerun_transformers.text import ProseFilter, TextWriter, read_calls

DEFAULT_MAX_TOKENS = 1024

OPTIONS = frozenset(
    {"device", "dtype", "adapter", "trust_remote_code", "enable_thinking", "chat_template_kwargs"}
)
"""Keys of `ChatRequest.extra` that mean something to a model in this process."""


@dataclass(slots=True)
class Job:
    """A request and where its answer goes. Cancelling ``future`` takes it out at the next token.

    ``tell`` is given the text as it grows, in the model's thread.
    """

    request: ChatRequest
    strict: bool = False
    tell: Callable[[str], None] | None = None
    future: Future[ChatReply] = field(default_factory=Future)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.future.cancelled()

    def answer(self, reply: ChatReply) -> None:
        """Hands the answer over, unless nobody waits for it."""
        with suppress(InvalidStateError):
            self.future.set_result(reply)

    def fail(self, error: Exception) -> None:
        """Hands an error over, unless nobody waits for the answer."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Row:
    """A job that is being answered. ``tokens`` are those of the prompt and of the answer so far.

    Making one raises what is wrong with the request: `ContextTooLong`, `RequestRefused`,
    `Unsupported`.
    """

    def __init__(self, job: Job, loaded: LoadedModel) -> None:
        request, tokenizer = job.request, loaded.tokenizer
        if not request.messages:
            raise RequestRefused("a model was asked with no message")
        if request.max_tokens is not None and request.max_tokens < 1:
            raise RequestRefused(f"max_tokens must be positive, not {request.max_tokens}")
        prompt = build_prompt(tokenizer, request)
        unknown = [Degradation(key, "no option of models in this process") for key in request.extra]
        self._dropped = (*prompt.degradations, *(item for item in unknown if item.feature not in OPTIONS))
        if self._dropped and job.strict:
            feature, said = self._dropped[0].feature, self._dropped[0].reason
            raise UnsupportedParameter(
                feature, provider="transformers", model=request.model, status=0, said=said
            )
        self.tokens: list[int] = tokenizer.encode(prompt.text, add_special_tokens=prompt.marks)
        self.job = job
        self._asked = len(self.tokens)
        self._most = self._room(request, loaded.context)
        self._ends = loaded.ends
        self._chooser = Chooser(request, loaded.model.generation_config, loaded.device)
        self._writer = TextWriter(
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            (*request.stop, *prompt.stops),
        )
        self._prose = ProseFilter()

    def choose(self, scores: Any) -> Any:
        """The next token by this request's own rules, as a tensor of one."""
        return self._chooser.choose(self.tokens, scores)

    def take(self, token: int) -> bool:
        """Adds ``token`` to the answer; whether that is its end, and the answer was handed over."""
        self.tokens.append(token)
        ended = token in self._ends
        if not ended:
            self._tell(self._writer.push(token))
        full = len(self.tokens) - self._asked >= self._most
        if not (ended or full or self._writer.stopped):
            return False
        self._tell(self._writer.finish())
        self._answer("stop" if ended or self._writer.stopped else "length")
        return True

    def _room(self, request: ChatRequest, context: int | None) -> int:
        """The most tokens that the answer may have."""
        wanted = request.max_tokens or DEFAULT_MAX_TOKENS
        if context is None:
            return wanted
        if self._asked >= context:
            raise ContextTooLong(
                f"the prompt has {self._asked} tokens and {request.model} has room for {context}",
                limit=context,
                used=self._asked,
            )
        return min(wanted, context - self._asked)

    def _tell(self, added: str) -> None:
        if self.job.tell is None:
            return
        if self.job.request.tools:
            added = self._prose.push(added)
        if added:
            self.job.tell(added)

    def _answer(self, finish: str) -> None:
        request, text = self.job.request, self._writer.text
        calls: tuple[ToolCall, ...] = ()
        if request.tools:
            names = {tool.get("function", tool).get("name") for tool in request.tools}
            text, calls = read_calls(text, names, sum(len(turn.tool_calls) for turn in request.messages))
        if finish == "stop" and not text.strip() and not calls:
            self.job.fail(self._emptiness())
            return
        usage = Usage(prompt=self._asked, completion=len(self.tokens) - self._asked)
        self.job.answer(
            ChatReply(
                text=text,
                tool_calls=calls,
                finish="tool" if calls else finish,
                usage=usage,
                model=request.model,
                degradations=self._dropped,
                created=int(time.time()),
            )
        )

    def _emptiness(self) -> Exception:
        said = f"{self.job.request.model} ended its answer before it said anything"
        # The same dice fall the same way: another try is worth it only where new ones are thrown.
        return BadAnswer(said) if self._chooser.repeats else Transient(said)
