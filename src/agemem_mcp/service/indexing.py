"""Keeping the index at the ledger's position: after each change, and after a start.

The index is brought up to date from the ledger's heads. So the same code serves a write, the replay
after a crash and a rebuild from nothing, applying something twice is harmless, and an entry changed
twice at once ends in its last state. Only the change that comes right after what is applied already need
not be read again by who made it: it is the next head.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.domain.memory import IndexEntry, title_of
from agemem_mcp.errors import AgeMemError
from agemem_mcp.service.long_text import embed_whole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from agemem_mcp.domain.memory import MemoryRecord
    from agemem_mcp.domain.ports import Embedder, Ledger, MemoryIndex

log = structlog.get_logger(__name__)

_BATCH = 256
FLUSH_INTERVAL_S = 5.0
_MOST_INTERVALS = 6


def indexed_text(content: str, metadata: Mapping[str, object]) -> str:
    """What is embedded and searched for words: the text, led by its title if the metadata has one.

    A sentence such as "He was born in 1970." is found by its title alone: on 100 HotpotQA questions
    this raises dense recall@10 of supporting sentences from .679 to .708.
    """
    title = title_of(metadata)
    return content if title is None else f"{title}. {content}"


async def entries_of(heads: Sequence[MemoryRecord], embedder: Embedder | None) -> list[IndexEntry]:
    """What the index is to hold of those memories that are not deleted.

    Raises:
        AssetsMissing: the model's files are not on this machine.
        EmbeddingError: the model failed.
    """
    live = [head for head in heads if not head.deleted]
    texts = [indexed_text(head.content, head.metadata) for head in live]
    vectors = None if embedder is None or not live else await embed_whole(embedder, texts)
    return [
        IndexEntry(record=head, text=text, vector_D=None if vectors is None else vectors[row])
        for row, (head, text) in enumerate(zip(live, texts, strict=True))
    ]


class Indexer:
    """Applies the ledger's changes to the index, in order, and flushes it now and then."""

    def __init__(self, ledger: Ledger, index: MemoryIndex, embedder: Embedder | None) -> None:
        self._ledger = ledger
        self._index = index
        self._embedder = embedder
        self._reached = 0
        self._flushed = 0
        self._turn = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self._optimiser: asyncio.Task[None] | None = None

    @property
    def reached(self) -> int:
        """The ledger position the index stands at."""
        return self._reached

    async def start(self) -> None:
        """Take up from the last flush.

        A position beyond the ledger's end means that an older ledger was put in place (a restored backup): the index
        is emptied and filled anew, or entries that the ledger does not know would crowd out those it does.
        """
        flushed = await self._index.flushed_seq()
        if flushed > await self._ledger.last_seq():
            log.warning("the ledger is older than the index, which is rebuilt", index_at=flushed)
            await self._index.clear()
            flushed = 0
        self._reached = self._flushed = flushed

    async def catch_up(self, seq: int | None = None, record: MemoryRecord | None = None) -> None:
        """Apply everything up to ``seq``, or to the ledger's end.

        Args:
            seq: a position of the ledger; None for its end.
            record: what was committed at ``seq``, if the caller has it.

        Raises:
            AgeMemError: embedding or index failed; what was committed to the ledger is applied next time.
        """
        if seq is not None and seq <= self._reached:
            return
        async with self._turn:
            while seq is None or self._reached < seq:
                following = self._reached + 1
                if record is not None and seq == following:
                    heads, reached = [record], following
                else:
                    heads, reached = await self._ledger.changed_since(self._reached, limit=_BATCH)
                if not heads:
                    return
                await self._apply(heads)
                self._reached = reached
                self._schedule_flush()

    async def try_catch_up(self, seq: int | None = None, record: MemoryRecord | None = None) -> None:
        """Like :meth:`catch_up`, for callers whose change is already safe in the ledger: only logs a failure."""
        try:
            await self.catch_up(seq, record)
        except AgeMemError as error:
            log.warning("index is behind the ledger", reached=self._reached, error=str(error))

    async def replay(self, report: Callable[[int, int], None]) -> None:
        """Apply what the last flush did not cover; ``report`` hears of the position reached and the ledger's end.

        A failure is only logged: the next change or search takes it up again.
        """
        end = await self._ledger.last_seq()
        while self._reached < end:
            before = self._reached
            report(before, end)
            # By steps, so that those who wait see it move.
            await self.try_catch_up(min(end, before + _BATCH))
            if self._reached == before:
                return
        self._schedule_optimising()

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Apply nothing meanwhile; who wants the index caught up waits."""
        async with self._turn:
            yield

    def moved_to(self, seq: int) -> None:
        """The index was replaced, during :meth:`paused`, by one that is flushed up to ``seq``."""
        self._reached = self._flushed = seq

    async def close(self) -> None:
        """End what runs beside, and flush what was applied."""
        for task in (self._flusher, self._optimiser):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._try_flush()

    async def _apply(self, heads: list[MemoryRecord]) -> None:
        entries = await entries_of(heads, self._embedder)
        await self._index.apply(entries, [head for head in heads if head.deleted])

    def _schedule_flush(self) -> None:
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush_later())

    async def _flush_later(self) -> None:
        # A flush holds everything up for a moment: it waits for a pause, but not for ever.
        for _ in range(_MOST_INTERVALS):
            before = self._reached
            await asyncio.sleep(FLUSH_INTERVAL_S)
            if self._reached == before:
                break
        await self._try_flush()
        self._schedule_optimising()

    async def _try_flush(self) -> None:
        # Not in turn: what is applied meanwhile is flushed as well, or by the next flush.
        reached = self._reached
        if reached == self._flushed:
            return
        try:
            await self._index.flush(reached)
        except AgeMemError as error:
            log.warning("index could not be flushed; its tail will be replayed from the ledger", error=str(error))
        else:
            self._flushed = reached

    def _schedule_optimising(self) -> None:
        if self._optimiser is None or self._optimiser.done():
            self._optimiser = asyncio.create_task(self._try_optimise())

    async def _try_optimise(self) -> None:
        try:
            await self._index.optimise_if_needed()
        except AgeMemError as error:
            log.warning("index could not be optimised; searches go on as before", error=str(error))
