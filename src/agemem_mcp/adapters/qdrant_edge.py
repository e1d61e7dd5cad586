"""The memory index inside this process: a Qdrant Edge shard in a folder of its own.

The folder's lock is taken before the shard is touched: an attempt to load a shard that another
process has open corrupts that process's next flush, even though the attempt is refused.

The shard is used from one worker thread. It is a synchronous library; a hop costs 0.04 ms, and the
event loop gets its turn between two calls. (Version 0.9 keeps the interpreter lock during a call, so
a single slow call, such as a flush, is still felt.)
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Self

from agemem_mcp.adapters.qdrant_folder import Manifest
from agemem_mcp.adapters.qdrant_optimisation import is_needed, optimise
from agemem_mcp.adapters.qdrant_store import CurrentStore, Store, SuccessorStore
from agemem_mcp.adapters.qdrant_worker import Worker
from agemem_mcp.errors import StoreError
from agemem_mcp.service.completion import completed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from agemem_mcp.adapters.qdrant_shard import Shard
    from agemem_mcp.domain.memory import IndexedVersion, IndexEntry, MemoryQuery, MemoryRecord, ScoreLists
    from agemem_mcp.domain.ports import MemoryIndex


class _EdgeIndex:
    """What the current index and its successor have in common."""

    def __init__(self, store: Store, worker: Worker) -> None:
        self._store = store
        self._worker = worker

    async def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Put the present state of entries in; survives the end of this process, not a power cut."""
        if upserts or deletes:
            await self._worker.change(lambda: self._store.apply(upserts, deletes))

    async def search(self, query: MemoryQuery) -> ScoreLists:
        """Find candidates within the query's scope."""
        return await self._worker.run(lambda: self._store.shard.search(query))

    async def flushed_seq(self) -> int:
        """The ledger position up to which everything is known to be on stable storage."""
        return await self._worker.run(lambda: self._store.manifest.flushed_seq)

    async def flush(self, seq: int) -> None:
        """Make everything applied so far durable and remember that it reaches ``seq``."""
        await self._worker.change(lambda: self._store.flush(seq))

    async def count(self) -> int:
        """Number of entries over all scopes."""
        return await self._worker.run(self._store.count)

    async def entries(self) -> AsyncIterator[list[IndexedVersion]]:
        """Which version of which entry it holds, page by page; other work goes on between the pages."""
        offset: str | None = None
        while True:
            page, offset = await self._worker.run(partial(self._store.page, offset))
            if page:
                yield page
            if offset is None:
                return

    async def clear(self) -> None:
        """Drop every entry, and remember at once that the index is at the ledger's beginning."""
        await self._worker.change(self._store.clear)

    async def close(self) -> None:
        """Release what is open; does not flush. Closing twice is allowed."""
        await self._worker.close(self._store.close)


