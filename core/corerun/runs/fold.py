"""The state of a run: the fold of its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from corerun.interfaces import Event
from corerun.runs import events as kinds


@dataclass(slots=True)
class RunState:
    """What the journal says. ``answered`` and ``executed`` are what a resumed run doesn't repeat."""

    started: Event | None = None
    resumed: list[Event] = field(default_factory=list)
    ended: Event | None = None
    last: Event | None = None
    answered: dict[str, Event] = field(default_factory=dict)
    asked: dict[str, Event] = field(default_factory=dict)
    executed: dict[str, Event] = field(default_factory=dict)
    made: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    """By node and attempt: the files that its programs made, with the hash that the newest gave each."""
    done: dict[str, Event] = field(default_factory=dict)
    running: dict[str, Event] = field(default_factory=dict)
    stages: dict[str, Event] = field(default_factory=dict)
    stages_done: dict[str, Event] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Event] = field(default_factory=dict)
    clock_steps_s: float = 0.0
    """By how much the clock was set while the run lived: no time of the run."""
    double_paid: list[str] = field(default_factory=list)
    audited: Event | None = None

    def add(self, event: Event) -> None:
        """Take one more record in."""
        self.last = event
        match event.type:
            case kinds.RUN_STARTED:
                self.started = event
            case kinds.RUN_RESUMED:
                self._resume(event)
            case kinds.RUN_DONE:
                self.ended = event
            case kinds.CALL_ASKED:
                self.asked[event.data["key"]] = event
            case kinds.CALL_ANSWERED:
                self.answered[event.data["key"]] = event
                self.asked.pop(event.data["key"], None)
            case kinds.CALL_FAILED:
                self.asked.pop(event.data["key"], None)
            case kinds.EXECUTION_DONE | kinds.REFUSED:
                self.audited = event
                if "key" in event.data:
                    self.executed[event.data["key"]] = event
                    made = self.made.setdefault((event.data["node"], event.data["attempt"]), {})
                    made |= {item["path"]: item["sha256"] for item in event.data["result"].get("files", ())}
            case kinds.NODE_ASKED:
                self.running[event.data["node"]] = event
            case kinds.NODE_DONE:
                self.done[event.data["node"]] = event
                self.running.pop(event.data["node"], None)
            case kinds.STAGE_STARTED:
                self.stages[event.data["scope"]] = event
            case kinds.STAGE_DONE:
                self.stages_done[event.data["scope"]] = event
            case kinds.WARNING:
                self.warnings.append(event.data["message"])
                self.clock_steps_s += event.data.get("clock_step_s", 0.0)
            case kinds.NOTED:
                self.notes[event.data["name"]] = event.data["value"]
            case kinds.FILE_MADE:
                self.files[event.data["path"]] = event

    def _resume(self, event: Event) -> None:
        self.resumed.append(event)
        self.ended = None
        # Sent but not recorded when the process died: nobody can know whether it was paid.
        self.double_paid += self.asked
        self.asked.clear()

    @property
    def status(self) -> str:
        """success, failed, stopped, interrupted; running or broken off while no end is recorded."""
        return str(self.ended.data["status"]) if self.ended else "running"


def fold(events: Iterable[Event]) -> RunState:
    """The state after ``events``."""
    state = RunState()
    for event in events:
        state.add(event)
    return state


def settings_of(state: RunState) -> Mapping[str, Any]:
    """The settings that the run was last started with; empty for a journal that has none."""
    newest = next((event.data for event in reversed(state.resumed) if "settings" in event.data), None)
    return dict((newest or started(state)).get("settings", {}))


def started(state: RunState) -> Mapping[str, Any]:
    """What ``run_started`` says; empty for a journal that has none."""
    return state.started.data if state.started else {}
