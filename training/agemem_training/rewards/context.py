"""The terms of the context: compression, preventive and preservation."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from agemem_mcp.domain.context import Role
from agemem_policies.steps import StopReason
from agemem_training.facts import has_phrase, held, words
from agemem_training.rewards.calls import found_it_unknown, policy_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.session import ContextMessage
    from agemem_policies.steps import Step
    from agemem_training.record import Episode
    from agemem_training.tasks.task import Fact

_REDUCING = ("Summary_context", "Filter_context")
_DUE_SHARE = 0.5
"""Of the budget: over it, a reduction is due."""


def answered(episode: Episode) -> bool:
    """Whether the query was answered; with nothing, it was not."""
    return episode.stop_reason is StopReason.ANSWER and bool(episode.answer and episode.answer.strip())


def compression(episode: Episode) -> float:
    """``max(0, 1 - T_used/T_max)`` when the answer was given."""
    if not answered(episode) or episode.budget_tokens <= 0:
        return 0.0
    return min(1.0, max(0.0, 1 - episode.context_tokens / episode.budget_tokens))


def went_over(episode: Episode) -> bool:
    """Whether the context went over its budget."""
    over = any(step.context_tokens > episode.budget_tokens for step in episode.steps)
    return over or episode.stop_reason is StopReason.CONTEXT_OVERFLOW


def paper_preventive(episode: Episode) -> float:
    """1 if a summary or filter succeeded before the limit was reached."""
    within = takewhile(lambda step: step.context_tokens <= episode.budget_tokens, episode.steps)
    steps_within = sum(1 for _ in within)
    return float(
        any(
            call.call.name in _REDUCING and call.result is not None and call.position < steps_within
            for call in policy_calls(episode)
        )
    )


def strict_preventive(episode: Episode) -> float:
    """1 if the context was reduced when it was due, or that never was; 0 if a reduction lost a gold fact."""
    reducing = {call.position for call in policy_calls(episode) if call.reduced}
    if any(_lost(episode, position) for position in reducing):
        return 0.0
    # After the answer that ends the episode nothing can overflow any more.
    followed = episode.steps[:-1] if episode.stop_reason is StopReason.ANSWER else episode.steps
    limit = _DUE_SHARE * episode.budget_tokens
    due = {position for position, step in enumerate(followed) if step.context_tokens > limit}
    return float(not due or bool(due & reducing))


def paper_preservation(episode: Episode) -> float:
    """1 if the key items of the query stand in the context when the answer is given."""
    texts = [message.content for message in episode.context if message.role is not Role.SYSTEM]
    items = episode.task.key_items
    return float(answered(episode) and all(any(has_phrase(text, item) for text in texts) for item in items))


def strict_preservation(episode: Episode) -> float:
    """1 if the gold facts stand in the context when the answer is given, not counting what the assistant wrote."""
    if not answered(episode):
        return 0.0
    if not episode.task.gold:
        return float(found_it_unknown(episode))
    return float(len(_at_the_end(episode)) == len(set(episode.task.gold)))


def _lost(episode: Episode, position: int) -> set[Fact]:
    """The gold facts that a step's prompt told and the next one of its session does not."""
    step = episode.steps[position]
    before = _in_prompt(episode, step)
    session = episode.sessions.get(step.stage)
    later = (one for one in episode.steps[position + 1 :] if episode.sessions.get(one.stage) == session)
    following = next(later, None)
    if following is not None:
        return before - _in_prompt(episode, following)
    was_the_last = session == episode.sessions.get(max(episode.sessions, default=step.stage))
    return before - _at_the_end(episode) if was_the_last else set()


def _in_prompt(episode: Episode, step: Step) -> set[Fact]:
    return held(
        episode.task.gold, _told([(message.role, message.content) for message in step.prompt.messages], episode)
    )


def _at_the_end(episode: Episode) -> set[Fact]:
    context: Sequence[ContextMessage] = episode.context
    return held(episode.task.gold, _told([(message.role.value, message.content) for message in context], episode))


def _told(messages: Sequence[tuple[str, str]], episode: Episode) -> list[str]:
    """What the assistant was told: its own words, the system prompt and the query aside."""
    query = words(episode.task.query)
    return [text for role, text in messages if role not in ("system", "assistant") and words(text) != query]
