"""Climbs down from a request to one that the server takes, and learns which features it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from corerun.errors import RequestRefused, UnsupportedParameter
from corerun.interfaces import CallContext, ChatRequest, Degradation, Json
from corerun_openai_router import facts as known
from corerun_openai_router.asking.channels import FUNCTION, PROMPT
from corerun_openai_router.asking.request import Built
from corerun_openai_router.facts import Facts, feature_of
from corerun_openai_router.learning.caps import GUESSED, HONOURED, REFUSED
from corerun_openai_router.learning.knowledge import Knowledge
from corerun_openai_router.reading.failure import Verdict
from corerun_openai_router.reading.refusals import Alternatives

MOST_REQUESTS = 40
"""A server that refuses something else each time is given up, however long it could go on."""

_INTERNAL_ERROR = 500

_log = logging.getLogger("corerun.openai_router")

Rung = tuple[frozenset[str], ...]
"""The steps of one rung: each adds facts to those of the steps before it."""


def rungs(body: dict[str, Json]) -> tuple[Rung, ...]:
    """What is left out of ``body``, in this order, when a server refuses it and doesn't say why.

    A null ``stop`` has no rung because it is never sent.
    """
    sent = frozenset(name for name in known.LIMIT_NAMES if name in body)
    return (
        (frozenset({"seed"}),),
        (frozenset({"reasoning_effort"}),),
        (sent,),
        (frozenset({known.RESPONSE_FORMAT}),),
        (
            frozenset({known.TOOLS, known.PREFER + FUNCTION}),
            frozenset({known.FUNCTIONS, known.PREFER + PROMPT}),
        ),
        (frozenset({known.IMAGES}),),
        (frozenset(known.LIMIT_NAMES),),
    )


@dataclass(slots=True)
class _Blind:
    """A removal that nobody asked for, until it is answered."""

    rung: int
    facts: frozenset[str]
    evidence: str
    status: int


class Descent:
    """One call on its way down. ``built`` is what is to be sent next; it is never the same twice.

    Raises `UnsupportedParameter` instead of going down if the call is strict.
    """

    def __init__(
        self,
        request: ChatRequest,
        context: CallContext,
        knowledge: Knowledge,
        build: Callable[[Facts], Built],
        *,
        provider: str,
        debug: bool,
    ) -> None:
        self._model = request.model
        self._strict = context.strict
        self._knowledge = knowledge
        self._build = build
        self._provider = provider
        self._debug = debug
        self._removed: dict[str, str] = {}
        self._blind: _Blind | None = None
        self._ladder: tuple[Rung, ...] = ()
        self.sent: list[dict[str, Json]] = []
        self.requests = 0
        self.renew()

    def renew(self) -> None:
        """Build again from what is known by now."""
        self._take(self._build(self._facts()))

    def sending(self) -> None:
        """Note that ``built`` goes out now."""
        self.requests += 1
        self.sent.append(self.built.body)

    def refused(self, verdict: Verdict, *, again: bool) -> None:
        """Go down by what ``verdict`` names, or blindly; raises its error where nothing is left.

        ``again``: this request got the same internal error before.
        """
        if self.requests >= MOST_REQUESTS:
            raise verdict.error
        may_go_on = bool(verdict.named) or verdict.unexplained
        has_news = may_go_on and self._catch_up()
        if self._named(verdict) or has_news:
            return
        is_lasting = again or self._blind is not None
        if not verdict.unexplained or (verdict.status == _INTERNAL_ERROR and not is_lasting):
            raise verdict.error
        if not self._next_rung(verdict):
            raise RequestRefused(verdict.error.message, hint=verdict.error.hint)

    def answered(self) -> tuple[Degradation, ...]:
        """What was left out. The last blind removal is learned, because it was answered."""
        if self._blind is not None:
            blind = self._blind
            facts = [fact for fact in blind.facts if not fact.startswith(known.PREFER)]
            state = GUESSED if blind.status == _INTERNAL_ERROR else REFUSED
            self._learn(sorted(facts), blind.evidence, blind.status, state)
            self._learn(blind.facts.difference(facts), blind.evidence, blind.status, state=HONOURED)
        reasons: dict[str, str] = {}
        for fact, reason in self._reasons.items():
            reasons.setdefault(feature_of(fact), reason)
        return tuple(Degradation(feature, reason) for feature, reason in reasons.items())

    @property
    def is_blind(self) -> bool:
        """Whether the last removal is a guess."""
        return self._blind is not None

    def _facts(self) -> Facts:
        return self._knowledge.facts(self._model).union(self._removed)

    def _catch_up(self) -> bool:
        """Take over what other calls learned while this one was under way; whether it changed the request."""
        fresh = self._build(self._facts())
        if fresh.body in self.sent:
            return False
        self._take(fresh)
        return True

    def _named(self, verdict: Verdict) -> bool:
        """Leave out everything that the server named; whether that changed the request."""
        found: dict[str, None] = {}
        built = self.built
        for alternatives in verdict.named:
            for fact in self._open(alternatives, found):
                other = self._build(self._facts().union(found, (fact,)))
                if other.body != built.body:
                    built = other
                    found[fact] = None
                    break
        if not found or built.body in self.sent:
            return False
        self._blind = None
        self._removed.update(dict.fromkeys(found, verdict.said))
        self._note("refused", found, verdict)
        self._learn(found, verdict.said, verdict.status)
        self._refuse_if_strict(next(iter(found)), verdict)
        self._take(built)
        return True

    def _open(self, alternatives: Alternatives, found: dict[str, None]) -> Iterator[str]:
        for fact in alternatives:
            # A second limit in one call would be a server that haggles.
            haggles = fact.startswith(known.CAP) and any(old.startswith(known.CAP) for old in self._removed)
            if fact not in found and not haggles and self._knowledge.may_learn(fact):
                yield fact

    def _next_rung(self, verdict: Verdict) -> bool:
        """Leave out what the document's order names next; whether that changed the request."""
        if not self._ladder:
            self._ladder = rungs(self.built.body)
        for number, rung in enumerate(self._ladder):
            for step in rung:
                if step <= self._removed.keys() or not all(map(self._knowledge.may_learn, step)):
                    continue
                built = self._build(self._facts().union(step))
                if built.body == self.built.body or built.body in self.sent:
                    continue
                self._refuse_if_strict(next(iter(sorted(step))), verdict)
                before = self._blind.facts if self._blind and self._blind.rung == number else frozenset()
                self._blind = _Blind(number, before | step, verdict.said, verdict.status)
                self._removed.update(dict.fromkeys(step, verdict.said))
                self._note("left out without being named", step, verdict)
                self._take(built)
                return True
        return False

    def _learn(self, facts: Collection[str], said: str, status: int, state: str = REFUSED) -> None:
        if facts:
            self._knowledge.learn(self._model, facts, said, status, state)

    def _take(self, built: Built) -> None:
        self.built = built
        self._reasons = {
            fact: self._removed.get(fact) or self._knowledge.reason(self._model, fact)
            for fact in built.applied
        }
        if self._strict:
            for fact, reason in self._reasons.items():
                if not fact.startswith(known.CHANNEL):
                    raise self._error(fact, reason, 0)

    def _refuse_if_strict(self, fact: str, verdict: Verdict) -> None:
        if self._strict:
            raise self._error(fact, verdict.said, verdict.status)

    def _error(self, fact: str, said: str, status: int) -> UnsupportedParameter:
        return UnsupportedParameter(
            feature_of(fact),
            provider=self._provider,
            model=self._model,
            status=status,
            said=said,
            hint="the call is strict: leave the parameter out, or allow it to be left out",
        )

    def _note(self, what: str, facts: Collection[str], verdict: Verdict) -> None:
        if self._debug:
            _log.info("%s: %s: %s (%s)", self._model, what, ", ".join(sorted(facts)), verdict.said)
