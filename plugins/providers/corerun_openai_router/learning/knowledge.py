"""What one provider knows about its server's models: pins, what was learned, and when that is doubted."""

from __future__ import annotations

import difflib
import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from corerun.interfaces import Json
from corerun_openai_router import facts as known
from corerun_openai_router.facts import Facts
from corerun_openai_router.learning.caps import (
    DOUBTED,
    GUESSED,
    HONOURED,
    IGNORED,
    PIN_NO,
    PIN_YES,
    REFUSED,
    CapsStore,
    Row,
)

DAY_S = 86_400.0
LIFETIME_S = 7 * DAY_S
LOCAL_LIFETIME_S = DAY_S
"""A server on this machine gets other models under the same name more often."""
GUESS_LIFETIME_S = 3600.0
"""A server that was ill for a moment has refused nothing."""
IGNORED_IN_A_ROW = 3

_MOST_VERSIONS = 8
_NEAR = 0.85

_log = logging.getLogger("corerun.openai_router")

_OTHER_NAMES = {
    "vision": known.IMAGES,
    "json_schema": known.JSON_SCHEMA,
    "json_object": known.JSON_OBJECT,
    "strict": known.TOOLS_STRICT,
}

FEATURES = (
    *_OTHER_NAMES,
    *known.LIMIT_NAMES,
    known.IMAGES,
    known.TOOLS,
    known.FUNCTIONS,
    known.RESPONSE_FORMAT,
    known.STREAM_OPTIONS,
    "seed",
    "reasoning_effort",
    "temperature",
    "top_p",
    "stop",
    "tool_choice",
    "parallel_tool_calls",
    "logprobs",
)
"""The commonest names of features in the configuration; any other parameter of a request is one too."""


@dataclass(slots=True)
class _Model:
    """One model: its rows by fact, the facts they add up to, and the moment when the first row is doubted."""

    rows: dict[str, Row]
    facts: Facts = known.NOTHING
    doubted_at: float = float("inf")
    identity: str = ""
    ignored: dict[str, int] = field(default_factory=dict)


