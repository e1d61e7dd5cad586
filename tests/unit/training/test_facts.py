"""Whether a text holds a fact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.training.building import LEAVES, MOVES, OSLO, ROME, TEA

from agemem_training.facts import coverage, has_phrase, held, holds, is_stale, outdated, words
from agemem_training.tasks import Change, Fact, Task


def test_a_text_holds_a_fact_whose_keys_all_stand_in_it() -> None:
    assert holds("In OSLO, that's where Maya's home is!", OSLO)
    assert not holds("Maya is at home.", OSLO)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("She has 10 cats", "1"),
        ("room A1", "1"),
        ("It is 12.5 km", "12"),
        ("version v2.1", "2.1"),
        ("1,000 crowns", "1"),
        ("Osloer", "Oslo"),
        ("York is new", "New York"),
        ("anything", ""),
        ("anything?", "?"),
    ],
)
def test_part_of_a_word_or_number_is_no_key(text: str, key: str) -> None:
    assert not has_phrase(text, key)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("It costs 1,000 crowns.", "1000"),
        ("It is 12.5.", "12.5"),
        ("She moved to new-york, she says.", "New York"),
        ("at 10:30.", "10:30"),
        ("the café", "CAFÉ"),
    ],
)
def test_case_and_punctuation_do_not_matter(text: str, key: str) -> None:
    assert has_phrase(text, key)


def test_without_keys_most_of_the_content_words_are_needed() -> None:
    fact = Fact("The Oberoi family is part of a hotel company with its head office in Delhi.")
    assert holds("Oberoi family: hotel company, head office Delhi", fact)
    assert not holds("The Oberoi family is famous.", fact)


def test_a_fact_without_content_is_held_by_nothing() -> None:
    assert not holds("It is what it is.", Fact("It is."))


def test_memories_shown_in_one_message_do_not_tell_a_fact_together() -> None:
    shown = "[mem_1] (2026-01-01) Maya likes fish.\n[mem_2] (2026-01-01) Tom lives in Oslo."
    assert held([OSLO], [shown]) == set()
    assert held([OSLO], ["Maya likes fish. She lives in Oslo."]) == {OSLO}


def test_coverage_is_the_share_of_the_facts() -> None:
    assert coverage([OSLO, TEA], ["Tom likes tea", "and cake"]) == 0.5
    assert coverage([], ["Tom likes tea"]) == 0.0


def test_a_text_with_the_new_fact_beside_the_old_one_is_not_stale() -> None:
    (change,) = outdated(MOVES)
    assert is_stale("Maya lives in Oslo", change)
    assert not is_stale("Maya moved from Oslo to Rome", change)
    (change,) = outdated(LEAVES)
    assert is_stale("Maya lives in Oslo", change)


def test_what_changed_twice_is_outdated_twice_and_what_changed_back_is_not() -> None:
    bern, again = Fact("Maya lives in Bern.", ("Maya", "Bern")), Fact("Maya is back in Oslo.", ("Oslo", "Maya"))
    twice = Task("t", "q", "a", (), changes=(Change(OSLO, ROME), Change(ROME, bern)))
    assert outdated(twice) == (Change(OSLO, bern), Change(ROME, bern))
    back = Task("t", "q", "a", (), changes=(Change(OSLO, ROME), Change(ROME, again)))
    assert outdated(back) == (Change(ROME, again),)


@given(st.text(), st.text())
def test_words_are_the_same_whatever_the_case(one: str, other: str) -> None:
    text = f"{one} {other}"
    assert words(text) == words(text)
    assert words(f"({one})\n{other}!") == (*words(one), *words(other))
