"""One ranking from two score lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.memory import ScoredId, ScoreLists
from agemem_mcp.service.fusion import fuse


def lists(dense: dict[str, float], sparse: dict[str, float]) -> ScoreLists:
    """Score lists."""
    return ScoreLists([ScoredId(*one) for one in dense.items()], [ScoredId(*one) for one in sparse.items()])


def test_the_score_is_the_mean_of_cosine_and_share_of_the_best_word_match() -> None:
    assert fuse(lists({"a": 0.8, "b": 0.5}, {"b": 20.0, "c": 10.0})) == [
        ("b", pytest.approx(0.75)),
        ("a", pytest.approx(0.4)),
        ("c", pytest.approx(0.25)),
    ]


def test_a_single_list_stands_alone() -> None:
    assert fuse(lists({"a": 0.8, "b": 0.9}, {})) == [("b", 0.9), ("a", 0.8)]
    assert fuse(lists({}, {"a": 10.0, "b": 20.0})) == [("b", 1.0), ("a", 0.5)]
    assert fuse(lists({}, {})) == []


def test_weak_word_matches_do_not_outweigh_meaning() -> None:
    assert fuse(lists({"a": 0.9, "b": 0.3}, {"b": 0.2}))[0][0] == "a"


def test_opposite_meaning_counts_like_none() -> None:
    assert fuse(lists({"a": -0.5}, {"b": 10.0})) == [("b", 0.5), ("a", 0.0)]


SCORES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 50))


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(-1, 1)), SCORES)
def test_every_candidate_is_ranked_once_with_a_score_from_0_to_1(
    dense: dict[str, float], sparse: dict[str, float]
) -> None:
    ranked = fuse(lists(dense, sparse))
    assert sorted(memory_id for memory_id, _ in ranked) == sorted({*dense, *sparse})
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
