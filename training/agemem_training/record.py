"""What an episode leaves behind: all that rewards, losses and reports are computed from. No torch.

The neutral record of a trajectory: its steps, each with a prompt of its own (the context is rewritten between them),
what the memory server's ledger says was done, and the context at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_policies.session import ContextMessage
    from agemem_policies.steps import Step, StopReason
    from agemem_training.tasks.task import Task

CONSTRUCTION, DISTRACTION, REASONING = 1, 2, 3
"""The three stages (AgeMem, section 3.3)."""


@dataclass(slots=True)
class Episode:
    """A trajectory and what it did.

    Rewards are pure functions of this: of the ledger and the record, never of what a policy wrote about itself.
    """

    task: Task
    steps: list[Step] = field(default_factory=list["Step"])
    """Of all stages, in order; ``step.stage`` tells which. Retrievals of the environment are no steps."""
    stop_reason: StopReason | None = None
    """Why the episode ended: :attr:`StopReason.ANSWER` if the query was answered in stage 3, and else what ended it,
    in whatever stage (running over the window ends an episode at once)."""
    answer: str | None = None
    """What the query was answered in stage 3."""
    events: tuple[MemoryEvent, ...] = ()
    """The ledger's rows of the episode's scope, oldest first, the background's (by the environment) included."""
    sessions: dict[int, str] = field(default_factory=dict[int, str])
    """Which session each stage worked in; stages 2 and 3 share one. A row's ``session_id`` tells its stage by this."""
    context: tuple[ContextMessage, ...] = ()
    """At the end, the turn with the answer included."""
    context_tokens: int = 0
    """T_used: at the end, as the server counts."""
    budget_tokens: int = 0
    """T_max."""
    max_rounds: int = 0
    """N_max: turns in one stage after which the episode ends (``StopReason.MAX_ROUNDS``)."""
    summary_tokens: int = 0
    """That the policy's model read to write summaries of its own, beside the prompts of its steps."""
    environment_s: float = 0.0
    """Seconds that went into the memory server rather than the policy."""
    seed: int = 0
    """Of ids, time and sampling."""
