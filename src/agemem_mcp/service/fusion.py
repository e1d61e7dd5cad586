"""Turning the index's two score lists into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import FoundBy, ScoreLists

_UNRELATED_COSINE = 0.2
"""Texts that have nothing to do with each other lie below, by MiniLM: only what is above counts as meaning.
From 0 to 0.3 it finds the same within noise; above 0 a query that nothing answers scores near 0."""

_STRONG_WORD_MATCH = 10.0
"""A BM25 score that means something by itself: one rare word. Where even the best match is weaker (a handful
of memories, or words that stand in all of them), words must not outweigh meaning."""


class Candidate(NamedTuple):
    """A memory of at least one list."""

    memory_id: str
    score: float
    """0 to 1."""
    dense: float = 0.0
    """Share of the score by meaning, 0 to 1 before the mean is taken."""
    sparse: float = 0.0
    """The same by words."""

    @property
    def found_by(self) -> tuple[FoundBy, ...]:
        """Which lists speak for it."""
        meaning: tuple[FoundBy, ...] = ("dense",) if self.dense > 0 else ()
        return (*meaning, "lexical") if self.sparse > 0 else meaning


def fuse(lists: ScoreLists) -> list[Candidate]:
    """Join both lists, best first; equal scores by cosine, then by id.

    The score is the mean of two shares: ``(cosine - 0.2) / 0.8``, not below 0, and BM25 divided by the best
    one found, or by 10 if none is better. What a list does not hold scores 0 there. A single list (no model,
    or no shared words) stands alone.

    The cosine is not stretched to what this query happened to find: that ranks as well, but blows up
    differences that mean nothing where there are few memories, and its scores say nothing by themselves.
    """
    best = max([_STRONG_WORD_MATCH, *(one.score for one in lists.sparse)])
    span = 1 - _UNRELATED_COSINE
    # float32 cosines of a text with itself come out a little above 1
    dense = {one.memory_id: min(max(one.score - _UNRELATED_COSINE, 0.0) / span, 1.0) for one in lists.dense}
    sparse = {one.memory_id: one.score / best for one in lists.sparse}
    weight = 0.5 if dense and sparse else 1.0
    candidates: list[Candidate] = []
    for memory_id in {**dense, **sparse}:
        meaning, words = dense.get(memory_id, 0.0), sparse.get(memory_id, 0.0)
        candidates.append(Candidate(memory_id, (meaning + words) * weight, meaning, words))
    cosine = {one.memory_id: one.score for one in lists.dense}
    return sorted(candidates, key=lambda one: (-one.score, -cosine.get(one.memory_id, -1.0), one.memory_id))
