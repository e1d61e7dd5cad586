"""What a good hit says about other memories: those it stands next to, and those whose title it names.

A memory's own score comes from its own text. Two other things speak for it. In a conversation an answer
often shares no word with the question that a later search repeats, but the turn before it does: what one
writer stored in a row belongs together. And "the film was directed by Ann Lee" speaks for the memories
titled *Ann Lee*, which a question about the film does not mention.

With the own score x and the best score s of those that speak for it::

    score = x + (1 - x) s / 2

as if both were independent evidence, the second half as strong (a noisy or). Hence 0 to 1, and never below x.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agemem_mcp.domain.memory import ScoredMemory, title_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agemem_mcp.domain.memory import FoundBy, MemoryRecord
    from agemem_mcp.service.fusion import Candidate

    Neighbours = Mapping[str, tuple[str | None, str | None]]

_WEIGHT = 0.5
"""From 0.4 to 0.6 it finds the same within noise (``benchmarks/README.md``)."""

_NAMING = 5
"""So many of the best hits are read for titles."""

_READ_CHARS = 4096
"""So much of each."""

_SHORTEST_NAME = 3


def supported(
    candidates: Sequence[Candidate], records: Mapping[str, MemoryRecord], neighbours: Neighbours
) -> list[ScoredMemory]:
    """Score all of ``records``, best first; equal scores in the candidates' order.

    Args:
        candidates: what the index found, best first; those not in ``records`` are passed over.
        records: what may be shown, also memories that are only neighbours of candidates.
        neighbours: what the same writer stored just before and just after a memory.
    """
    known = {one.memory_id: one for one in candidates if one.memory_id in records}
    scores = {memory_id: one.score for memory_id, one in known.items()}
    support: dict[FoundBy, dict[str, float]] = {
        "neighbour": _next_to(scores, records, neighbours),
        "link": _named_by(scores, records),
    }
    hits: list[ScoredMemory] = []
    for memory_id in [*known, *sorted(records.keys() - known.keys())]:
        own = scores.get(memory_id, 0.0)
        found_by: tuple[FoundBy, ...] = known[memory_id].found_by if memory_id in known else ()
        spoken: dict[FoundBy, float] = {how: by[memory_id] for how, by in support.items() if memory_id in by}
        score = own + (1 - own) * _WEIGHT * max(spoken.values(), default=0.0)
        better: list[FoundBy] = [how for how, by in spoken.items() if by > own]
        if memory_id in known or score > 0:
            hits.append(ScoredMemory(records[memory_id], score, (*found_by, *better)))
    return sorted(hits, key=lambda hit: -hit.score)


def _next_to(
    scores: Mapping[str, float], records: Mapping[str, MemoryRecord], neighbours: Neighbours
) -> dict[str, float]:
    """The score of the better neighbour, by memory id.

    Between memories without a title alone: a title is in its memory's text and says already what that
    belongs to, so that sentences of an article would only raise one another.
    """
    best: dict[str, float] = {}
    for memory_id, pair in neighbours.items():
        for other in pair:
            if other is None or not all(_stands_in_a_row(records.get(one)) for one in (memory_id, other)):
                continue
            for one, by in ((memory_id, other), (other, memory_id)):
                best[one] = max(best.get(one, 0.0), scores.get(by, 0.0))
    return best


def _stands_in_a_row(record: MemoryRecord | None) -> bool:
    return record is not None and title_of(record.metadata) is None


def _named_by(scores: Mapping[str, float], records: Mapping[str, MemoryRecord]) -> dict[str, float]:
    """The score of the best hit that names a memory's title, by memory id; the hit has another title.

    ``scores`` are in order, best first.
    """
    titled: dict[str, list[str]] = {}
    for memory_id, record in records.items():
        if (title := title_of(record.metadata)) is not None:
            titled.setdefault(title, []).append(memory_id)
    if not titled:
        return {}
    best = list(scores)[:_NAMING]
    naming = [(scores[one], title_of(records[one].metadata), records[one].content[:_READ_CHARS]) for one in best]
    named: dict[str, float] = {}
    for title, memory_ids in titled.items():
        # "Ann Lee (director)" is called Ann Lee
        name = re.sub(r"\s*\([^()]*\)$", "", title)
        score = max((score for score, own, text in naming if own != title and _names(text, name)), default=0.0)
        if score > 0:
            named.update(dict.fromkeys(memory_ids, score))
    return named


def _names(text: str, name: str) -> bool:
    """Whether ``name`` stands in ``text`` as whole words, in the same case: "Work" is not named by "I work"."""
    if len(name) < _SHORTEST_NAME:
        return False
    start = text.find(name)
    while start >= 0:
        end = start + len(name)
        if not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
            return True
        start = text.find(name, start + 1)
    return False
