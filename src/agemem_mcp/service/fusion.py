"""Turning the index's two score lists into one ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.domain.memory import ScoredId, ScoreLists


def fuse(lists: ScoreLists) -> list[tuple[str, float]]:
    """Rank the candidates of both lists, best first, with scores from 0 to 1.

    Each list is stretched to 0…1 over its own candidates and the two are averaged; an id that a
    list does not hold scores 0 there. A single list (no model, or a query without words the index
    knows) stands alone.
    """
    present = [_stretched(one) for one in (lists.dense, lists.sparse) if one]
    ids = dict.fromkeys(memory_id for scores in present for memory_id in scores)
    fused = [(memory_id, sum(scores.get(memory_id, 0.0) for scores in present) / len(present)) for memory_id in ids]
    return sorted(fused, key=lambda pair: -pair[1])


def _stretched(scored: Sequence[ScoredId]) -> dict[str, float]:
    highest = max(one.score for one in scored)
    lowest = min(one.score for one in scored)
    width = highest - lowest
    return {one.memory_id: (one.score - lowest) / width if width > 0 else 1.0 for one in scored}
