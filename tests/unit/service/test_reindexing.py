"""Another embedding model takes over while memories are stored and searched, or everything stays as it was."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agemem_mcp.adapters.ledger import SqliteLedger
from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex
from agemem_mcp.adapters.system import SequentialIds, SteppingClock
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import AddMemory, DeleteMemory
from agemem_mcp.errors import AssetsMissing, ConfigurationError, StoreError
from agemem_mcp.service import reindexing
from agemem_mcp.service.consistency import compare
from agemem_mcp.service.current_embedder import CurrentEmbedder
from agemem_mcp.service.indexing import Indexer
from agemem_mcp.service.long_term import LongTermMemory, Origin
from agemem_mcp.service.reindexing import Reindexer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from agemem_mcp.domain.memory import MatrixND

SCOPE = Scope()
ORIGIN = Origin()


@dataclass
class HashEmbedder:
    """Unit vectors that depend on the model's name and the text."""

    name: str
    dimensions: int
    on_embed: Callable[[Sequence[str]], None] = lambda _: None
    gate: asyncio.Event | None = None
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    async def embed(self, texts: Sequence[str]) -> MatrixND:
        """Embed, once the gate is open."""
        self.on_embed(texts)
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        await asyncio.sleep(0)
        rows: list[MatrixND] = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(f"{self.name} {text}".encode()).digest()[:8], "big")
            row = np.random.default_rng(seed).standard_normal(self.dimensions).astype(np.float32)
            rows.append(row / np.float32(np.linalg.norm(row)))
        return np.stack(rows)


@dataclass
class SteppedEmbedder(HashEmbedder):
    """Embeds its first batches one by one, as it is told to."""

    step: asyncio.Event = field(default_factory=asyncio.Event)
    steps_left: int = 4

    async def embed(self, texts: Sequence[str]) -> MatrixND:
        """Embed, once told to."""
        if self.steps_left:
            self.steps_left -= 1
            await self.step.wait()
            self.step.clear()
        return await super().embed(texts)


@dataclass
class Store:
    """Memory on a real ledger and a real index."""

    ledger: SqliteLedger
    index: QdrantEdgeIndex
    indexer: Indexer
    embedder: CurrentEmbedder
    memory: LongTermMemory
    reindexer: Reindexer

    async def add(self, content: str) -> str:
        """Add a memory."""
        return (await self.memory.add(SCOPE, AddMemory(content=content, metadata={}), ORIGIN)).memory_id

    async def nearest(self, text: str) -> tuple[str, float]:
        """The best hit for a text; its own memory has cosine 1 if, and only if, the models agree."""
        hit = (await self.memory.search(SCOPE, text, top_k=1, metadata_filter={}))[0]
        return hit.record.content, hit.score


@asynccontextmanager
async def opened(directory: Path, embedder: HashEmbedder) -> AsyncGenerator[Store]:
    """The store in a folder, with an embedding model."""
    clock = SteppingClock()
    async with AsyncExitStack() as stack:
        ledger = await SqliteLedger.open(directory / "ledger.db", clock=clock)
        stack.push_async_callback(ledger.close)
        index = await QdrantEdgeIndex.open(
            directory / "index",
            embedding=embedder.name,
            dimensions=embedder.dimensions,
            ledger_id=await ledger.ledger_id(),
        )
        stack.push_async_callback(index.close)
        current = CurrentEmbedder(embedder)
        indexer = Indexer(ledger, index, current)
        await indexer.start()
        stack.push_async_callback(indexer.close)
        memory = LongTermMemory(
            ledger=ledger, index=index, indexer=indexer, embedder=current, clock=clock, ids=SequentialIds()
        )
        reindexer = Reindexer(ledger=ledger, index=index, indexer=indexer, embedder=current)
        yield Store(ledger, index, indexer, current, memory, reindexer)


def old() -> HashEmbedder:
    """The model so far."""
    return HashEmbedder("old-model", 8)


async def unchanged(store: Store) -> None:
    """The old model serves as before, and nothing is left of the attempt."""
    assert (store.embedder.name, store.embedder.dimensions) == ("old-model", 8)
    content, score = await store.nearest("note one")
    assert (content, score > 0.5) == ("note one", True)
    assert (await compare(store.ledger, store.index)).agrees
    await (await store.index.successor(embedding="any", dimensions=4)).close()


async def test_another_model_takes_over_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reindexing, "_BATCH", 4)
    reports: list[tuple[int, int]] = []
    new = HashEmbedder("new-model", 16)
    async with opened(tmp_path, old()) as store:
        names = [await store.add(f"note {number}") for number in range(10)]
        await store.memory.delete(SCOPE, DeleteMemory(memory_id=names[3], confirmation=True), ORIGIN)
        await store.reindexer.run(new, lambda reached, end: reports.append((reached, end)))
        assert (store.embedder.name, store.embedder.dimensions) == ("new-model", 16)
        await store.add("note after")
        for text in ("note 7", "note after"):
            assert (await store.nearest(text))[0] == text
        assert (await compare(store.ledger, store.index)).agrees
    assert reports[0] == (0, 11)
    assert reports[-1] == (11, 11)
    assert [reached for reached, _ in reports] == sorted(reached for reached, _ in reports)
    async with opened(tmp_path, new) as store:
        assert store.indexer.reached == 12
        assert await store.index.count() == 10
        assert (await store.nearest("note 7"))[0] == "note 7"
    with pytest.raises(ConfigurationError, match="agemem-mcp reindex"):
        async with opened(tmp_path, old()):
            pass


