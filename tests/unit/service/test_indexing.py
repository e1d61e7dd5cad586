"""The index follows the ledger, also when it was lost, is behind, or fails for a while."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.ledger import SqliteLedger
from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex
from agemem_mcp.adapters.system import SequentialIds, SteppingClock
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import AddMemory, DeleteMemory, UpdateMemory
from agemem_mcp.errors import StoreError
from agemem_mcp.service import indexing
from agemem_mcp.service.indexing import Indexer, indexed_text
from agemem_mcp.service.long_term import LongTermMemory, Origin

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from agemem_mcp.domain.memory import IndexEntry, MemoryQuery, MemoryRecord, ScoreLists

SCOPE = Scope()


class UnreliableIndex(QdrantEdgeIndex):
    """The real index, but for calls that are told to fail."""

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        self.failures: list[str] = []
        self.applied: list[int] = []
        self.optimised = 0

    def _fail(self, name: str) -> None:
        if name in self.failures:
            self.failures.remove(name)
            msg = f"{name} failed"
            raise StoreError(msg)

    async def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Apply, unless told to fail."""
        self._fail("apply")
        await super().apply(upserts, deletes)
        self.applied.append(len(upserts) + len(deletes))

    async def search(self, query: MemoryQuery) -> ScoreLists:
        """Search, unless told to fail."""
        self._fail("search")
        return await super().search(query)

    async def flush(self, seq: int) -> None:
        """Flush, unless told to fail."""
        self._fail("flush")
        await super().flush(seq)

    async def optimise_if_needed(self) -> None:
        """Optimise, unless told to fail."""
        self.optimised += 1
        self._fail("optimise")
        await super().optimise_if_needed()


@dataclass
class Store:
    """A ledger, an index that can fail, and long-term memory on both."""

    ledger: SqliteLedger
    index: UnreliableIndex
    indexer: Indexer
    memory: LongTermMemory

    async def add(self, content: str) -> str:
        """Add a memory."""
        return (await self.memory.add(SCOPE, AddMemory(content=content, metadata={}), Origin())).memory_id

    async def found(self, query: str) -> list[str]:
        """The texts that a search finds."""
        hits = await self.memory.search(SCOPE, query, top_k=100, metadata_filter={})
        return sorted(hit.record.content for hit in hits)


@asynccontextmanager
async def opened(directory: Path, *, flush: bool = True) -> AsyncGenerator[Store]:
    """The store in a folder; without ``flush`` it ends as if the process had been killed."""
    clock = SteppingClock()
    ledger = await SqliteLedger.open(directory / "ledger.db", clock=clock)
    ledger_id = await ledger.ledger_id()
    index = await UnreliableIndex.open(directory / "index", embedding="none", dimensions=None, ledger_id=ledger_id)
    indexer = Indexer(ledger, index, None)
    await indexer.start()
    memory = LongTermMemory(
        ledger=ledger, index=index, indexer=indexer, embedder=None, clock=clock, ids=SequentialIds()
    )
    try:
        yield Store(ledger, index, indexer, memory)
    finally:
        if not flush:
            indexer._flushed = indexer.reached
        await indexer.close()
        await index.close()
        await ledger.close()


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"title": "Oslo"}, "Oslo. It is cold."),
        ({}, "It is cold."),
        ({"title": " "}, "It is cold."),
        ({"title": 5}, "It is cold."),
        ({"title": ["Oslo"]}, "It is cold."),
    ],
)
def test_a_title_leads_the_text_that_is_searched(metadata: dict[str, object], text: str) -> None:
    assert indexed_text("It is cold.", metadata) == text


async def test_who_made_the_next_change_need_not_read_it_again_and_after_a_gap_all_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    changed_since = SqliteLedger.changed_since

    async def noted(ledger: SqliteLedger, seq: int, *, limit: int) -> tuple[list[MemoryRecord], int]:
        reads.append(seq)
        return await changed_since(ledger, seq, limit=limit)

    monkeypatch.setattr(SqliteLedger, "changed_since", noted)
    async with opened(tmp_path) as store:
        await store.add("note one")
        assert not reads
        store.index.failures.append("apply")
        await store.add("note two")
        await store.add("note three")
        assert reads == [1]
        assert await store.found("note") == ["note one", "note three", "note two"]


async def test_a_change_is_found_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        memory_id = await store.add("note about tea")
        assert await store.found("note") == ["note about tea"]
        await store.memory.update(
            SCOPE, UpdateMemory(memory_id=memory_id, content="note about milk", metadata={}), Origin()
        )
        assert await store.found("note") == ["note about milk"]
        assert await store.found("tea") == []
        await store.memory.delete(SCOPE, DeleteMemory(memory_id=memory_id, confirmation=True), Origin())
        assert await store.found("note") == []
        assert await store.index.count() == 0


