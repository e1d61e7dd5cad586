"""Looking through a scope for what may be cleaned up: near-duplicates, what looks replaced, ends and age.

Nothing is changed here: what to delete or update is for a person or a policy to decide. It needs
the ledger and the embedder alone, so it works beside a process that has the folder.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import numpy as np

from agemem_mcp.service.indexing import indexed_text
from agemem_mcp.service.likeness import by_meaning, by_words
from agemem_mcp.service.long_text import embed_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agemem_mcp.domain.memory import MatrixND, MemoryRecord, Scope
    from agemem_mcp.domain.ports import Clock, Embedder, Ledger
    from agemem_mcp.service.likeness import PairsOf

DUPLICATE_COSINE = 0.9
DUPLICATE_WORDS = 0.8
"""The share of words two texts have in common (Jaccard), where there is no model."""

_REPLACED_COSINE = 0.75
_REPLACED_WORDS = 0.5
_BATCH = 64


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Memories that say nearly the same, each close to at least one other."""

    memories: tuple[MemoryRecord, ...]
    """Last changed longest ago first."""
    similarity: float
    """Of the closest two."""


@dataclass(frozen=True, slots=True)
class ReplacedMemory:
    """A memory that a later one of the same title and type seems to have replaced."""

    older: MemoryRecord
    newer: MemoryRecord
    similarity: float


@dataclass(frozen=True, slots=True)
class Review:
    """What a look through a scope found."""

    compared: int
    """How many live memories were compared."""
    by: Literal["meaning", "words"]
    threshold: float
    duplicates: list[DuplicateGroup]
    """Closest first."""
    replaced: list[ReplacedMemory]
    """Closest first."""
    expired: list[MemoryRecord]
    """Ended and not deleted, ended last first."""
    expiring: list[MemoryRecord]
    """Soon to end, first to end first."""
    unchanged: list[MemoryRecord]
    """Live and not changed for long, longest first."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Looks through scopes."""

    ledger: Ledger
    embedder: Embedder | None
    clock: Clock

    async def review(
        self,
        scope: Scope,
        *,
        threshold: float | None = None,
        stale: timedelta = timedelta(days=180),
        soon: timedelta = timedelta(days=7),
        report: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Review:
        """Look through a scope.

        Args:
            scope: which one.
            threshold: similarity from which memories are near-duplicates, 0 to 1; by default what suits the way they
                are compared.
            stale: after what time without a change a memory is listed.
            soon: how long before its end a memory is listed.
            report: hears how many memories have been read, and of how many.

        Raises:
            EmbeddingError: the memories could not be embedded.
        """
        now = self.clock.now()
        heads = await self.ledger.list_heads(scope, limit=None, include_deleted=False)
        live = sorted((head for head in heads if head.is_live(now)), key=lambda head: head.updated_at)
        if threshold is None:
            threshold = DUPLICATE_WORDS if self.embedder is None else DUPLICATE_COSINE
        duplicates, replaced = await self.find_duplicates(live, threshold=threshold, report=report)
        ending = [(head.expires_at, head) for head in heads if head.expires_at is not None]
        ending.sort(key=lambda pair: pair[0])
        return Review(
            compared=len(live),
            by="words" if self.embedder is None else "meaning",
            threshold=threshold,
            duplicates=duplicates,
            replaced=replaced,
            expired=[head for end, head in reversed(ending) if end <= now],
            expiring=[head for end, head in ending if now < end <= now + soon],
            unchanged=[head for head in live if head.updated_at <= now - stale],
        )

    async def find_duplicates(
        self, live: Sequence[MemoryRecord], *, threshold: float, report: Callable[[int, int], None]
    ) -> tuple[list[DuplicateGroup], list[ReplacedMemory]]:
        """Groups of memories at least as similar as ``threshold``, and those that look replaced.

        Args:
            live: the memories to compare, last changed longest ago first.
            threshold: cosine, or share of common words where there is no model.
            report: as of :meth:`review`.

        Raises:
            EmbeddingError: the memories could not be embedded.
        """
        texts = [indexed_text(head.content, dict(head.metadata)) for head in live]
        if self.embedder is None:
            pairs_of, floor = by_words(texts), _REPLACED_WORDS
        else:
            pairs_of, floor = by_meaning(await _embedded(self.embedder, texts, report)), _REPLACED_COSINE

        def compare() -> tuple[list[DuplicateGroup], list[ReplacedMemory]]:
            groups = list(_groups(live, pairs_of, threshold))
            together = {head.memory_id: number for number, group in enumerate(groups) for head in group.memories}
            replaced = [
                one
                for one in _replaced(live, pairs_of, floor, threshold)
                if together.get(one.older.memory_id, -1) != together.get(one.newer.memory_id, -2)
            ]
            return (
                sorted(groups, key=lambda group: -group.similarity),
                sorted(replaced, key=lambda one: -one.similarity),
            )

        return await asyncio.to_thread(compare)


async def _embedded(embedder: Embedder, texts: Sequence[str], report: Callable[[int, int], None]) -> MatrixND:
    vectors_ND = np.empty((len(texts), embedder.dimensions), dtype=np.float32)
    for start in range(0, len(texts), _BATCH):
        report(start, len(texts))
        batch = texts[start : start + _BATCH]
        vectors_ND[start : start + len(batch)] = await embed_whole(embedder, batch)
    report(len(texts), len(texts))
    return vectors_ND


def _groups(live: Sequence[MemoryRecord], pairs_of: PairsOf, threshold: float) -> Iterator[DuplicateGroup]:
    """Memories that pairs link together, directly or through others."""
    labels_N = np.arange(len(live))
    closest_N = np.zeros(len(live))
    for row, others_K, scores_K in pairs_of(np.arange(len(live)), threshold):
        linked_K = np.append(others_K, row)
        labels = np.unique(labels_N[linked_K])
        labels_N[np.isin(labels_N, labels)] = labels[0]
        closest_N[row] = scores_K.max()
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels_N.tolist()):
        members.setdefault(label, []).append(row)
    for rows in members.values():
        if len(rows) > 1:
            yield DuplicateGroup(tuple(live[row] for row in rows), float(closest_N[rows].max()))


def _replaced(
    live: Sequence[MemoryRecord], pairs_of: PairsOf, floor: float, threshold: float
) -> Iterator[ReplacedMemory]:
    """Memories with a later one of the same title and type that is similar, but no near-duplicate."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for row, head in enumerate(live):
        title = head.metadata.get("title")
        kind = (title.strip().lower() if isinstance(title, str) else "", (head.memory_type or "").lower())
        if any(kind):
            kinds.setdefault(kind, []).append(row)
    for rows in kinds.values():
        for row, others_K, scores_K in pairs_of(np.array(rows), floor):
            scores_K = np.where(scores_K < threshold, scores_K, 0.0)  # noqa: PLW2901  the others are duplicates
            best = int(scores_K.argmax())
            if scores_K[best] > 0:
                yield ReplacedMemory(live[row], live[int(others_K[best])], float(scores_K[best]))
