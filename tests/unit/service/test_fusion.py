"""One ranking from two score lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.memory import ScoredId, ScoreLists
from agemem_mcp.service.fusion import fuse

if TYPE_CHECKING:
    import random


def lists(dense: dict[str, float], sparse: dict[str, float]) -> ScoreLists:
    """Score lists."""
    return ScoreLists([ScoredId(*one) for one in dense.items()], [ScoredId(*one) for one in sparse.items()])


def scored(dense: dict[str, float], sparse: dict[str, float]) -> list[tuple[str, float]]:
    """Ids and scores."""
    return [(one.memory_id, round(one.score, 9)) for one in fuse(lists(dense, sparse))]


def test_the_score_is_the_mean_of_cosine_above_unrelated_and_share_of_the_best_word_match() -> None:
    # a: (.6 - .2) / .8 = .5; b: (.4 - .2) / .8 = .25 and all of the words; c: .45 of the words
    assert scored({"a": 0.6, "b": 0.4}, {"b": 20.0, "c": 9.0}) == [("b", 0.625), ("a", 0.25), ("c", 0.225)]


def test_a_single_list_stands_alone() -> None:
    assert scored({"a": 0.6, "b": 0.8}, {}) == [("b", 0.75), ("a", 0.5)]
    assert scored({}, {"a": 10.0, "b": 20.0}) == [("b", 1.0), ("a", 0.5)]
    assert fuse(lists({}, {})) == []


def test_weak_word_matches_do_not_outweigh_meaning() -> None:
    assert scored({"a": 0.9, "b": 0.3}, {"b": 0.2})[0][0] == "a"


def test_unrelated_and_opposite_meaning_score_nothing_and_stay_in_order() -> None:
    assert scored({"a": -0.5, "b": 0.1, "c": 0.15}, {}) == [("c", 0.0), ("b", 0.0), ("a", 0.0)]


def test_how_a_memory_was_found_is_told() -> None:
    found = {one.memory_id: one.found_by for one in fuse(lists({"a": 0.6, "b": 0.4, "d": 0.1}, {"b": 1.0, "c": 1.0}))}
    assert found == {"a": ("dense",), "b": ("dense", "lexical"), "c": ("lexical",), "d": ()}


COSINES = st.dictionaries(st.sampled_from("abcdef"), st.floats(-1.00001, 1.00001))
WORDS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 50))


@given(COSINES, WORDS, st.randoms())
def test_every_candidate_is_ranked_once_from_0_to_1_whatever_the_order_given(
    dense: dict[str, float], sparse: dict[str, float], chance: random.Random
) -> None:
    ranked = fuse(lists(dense, sparse))
    assert sorted(one.memory_id for one in ranked) == sorted({*dense, *sparse})
    scores = [one.score for one in ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    shuffled = lists(dense, sparse)
    chance.shuffle(shuffled.dense)
    chance.shuffle(shuffled.sparse)
    assert fuse(shuffled) == ranked