async def test_what_is_stored_deleted_and_searched_meanwhile_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindexing, "_BATCH", 2)
    async with opened(tmp_path, old()) as store:
        for number in range(12):
            await store.add(f"note {number}")
        new = SteppedEmbedder("new-model", 8)  # as many dimensions: nothing but the order protects from mixing them up
        running = asyncio.create_task(store.reindexer.run(new, lambda _reached, _end: None))
        number = 100
        while not running.done():
            number += 1
            await store.add(f"note {number}")
            for text in (f"note {number}", "note 5"):
                content, score = await store.nearest(text)
                assert content == text
                assert score > 0.6, "the query's vector met an index of the other model"
            new.step.set()
        await running
        assert number >= 104
        assert store.embedder.name == "new-model"
        assert (await compare(store.ledger, store.index)).agrees
        assert await store.index.flushed_seq() <= store.indexer.reached == await store.ledger.last_seq()


async def test_a_search_under_way_with_the_old_model_is_waited_for(tmp_path: Path) -> None:
    model = old()
    async with opened(tmp_path, model) as store:
        await store.add("note one")
        model.gate = asyncio.Event()
        searching = asyncio.create_task(store.nearest("note one"))
        await model.waiting.wait()
        running = asyncio.create_task(store.reindexer.run(HashEmbedder("new-model", 8), lambda _reached, _end: None))
        while store.embedder._open.is_set():  # noqa: ASYNC110  until it waits for the search
            await asyncio.sleep(0)
        later = asyncio.create_task(store.nearest("note one"))
        model.gate.set()
        for task in (searching, later):
            content, score = await task
            assert (content, score > 0.5) == ("note one", True)
        await running
        assert store.embedder.name == "new-model"


async def test_a_model_whose_files_are_missing_leaves_everything_as_it_was(tmp_path: Path) -> None:
    def fail(_texts: Sequence[str]) -> None:
        msg = "not there"
        raise AssetsMissing(msg)

    async with opened(tmp_path, old()) as store:
        await store.add("note one")
        with pytest.raises(AssetsMissing):
            await store.reindexer.run(HashEmbedder("new-model", 4, fail), lambda _reached, _end: None)
        await unchanged(store)


async def test_cancelled_half_way_everything_is_as_it_was(tmp_path: Path) -> None:
    new = HashEmbedder("new-model", 4, gate=asyncio.Event())
    async with opened(tmp_path, old()) as store:
        await store.add("note one")
        running = asyncio.create_task(store.reindexer.run(new, lambda _reached, _end: None))
        await new.waiting.wait()
        with pytest.raises(StoreError, match="already"):
            await store.reindexer.run(HashEmbedder("third-model", 4), lambda _reached, _end: None)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await unchanged(store)


async def test_cancelled_at_the_exchange_it_is_done_as_a_whole(tmp_path: Path) -> None:
    model = old()
    async with opened(tmp_path, model) as store:
        await store.add("note one")
        model.gate = asyncio.Event()
        searching = asyncio.create_task(store.nearest("note one"))
        await model.waiting.wait()
        running = asyncio.create_task(store.reindexer.run(HashEmbedder("new-model", 8), lambda _reached, _end: None))
        while store.embedder._open.is_set():  # noqa: ASYNC110  until it waits for the search
            await asyncio.sleep(0)
        running.cancel()
        model.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        await searching
        assert store.embedder.name == "new-model"
        assert (await store.nearest("note one"))[1] > 0.5
        assert (await compare(store.ledger, store.index)).agrees


async def test_an_index_that_cannot_be_replaced_keeps_the_old_model(tmp_path: Path) -> None:
    async with opened(tmp_path, old()) as store:
        await store.add("note one")
        obstacle = tmp_path / "index" / "manifest.json.new"
        obstacle.mkdir()
        with pytest.raises(StoreError, match="could not be replaced"):
            await store.reindexer.run(HashEmbedder("new-model", 4), lambda _reached, _end: None)
        obstacle.rmdir()
        await unchanged(store)


async def test_words_alone_are_not_exchanged_for_a_model_while_serving(tmp_path: Path) -> None:
    async with opened(tmp_path, old()) as store:
        reindexer = Reindexer(ledger=store.ledger, index=store.index, indexer=store.indexer, embedder=None)
        with pytest.raises(ConfigurationError, match="agemem-mcp reindex"):
            await reindexer.run(HashEmbedder("new-model", 4), lambda _reached, _end: None)
