"""What becomes of a run: the assistant's message, why it ends there, and what was done for it."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from agemem_policies.endpoint.asking import ClientCall, Said
from agemem_policies.events import ContextChanged, Observed
from agemem_policies.events import Said as Spoken
from agemem_policies.steps import StopReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from agemem_policies.events import Event
    from agemem_policies.steps import Trajectory

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]

_WHY = {
    StopReason.MAX_ROUNDS: "it took as many turns as one message may take",
    StopReason.MAX_CALLS: "it made as many tool calls as one message may take",
    StopReason.MAX_TOKENS: "it read and wrote as many tokens as one message may take",
    StopReason.MAX_SECONDS: "it took as long as one message may take",
    StopReason.REPEATED_CALLS: "it made the same tool calls again and again",
    StopReason.CONTEXT_OVERFLOW: "the conversation does not fit into the model's context any more",
}
_BETWEEN = "\n\n"
"""Between what was said in two turns."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A tool of the memory that was called."""

    name: str
    arguments: dict[str, Any]
    text: str
    is_error: bool
    memory_id: str | None

    @property
    def shown(self) -> dict[str, Any]:
        """As clients are told of it."""
        return {"name": self.name, "arguments": self.arguments, "text": self.text, "is_error": self.is_error}


Piece: TypeAlias = str | Operation
"""What a stream is made of: text of the answer, and what was done meanwhile."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A request's answer."""

    message: Said
    finish_reason: FinishReason
    usage: dict[str, int]
    extension: dict[str, Any]
    """The field ``agemem`` of a response."""


class Transcript:
    """What a run tells, as it is passed on."""

    def __init__(self, passed_on: Callable[[Piece], None]) -> None:
        """Pass it on."""
        self._passed_on = passed_on
        self.operations: list[Operation] = []
        self.said = ""
        self._said_before = 0
        """Characters said before the turn that is going on."""

    def told(self, event: Event) -> None:
        """Take what an agent tells."""
        match event:
            case Spoken(text):
                self.say(text)
            case Observed(call, observation):
                memory_id = observation.structured.get("memory_id")
                self.operations.append(
                    Operation(
                        call.name,
                        plain(call.arguments),
                        observation.text,
                        observation.is_error,
                        memory_id if isinstance(memory_id, str) else None,
                    )
                )
                self._passed_on(self.operations[-1])
            case ContextChanged():
                self._said_before = len(self.said)
            case _:
                pass

    def say(self, text: str) -> None:
        """Say something, set off from what was said in the turns before."""
        if text and self._said_before and len(self.said) == self._said_before:
            text = _BETWEEN + text
        self.said += text
        self._passed_on(text)

    @property
    def spoke(self) -> bool:
        """Whether something was said in the turn that is going on."""
        return bool(self.said[self._said_before :].strip())

    def reply(self, trajectory: Trajectory, *, streamed: bool) -> Reply:
        """The answer to a run that has ended.

        Args:
            trajectory: what the run did.
            streamed: whether what was said on the way belongs to it, as the client has it.
        """
        reason = trajectory.stop_reason
        calls: tuple[ClientCall, ...] = ()
        text = trajectory.answer or ""
        why = None if reason is None else _WHY.get(reason)
        if reason is StopReason.CLIENT_CALLS:
            calls = tuple(
                ClientCall(f"call_{secrets.token_hex(12)}", call.name, json.dumps(plain(call.arguments)))
                for call in trajectory.client_calls
            )
            text = self.said.strip()
        elif why is not None:
            text = f"(No answer was reached: {why}.)"
            self._said_before = len(self.said)
        if streamed and not calls and not self.spoke:
            self.say(text)
        finish: FinishReason = "length" if why is not None else "tool_calls" if calls else "stop"
        return Reply(
            Said("assistant", self.said if streamed else text, calls),
            finish,
            {
                "prompt_tokens": trajectory.prompt_tokens,
                "completion_tokens": trajectory.completion_tokens,
                "total_tokens": trajectory.prompt_tokens + trajectory.completion_tokens,
            },
            self._extension(trajectory),
        )

    def _extension(self, trajectory: Trajectory) -> dict[str, Any]:
        return {
            "session_id": trajectory.session_id,
            "operations": [operation.shown for operation in self.operations],
            "context": {
                "tokens": trajectory.context_tokens,
                "budget_tokens": trajectory.budget_tokens,
                "messages": trajectory.context_messages,
            },
            "stop_reason": trajectory.stop_reason,
            "rounds": len(trajectory.steps),
        }


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON that every client can read: models write NaN as well."""
    try:
        return json.loads(json.dumps(arguments), parse_constant=str)
    except (ValueError, RecursionError):
        return {}