class Knowledge:
    """Facts by model, kept in ``store``.

    ``pins`` are facts that were declared, with the reason; ``accepted`` are features that the server
    takes whatever it says. Neither is written down or unlearned. ``debug`` logs what is learned,
    ``wall_clock`` gives Unix time.
    """

    def __init__(
        self,
        base_url: str,
        store: CapsStore,
        *,
        pins: Mapping[str, str],
        accepted: Iterable[str],
        debug: bool = False,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._base_url = base_url
        self._store = store
        self._pins = dict(pins)
        self._accepted = frozenset(accepted)
        self._debug = debug
        self._clock = wall_clock
        self._lifetime_s = LOCAL_LIFETIME_S if _is_loopback(base_url) else LIFETIME_S
        self._models: dict[str, _Model] = {}

    def facts(self, model: str) -> Facts:
        """Everything that is known of ``model`` now."""
        found = self._models.get(model)
        now = self._clock()
        if found is None:
            rows = {row.fact: row for row in self._store.load(self._base_url, model)}
            found = self._models[model] = _Model(rows)
            self._add_up(found)
            # Written by a clock that went wrong, these would be believed for ever.
            self._drop(model, found, [row for row in rows.values() if row.last_seen > now + DAY_S])
        if now >= found.doubted_at:
            self._drop(model, found, [row for row in found.rows.values() if self._expires(row) <= now])
        return found.facts

    def may_learn(self, fact: str) -> bool:
        """Whether the configuration leaves it open that ``fact`` is true."""
        return known.feature_of(fact) not in self._accepted and fact not in self._accepted

    def reason(self, model: str, fact: str) -> str:
        """Why ``fact`` is believed, in one line."""
        pinned = self._pins.get(fact)
        if pinned is not None:
            return pinned
        row = self._models[model].rows.get(fact)
        if row is None:  # dropped a moment ago
            return "known until now"
        day = time.strftime("%Y-%m-%d", time.gmtime(row.last_seen))
        return f"known since {day}: {row.evidence}"

    def learn(
        self, model: str, facts: Iterable[str], evidence: str, status: int, state: str = REFUSED
    ) -> None:
        """Keep that ``facts`` are true, at once and for other processes too."""
        now, found = self._clock(), self._models[model]
        rows = [
            Row(fact, state, evidence, status, now, now, version=self._versions(found, fact))
            for fact in facts
            if fact not in self._pins
        ]
        found.rows.update((row.fact, row) for row in rows)
        self._add_up(found)
        if rows:
            self._store.save(self._base_url, model, rows)
        for row in rows if self._debug else ():
            _log.info("%s: learned %s: %s (%s)", model, row.fact, row.state, row.evidence)

    def answered(self, model: str, identity: str) -> None:
        """Doubt what was said by another version of the server than the one that answered now.

        ``identity`` is what a good answer tells of the server, empty where it tells nothing.
        """
        found = self._models[model]
        if not identity or identity == found.identity:
            return
        found.identity = identity
        changed = [
            replace(row, version=identity, hits=0) if not row.version else replace(row, state=DOUBTED, hits=0)
            for row in found.rows.values()
            if row.state != DOUBTED and identity not in row.version.splitlines()
        ]
        if changed:
            found.rows.update((row.fact, row) for row in changed)
            self._add_up(found)
            self._store.save(self._base_url, model, changed)

    def channel_answered(self, model: str, channel: str, *, honoured: bool) -> None:
        """Count whether answers come in the way that was asked for; learn from three in a row that don't."""
        found = self._models[model]
        fact = known.CHANNEL + channel
        if honoured:
            found.ignored.pop(channel, None)
            row = found.rows.get(fact)
            if row is None or row.state == DOUBTED:
                self.learn(model, [fact], "an answer came this way", 200, HONOURED)
            return
        count = found.ignored[channel] = found.ignored.get(channel, 0) + 1
        if count >= IGNORED_IN_A_ROW:
            found.ignored.pop(channel)
            self.learn(model, [fact], f"{count} answers in a row didn't come this way", 200, IGNORED)

    def rows(self, model: str | None) -> Sequence[Mapping[str, Json]]:
        """What is known, pins first, for people and programs."""
        models = [model] if model is not None else self._store.models(self._base_url)
        shown: list[Mapping[str, Json]] = []
        for name in models:
            for fact, reason in self._pins.items():
                if fact.startswith(known.PREFER):
                    continue
                shown.append(self._shown(name, Row(fact, PIN_NO, reason, 0, 0.0, 0.0)))
            for fact in sorted(self._accepted):
                shown.append(self._shown(name, Row(fact, PIN_YES, "configured", 0, 0.0, 0.0)))
            self.facts(name)
            shown += [self._shown(name, row) for row in self._models[name].rows.values()]
        return shown

    def forget(self, model: str | None) -> int:
        """Drop what was learned of one model or of all; pins stay. How many rows there were."""
        count = 0
        for name in [model] if model is not None else self._store.models(self._base_url):
            self.facts(name)
            found = self._models[name]
            count += len(found.rows)
            found.ignored.clear()
            self._drop(name, found, list(found.rows.values()))
        return count

    def _shown(self, model: str, row: Row) -> Mapping[str, Json]:
        feature, value = known.split(row.fact)
        is_pin = row.state in (PIN_NO, PIN_YES)
        return {
            "base_url": self._base_url,
            "model": model,
            "feature": feature,
            "value": value,
            "state": row.state,
            "evidence": row.evidence,
            "last_seen": None if is_pin else row.last_seen,
            "expires": None if is_pin else self._expires(row),
        }

    def _versions(self, found: _Model, fact: str) -> str:
        """Who is known to say so: a server that flips between versions isn't doubted at each flip."""
        before = found.rows.get(fact)
        versions = before.version.splitlines() if before else []
        if found.identity and found.identity not in versions:
            versions.append(found.identity)
        return "\n".join(versions[-_MOST_VERSIONS:])

    def _drop(self, model: str, found: _Model, rows: Sequence[Row]) -> None:
        for row in rows:
            del found.rows[row.fact]
        self._add_up(found)
        if rows:
            self._store.drop(self._base_url, model, rows)

    def _add_up(self, found: _Model) -> None:
        learned = [
            row.fact
            for row in found.rows.values()
            if self.may_learn(row.fact)
            and (row.state in (REFUSED, GUESSED, IGNORED) or row.fact.startswith(known.PREFER))
        ]
        found.facts = frozenset((*learned, *self._pins))
        found.doubted_at = min(map(self._expires, found.rows.values()), default=float("inf"))

    def _expires(self, row: Row) -> float:
        return row.last_seen + (GUESS_LIFETIME_S if row.state == GUESSED else self._lifetime_s)


def fact_of(name: str) -> str:
    """The fact for a feature's name in the configuration."""
    return _OTHER_NAMES.get(name, name)


def probably_meant(name: str) -> str:
    """The feature of which ``name`` is a slip, such as ``tools`` for ``tool``; empty: it is none."""
    if name in FEATURES:
        return ""
    return next(iter(difflib.get_close_matches(name, FEATURES, 1, _NEAR)), "")


def pins_of(capabilities: Mapping[str, bool]) -> tuple[dict[str, str], set[str]]:
    """What the configuration says of the server: refused facts with their reason, and accepted ones."""
    refused: dict[str, str] = {}
    accepted: set[str] = set()
    for name, is_taken in capabilities.items():
        fact = fact_of(name)
        if is_taken:
            accepted.add(fact)
        else:
            refused[fact] = f"the configuration says {name}: false"
    return refused, accepted


def _is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
