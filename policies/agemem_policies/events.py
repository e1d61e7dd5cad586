"""What an agent tells while it runs, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from agemem_policies.memory import Observation
    from agemem_policies.protocol import Call


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of a thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A tool is about to be called."""

    call: Call


@dataclass(frozen=True, slots=True)
class Observed:
    """A call was answered."""

    call: Call
    observation: Observation


@dataclass(frozen=True, slots=True)
class Corrected:
    """A turn broke the protocol; the policy was told."""

    text: str


@dataclass(frozen=True, slots=True)
class ContextChanged:
    """How full the context is."""

    messages: int
    tokens: int
    budget_tokens: int


Event: TypeAlias = Thought | Said | Called | Observed | Corrected | ContextChanged
OnEvent: TypeAlias = Callable[[Event], None]
