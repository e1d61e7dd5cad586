"""Names, dates, places and numbers of a text, and what is asked by leaving one out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_training.tasks.cloze import BLANK, INVITATION, LONGEST_CHARS, cloze, fact_of
from agemem_training.tasks.key_items import key_items
from agemem_training.tasks.task import Fact


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("What language was used in the era of Haymo of Faversham?", ["Haymo of Faversham"]),
        ("Who directed the film shot in Leland, North Carolina in 1986", ["Leland", "North Carolina", "1986"]),
        ("Was it founded on 10 January 1920?", ["10 January 1920"]),
        ("Who won the 1999 World Drivers' Championship?", ["1999 World Drivers' Championship"]),
        ('Who sang "wonderland by night" in Rome?', ["wonderland by night", "Rome"]),
        ("Bob's flight BA-117 costs $1,200.50, and leaves at 9:30.", ["Bob", "BA-117", "$1,200.50", "9:30"]),
        ("The U.S. has 50 states; the UK has none.", ["U.S.", "50", "UK"]),
        ("It fell to -5 in 'Oslo'. Ana saw Ana.", ["-5", "Oslo", "Ana"]),
        ("Which of the two is it?", []),
        ("", []),
    ],
)
def test_items_are_names_dates_and_numbers(text: str, items: list[str]) -> None:
    assert list(key_items(text)) == items


@given(st.text())
def test_any_text_holds_the_items_found_in_it(text: str) -> None:
    assert all(item and item in text for item in key_items(text))


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("Maya moved to Lima.", "Complete: Maya moved to ____.", "Lima"),
        (
            "The server listens on port 5433 in Oslo now.",
            "Complete: The server listens on port 5433 in ____ now.",
            "Oslo",
        ),
        ("Maya's favourite drink is oolong tea.", "Complete: Maya's favourite drink is ____.", "oolong tea"),
        ("default branch: main", "Complete: default branch: ____", "main"),
        ("Ana and\n Bob  met Ana.", "Complete: Ana and ____ met Ana.", "Bob"),
    ],
)
def test_a_text_is_asked_about_by_leaving_its_value_out(text: str, question: str, answer: str) -> None:
    assert cloze(text) == (question, answer)


@pytest.mark.parametrize(
    "text",
    [
        "Lima",
        "likes it quiet",
        "what is meant is a thing that cannot be said in so few words as that",
        "Lima is Lima",
        "",
        f"Ana lives in Oslo {'x' * LONGEST_CHARS}",
    ],
)
def test_a_text_without_a_value_gives_no_question(text: str) -> None:
    assert cloze(text) is None
    assert fact_of(text) == Fact(text)


@given(st.text(max_size=LONGEST_CHARS))
def test_the_answer_completes_the_question(text: str) -> None:
    made = cloze(text)
    if made is not None:
        assert made.question.count(BLANK) - text.count(BLANK) == 1
        assert made.answer.casefold() not in made.question.removeprefix(INVITATION).casefold()


def test_a_fact_is_told_by_whom_it_is_about_and_its_value() -> None:
    assert fact_of("Maya moved to Lima in 2024.").keys == ("Maya", "2024")
    assert fact_of("She moved to Lima.").keys == ("Lima",)
