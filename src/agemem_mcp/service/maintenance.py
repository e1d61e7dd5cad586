"""What the process that owns a memory can do for its index: compare it with the ledger, make it anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agemem_mcp.service.consistency import compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from agemem_mcp.domain.ports import Embedder, Ledger, MemoryIndex
    from agemem_mcp.service.consistency import IndexComparison
    from agemem_mcp.service.indexing import Indexer
    from agemem_mcp.service.reindexing import Reindexer


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Looks after the index of an open memory."""

    ledger: Ledger
    index: MemoryIndex
    indexer: Indexer
    reindexer: Reindexer
    model: Callable[[str, str | None], AbstractAsyncContextManager[Embedder | None]]
    """Makes an embedding model of a name and a folder of files. Leaving the context releases it, or if it is in use by
    then, the one before."""

    @property
    def embedding(self) -> str:
        """Name of the model in use, or ``none``."""
        return self.reindexer.embedding

    async def compare(self) -> IndexComparison:
        """Compare the index with the ledger, once it has caught up.

        Raises:
            AgeMemError: it cannot catch up, or one of them could not be read.
        """
        await self.indexer.catch_up()
        return await compare(self.ledger, self.index)

    async def reindex(self, embedding: str, folder: str | None, report: Callable[[int, int], None]) -> None:
        """Make the index anew, perhaps for another embedding model, while everything goes on.

        Args:
            embedding: the model's name, or ``none``.
            folder: where its files are; None for those that `assets pull` fetches.
            report: hears of the ledger position reached and the ledger's end.

        Raises:
            AgeMemError: it cannot be done; everything stays as it was.
        """
        async with self.model(embedding, folder) as target:
            await self.reindexer.run(target, report)
