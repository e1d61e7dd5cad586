"""Renaming: everybody and everything is called otherwise, and nothing else is changed."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.training.untrained import SYSTEM, mini_tokenizer

from agemem_training.mini.drills import drill
from agemem_training.mini.renaming import Renamer
from agemem_training.tasks.synthetic.names import FOODS, MONTHS, PARTS, split_of_name

if TYPE_CHECKING:
    from collections.abc import Sequence

SEEDS = st.integers(0, 2**32)
CODE_AFTER = ("is", "longer", "</think><answer>")


@cache
def renamer() -> Renamer:
    return Renamer(mini_tokenizer())


def ids_of(text: str) -> list[int]:
    return mini_tokenizer()(text, add_special_tokens=False)["input_ids"]


def row_of(seed: int) -> list[int]:
    """One or two drills as they are shown and answered; there is a name and an id in the first."""
    rng = random.Random(seed)
    exchanges = [drill(rng, system=SYSTEM, skill="update")[-1]]
    exchanges += [drill(rng, system=SYSTEM)[-1] for _ in range(rng.randint(0, 1))]
    texts = [text for one in exchanges for text in (*(message.content for message in one.shown), one.turn)]
    return ids_of("\n".join(texts))


def words_of(ids: Sequence[int]) -> list[str]:
    return mini_tokenizer().convert_ids_to_tokens(list(ids))


def items_of(ids: Sequence[int]) -> list[tuple[str, tuple[str, ...]]]:
    """What a row consists of: kinds of things that have names or numbers, and their tokens; all else is a word."""
    words = words_of(ids)
    items: list[tuple[str, tuple[str, ...]]] = []
    place = 0
    while place < len(words):
        kind, count = _item(words, place)
        items.append((kind, tuple(words[place : place + count])))
        place += count
    return items


def _item(words: list[str], place: int) -> tuple[str, int]:
    word = words[place]
    following = words[place + 1] if place + 1 < len(words) else ""
    before = words[place - 1] if place else ""
    for kind, (heads, tails) in PARTS.items():
        others = {f"##{tail}" for _, all_tails in PARTS.values() for tail in all_tails}
        if word in heads and following in others:
            return (kind if following[2:] in tails else f"{kind} by another's tail"), 2
    if word.startswith("mem_"):
        return "id", 1
    if word.endswith("-") and len(word) == 5 and following.endswith("-"):
        return "date", 3
    if word.isdigit() and following in MONTHS:
        return "day", 2
    if word.isdigit() and len(word) == 2 and len(following) == 4 and following[2:].isdigit() and before in CODE_AFTER:
        return "code", 2
    return ("food" if word in FOODS else "month" if word in MONTHS else "word"), 1


@given(SEEDS)
def test_the_structure_stays(seed: int) -> None:
    ids = row_of(seed)
    new = renamer().renamed(ids, random.Random(seed))
    assert len(new) == len(ids)
    before, after = items_of(ids), items_of(new)
    assert len(before) == len(after)
    for (kind, words), (other_kind, others) in zip(before, after, strict=True):
        assert kind.partition(" by ")[0] == other_kind.partition(" by ")[0]
        if kind == "word":
            assert words == others


@given(SEEDS)
def test_who_was_the_same_stays_the_same_and_who_was_not_does_not(seed: int) -> None:
    ids = row_of(seed)
    new = renamer().renamed(ids, random.Random(seed))
    called: dict[tuple[str, ...], tuple[str, ...]] = {}
    for (kind, words), (_, others) in zip(items_of(ids), items_of(new), strict=True):
        if kind not in ("word", "date", "person by another's tail", "firm by another's tail", "town by another's tail"):
            assert called.setdefault(words, others) == others
    # Names with one head, two codes, and two days of one month can meet in one: each has a number drawn for itself.
    sure = {words: others for words, others in called.items() if len(words) == 1 or words[0] in _heads()}
    heads = {words[0]: others[0] for words, others in sure.items()}
    assert len(set(heads.values())) == len(heads)


def _heads() -> set[str]:
    return {head for heads, _ in PARTS.values() for head in heads}


@given(SEEDS)
def test_no_name_is_one_of_a_held_out_split(seed: int) -> None:
    ids = row_of(seed)
    for kind, words in items_of(renamer().renamed(ids, random.Random(seed))):
        if kind in PARTS:
            assert split_of_name(words[0] + words[1][2:]) == "train"


@given(SEEDS)
def test_ids_are_all_shifted_by_one_number_and_stay_in_the_vocabulary(seed: int) -> None:
    ids = row_of(seed)
    new = renamer().renamed(ids, random.Random(seed))
    pairs = zip(items_of(ids), items_of(new), strict=True)
    numbers = [(int(old[0][4:]), int(renamed[0][4:])) for (kind, old), (_, renamed) in pairs if kind == "id"]
    assert numbers
    assert len({after - before for before, after in numbers}) == 1
    assert all(before <= after < 100 for before, after in numbers)


@given(SEEDS)
def test_the_same_chance_gives_the_same_names_and_another_one_others(seed: int) -> None:
    ids = row_of(seed)
    assert renamer().renamed(ids, random.Random(seed)) == renamer().renamed(ids, random.Random(seed))
    assert len({tuple(renamer().renamed(ids, random.Random(f"{seed} {number}"))) for number in range(5)}) > 1


@pytest.mark.parametrize(
    "text",
    [
        "Filtered 3 messages, 512 tokens.",
        "The context holds 1024 tokens, 4711 at most.",
        "mem now red stone 12 wood",
        "Hello, 7 days",
    ],
)
def test_counts_and_words_that_are_no_names_are_left_alone(text: str) -> None:
    ids = ids_of(text)
    for seed in range(20):
        assert renamer().renamed(ids, random.Random(seed)) == ids


def test_a_code_is_the_same_wherever_it_stands_and_so_are_dates() -> None:
    text = (
        "The door code of Tork is 4711.\nThe door code of Tork is no longer 4711.\n</think><answer>4711</answer>\n"
        "[mem_7] (2026-03-14, fact) The birthday of Belan is 14 March.\n[mem_9] (2026-03-14, fact) Belan likes tea."
    )
    for seed in range(20):
        items = items_of(renamer().renamed(ids_of(text), random.Random(seed)))
        codes = [words for kind, words in items if kind == "code"]
        dates = [words for kind, words in items if kind == "date"]
        assert (len(codes), len(dates)) == (3, 2)
        assert len(set(codes)) == len(set(dates)) == 1
        assert [kind for kind, _ in items].count("day") == 1


def test_memories_are_moved_to_any_day() -> None:
    ids = ids_of("[mem_7] (2024-01-01, fact) Belan likes tea.")
    dates = {
        words
        for seed in range(600)
        for kind, words in items_of(renamer().renamed(ids, random.Random(seed)))
        if kind == "date"
    }
    assert {day for _, _, day in dates} == {f"{day:02d}" for day in range(1, 32)}


def test_names_of_several_rows_have_nothing_to_do_with_one_another() -> None:
    ids = ids_of("Tomek likes tea.") + ids_of("Marona lives in Kelton.")
    renamed = {tuple(renamer().renamed(ids, random.Random(seed))) for seed in range(30)}
    assert len(renamed) > 25
