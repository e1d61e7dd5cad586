"""A question made from a text by leaving its value out.

The value is the last name, date or number (:func:`~agemem_training.tasks.key_items.key_items`) that stands in the text
once and not at its beginning; where there is none, what follows the last "is", "are", "was", "were", ":" or "=", up to
six words. So "Maya moved to Lima." asks "Complete: Maya moved to ____.", and "The default branch is main" for "main".

Its limits: such a question tests that a text was kept word for word and found again, not that it was understood; what
is left out may be an aside; other values may complete the text as well; and long texts or lists give none.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from agemem_training.tasks.key_items import key_items
from agemem_training.tasks.task import Fact

BLANK = "____"
INVITATION = "Complete: "
"""How every question begins."""
LONGEST_CHARS = 400
"""Of a text that is asked about: a longer one is a document, and what is left out of it is arbitrary."""

_AFTER = re.compile(r".*(?:\b(?:is|are|was|were)\s|[:=]\s)\s*(\S+(?:\s\S+){0,5})", re.IGNORECASE | re.DOTALL)


class Cloze(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def cloze(text: str) -> Cloze | None:
    """The question that a text gives; None if it gives none."""
    line = " ".join(text.split())
    if len(line) > LONGEST_CHARS:
        return None
    for value in (*reversed(key_items(line)), _after(line)):
        if value and line.casefold().count(value.casefold()) == 1 and not line.startswith(value):
            return Cloze(f"{INVITATION}{line.replace(value, BLANK)}", value)
    return None


def fact_of(text: str) -> Fact:
    """A text as a fact: whom it is about (its first name or number) and its value tell it from others like it."""
    made = cloze(text)
    if made is None:
        return Fact(text)
    return Fact(text, keys=tuple(dict.fromkeys((*key_items(text)[:1], made.answer))))


def _after(line: str) -> str | None:
    match = _AFTER.fullmatch(line)
    return None if match is None else match[1].rstrip(".!")
