"""A search of long-term memory: candidates from the index, what they speak for, and what may be shown."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from agemem_mcp.domain.facets import satisfies
from agemem_mcp.domain.memory import title_of
from agemem_mcp.service.fusion import fuse
from agemem_mcp.service.indexing import indexed_text
from agemem_mcp.service.support import supported

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from agemem_mcp.domain.memory import MemoryQuery, MemoryRecord, ScoredMemory, ScoreLists
    from agemem_mcp.domain.ports import Ledger, LedgerView, MemoryIndex
    from agemem_mcp.service.fusion import Candidate

CANDIDATES = 100
"""How many each list of the index may hold. With 50 or 200 it finds the same within noise."""

_LOOKED_AROUND = 10
"""For so many of the best candidates the neighbours are looked up; with 20 or 40 it finds the same within noise."""

_LINKED = 60
"""Among so many, titles are compared with what the best hits name; of 30, a tenth fewer are found."""


class Retriever:
    """Finds memories over ledger and index."""

    def __init__(self, ledger: Ledger, index: MemoryIndex, *, half_life: timedelta | None = None) -> None:
        """Read from these.

        Args:
            ledger: has the last word on what may be shown.
            index: at the ledger's position when :meth:`find` is called.
            half_life: if given, a score is multiplied by ``(1 + 2 ** (-age / half_life)) / 2``, with the age of the
                memory's last change: of two alike the newer comes first, and age costs half a score at most.
        """
        self._ledger = ledger
        self._index = index
        self._half_life = half_life

    async def find(self, query: MemoryQuery, *, top_k: int) -> list[ScoredMemory]:
        """Return the ``top_k`` best memories, best first."""
        lists = await self._index.search(query)
        return await self._ledger.read(lambda view: self._best(view, query, lists, top_k))

    def _best(self, view: LedgerView, query: MemoryQuery, lists: ScoreLists, top_k: int) -> list[ScoredMemory]:
        """What the index found, as the ledger knows it."""
        candidates = fuse(lists)
        ids = [one.memory_id for one in candidates]
        neighbours = view.neighbours(query.scope, ids[:_LOOKED_AROUND])
        around = {one for pair in neighbours.values() for one in pair if one is not None}
        found = set(ids)
        wanted = max(top_k, _LOOKED_AROUND if self._half_life is None else _LINKED)
        records = _shown(view, query, {*ids[:wanted], *around}, found)
        if any(title_of(record.metadata) is not None for record in records.values()):
            records |= _shown(view, query, set(ids[:_LINKED]) - records.keys(), found)
        hits = self._ranked(candidates, records, neighbours, query.now)
        distinct = _distinct(hits, top_k)
        if len(distinct) < top_k and len(ids) > wanted:
            # Some have expired, or say the same: what comes after them is wanted as well.
            records |= _shown(view, query, found - records.keys(), found)
            hits = self._ranked(candidates, records, neighbours, query.now)
            distinct = _distinct(hits, top_k)
        return _repeats_last(distinct, hits, top_k)

    def _ranked(
        self,
        candidates: Sequence[Candidate],
        records: dict[str, MemoryRecord],
        neighbours: dict[str, tuple[str | None, str | None]],
        now: datetime,
    ) -> list[ScoredMemory]:
        hits = supported(candidates, records, neighbours)
        if self._half_life is None:
            return hits
        aged = [replace(hit, score=hit.score * _freshness(hit.record, now, self._half_life)) for hit in hits]
        return sorted(aged, key=lambda hit: -hit.score)


def _shown(
    view: LedgerView, query: MemoryQuery, memory_ids: Collection[str], found: Collection[str]
) -> dict[str, MemoryRecord]:
    """Those of ``memory_ids`` that may be shown. The ledger has the last word: scope, text, deletion and expiry."""
    # The index has applied the filter to what it found, not to the neighbours.
    return {
        memory_id: head
        for memory_id, head in view.heads(query.scope, memory_ids).items()
        if head.is_live(query.now) and (memory_id in found or satisfies(head, query.conditions))
    }


def _freshness(record: MemoryRecord, now: datetime, half_life: timedelta) -> float:
    """1 for a memory just changed, 3/4 after one half-life, towards 1/2 for an old one."""
    age = max(now - record.updated_at, timedelta())
    return (1 + 2.0 ** (-(age / half_life))) / 2


def _distinct(hits: Sequence[ScoredMemory], top_k: int) -> list[ScoredMemory]:
    """The first ``top_k`` hits that say different things."""
    first: dict[str, ScoredMemory] = {}
    for hit in hits:
        if len(first) == top_k:
            break
        first.setdefault(_wording(hit.record), hit)
    return list(first.values())


def _repeats_last(distinct: list[ScoredMemory], hits: Sequence[ScoredMemory], top_k: int) -> list[ScoredMemory]:
    """The first ``top_k`` hits; those that only repeat a better one come after all others, with no better a score."""
    if len(distinct) in (top_k, len(hits)):
        return distinct
    kept = {hit.record.memory_id for hit in distinct}
    lowest = distinct[-1].score
    repeats = [replace(hit, score=min(hit.score, lowest)) for hit in hits if hit.record.memory_id not in kept]
    return [*distinct, *repeats][:top_k]


def _wording(record: MemoryRecord) -> str:
    """The words of a memory in their order, without case and punctuation."""
    return " ".join(re.findall(r"\w+", indexed_text(record.content, record.metadata).casefold()))
