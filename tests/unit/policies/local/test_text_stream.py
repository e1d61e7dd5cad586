"""Tokens as text, piece by piece. The tokenizer here is a table: none of this needs torch."""

from __future__ import annotations

from typing import Any

import pytest

from agemem_policies.local.text_stream import TextStream


class Bytes:
    """Spells ids from a table, as byte-level tokenizers do: invalid bytes become replacement characters."""

    def __init__(self, *spellings: bytes) -> None:
        self.spellings = spellings

    def decode(self, ids: list[int], **options: Any) -> str:
        return b"".join(self.spellings[one] for one in ids).decode("utf-8", "replace")


class Words:
    """Puts a space before each word but the first, as sentencepiece does."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def decode(self, ids: list[int], **options: Any) -> str:
        return " ".join(self.words[one] for one in ids)


def told(tokenizer: Any, silent: tuple[int, ...] = ()) -> tuple[TextStream, list[str]]:
    stream = TextStream(tokenizer, silent)
    pieces: list[str] = []
    for one in range(len(getattr(tokenizer, "spellings", getattr(tokenizer, "words", ())))):
        pieces.append(stream.feed(one))
        if stream.stopped:
            break
    return stream, [*pieces, stream.finish()]


def test_a_character_is_told_when_its_last_byte_has_come() -> None:
    stream, pieces = told(Bytes(b"a", b"\xf0\x9f", b"\x98", b"\x80", b"\xc3\xa9b"))
    assert pieces == ["a", "", "", "😀", "éb", ""]
    assert stream.text == "a😀éb"


def test_a_character_that_stays_unfinished_is_left_out() -> None:
    stream, pieces = told(Bytes(b"a", b"\xf0\x9f\x98"))
    assert pieces == ["a", "", ""]
    assert stream.text == "a"


def test_bytes_that_are_no_character_are_shown_once_it_is_certain() -> None:
    _, pieces = told(Bytes(b"a", b"\xf0", b"b"))
    assert pieces == ["a", "", "\ufffdb", ""]


def test_spaces_between_words_are_neither_lost_nor_doubled() -> None:
    stream, pieces = told(Words("to", "be", "or"))
    assert pieces == ["to", " be", " or", ""]
    assert stream.text == "to be or"


@pytest.mark.parametrize("stop", ["</tool_call>", "</answer>"])
def test_the_text_ends_with_the_first_closing_tag_wherever_tokens_are_cut(stop: str) -> None:
    raw = f"é{stop}".encode()
    for first in range(2, len(raw)):
        for second in range(first + 1, len(raw) + 1):
            stream, pieces = told(
                Bytes(raw[:first], raw[first:second], raw[second:] + b"\n\xf0</answer></tool_call>", b"x")
            )
            assert stream.stopped
            assert stream.text == "".join(pieces) == f"é{stop}"


def test_control_tokens_are_no_text_not_even_between_the_bytes_of_a_character() -> None:
    stream, _ = told(Bytes(b"\xc3", b"<|pad|>", b"\xa9"), silent=(1,))
    assert stream.text == "é"


def test_a_tag_that_is_almost_closed_does_not_stop() -> None:
    stream, _ = told(Bytes(b"</answer", b" ></tool_call", b"<answer>"))
    assert not stream.stopped
    assert stream.text == "</answer ></tool_call<answer>"
