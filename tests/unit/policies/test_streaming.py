"""Thoughts and answers, told while they are being written."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_policies.protocol import Turn, parse, render
from agemem_policies.streaming import TurnStream

if TYPE_CHECKING:
    from agemem_policies.streaming import Part

TEXT = "<think>Is 3 < 4? Yes.</think>\n<answer>3 </b> < 4\u0130 </ans</answer> outside"


def told(pieces: list[str]) -> dict[Part, str]:
    """What was told of each part; nothing of it may be empty."""
    heard: dict[Part, str] = {"think": "", "answer": ""}

    def hear(part: Part, text: str) -> None:
        assert text
        heard[part] += text

    stream = TurnStream(hear)
    for piece in pieces:
        stream.feed(piece)
    stream.close()
    return heard


@given(st.lists(st.integers(0, len(TEXT)), max_size=20))
def test_however_a_turn_is_cut_into_pieces_the_same_is_told(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[start:end] for start, end in pairwise(places)]
    assert told(pieces) == {"think": "Is 3 < 4? Yes.", "answer": "3 </b> < 4\u0130 </ans"}


@pytest.mark.parametrize("text", ["<answer>half an ans", "<think>a</think><answer>half an ans"])
def test_what_is_never_closed_is_told_to_its_end(text: str) -> None:
    assert told(list(text))["answer"] == "half an ans"


def test_an_answer_is_told_as_it_comes() -> None:
    heard: list[str] = []
    stream = TurnStream(lambda _, text: heard.append(text))
    stream.feed("<answer>Maya is")
    assert heard == ["Maya is"]
    stream.feed(" a nurse.</an")
    assert heard == ["Maya is", " a nurse."]


@given(st.text(), st.text())
def test_what_is_told_is_what_is_read(think: str, answer: str) -> None:
    if "<" in think + answer:
        think, answer = think.replace("<", ""), answer.replace("<", "")
    turn = Turn(think, answer=answer)
    heard = told(list(render(turn)))
    assert parse(render(turn)) == Turn(heard["think"], answer=heard["answer"])
