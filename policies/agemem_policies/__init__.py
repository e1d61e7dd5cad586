"""Policies that drive the memory tools, and the agent loop that carries out what they decide.

The six operations they choose from are `agemem_mcp.domain.operations`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from agemem_mcp.domain.operations import MemoryOperation

if TYPE_CHECKING:
    from agemem_policies.agent import Agent, AgentOptions, Limits
    from agemem_policies.policy import ChatMessage, Completion, Policy, Prompt
    from agemem_policies.protocol import Call, ProtocolViolation, Turn, parse, render
    from agemem_policies.scripted import ScriptedPolicy
    from agemem_policies.steps import Step, StopReason, Trajectory

__all__ = [
    "Agent",
    "AgentOptions",
    "Call",
    "ChatMessage",
    "Completion",
    "Limits",
    "MemoryOperation",
    "Policy",
    "Prompt",
    "ProtocolViolation",
    "ScriptedPolicy",
    "Step",
    "StopReason",
    "Trajectory",
    "Turn",
    "parse",
    "render",
]

_MODULES = {
    **dict.fromkeys(("Agent", "AgentOptions", "Limits"), "agent"),
    **dict.fromkeys(("ChatMessage", "Completion", "Policy", "Prompt"), "policy"),
    **dict.fromkeys(("Call", "ProtocolViolation", "Turn", "parse", "render"), "protocol"),
    "ScriptedPolicy": "scripted",
    **dict.fromkeys(("Step", "StopReason", "Trajectory"), "steps"),
}


def __getattr__(name: str) -> object:
    """What is exported, once it is asked for: the loop takes a second to import, and most modules need it not."""
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
