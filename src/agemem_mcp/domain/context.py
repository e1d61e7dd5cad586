"""Short-term context: messages, rounds, spans and the token budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

from agemem_mcp.errors import InvalidOperation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from agemem_mcp.domain.memory import Scope

WARNING_SHARE = 0.8
"""From this share of the budget on, results carry a warning."""


class Role(StrEnum):
    """Who a message comes from. System messages are never summarised or removed."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class MessageState(StrEnum):
    """Whether a message is in the context, or why it left. Only expiry destroys one."""

    ACTIVE = "active"
    SUMMARISED = "summarised"
    FILTERED = "filtered"
    REPLACED = "replaced"
    """A summary whose originals were restored."""


class MessageKind(StrEnum):
    """How a message came into the context."""

    MESSAGE = "message"
    RETRIEVED = "retrieved"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a session."""

    message_id: str
    role: Role
    content: str
    created_at: datetime
    position: int
    """Order in the context; a summary takes the place of the first message it replaces."""
    tokens: int = 0
    tokenizer: str = ""
    kind: MessageKind = MessageKind.MESSAGE
    state: MessageState = MessageState.ACTIVE
    replaced_by: str | None = None
    """The summary that took this message's place."""

    def counted(self, tokens: int, tokenizer: str) -> Message:
        """The same message with a token count by ``tokenizer``."""
        return replace(self, tokens=tokens, tokenizer=tokenizer)


@dataclass(frozen=True, slots=True)
class Session:
    """One short-term context, referred to by an unguessable handle."""

    scope: Scope
    session_id: str
    created_at: datetime
    used_at: datetime
    named: bool
    """Whether a caller has ever passed the handle back; one that never was expires sooner."""
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Tally:
    """How much a session holds."""

    ever: int
    """Messages it ever held."""
    active: int
    """Messages now in its context."""
    tokens: int
    """The sum of their tokens."""
    stale: int = 0
    """How many of them were counted by another tokenizer."""

    def plus(self, added: Sequence[Message]) -> Tally:
        """The same after these messages were added."""
        tokens = self.tokens + sum(message.tokens for message in added)
        return replace(self, ever=self.ever + len(added), active=self.active + len(added), tokens=tokens)


@dataclass(frozen=True, slots=True)
class SessionLives:
    """After what time sessions expire."""

    used: timedelta = timedelta(days=30)
    """Since its last use, a session whose handle was passed back at least once."""
    unnamed: timedelta = timedelta(hours=1)
    """Since it was opened, a session whose handle never was."""


def in_words(life: timedelta) -> str:
    """A span of time as people say it."""
    hours = life / timedelta(hours=1)
    if hours >= 48:  # noqa: PLR2004  two days
        return f"{hours / 24:g} days"
    return "1 hour" if hours == 1 else f"{hours:g} hours"


class InContext(Protocol):
    """What a message must tell to be counted to a round."""

    @property
    def role(self) -> Role:
        """Who it comes from."""
        ...

    @property
    def kind(self) -> MessageKind:
        """How it came into the context."""
        ...


M = TypeVar("M", bound=InContext)


def rounds_of(messages: Sequence[M]) -> list[list[M]]:
    """The reducible messages by round (AgeMem, section 3.2), system messages left out.

    A round is a user message and what followed until the next one. What stands before the first user
    message is a round of its own, and so is a summary with what follows it: it stands for user messages.
    """
    rounds: list[list[M]] = []
    for message in messages:
        if message.role is Role.SYSTEM:
            continue
        if message.role is Role.USER or message.kind is MessageKind.SUMMARY or not rounds:
            rounds.append([])
        rounds[-1].append(message)
    return rounds


def in_span(messages: Sequence[M], span: str) -> list[M]:
    """The messages that ``span`` names: ``"all"`` or the last N rounds."""
    rounds = rounds_of(messages)
    chosen = rounds if span == "all" else rounds[-int(span) :]
    return [message for one in chosen for message in one]


@dataclass(frozen=True, slots=True)
class ContextWindow:
    """The messages now in a session's context, in order."""

    messages: tuple[Message, ...]

    @property
    def active(self) -> int:
        """How many they are."""
        return len(self.messages)

    @property
    def tokens(self) -> int:
        """Sum of the messages' tokens; a client's own framing of each message is not in it."""
        return sum(message.tokens for message in self.messages)

    def span(self, span: str) -> list[Message]:
        """The messages that ``span`` names: ``"all"`` or the last N rounds.

        Raises:
            InvalidOperation: nothing is there to take.
        """
        chosen = in_span(self.messages, span)
        if not chosen:
            msg = "The context is empty: there is nothing to summarise. Append or retrieve first."
            raise InvalidOperation(msg)
        return chosen
