"""How much of a context a model is shown, and what is done when it holds too much."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from agemem_mcp.domain.context import Role, rounds_of
from agemem_policies.rendering import escapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.session import ContextMessage

FRAME_TOKENS = 16
"""What tags and a chat template put around each message, at most, for the templates in use."""
ESCAPE_TOKENS = 3
"""What escaping one character adds, at most."""
SUMMARISE_FROM = 0.8
"""The share of the window from which on ``Overflow.SUMMARISE`` condenses (the released code's 80 %)."""


class Overflow(StrEnum):
    """What is done when a context does not fit into the model's window."""

    ERROR = "error"
    """The run ends: managing the context is the policy's business."""
    SUMMARISE = "summarise"
    """From 80 % on everything but system messages is replaced by a summary, and the last user message repeated."""
    TRUNCATE_OLDEST = "truncate_oldest"
    """The oldest rounds are not shown. They stay in the server's context."""


def framed_tokens(messages: Sequence[ContextMessage], frame_tokens: int = FRAME_TOKENS) -> int:
    """Tokens of messages as a model is shown them, at most."""
    return sum(message.tokens + frame_tokens + _escape_tokens(message) for message in messages)


def _escape_tokens(message: ContextMessage) -> int:
    # What tools return is shown escaped, and nothing else is.
    return ESCAPE_TOKENS * escapes(message.content) if message.role is Role.TOOL else 0


def newest_rounds(
    messages: Sequence[ContextMessage], room_tokens: int, frame_tokens: int = FRAME_TOKENS
) -> list[ContextMessage] | None:
    """System messages, and as many of the newest rounds as there is room for; None if not even the last one fits."""
    system = [message for message in messages if message.role is Role.SYSTEM]
    room_tokens -= framed_tokens(system, frame_tokens)
    kept: list[ContextMessage] = []
    for number, one in enumerate(reversed(rounds_of(messages))):
        room_tokens -= framed_tokens(one, frame_tokens)
        if room_tokens < 0:
            if number == 0:
                return None
            break
        kept = [*one, *kept]
    return [*system, *kept] if kept or room_tokens >= 0 else None
