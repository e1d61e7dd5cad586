"""Whether a text holds a fact: the one question that storage, maintenance, relevance and preservation come down to.

Words are compared without case and punctuation, and a number only with the whole number. A fact with keys is held by a
text in which each of them stands as a word or phrase; a fact without keys by a text with most of its content words.

Asked very often, of the same texts: how a text reads is remembered.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from agemem_training.tasks.task import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agemem_training.tasks.task import Fact, Task

RECALL = 0.75
"""Share of a fact's content words that a text must have, where the fact names no keys."""

_REMEMBERED = 16_384
_WORD = re.compile(r"[^\W_]+(?:(?<=\d)[.:](?=\d)[^\W_]+)*")
"""Also a number with its decimals, a time, and a name like ``v2.1``."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MEMORY = re.compile(r"\n(?=(?:- |\[)mem_)")
"""Where the next memory begins in a message that shows several."""
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the and or but of to in on at by for from with as is are was were be been being am do does did has have
        had it its this that these those he she they him her them his their i you we me my your our us who whom which
        what where when how not no so than then there here s t""",
    )
)


@lru_cache(maxsize=_REMEMBERED)
def words(text: str) -> tuple[str, ...]:
    """The words and numbers of a text, without case and punctuation; ``1,000`` is the number 1000."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORD.findall(_THOUSANDS.sub("", plain)))


def has_phrase(text: str, phrase: str) -> bool:
    """Whether the words of a phrase stand in a text, one after the other; a phrase without words stands nowhere."""
    wanted = _line(phrase)
    return bool(wanted.strip()) and wanted in _line(text)


def holds(text: str, fact: Fact) -> bool:
    """Whether one text tells a fact.

    Args:
        text: of one memory or message. Texts that are put together would seem to tell what none of them tells.
        fact: which changes need keys: old and new differ in too few words to be told apart without.
    """
    if fact.keys:
        return all(has_phrase(text, key) for key in fact.keys)
    wanted = _content(fact.text)
    return bool(wanted) and len(wanted & _content(text)) >= RECALL * len(wanted)


def held(facts: Iterable[Fact], texts: Iterable[str]) -> set[Fact]:
    """Those facts that at least one of the texts tells.

    Args:
        facts: which are looked for.
        texts: of memories or messages; a message that shows several memories counts as several texts.
    """
    pieces = [piece for text in texts for piece in memories_shown(text)]
    return {fact for fact in facts if any(holds(piece, fact) for piece in pieces)}


def coverage(facts: Iterable[Fact], texts: Iterable[str]) -> float:
    """Share of the facts that the texts tell; 0 without facts."""
    wanted = set(facts)
    return len(held(wanted, texts)) / max(1, len(wanted))


@lru_cache(maxsize=_REMEMBERED)
def memories_shown(text: str) -> tuple[str, ...]:
    """A message taken apart into the memories that it shows, each with what precedes it; or the text itself."""
    return tuple(_MEMORY.split(text))


def outdated(task: Task) -> tuple[Change, ...]:
    """What is no longer true when the episode ends, each with what is true instead then.

    Of A → B → C both A and B are outdated, and C is true instead; of A → B → A only B is.
    """
    result: list[Change] = []
    for number, change in enumerate(task.changes):
        now = change.new
        for later in task.changes[number + 1 :]:
            if now is not None and _identity(later.stale) == _identity(now):
                now = later.new
        if now is None or _identity(now) != _identity(change.stale):
            result.append(Change(change.stale, now))
    return tuple(result)


def is_stale(text: str, change: Change) -> bool:
    """Whether a text tells what is outdated, and not what is true instead (as "moved from Oslo to Rome" does)."""
    return holds(text, change.stale) and not (change.new is not None and holds(text, change.new))


def _identity(fact: Fact) -> tuple[tuple[str, ...], ...]:
    """The same for two wordings of a fact, if they have the same keys."""
    return tuple(sorted(words(key) for key in fact.keys)) or (words(fact.text),)


@lru_cache(maxsize=_REMEMBERED)
def _line(text: str) -> str:
    return f" {' '.join(words(text))} "


@lru_cache(maxsize=_REMEMBERED)
def _content(text: str) -> frozenset[str]:
    return frozenset(words(text)) - _STOP_WORDS