async def test_what_was_flushed_is_not_applied_again_after_a_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number in range(3):
            await store.add(f"note {number}")
    async with opened(tmp_path) as store:
        assert store.indexer.reached == 3
        assert len(await store.found("note")) == 3
        assert store.index.applied == []


async def test_an_index_that_is_behind_is_brought_up_from_its_last_flush(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add("note 0")
    async with opened(tmp_path, flush=False) as store:
        await store.add("note 1")
        await store.add("note 2")
    async with opened(tmp_path) as store:
        assert store.indexer.reached == 1
        assert await store.found("note") == ["note 0", "note 1", "note 2"]
        assert store.index.applied == [2]


async def test_a_lost_index_is_rebuilt_from_the_ledger_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_BATCH", 4)
    async with opened(tmp_path) as store:
        ids = [await store.add(f"note {number}") for number in range(10)]
        await store.memory.delete(SCOPE, DeleteMemory(memory_id=ids[0], confirmation=True), Origin())
    shutil.rmtree(tmp_path / "index")
    async with opened(tmp_path) as store:
        assert await store.found("note") == [f"note {number}" for number in range(1, 10)]
        assert store.index.applied == [4, 4, 2]
        assert await store.index.count() == 9


async def test_an_index_beyond_the_ledgers_end_is_built_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add("note 0")
    shutil.copytree(tmp_path, tmp_path / "backup")
    async with opened(tmp_path) as store:
        await store.add("note 1")
    for path in tmp_path.glob("ledger.db*"):  # noqa: ASYNC240  nothing else runs
        path.unlink()
    shutil.copy(tmp_path / "backup" / "ledger.db", tmp_path / "ledger.db")
    async with opened(tmp_path) as store:
        assert store.indexer.reached == 0
        assert await store.found("note") == ["note 0"]


async def test_a_write_is_acknowledged_though_the_index_fails_and_applied_with_the_next(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.index.failures = ["apply"]
        await store.add("note 0")
        assert store.indexer.reached == 0
        await store.add("note 1")
        assert store.index.applied == [2]
        assert await store.found("note") == ["note 0", "note 1"]


async def test_a_search_fails_rather_than_show_less_than_there_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.index.failures = ["apply", "apply"]
        await store.add("note 0")
        with pytest.raises(StoreError, match="apply failed"):
            await store.found("note")
        assert await store.found("note") == ["note 0"]


async def test_a_flush_that_fails_later_is_logged_and_made_up_for_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "FLUSH_INTERVAL_S", 0)
    async with opened(tmp_path, flush=False) as store:
        store.index.failures = ["flush"]
        await store.add("note 0")
        assert store.indexer._flusher is not None
        await store.indexer._flusher
        assert store.index.failures == []
    async with opened(tmp_path) as store:
        assert store.indexer.reached == 0
        assert await store.found("note") == ["note 0"]


async def test_the_index_is_flushed_now_and_then_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "FLUSH_INTERVAL_S", 0)
    async with opened(tmp_path) as store:
        for number in (1, 2):
            await store.add(f"note {number}")
            flusher: Any = store.indexer._flusher
            await flusher
            assert await store.index.flushed_seq() == number


async def test_an_older_ledger_put_in_place_is_not_crowded_out_by_what_it_does_not_know(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.add("The oldest memory.")
    backup = (tmp_path / "ledger.db").read_bytes()
    async with opened(tmp_path) as store:
        for number in range(120):
            await store.add(f"A later memory, number {number}.")
    (tmp_path / "ledger.db").write_bytes(backup)
    async with opened(tmp_path) as store:
        assert await store.found("memory") == ["The oldest memory."]
        assert await store.index.count() == 1


async def test_a_memory_is_stored_while_the_index_cannot_be_searched(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.index.failures.append("search")
        await store.add("Kept all the same.")
        assert store.index.failures == []
        assert await store.found("kept") == ["Kept all the same."]


async def test_the_index_is_optimised_after_the_start_and_after_a_flush_and_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "FLUSH_INTERVAL_S", 0)
    async with opened(tmp_path) as store:
        await store.indexer.replay(lambda _reached, _end: None)
        for failures in (["optimise"], []):
            optimiser: Any = store.indexer._optimiser
            await optimiser
            store.index.failures = failures
            await store.add(f"note {failures}")
            flusher: Any = store.indexer._flusher
            await flusher
        optimiser = store.indexer._optimiser
        await optimiser
        assert store.index.failures == []
        assert store.index.optimised == 3


async def test_closing_ends_an_optimisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(_index: UnreliableIndex) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(UnreliableIndex, "optimise_if_needed", endless)
    async with opened(tmp_path) as store:
        await store.indexer.replay(lambda _reached, _end: None)
        await begun.wait()
    assert ended.is_set()


async def test_a_flush_waits_for_a_pause_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "FLUSH_INTERVAL_S", 0.05)
    async with opened(tmp_path) as store:
        number = 0
        while await store.index.flushed_seq() == 0:
            number += 1
            await store.add(f"note {number}")
        assert number > 1
