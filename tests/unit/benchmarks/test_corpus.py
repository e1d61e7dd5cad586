from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from corpus import MAX_FACTS, asked, fact, person, question


def test_everyone_has_a_name_and_a_fact_of_their_own() -> None:
    assert len({person(i) for i in range(MAX_FACTS)}) == MAX_FACTS
    assert len({fact(i) for i in range(MAX_FACTS)}) == MAX_FACTS


def test_facts_are_the_same_on_every_machine() -> None:
    texts = "\n".join(f"{fact(i)}\t{question(i)}" for i in range(0, MAX_FACTS, 97))
    fingerprint = "50d17c77d18683039acb3732ebc5b99579acf9fb914908bcb7d5db6f93d6fb18"
    assert hashlib.sha256(texts.encode()).hexdigest() == fingerprint


@pytest.mark.parametrize("i", [*range(20), 9_999, 10_000, 99_999])
def test_a_question_names_the_person_and_gives_nothing_else_of_the_fact_away(i: int) -> None:
    assert person(i) in fact(i)
    assert person(i) in question(i)
    asked_words = set(question(i).lower().replace(person(i).lower(), "").strip("?").split())
    told_words = set(fact(i).lower().replace(person(i).lower(), "").strip(".").split())
    assert asked_words & told_words <= {"the", "a", "for", "on", "to", "not", "is", "and", "does"}


def test_names_have_many_neighbours_among_the_first_ten_thousand() -> None:
    names = [person(i).split() for i in range(10_000)]
    assert set(Counter(given for given, _ in names).values()) == {200}
    assert set(Counter(surname for _, surname in names).values()) == {50}


def test_a_given_name_goes_with_one_kind_of_question() -> None:
    kinds: dict[str, set[str]] = {}
    for i in range(MAX_FACTS):
        kinds.setdefault(person(i).split()[0], set()).add(question(i).replace(person(i), ""))
    assert {len(found) for found in kinds.values()} == {1}


@pytest.mark.parametrize("stored", [1_000, 7_919, 10_000, 100_000])
def test_questions_go_to_different_facts_that_are_stored(stored: int) -> None:
    numbers = asked(900, stored, start=50)
    assert len(set(numbers)) == 900
    assert all(0 <= number < stored for number in numbers)


def test_who_was_not_made_up_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="0 to 99999"):
        person(MAX_FACTS)
