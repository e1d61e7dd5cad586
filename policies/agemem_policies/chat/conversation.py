"""A chat's turns, one after the other, and their record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agemem_mcp.errors import AgeMemError, StoreError
from agemem_policies.agent import Agent
from agemem_policies.events import Observed
from agemem_policies.steps import StopReason, Trajectory

if TYPE_CHECKING:
    from agemem_policies.agent import AgentOptions
    from agemem_policies.chat.undoing import Witness
    from agemem_policies.events import Event, OnEvent
    from agemem_policies.policy import Policy


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and what came of it."""

    message: str
    trajectory: Trajectory
    observed: list[Observed] = field(default_factory=list[Observed])

    def fields(self) -> dict[str, Any]:
        """It as JSON."""
        run = self.trajectory
        told: dict[str, Any] = {
            "message": self.message,
            "answer": run.answer,
            "stop_reason": None if run.stop_reason is None else run.stop_reason.value,
            "calls": [
                {
                    "name": one.call.name,
                    "arguments": one.call.arguments,
                    "text": one.observation.text,
                    "is_error": one.observation.is_error,
                }
                for one in self.observed
            ],
            "prompt_tokens": run.prompt_tokens,
            "completion_tokens": run.completion_tokens,
            "context_tokens": run.context_tokens,
            "seconds": round(run.seconds, 3),
        }
        return told if run.error is None else {**told, "error": str(run.error)}


class Conversation:
    """Talks with a policy in one session after the other."""

    def __init__(self, policy: Policy, witness: Witness, options: AgentOptions, session_id: str | None = None) -> None:
        """Set it up.

        Args:
            policy: who answers.
            witness: the memory's tools.
            options: how the agent works.
            session_id: a session to go on with; None for a new one.

        Raises:
            ConfigurationError: a prompt cannot be read.
        """
        self.policy = policy
        self.session_id = session_id
        self.exchanges: list[Exchange] = []
        self._witness = witness
        self._agent = Agent(policy, witness, options)

    def begin_anew(self) -> None:
        """Leave the session; the next message opens another."""
        self.session_id = None

    async def say(self, message: str, on_event: OnEvent) -> Trajectory:
        """Say something and have it answered.

        Returns:
            What was done. Where the model or the memory failed, its ``error`` is set.

        Raises:
            InvalidOperation: the message cannot be stored, or the session has expired.
        """
        observed: list[Observed] = []

        def heard(event: Event) -> None:
            if isinstance(event, Observed):
                observed.append(event)
            on_event(event)

        before = len(self._witness.sessions)
        try:
            run = await self._agent.run(message, session_id=self.session_id, on_event=heard)
        except StoreError as error:
            run = Trajectory(self.session_id or "", stop_reason=StopReason.MEMORY_ERROR, error=error)
        finally:
            if self.session_id is None and len(self._witness.sessions) > before:
                # Also where the run is cancelled: what was said so far is in there.
                self.session_id = next(reversed(self._witness.sessions))
        self.exchanges.append(Exchange(message, run, observed))
        return run

    @property
    def error(self) -> AgeMemError | None:
        """What the last run failed with."""
        return self.exchanges[-1].trajectory.error if self.exchanges else None

    def fields(self) -> dict[str, Any]:
        """The whole of it as JSON."""
        turns = [one.fields() for one in self.exchanges]
        return {"session_id": self.session_id, "policy": self.policy.name, "turns": turns}
