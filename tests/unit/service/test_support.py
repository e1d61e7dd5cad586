"""What good hits say about other memories, by numbers worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.memory import MemoryRecord, Scope
from agemem_mcp.service.fusion import Candidate
from agemem_mcp.service.support import supported

if TYPE_CHECKING:
    import random

    from agemem_mcp.domain.memory import ScoredMemory

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def record(memory_id: str, content: str = "", title: str | None = None) -> MemoryRecord:
    """A memory."""
    metadata = {} if title is None else {"title": title}
    return MemoryRecord(Scope(), memory_id, 1, content or memory_id, None, dict(metadata), NOW, NOW)


def by_id(*records: MemoryRecord) -> dict[str, MemoryRecord]:
    """Memories by id."""
    return {one.memory_id: one for one in records}


def candidates(**scores: float) -> list[Candidate]:
    """Candidates of the index, all found by meaning."""
    found = [Candidate(memory_id, score, dense=score) for memory_id, score in scores.items()]
    return sorted(found, key=lambda one: (-one.score, one.memory_id))


def shown(hits: list[ScoredMemory]) -> list[tuple[str, float, tuple[str, ...]]]:
    """Id, score and how it was found."""
    return [(hit.record.memory_id, round(hit.score, 9), hit.found_by) for hit in hits]


def test_a_memory_is_carried_by_the_better_of_its_neighbours() -> None:
    # b: .2 + .8 x .8 / 2 = .52; a, carried by a weaker one: .8 + .2 x .2 / 2 = .82; c stands next to b alone
    hits = supported(
        candidates(a=0.8, b=0.2, c=0.1),
        by_id(*map(record, "abc")),
        {"a": (None, "b"), "b": ("a", "c"), "c": ("b", None)},
    )
    assert shown(hits) == [
        ("a", 0.82, ("dense",)),
        ("b", 0.52, ("dense", "neighbour")),
        ("c", 0.19, ("dense", "neighbour")),
    ]


def test_what_the_index_did_not_find_is_found_as_a_neighbour() -> None:
    hits = supported(candidates(a=0.8), by_id(record("a"), record("b")), {"a": (None, "b")})
    assert shown(hits) == [("a", 0.8, ("dense",)), ("b", 0.4, ("neighbour",))]


def test_neighbours_that_may_not_be_shown_carry_nothing() -> None:
    assert shown(supported(candidates(a=0.8, b=0.2), by_id(record("b")), {"b": ("a", None)})) == [
        ("b", 0.2, ("dense",))
    ]


@pytest.mark.parametrize(("one", "other"), [("Ann", None), (None, "Ann"), ("Ann", "Ann"), ("Ann", "Bob")])
def test_titled_memories_are_not_carried_by_neighbours(one: str | None, other: str | None) -> None:
    records = by_id(record("a", title=one), record("b", title=other))
    assert shown(supported(candidates(a=0.8, b=0.2), records, {"a": (None, "b")})) == [
        ("a", 0.8, ("dense",)),
        ("b", 0.2, ("dense",)),
    ]


@pytest.mark.parametrize(
    ("text", "title", "named"),
    [
        ("The film was directed by Ann Lee.", "Ann Lee", True),
        ("Ann Lee's second film", "Ann Lee (director)", True),
        ("Ann Leeson made it.", "Ann Lee", False),
        ("JoAnn Lee and Ann Lee", "Ann Lee", True),
        ("I went to work.", "Work", False),
        ("It is of use.", "It", False),
        ("x" * 5000 + " Ann Lee", "Ann Lee", False),
    ],
)
def test_a_title_is_named_as_whole_words_in_the_same_case(text: str, title: str, *, named: bool) -> None:
    hits = supported(candidates(film=0.8, x=0.2), by_id(record("film", text, "Film"), record("x", title=title)), {})
    # .2 + .8 x .8 / 2 = .52
    assert shown(hits)[1] == (("x", 0.52, ("dense", "link")) if named else ("x", 0.2, ("dense",)))


def test_a_memory_does_not_carry_those_of_its_own_title() -> None:
    records = by_id(record("a", "Ann Lee was born.", "Ann Lee"), record("b", "Ann Lee died.", "Ann Lee"))
    assert [hit.score for hit in supported(candidates(a=0.8, b=0.2), records, {})] == [0.8, 0.2]


def test_only_the_best_hits_are_read_for_titles() -> None:
    others = {f"h{n}": 0.5 for n in range(5)}
    records = by_id(*map(record, others), record("sixth", "It was Ann Lee."), record("x", title="Ann Lee"))
    hits = {hit.record.memory_id: hit.score for hit in supported(candidates(**others, sixth=0.4, x=0.1), records, {})}
    assert hits["x"] == pytest.approx(0.1)


SCORES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1))
PAIRS = st.tuples(st.none() | st.sampled_from("abcdefg"), st.none() | st.sampled_from("abcdefg"))
NEIGHBOURS = st.dictionaries(st.sampled_from("abcdef"), PAIRS)


@given(SCORES, NEIGHBOURS, st.randoms())
def test_support_raises_scores_within_0_to_1_whatever_the_order_given(
    scores: dict[str, float], neighbours: dict[str, tuple[str | None, str | None]], chance: random.Random
) -> None:
    records = by_id(*map(record, "abcdefg"))
    hits = supported(candidates(**scores), records, neighbours)
    found = {hit.record.memory_id: hit.score for hit in hits}
    assert all(found[memory_id] >= score - 1e-12 for memory_id, score in scores.items())
    assert all(0 <= score <= 1 for score in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    shuffled = list(records)
    chance.shuffle(shuffled)
    pairs = list(neighbours.items())
    chance.shuffle(pairs)
    assert supported(candidates(**scores), {one: records[one] for one in shuffled}, dict(pairs)) == hits
