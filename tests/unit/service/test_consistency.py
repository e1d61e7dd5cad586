"""Comparing index and ledger finds what differs, and nothing else."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.adapters.ledger import SqliteLedger
from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex
from agemem_mcp.adapters.system import SequentialIds, SteppingClock
from agemem_mcp.domain.memory import IndexEntry, Scope
from agemem_mcp.domain.operations import AddMemory, DeleteMemory, UpdateMemory
from agemem_mcp.service import consistency
from agemem_mcp.service.consistency import IndexComparison, MemoryKey, compare
from agemem_mcp.service.indexing import Indexer
from agemem_mcp.service.long_term import LongTermMemory, Origin

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from pathlib import Path

    from agemem_mcp.domain.memory import IndexedVersion, MemoryRecord

SCOPES = (Scope(), Scope("other", "work"))
ORIGIN = Origin()


@dataclass
class Store:
    """Memory on a real ledger and a real index."""

    ledger: SqliteLedger
    index: QdrantEdgeIndex
    memory: LongTermMemory

    async def add(self, number: int) -> MemoryKey:
        """Add a memory, in alternating scopes."""
        scope = SCOPES[number % 2]
        metadata = {"expires_at": "2999-01-01"} if number % 3 == 0 else {}
        added = await self.memory.add(scope, AddMemory(content=f"note {number}", metadata=dict(metadata)), ORIGIN)
        return MemoryKey(scope.key, added.memory_id)

    async def head(self, key: MemoryKey) -> MemoryRecord:
        """The present state of a memory."""
        scope = next(scope for scope in SCOPES if scope.key == key.scope_key)
        return (await self.ledger.heads(scope, [key.memory_id]))[key.memory_id]


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Store]:
    """An empty store, compared three heads at a time."""
    monkeypatch.setattr(consistency, "_BATCH", 3)
    async with opened(tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(directory: Path) -> AsyncGenerator[Store]:
    """The store in a folder."""
    clock = SteppingClock()
    ledger = await SqliteLedger.open(directory / "ledger.db", clock=clock)
    ledger_id = await ledger.ledger_id()
    index = await QdrantEdgeIndex.open(directory / "index", embedding="none", dimensions=None, ledger_id=ledger_id)
    indexer = Indexer(ledger, index, None)
    await indexer.start()
    memory = LongTermMemory(
        ledger=ledger, index=index, indexer=indexer, embedder=None, clock=clock, ids=SequentialIds()
    )
    try:
        yield Store(ledger, index, memory)
    finally:
        await indexer.close()
        await index.close()
        await ledger.close()


def entry(record: MemoryRecord) -> IndexEntry:
    """As the indexer would make it."""
    return IndexEntry(record, record.content, None)


async def test_an_index_that_followed_every_operation_agrees(store: Store) -> None:
    assert await compare(store.ledger, store.index) == IndexComparison(frozenset(), frozenset(), frozenset(), 0)
    keys = [await store.add(number) for number in range(10)]
    scope = SCOPES[0]
    await store.memory.update(scope, UpdateMemory(memory_id=keys[0].memory_id, content="changed", metadata={}), ORIGIN)
    await store.memory.delete(scope, DeleteMemory(memory_id=keys[2].memory_id, confirmation=True), ORIGIN)
    await store.memory.delete(scope, DeleteMemory(memory_id=keys[4].memory_id, confirmation=True), ORIGIN)
    await store.memory.restore(scope, keys[4].memory_id, None, ORIGIN)
    found = await compare(store.ledger, store.index)
    assert found.agrees
    assert found.total == 9


async def test_each_difference_is_named(store: Store) -> None:
    keys = [await store.add(number) for number in range(10)]
    records = [await store.head(key) for key in keys]
    await store.memory.delete(SCOPES[0], DeleteMemory(memory_id=keys[8].memory_id, confirmation=True), ORIGIN)
    unknown = replace(records[0], memory_id="never")
    await store.index.apply(
        [
            entry(replace(records[3], version=9)),
            entry(replace(records[5], version=0)),
            entry(unknown),
            entry(records[8]),
        ],
        [records[1], records[6]],
    )
    found = await compare(store.ledger, store.index)
    assert found == IndexComparison(
        missing=frozenset({keys[1], keys[6]}),
        stale=frozenset({keys[3], keys[5]}),
        surplus=frozenset({keys[8], MemoryKey(SCOPES[0].key, "never")}),
        total=9,
    )
    assert not found.agrees


async def test_an_expired_memory_may_be_in_the_index(store: Store) -> None:
    key = await store.add(3)
    record = await store.head(key)
    assert record.expires_at is not None
    assert not record.is_live(record.expires_at + timedelta(days=1))
    assert (await compare(store.ledger, store.index)).agrees


class BusyIndex:
    """Lists the real index's entries while memories are changed."""

    def __init__(self, store: Store, keys: Sequence[MemoryKey]) -> None:
        self.store = store
        self.keys = keys

    async def entries(self) -> AsyncIterator[list[IndexedVersion]]:
        """Change, delete and add before the first page."""
        memory = self.store.memory
        changed = UpdateMemory(memory_id=self.keys[0].memory_id, content="new", metadata={})
        await memory.update(SCOPES[0], changed, ORIGIN)
        await memory.delete(SCOPES[0], DeleteMemory(memory_id=self.keys[2].memory_id, confirmation=True), ORIGIN)
        await self.store.add(100)
        async for page in self.store.index.entries():
            yield page


async def test_what_changes_meanwhile_is_no_difference_but_the_rest_is(store: Store) -> None:
    keys = [await store.add(number) for number in range(6)]
    await store.index.apply([], [await store.head(keys[5])])
    busy: object = BusyIndex(store, keys)
    found = await compare(store.ledger, busy)  # pyright: ignore[reportArgumentType]  only what is asked of it
    assert (found.missing, found.stale, found.surplus) == ({keys[5]}, frozenset(), frozenset())
