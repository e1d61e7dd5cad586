"""The record of what an agent did: steps, the trajectory they make, and why it ended.

Because the context is edited between two turns (summary, filter, retrieval, reset), a trajectory is no one
growing sequence of tokens: each step has a prompt of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agemem_mcp.errors import AgeMemError
    from agemem_policies.memory import Observation
    from agemem_policies.policy import Completion, Prompt
    from agemem_policies.protocol import Call, Turn


class StopReason(StrEnum):
    """Why a run ended."""

    ANSWER = "answer"
    CLIENT_CALLS = "client_calls"
    """The turn calls tools of the client's, which runs them and comes back with their results."""
    MAX_ROUNDS = "max_rounds"
    MAX_CALLS = "max_calls"
    MAX_TOKENS = "max_tokens"
    MAX_SECONDS = "max_seconds"
    REPEATED_CALLS = "repeated_calls"
    """The same calls again and again, whatever they were answered."""
    CONTEXT_OVERFLOW = "context_overflow"
    PROVIDER_ERROR = "provider_error"
    MEMORY_ERROR = "memory_error"


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of the policy and what came of it."""

    index: int
    prompt: Prompt
    completion: Completion
    turn: Turn | None
    """None if it broke the protocol."""
    observations: tuple[Observation, ...] = ()
    """What its calls were answered, in their order; or, of a turn that broke the protocol, the correction."""
    context_tokens: int = 0
    """In the context when the prompt was built, as the server counts."""
    policy_s: float = 0.0
    """Seconds the policy took."""
    stage: int = 0
    """Of an episode in stages (AgeMem, section 3.3); 0 outside of one."""


@dataclass(slots=True)
class Trajectory:
    """What a run did, also when it ended badly."""

    session_id: str
    steps: list[Step] = field(default_factory=list["Step"])
    stop_reason: StopReason | None = None
    """None while it runs, and of one that was cancelled."""
    answer: str | None = None
    client_calls: tuple[Call, ...] = ()
    """With :attr:`StopReason.CLIENT_CALLS`: what the client is to run."""
    said: str = ""
    """What was told as the answer while it ran: the answer, and with native calling what stood beside calls."""
    error: AgeMemError | None = None
    """With :attr:`StopReason.PROVIDER_ERROR` and :attr:`StopReason.MEMORY_ERROR`: what failed."""
    context_tokens: int = 0
    """In the context at the end: T_used of the reward (AgeMem, A.2)."""
    context_messages: int = 0
    """In the context at the end."""
    budget_tokens: int = 0
    """That the context should stay below."""
    prompt_tokens: int = 0
    """All that the policy's model read, summaries for ``Summary_context`` included."""
    completion_tokens: int = 0
    violations: int = 0
    """Turns that broke the protocol."""
    seconds: float = 0.0

    @property
    def calls(self) -> list[Call]:
        """All calls of all turns."""
        return [call for step in self.steps if step.turn is not None for call in step.turn.calls]

    def counted(self, completion: Completion) -> None:
        """Count what the model read and wrote, where it tells."""
        self.prompt_tokens += completion.prompt_tokens or 0
        self.completion_tokens += completion.completion_tokens or 0

    def raise_for_error(self) -> None:
        """Raise what the model's provider or the memory server failed with, if one did.

        Raises:
            AgeMemError: see :attr:`error`.
        """
        if self.error is not None:
            raise self.error
