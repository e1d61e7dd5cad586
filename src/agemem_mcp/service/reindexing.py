"""Making the index anew with another embedding model while everything goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agemem_mcp.errors import ConfigurationError
from agemem_mcp.service.completion import completed
from agemem_mcp.service.indexing import entries_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from agemem_mcp.domain.ports import Embedder, Ledger, MemoryIndex
    from agemem_mcp.service.current_embedder import CurrentEmbedder
    from agemem_mcp.service.indexing import Indexer

log = structlog.get_logger(__name__)

_BATCH = 32
"""So few that others get at the processor in between: about 50 ms of short texts."""


class Reindexer:
    """Fills another index from the ledger beside the present one, then exchanges index and model at one moment."""

    def __init__(
        self, *, ledger: Ledger, index: MemoryIndex, indexer: Indexer, embedder: CurrentEmbedder | None
    ) -> None:
        """See the class.

        Args:
            ledger: what the index is filled from.
            index: the index in use.
            indexer: keeps it up to date.
            embedder: the model in use, the same object everywhere it is used; None where none is.
        """
        self._ledger = ledger
        self._index = index
        self._indexer = indexer
        self._embedder = embedder

    @property
    def embedding(self) -> str:
        """Name of the model in use, or ``none``."""
        return "none" if self._embedder is None else self._embedder.name

    async def run(self, target: Embedder | None, report: Callable[[int, int], None]) -> None:
        """Make the index anew with ``target``; if that fails or is cancelled, everything stays as it was.

        The model used so far is not closed: the caller may do that afterwards.

        Args:
            target: the model to use from then on; None for an index of words alone.
            report: hears of the ledger position reached and the ledger's end.

        Raises:
            ConfigurationError: this service works by words alone and is to use a model, or the other way round, or
                its index is on a server.
            AssetsMissing: the model's files are not on this machine.
            EmbeddingError: the model failed.
            StoreError: ledger or index failed, or this is under way already.
        """
        if (self._embedder is None) != (target is None):
            msg = (
                "A memory that is open cannot change between a model and words alone (AGEMEM_EMBEDDING=none). End its "
                "process (`agemem-mcp daemon stop`) and run `agemem-mcp reindex` again."
            )
            raise ConfigurationError(msg)
        name, dimensions = ("none", None) if target is None else (target.name, target.dimensions)
        successor = await self._index.successor(embedding=name, dimensions=dimensions)
        try:
            reached = await self._fill(successor, target, 0, report)
            async with self._indexer.paused():
                reached = await self._fill(successor, target, reached, report)
                await successor.flush(reached)
                await completed(self._exchange(target, successor, reached))
        finally:
            # Removes what is not in use; nothing is left to do once it is.
            await completed(successor.close())
        log.info("index made anew", embedding=name, reached=reached)

    async def _fill(
        self, successor: MemoryIndex, target: Embedder | None, reached: int, report: Callable[[int, int], None]
    ) -> int:
        """Apply the ledger's heads from a position on; returns the position reached."""
        while True:
            heads, following = await self._ledger.changed_since(reached, limit=_BATCH)
            report(reached, max(reached, await self._ledger.last_seq()))
            if not heads:
                return reached
            await successor.apply(await entries_of(heads, target), [head for head in heads if head.deleted])
            reached = following

    async def _exchange(self, target: Embedder | None, successor: MemoryIndex, reached: int) -> None:
        if self._embedder is None or target is None:
            await self._index.replace_by(successor)
        else:
            async with self._embedder.exchanged_for(target):
                await self._index.replace_by(successor)
        self._indexer.moved_to(reached)