class QdrantEdgeIndex(_EdgeIndex):
    """A :class:`~agemem_mcp.domain.ports.MemoryIndex` on disk, for one process."""

    def __init__(self, store: CurrentStore, worker: Worker) -> None:
        """Use :meth:`open`."""
        super().__init__(store, worker)
        self._current = store
        self._optimisation: asyncio.Task[None] | None = None
        self._is_made_anew = False
        self._successor: _Successor | None = None

    @classmethod
    async def open(
        cls, directory: Path, *, embedding: str, dimensions: int | None, ledger_id: str, rebuild: bool = False
    ) -> Self:
        """Open the index in ``directory``, or make a new one.

        A damaged index, or one of another ledger, is set aside next to the folder and replaced by an
        empty one, whose :meth:`flushed_seq` is 0: the caller fills it from the ledger. One that an
        older program made is replaced as well, and removed.

        Args:
            directory: a folder for this index alone.
            embedding: name of the embedding model, or of its absence.
            dimensions: length of its vectors; ``None`` for an index of words alone.
            ledger_id: identity of the ledger the entries come from.
            rebuild: replace an index that was made with another embedding model by an empty one.

        Raises:
            StoreError: another process has the index open.
            ConfigurationError: it was made with another embedding model or a newer program, or the
                folder cannot be written.
        """
        worker = Worker()
        wanted = Manifest(embedding=embedding, dimensions=dimensions, ledger_id=ledger_id)
        opening = worker.submit(lambda: CurrentStore.open(directory, wanted, rebuild=rebuild))
        try:
            store = await asyncio.wrap_future(opening)
        except BaseException:
            # Cancelled while the thread was still opening: without this the lock would stay held.
            worker.submit(lambda: _abandon(opening))
            worker.stop()
            raise
        return cls(store, worker)

    async def clear(self) -> None:
        """Drop every entry, and remember at once that the index is at the ledger's beginning."""
        await self._end_optimisation()
        await super().clear()

    async def optimise_if_needed(self) -> None:
        """Build a search graph where a scope has many entries that none covers; takes minutes, beside the work.

        Does nothing while it is under way already, or the index is being made anew.
        """
        if not self._may_optimise or not await self._worker.run(lambda: is_needed(self._current)):
            return
        if self._may_optimise:  # still, after we looked
            self._optimisation = asyncio.create_task(optimise(self._current, self._worker))
            try:
                # Ended by close() it counts as done; it is not this call that was cancelled.
                await asyncio.wait([self._optimisation])
            finally:
                await self._end_optimisation()

    async def successor(self, *, embedding: str, dimensions: int | None) -> MemoryIndex:
        """Another generation in the same folder, empty; ends an optimisation, which would be for nothing.

        Raises:
            StoreError: there is one already, or it could not be made.
        """
        if self._is_made_anew:
            msg = "The memory index is being made anew already. Wait for that to end."
            raise StoreError(msg)
        self._is_made_anew = True
        worker = Worker()
        folder, ledger_id = self._current.folder, self._current.manifest.ledger_id
        wanted = Manifest(embedding=embedding, dimensions=dimensions, ledger_id=ledger_id)
        making = worker.submit(lambda: SuccessorStore.create(folder, wanted))
        try:
            await self._end_optimisation()
            store = await asyncio.wrap_future(making)
        except BaseException:
            worker.submit(lambda: _abandon(making))
            worker.stop()
            self._is_made_anew = False
            raise
        self._successor = _Successor(store, worker, self._without_successor)
        return self._successor

    async def replace_by(self, successor: MemoryIndex) -> None:
        """Hold what the successor holds.

        Raises:
            StoreError: it is none of this index, or could not be flushed; nothing has changed.
        """
        if self._successor is None or successor is not self._successor:
            msg = "That index is no successor of this one, or was closed."
            raise StoreError(msg)
        await completed(self._replace_by(self._successor))

    async def close(self) -> None:
        """Release the shard and the lock; does not flush. Closing twice is allowed."""
        await self._end_optimisation()
        if self._successor is not None:
            await self._successor.close()
        await super().close()

    @property
    def _may_optimise(self) -> bool:
        return self._optimisation is None and not self._is_made_anew

    async def _replace_by(self, successor: _Successor) -> None:
        async with self._worker.changes_held():
            shard, manifest = await successor.finish()
            old = await self._worker.run(lambda: self._current.become(shard, manifest))
            successor.give_away()
        self._without_successor()
        await asyncio.to_thread(self._current.folder.remove_shard, old)

    def _without_successor(self) -> None:
        self._successor = None
        self._is_made_anew = False

    async def _end_optimisation(self) -> None:
        task = self._optimisation
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if self._optimisation is task:
                self._optimisation = None
            if not task.cancelled():
                task.result()


class _Successor(_EdgeIndex):
    """An index that is being filled to take the place of another one."""

    def __init__(self, store: SuccessorStore, worker: Worker, on_close: Callable[[], None]) -> None:
        super().__init__(store, worker)
        self._filled = store
        self._on_close = on_close

    async def finish(self) -> tuple[Shard, Manifest]:
        """Flush it; the shard and what the manifest is to say of it."""
        return self._filled.shard, await self._worker.run(self._filled.finish)

    def give_away(self) -> None:
        """Count as closed; the shard is another one's now."""
        self._worker.stop()

    async def optimise_if_needed(self) -> None:
        """Nothing: it waits until this index is the current one."""

    async def successor(self, *, embedding: str, dimensions: int | None) -> MemoryIndex:
        """Not offered.

        Raises:
            StoreError: always.
        """
        msg = f"An index that is being filled has no successor ({embedding!r}, {dimensions})."
        raise StoreError(msg)

    async def replace_by(self, successor: MemoryIndex) -> None:
        """Not possible.

        Raises:
            StoreError: always.
        """
        msg = f"{successor!r} is no successor of an index that is being filled."
        raise StoreError(msg)

    async def close(self) -> None:
        """Remove it, unless it was given away."""
        if not self._worker.closed:
            await super().close()
            self._on_close()


def _abandon(opening: Future[CurrentStore] | Future[SuccessorStore]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
