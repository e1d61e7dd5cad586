"""What an episode is about: T = (q, I_q, A_q) of AgeMem (section 3.1), and what its rewards need to know. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fact:
    """Something worth knowing."""

    text: str
    """As it is best stored: one self-contained sentence."""
    keys: tuple[str, ...] = ()
    """Words and numbers that stand in every text which holds the fact, such as whom it is about and the value; without
    any, a text holds the fact if it has most of its words."""


@dataclass(frozen=True, slots=True)
class Change:
    """A message that makes a fact stale."""

    stale: Fact
    new: Fact | None = None
    """What is true instead; None if it was only taken back."""


@dataclass(frozen=True, slots=True)
class Task:
    """One episode's material."""

    task_id: str
    query: str
    answer: str
    messages: tuple[str, ...]
    """Stage 1: the contextual information, message by message."""
    distractors: tuple[str, ...] = ()
    """Stage 2: on the topic, and useless or misleading for the query."""
    gold: tuple[Fact, ...] = ()
    """The facts that the answer needs, as they are at the end; empty where the answer is that nobody knows."""
    facts: tuple[Fact, ...] = ()
    """All that is worth storing, as it is at the end; the gold ones among them."""
    changes: tuple[Change, ...] = ()
    background: tuple[str, ...] = ()
    """Memories that are there before the episode begins."""
    aliases: tuple[str, ...] = ()
    """Other ways to write the answer."""
    key_items: tuple[str, ...] = ()
    """Names, dates, places and numbers of the query (A.2)."""
    labels: dict[str, str] = field(default_factory=dict[str, str])
    """What kind of task it is, such as ``level`` and ``hops``: reports break their figures down by these."""
