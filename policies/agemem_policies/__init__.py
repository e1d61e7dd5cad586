"""Policies that drive the memory tools, and the agent loop that carries out what they decide.

The six operations they choose from are `agemem_mcp.domain.operations`.
"""

from agemem_mcp.domain.operations import MemoryOperation
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
