"""Pairs of similar texts: all of them, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agemem_mcp.service import likeness
from agemem_mcp.service.likeness import by_meaning, by_words

if TYPE_CHECKING:
    from agemem_mcp.service.likeness import PairsOf

FLOORS = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])


def found(pairs_of: PairsOf, rows: list[int], floor: float) -> dict[tuple[int, int], float]:
    """Every pair and its score."""
    pairs = {
        (row, other): score
        for row, others, scores in pairs_of(np.array(rows, dtype=np.int64), floor)
        for other, score in zip(others.tolist(), scores.tolist(), strict=True)
    }
    assert all(row < other for row, other in pairs)
    return pairs


@given(
    texts=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=10).map(" ".join), max_size=12),
    floor=FLOORS,
    data=st.data(),
)
def test_by_words_finds_what_comparing_every_pair_finds(texts: list[str], floor: float, data: Any) -> None:
    rows = sorted(data.draw(st.sets(st.sampled_from(range(len(texts)))))) if texts else []
    expected: dict[tuple[int, int], float] = {}
    for row in rows:
        for other in rows:
            one, two = set(texts[row].split()), set(texts[other].split())
            if row < other and one | two and len(one & two) / len(one | two) >= floor:
                expected[row, other] = len(one & two) / len(one | two)
    assert found(by_words(texts), rows, floor) == expected


def test_words_are_compared_without_case_and_punctuation() -> None:
    pairs = by_words(["Ana likes tea!", "“ana” LIKES, tea", "!!!", "???"])
    assert found(pairs, [0, 1, 2, 3], 0.5) == {(0, 1): 1.0}


@given(
    vectors=arrays(np.float32, st.tuples(st.integers(0, 20), st.just(4)), elements=st.integers(-3, 3).map(float)),
    floor=FLOORS,
    rows_at_a_time=st.integers(1, 7),
)
def test_by_meaning_finds_what_comparing_every_pair_finds(vectors: Any, floor: float, rows_at_a_time: int) -> None:
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = list(range(0, len(vectors), 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "_ROWS", rows_at_a_time)
        pairs = found(by_meaning(vectors), rows, floor)
    cosines = {(row, other): float(vectors[row] @ vectors[other]) for row in rows for other in rows if row < other}
    # A cosine that lies on the floor itself may fall on either side of it.
    assert {pair for pair, score in cosines.items() if score >= floor + 1e-6} <= set(pairs)
    assert set(pairs) <= {pair for pair, score in cosines.items() if score >= floor - 1e-6}
    assert all(score == pytest.approx(min(cosines[pair], 1), abs=1e-5) and score <= 1 for pair, score in pairs.items())
