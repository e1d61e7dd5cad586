"""What a policy is: a prompt in, one turn of text out.

A policy knows neither memory nor sessions. What it is shown and what becomes of its words is the
agent's business (`agent.py`); how a turn is written is the protocol's (`protocol.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

RoleName: TypeAlias = Literal["system", "user", "assistant", "tool"]
OnText: TypeAlias = Callable[[str], None]
"""Told each piece of a completion's text as it comes, in order."""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call that a model made, or is reminded of, by native tool calling."""

    call_id: str
    name: str
    arguments: str
    """JSON as the model wrote it; perhaps not valid."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message as a model is shown it."""

    role: RoleName
    content: str
    calls: tuple[FunctionCall, ...] = ()
    """Of an assistant message, with native tool calling."""
    call_id: str | None = None
    """Of a tool message, with native tool calling: the call that it answers."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Everything that a model is shown for one turn."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of functions (``{"name", "description", "parameters"}``), with native tool calling alone."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One turn of a model."""

    text: str
    calls: tuple[FunctionCall, ...] = ()
    cut_off: bool = False
    """Whether the model was stopped by its largest number of tokens."""
    prompt_tokens: int | None = None
    """As the model counts; None where it does not tell."""
    completion_tokens: int | None = None
    prompt_ids: tuple[int, ...] = ()
    """The prompt's tokens, where the policy knows them."""
    action_ids: tuple[int, ...] = ()
    """The sampled tokens, never tokenised again from text."""
    logprobs: tuple[float, ...] = field(default=())
    """Log-probability of each of ``action_ids`` when it was sampled."""


class Policy(Protocol):
    """Decides one turn after the other."""

    @property
    def name(self) -> str:
        """What it is called in reports and by ``/v1/models``."""
        ...

    @property
    def native(self) -> bool:
        """Whether it takes tools as functions and calls them itself; else it writes them into its text."""
        ...

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """Take one turn.

        Args:
            prompt: what the model is shown.
            on_text: told the text as it comes. Where it does not come in pieces it is told once.

        Raises:
            ProviderError: the model cannot be reached, or gave no usable answer.
        """
        ...

    async def close(self) -> None:
        """Release what it holds; closing twice is harmless."""
        ...
