"""Demonstrations with everybody and everything renamed: from each recorded episode as many as are wanted.

An episode on the real server takes a tenth of a second, a renamed copy a tenth of a millisecond. People, firms, towns,
foods, codes, dates and ids are exchanged for others of their kind, each for the same one all through the row; none of
the names is one of a held-out split (`practice_tails`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agemem_training.mini.dates import draw_day
from agemem_training.tasks.synthetic.names import FOODS, MONTHS, PARTS, practice_tails

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from agemem_training.tasks.synthetic.names import NameKind

_IDS_UP_TO = 60
_FIRST_CODE = 10


@dataclass(frozen=True)
class Renamer:
    """Knows which tokens are names of what."""

    tokenizer: Any

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every word's token."""
        return dict(self.tokenizer.get_vocab())

    def knows_names(self) -> bool:
        """Whether the tokenizer spells made-up names as heads and tails: the mini policy's does."""
        parts = (
            f"{mark}{part}"
            for halves in PARTS.values()
            for mark, half in zip(("", "##"), halves, strict=True)
            for part in half
        )
        return all(part in self.ids for part in parts)

    @cached_property
    def heads(self) -> dict[int, tuple[NameKind, str]]:
        """Of heads of names: what they are heads of."""
        return {self.ids[head]: (kind, head) for kind, (heads, _) in PARTS.items() for head in heads}

    @cached_property
    def tails(self) -> dict[int, str]:
        """Of tails."""
        return {self.ids[f"##{tail}"]: tail for _, all_tails in PARTS.values() for tail in all_tails}

    @cached_property
    def pairs(self) -> dict[int, int]:
        """Of pairs of digits, and their numbers."""
        return {self.ids[f"{number:02d}"]: number for number in range(100)}

    @cached_property
    def second_pairs(self) -> frozenset[int]:
        """Of pairs of digits that go on with a number."""
        return frozenset(self.ids[f"##{number:02d}"] for number in range(100))

    @cached_property
    def memory_ids(self) -> dict[int, int]:
        """Of memory ids, and their numbers."""
        return {number: int(name[4:]) for name, number in self.ids.items() if re.fullmatch(r"mem_\d+", name)}

    @cached_property
    def years(self) -> frozenset[int]:
        """Of the years before a memory."""
        return frozenset(number for name, number in self.ids.items() if name.endswith("-") and len(name) == 5)  # noqa: PLR2004  "2026-"

    @cached_property
    def months_of_dates(self) -> frozenset[int]:
        """Of the months before a memory."""
        return frozenset(self.ids[f"{month:02d}-"] for month in range(1, 13))

    @cached_property
    def foods(self) -> tuple[int, ...]:
        """Of foods."""
        return tuple(self.ids[food] for food in FOODS)

    @cached_property
    def months(self) -> tuple[int, ...]:
        """Of months."""
        return tuple(self.ids[month] for month in MONTHS)

    def renamed(self, ids: Sequence[int], rng: random.Random) -> list[int]:
        """The same tokens about other people and things."""
        cast = _Cast(self, ids, rng)
        new = list(ids)
        place = 0
        while place < len(ids):
            pair = (ids[place], ids[place + 1]) if place + 1 < len(ids) else (ids[place], -1)
            other = cast.of_two(pair, ids[place - 1] if place else -1)
            if other is not None:
                new[place : place + 2] = other
                place += 2
                continue
            new[place] = cast.of_one(ids[place])
            place += 1
        return new


@dataclass
class _Cast:
    """Who is called what in one row."""

    renamer: Renamer
    ids: Sequence[int]
    rng: random.Random
    _two: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict[tuple[int, int], tuple[int, int]])
    _heads: dict[int, str] = field(default_factory=dict[int, str])

    def __post_init__(self) -> None:
        known, rng = self.renamer, self.rng
        self._stock = {kind: rng.sample(heads, k=len(heads)) for kind, (heads, _) in PARTS.items()}
        self._one = dict(zip(known.foods, rng.sample(known.foods, len(FOODS)), strict=True))
        self._one |= dict(zip(known.months, rng.sample(known.months, len(MONTHS)), strict=True))
        highest = max((known.memory_ids[one] for one in self.ids if one in known.memory_ids), default=0)
        self._shift = rng.randrange(max(1, _IDS_UP_TO - highest))
        day = draw_day(rng)
        self._year_and_month = known.ids[f"{day:%Y-}"], known.ids[f"{day:%m-}"]
        self._day = known.ids[f"{day:%d}"]

    def of_two(self, pair: tuple[int, int], before: int) -> tuple[int, int] | None:
        """What a pair of tokens becomes if it is a name, a code or a day; else None."""
        known = self.renamer
        if pair in self._two:
            return self._two[pair]
        first, second = pair
        kind, _ = known.heads.get(first, (None, ""))
        made: tuple[int, int] | None = None
        if kind is not None and known.tails.get(second) in PARTS[kind][1]:
            made = self._name(kind, first)
        elif first in known.pairs and second in self._one and second in known.months:
            made = (known.ids[f"{self.rng.randrange(_FIRST_CODE, 29)}"], self._one[second])
        elif first in known.pairs and second in known.second_pairs and self._is_code(before):
            made = (
                known.ids[f"{self.rng.randrange(_FIRST_CODE, 100)}"],
                known.ids[f"##{self.rng.randrange(_FIRST_CODE, 100)}"],
            )
        elif first in known.years:
            return self._year_and_month
        elif first in known.pairs and before in known.months_of_dates:
            return self._day, second
        if made is not None:
            self._two[pair] = made
        return made

    def of_one(self, one: int) -> int:
        """What a single token becomes."""
        known = self.renamer
        if one in known.memory_ids:
            return known.ids[f"mem_{known.memory_ids[one] + self._shift}"]
        return self._one.get(one, one)

    def _is_code(self, before: int) -> bool:
        """Whether four digits after this token are a door code, and not a count of tokens."""
        return before in {self.renamer.ids.get(word) for word in ("is", "longer", "</think><answer>")}

    def _name(self, kind: NameKind, head: int) -> tuple[int, int]:
        known = self.renamer
        if head not in self._heads:
            self._heads[head] = self._stock[kind].pop() if self._stock[kind] else known.heads[head][1]
        new = self._heads[head]
        made = [(known.ids[new], known.ids[f"##{tail}"]) for tail in practice_tails(kind, new)]
        # Two people are not called the same.
        taken = set(self._two.values())
        return self.rng.choice([one for one in made if one not in taken] or made)
