"""Names, dates, places and numbers of a text, without a model: the ``key items`` of AgeMem's appendix A.2.

The heuristic, all of it: an item is what stands in double quotes, else an unbroken run of words that begin with a
capital or hold a digit ("10 January 1920", "Columbus", "World Drivers' Championship"). "of", "the", "de" and their
like join two such words ("Haymo of Faversham") but neither begin nor end an item. Words that open questions and
sentences ("Which", "In") are cut off at the front of an item, and an item of nothing else is none. Punctuation ends an
item, and an item loses the "'s" at its end.

What it misses: names that are written small, and numbers in words. What it takes too much: any other word that
opens a sentence ("Notable speakers" gives "Notable"), and neighbours that are two names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_QUOTED = re.compile(r'["“]([^"“”]+)["”]')
_WORD = re.compile(
    r"(?!['\u2019.:\u2013]|-(?!\d))"
    r"(?:[^\W\d_](?:\.[^\W\d_])+\.|(?:[\w&$€£%+#/°'\u2019.:\u2013-]|(?<=\d),(?=\d))*[\w%°]['\u2019]?)"
)
"""Initials with their dots ("U.S."), else letters and digits with what stands between and before them ("$1,200.50")."""
_POSSESSIVE = re.compile(r"['\u2019]s?$")
_JOINING = frozenset(("of", "the", "de", "da", "del", "der", "di", "du", "la", "le", "van", "von", "y", "&"))
_OPENING_WORDS = """
a about after all also although an and another are as at based because before being between both but by can could
did do does during each either even every following for from had has have he her here his how i if in into is it its
just last let like many me my neither never no not now of on once one only or our out over she should since so some
such than that the their them then there these they this those though through to today tomorrow two under until up
upon was we were what when where whether which while who whom whose why will with within without would yes
yesterday yet you your
"""
_OPENING = frozenset(_OPENING_WORDS.split())


def key_items(text: str) -> tuple[str, ...]:
    """The items of a text in the order in which they stand in it, each once and spelled as it is there."""
    found = [(match.start(1), match[1].strip()) for match in _QUOTED.finditer(text)]
    # same length, so that places stay what they are
    unquoted = _QUOTED.sub(lambda match: "\n" * len(match[0]), text)
    found += [(start, _POSSESSIVE.sub("", text[start:end])) for start, end in _runs(unquoted)]
    return tuple(dict.fromkeys(item for _, item in sorted(found) if item))


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """Where items begin and end."""
    run: list[re.Match[str]] = []
    for match in _WORD.finditer(text):
        if run and text[run[-1].end() : match.start()].strip(" ") != "":
            yield from _trimmed(run)
            run = []
        if _telling(match[0]) or (run and match[0] in _JOINING):
            run.append(match)
        else:
            yield from _trimmed(run)
            run = []
    yield from _trimmed(run)


def _trimmed(run: list[re.Match[str]]) -> Iterator[tuple[int, int]]:
    while run and run[0][0].lower() in _OPENING:
        run = run[1:]
    while run and run[-1][0] in _JOINING:
        run = run[:-1]
    if run:
        yield run[0].start(), run[-1].end()


def _telling(word: str) -> bool:
    return word[0].isupper() or any(character.isdigit() for character in word)
