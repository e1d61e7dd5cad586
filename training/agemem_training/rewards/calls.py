"""What the policy called, and whether it had an effect: by what the server answered, never by what a turn says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agemem_training.facts import is_stale, outdated
from agemem_training.record import REASONING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agemem_policies.protocol import Call
    from agemem_policies.steps import Step
    from agemem_training.record import Episode


@dataclass(frozen=True, slots=True)
class PolicyCall:
    """One call of the policy and what came of it."""

    call: Call
    result: dict[str, Any] | None
    """The server's complete result; None if the call failed, or was not carried out."""
    position: int
    """Of its step among the episode's."""
    stage: int
    tokens_before: int
    """In the context before the call, as the server last told."""

    @property
    def reduced(self) -> bool:
        """Whether it is a summary or filter that freed tokens."""
        if self.result is None:
            return False
        if self.call.name == "Filter_context":
            return bool(self.result["removed"])
        return self.call.name == "Summary_context" and int(self.result["context"]["tokens"]) < self.tokens_before


def policy_calls(episode: Episode) -> list[PolicyCall]:
    """All calls of all turns that could be read, in order."""
    return [call for position, step in enumerate(episode.steps) for call in _of_step(position, step)]


def _of_step(position: int, step: Step) -> Iterator[PolicyCall]:
    if step.turn is None:
        return
    tokens = step.context_tokens
    for number, call in enumerate(step.turn.calls):
        # Of calls over a turn's limit the first is told so, and the others have no observation at all.
        observation = step.observations[number] if number < len(step.observations) else None
        result = None if observation is None or observation.is_error else observation.structured
        yield PolicyCall(call, result, position, step.stage, tokens)
        if result and "context" in result:
            tokens = int(result["context"]["tokens"])


def had_effect(call: PolicyCall, episode: Episode) -> bool:
    """Whether anything was different after a call, or known."""
    if call.result is None:
        return False
    match call.call.name:
        case "Add_memory":
            return not call.result["duplicate"]
        case "Update_memory":
            written = str(call.call.arguments.get("content", ""))
            return written.split() != str(call.result["previous_content"]).split()
        case "Retrieve_memory":
            # Where nothing is known, finding that out is what a retrieval is for.
            return bool(call.result["memories"]) or not episode.task.gold
        case "Summary_context" | "Filter_context":
            return call.reduced
        case _:
            return True


def retrieved(episode: Episode) -> list[str] | None:
    """The memories that the policy retrieved in stage 3; None if it retrieved not once."""
    found: list[str] | None = None
    for call in policy_calls(episode):
        if call.call.name == "Retrieve_memory" and call.result is not None and call.stage == REASONING:
            found = [*(found or ()), *(str(memory["content"]) for memory in call.result["memories"])]
    return found


def found_it_unknown(episode: Episode) -> bool:
    """Whether the policy looked in stage 3, and nothing that was shown is outdated."""
    memories = retrieved(episode)
    stale = outdated(episode.task)
    return memories is not None and not any(is_stale(text, change) for text in memories for change in stale)
