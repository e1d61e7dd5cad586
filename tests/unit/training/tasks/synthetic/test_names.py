"""Made-up names: each belongs to one split, and all are spelled with the same parts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, get_args

import pytest

from agemem_training.tasks import Split
from agemem_training.tasks.synthetic.names import PARTS, draw_names, split_of_name, tails

if TYPE_CHECKING:
    from agemem_training.tasks.synthetic.names import NameKind

SPLITS: tuple[Split, ...] = get_args(Split)


def names_of(kind: NameKind, split: Split) -> set[str]:
    """All names of a split."""
    return {head + tail for head in PARTS[kind][0] for tail in tails(kind, head, split)}


@pytest.mark.parametrize("kind", PARTS)
def test_each_name_belongs_to_one_split(kind: NameKind) -> None:
    heads, endings = PARTS[kind]
    by_split = [names_of(kind, split) for split in SPLITS]
    assert sum(map(len, by_split)) == len(set.union(*by_split)) == len(heads) * len(endings)
    for split, names in zip(SPLITS, by_split, strict=True):
        assert {split_of_name(name) for name in names} == {split}


@pytest.mark.parametrize("kind", PARTS)
def test_training_shows_every_head_and_every_tail(kind: NameKind) -> None:
    heads, endings = PARTS[kind]
    assert all(tails(kind, head, "train") for head in heads)
    assert {tail for head in heads for tail in tails(kind, head, "train")} == set(endings)


def test_a_name_is_never_one_of_another_kind() -> None:
    names = [head + tail for heads, endings in PARTS.values() for head in heads for tail in endings]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", PARTS)
def test_names_drawn_together_differ_in_their_heads(kind: NameKind, split: Split) -> None:
    drawn = draw_names(random.Random(1), kind, split, 10)
    assert set(drawn) <= names_of(kind, split)
    heads = [max((head for head in PARTS[kind][0] if name.startswith(head)), key=len) for name in drawn]
    assert len(set(heads)) == 10
    assert drawn == draw_names(random.Random(1), kind, split, 10) != draw_names(random.Random(2), kind, split, 10)


def test_more_names_than_heads_are_not_drawn() -> None:
    with pytest.raises(ValueError, match="larger than population"):
        draw_names(random.Random(1), "town", "test", 25)
