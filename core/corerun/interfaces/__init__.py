"""The dataclasses and protocols that hooks carry. Standard library only, so that it loads in no time.

Plugin authors need this package and `corerun.hookspecs`; nothing else is required to write a plugin.
Every protocol is structural: a class that has the members fits, no base class is needed.
"""

from __future__ import annotations

from corerun.interfaces.component import Component, Handler, Json
from corerun.interfaces.execution import (
    GUARANTEES,
    ExecRequest,
    ExecResult,
    Executor,
    Limits,
    Policy,
    Probe,
    Sandbox,
    Session,
)
from corerun.interfaces.models import (
    Answer,
    CallContext,
    ChatReply,
    ChatRequest,
    Connection,
    Degradation,
    Delta,
    Message,
    Part,
    Price,
    ProbeRow,
    Provider,
    ProviderInfo,
    Role,
    ToolCall,
    Usage,
)
from corerun.interfaces.runs import Event, Invocation, Job, Observer, Prepared, Run
from corerun.interfaces.search import Domain, Expansion, Node, Outcome, Strategy, Tree
from corerun.interfaces.workflows import Agent, Benchmark, Operator, Reward, Rollout, Stage, StageResult

__all__ = [
    "GUARANTEES",
    "Agent",
    "Answer",
    "Benchmark",
    "CallContext",
    "ChatReply",
    "ChatRequest",
    "Component",
    "Connection",
    "Degradation",
    "Delta",
    "Domain",
    "Event",
    "ExecRequest",
    "ExecResult",
    "Executor",
    "Expansion",
    "Handler",
    "Invocation",
    "Job",
    "Json",
    "Limits",
    "Message",
    "Node",
    "Observer",
    "Operator",
    "Outcome",
    "Part",
    "Policy",
    "Prepared",
    "Price",
    "Probe",
    "ProbeRow",
    "Provider",
    "ProviderInfo",
    "Reward",
    "Role",
    "Rollout",
    "Run",
    "Sandbox",
    "Session",
    "Stage",
    "StageResult",
    "Strategy",
    "ToolCall",
    "Tree",
    "Usage",
]
