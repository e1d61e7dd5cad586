"""Made-up names of people, firms and towns: a head and a tail each, as most real ones have.

A whole name belongs to one split alone, by a hash of its letters, while every head and every tail turns up in names of
``train``: a policy that was trained on those can spell the others, and has not seen them.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import random

    from agemem_training.tasks.source import Split

NameKind: TypeAlias = Literal["person", "firm", "town"]


def _words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


PARTS: dict[NameKind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "person": (
        _words(
            "Mar Tor Bel Kal Sim Dor Fen Gal Hol Jor Lin Nor Ras Sel Van Wil Cor Ed Ul Pet Bas Dav Fil Gid Hed Iv Jul "
            "Kon Lar Mel"
        ),
        _words("an en is ek ona in ura ik elle o us ard"),
    ),
    "firm": (
        _words(
            "Nex Zen Quo Pla Vor Trin Omni Lumi Hydr Terr Ast Gran Sol Prim Cal Ver Aero Bio Cyb Dyna Elek Flux Geo "
            "Helio"
        ),
        _words("tek corp soft lab works dyn ix max net form"),
    ),
    "town": (
        _words(
            "Kel Ash Brook Stone Wood High Mill Lake Oak Fair Wind Gold Red North Spring Rock Silver Green Black White "
            "Elm Fox Crow River"
        ),
        _words("ton burg ville field port ham ford dale wick mouth"),
    ),
}
FOODS = _words(
    "tea coffee pizza pasta sushi bread cheese apples grapes lemons olives rice soup honey cocoa mango salad curry "
    "tofu waffles"
)
MONTHS = _words("January February March April May June July August September October November December")
_OF_TRAIN, _BEFORE_TEST = 70, 85
"""Of 100 names: so many belong to ``train``, and so many to ``train`` or ``validation``. ``test`` needs enough of them
for a story."""


def split_of_name(name: str) -> Split:
    """The split that a name belongs to."""
    place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    return "train" if place < _OF_TRAIN else "validation" if place < _BEFORE_TEST else "test"


@cache
def tails(kind: NameKind, head: str, split: Split) -> tuple[str, ...]:
    """The tails with which a head makes a name of this split."""
    return tuple(tail for tail in PARTS[kind][1] if split_of_name(head + tail) == split)


def draw_names(rng: random.Random, kind: NameKind, split: Split, count: int) -> list[str]:
    """Names of a split that differ in their heads.

    Args:
        rng: source of chance.
        kind: what is named.
        split: where the names belong.
        count: at most the number of heads that have a name in the split.

    Raises:
        ValueError: there are not so many.
    """
    heads = [head for head in PARTS[kind][0] if tails(kind, head, split)]
    return [head + rng.choice(tails(kind, head, split)) for head in rng.sample(heads, count)]


@cache
def practice_tails(kind: NameKind, head: str) -> tuple[str, ...]:
    """The tails of a head in practice: those of the ``train`` split, and those of the other kinds.

    A policy that only ever saw the tails of ``train`` would learn which ones those are, and write them instead of what
    it reads. The others make names that belong to no split, such as a person called Marton.
    """
    others = [tail for other, (_, all_tails) in PARTS.items() if other != kind for tail in all_tails]
    own = [f"{head}{tail}" for tail in PARTS[kind][1]]
    return (*tails(kind, head, "train"), *(tail for tail in others if f"{head}{tail}" not in own))


def draw_practice_names(rng: random.Random, kind: NameKind, count: int) -> list[str]:
    """Names for drills; they differ in their heads."""
    return [head + rng.choice(practice_tails(kind, head)) for head in rng.sample(PARTS[kind][0], count)]
