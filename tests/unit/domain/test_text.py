"""What may be stored, how texts are told apart, how they are shortened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.text import MAX_DEPTH, check_characters, check_json, check_text, digest, preview
from agemem_mcp.errors import InvalidOperation


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=200))
def test_every_other_text_comes_back_unchanged(text: str) -> None:
    if text.strip():
        assert check_text(text, "content") == text


@pytest.mark.parametrize(("text", "said"), [("\x00", "content holds a NUL"), ("\udcff", r"lone surrogate (\udcff)")])
def test_a_character_that_no_store_keeps_is_named(text: str, said: str) -> None:
    with pytest.raises(InvalidOperation) as caught:
        check_characters(text, "content")
    assert said in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"\w{1,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(JSON)
def test_plain_json_comes_back_unchanged(value: object) -> None:
    assert check_json({"value": value}, "metadata") == {"value": value}


def test_nesting_is_allowed_up_to_a_depth_and_not_beyond() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert check_json(value, "metadata") == value
    with pytest.raises(InvalidOperation, match="nested more than 12 levels"):
        check_json([value], "metadata")


def test_an_object_that_holds_itself_is_refused() -> None:
    loop: dict[str, object] = {}
    loop["self"] = loop
    with pytest.raises(InvalidOperation, match="nested"):
        check_json(loop, "metadata")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ana likes tea.", " Ana  likes\ntea. ", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("Ana likes tea.", "ana likes tea.", False),
        ("Ana likes tea.", "Ana likes tea", False),
    ],
)
def test_texts_are_the_same_but_for_white_space_and_unicode_form(one: str, other: str, same: bool) -> None:
    assert (digest(one) == digest(other)) is same


def test_a_preview_is_one_line_of_limited_length() -> None:
    assert preview("short\n text") == "short text"
    assert preview("x" * 80) == "x" * 80
    assert preview("word " * 40, 20) == "word word word word…"
