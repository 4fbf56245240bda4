"""Every error that corerun raises on purpose: one line, where, what to do, and an exit code.

Exit codes (one table for every command): 0 ok; 1 the run failed; 2 usage, configuration or bad
input; 3 the environment refuses; 4 corrupt state or I/O error; 5 stopped at a limit, resumable;
130 interrupted, resumable.
"""

from __future__ import annotations

from typing import ClassVar


class CorerunError(Exception):
    """Base class. ``message`` says what is wrong in one line.

    ``hint`` says what to do about it, ``where`` names the place (``file:line``, a key, a flag).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class RunFailed(CorerunError):
    """The run itself came to no result. ``kind`` is the manifest's ``error.type``."""

    exit_code = 1

    def __init__(self, message: str, *, kind: str = "RunFailed", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class UsageError(CorerunError):
    """A flag, an argument or an input file is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown or has a wrong value."""


class PluginError(UsageError):
    """A plugin that was asked for by name is unknown, broken, blocked or ambiguous."""


class MissingArtifacts(UsageError):
    """``--strict_artifacts`` was given and an expected file is missing."""


class EnvironmentRefused(CorerunError):
    """This machine lacks something: an extra, a sandbox, a GPU, a free lock."""

    exit_code = 3


class StateError(CorerunError):
    """State on disk is corrupt, or it can't be written."""

    exit_code = 4


class Stopped(CorerunError):
    """A limit (money, tokens, time, disk) was reached. The run can be resumed."""

    exit_code = 5


class DiskFull(Stopped):
    """No space is left for a file of the run, or less than the settings want. The run can be resumed."""


class Interrupted(CorerunError):
    """Ctrl-C or SIGTERM. The run can be resumed."""

    exit_code = 130


class ModelError(CorerunError):
    """A model gave no usable answer. ``kind`` is the class that a journal, a report and a retry rule read."""

    kind: ClassVar[str] = "model"


class ModelUnusable(ModelError):
    """No call to this model can succeed until a person changes something. Ends the run, resumable."""


class CallFailed(ModelError):
    """This call failed; another call to the same model may succeed."""


class AuthFailed(ModelUnusable):
    """The key is missing, wrong or not allowed to use the model."""

    kind = "auth"
    exit_code = 2


class QuotaExceeded(ModelUnusable):
    """The account is out of money or quota."""

    kind = "quota"
    exit_code = 5


class ModelNotFound(ModelUnusable):
    """The server doesn't know the model."""

    kind = "model_not_found"
    exit_code = 2


class Transient(CallFailed):
    """Worth another try: overload, rate limit, a broken connection, a cut body.

    ``retry_after`` is the server's wish in seconds, if it had one. ``limited``: the server would turn
    other calls away too, as it does if it has a wish; they wait until one is answered.
    """

    kind = "transient"

    def __init__(
        self, message: str, *, retry_after: float | None = None, limited: bool = False, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after
        self.limited = limited or retry_after is not None


class StreamCut(CallFailed):
    """A stream ended before its answer was complete and after a part was handed out: ``partial``."""

    kind = "stream_cut"

    def __init__(self, message: str, *, partial: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.partial = partial


class ContextTooLong(CallFailed):
    """The request doesn't fit into the model's context window.

    ``limit`` and ``used`` are in tokens, where the server named them.
    """

    kind = "context"

    def __init__(
        self, message: str, *, limit: int | None = None, used: int | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
        self.used = used


class ContentRefused(CallFailed):
    """A content filter or the model itself refused to answer."""

    kind = "refused"


class Unsupported(CallFailed):
    """The provider can't do what was asked (a purpose, an image, a feature). Never retried."""

    kind = "unsupported"


class UnsupportedParameter(Unsupported):
    """The server refused one parameter or feature, and the call was strict about it.

    ``status`` is the HTTP status; 0: nothing was sent, because the refusal was known.
    """

    def __init__(
        self, parameter: str, *, provider: str, model: str, status: int, said: str, hint: str = ""
    ) -> None:
        super().__init__(f"{provider}::{model} refuses {parameter}: {said}", hint=hint)
        self.parameter = parameter
        self.provider = provider
        self.model = model
        self.status = status


class RequestRefused(CallFailed):
    """The server refused the request for a reason that nobody could act on."""

    kind = "http"


class ProviderBroken(CallFailed):
    """A provider's plugin raised what it may not raise."""

    kind = "provider"


class BadAnswer(CallFailed):
    """The model's answer didn't fit the schema, after all re-asks. ``raw`` is its last text."""

    kind = "bad_answer"

    def __init__(self, message: str, *, raw: str = "") -> None:
        super().__init__(message)
        self.raw = raw


class BudgetExceeded(Stopped):
    """The next call or program would pass ``budget.usd``, ``budget.tokens`` or ``budget.seconds``."""


class SandboxUnavailable(EnvironmentRefused):
    """No sandbox here gives the guarantees that were asked for."""


class InfrastructureError(CorerunError):
    """Not the program's fault: a sandbox or worker was lost, transport was exhausted.

    The driver asks the node once more; it is never scored and never shown to a model. Outside a node
    it ends the run, which can be resumed.
    """

    exit_code = 3


class SandboxBroken(InfrastructureError):
    """A sandbox no longer gives what it was chosen for: what ran in it proves nothing."""
