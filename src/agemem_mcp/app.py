"""The composition root: settings in, a working memory service out."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.domain.limits import Retention
from agemem_mcp.domain.modes import FilterMode
from agemem_mcp.errors import AgeMemError, ConfigurationError
from agemem_mcp.service.gate import Progress, ServiceGate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from agemem_mcp.adapters.assets import AssetProgress, AssetStore
    from agemem_mcp.adapters.data_folder import DataFolder
    from agemem_mcp.adapters.embedding import VectorCache
    from agemem_mcp.adapters.ledger import SqliteLedger
    from agemem_mcp.adapters.models import Models
    from agemem_mcp.adapters.sessions import SqliteSessionStore
    from agemem_mcp.domain.ports import Clock, Embedder, IdSource, MemoryIndex, Summarizer, TokenCounter
    from agemem_mcp.service.archive import MemoryArchive, SessionArchive
    from agemem_mcp.service.current_embedder import CurrentEmbedder
    from agemem_mcp.service.indexing import Indexer
    from agemem_mcp.service.long_term import LongTermMemory
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.service.short_term import ShortTermMemory
    from agemem_mcp.service.upkeep import Upkeep
    from agemem_mcp.settings import Settings

log = structlog.get_logger(__name__)

_PURGE_INTERVAL_S = 3600.0


def asset_store(settings: Settings) -> AssetStore:
    """The store of model and tokenizer files."""
    from agemem_mcp.adapters.assets import AssetStore

    return AssetStore(settings.assets_dir)


def needed_assets(settings: Settings) -> list[str]:
    """Which of the files that ``assets pull`` fetches these settings need."""
    from agemem_mcp.adapters.assets import MODEL, TOKENS

    needed = [MODEL] if settings.embedding_path is None and settings.embedding != "none" else []
    return [*needed, TOKENS] if settings.context.tokenizer == TOKENS else needed


@asynccontextmanager
async def open_service(  # noqa: PLR0913  what tests, training and owners set
    settings: Settings,
    *,
    clock: Clock | None = None,
    ids: IdSource | None = None,
    vectors: VectorCache | None = None,
    locked: bool = False,
    rebuild_index: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> AsyncGenerator[MemoryService]:
    """Open everything the settings name; close and flush it on exit.

    Args:
        settings: what to open.
        locked: the caller holds the data folder's lock.
        rebuild_index: fill the index anew from the ledger, whatever model it was made with.
        clock: another clock than the system's, for tests and training.
        ids: another source of ids than the settings', for tests and training.
        vectors: remembers embeddings beyond this service's life, for training.
        on_progress: called, perhaps from another thread, while files are being fetched.

    Raises:
        AgeMemError: something cannot be opened; nothing stored was changed.
    """
    # Imported here: a server answers its handshake before any of this is loaded.
    from agemem_mcp.adapters.data_folder import DataFolder
    from agemem_mcp.adapters.system import RandomIds, SequentialIds, SystemClock
    from agemem_mcp.adapters.tokens import load_token_counter
    from agemem_mcp.service.maintenance import Maintenance
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.service.reindexing import Reindexer

    sources = _Sources(
        clock or SystemClock(), ids or (SequentialIds if settings.ids == "sequential" else RandomIds)(settings.seed)
    )
    folder = DataFolder(settings.data_dir)
    async with AsyncExitStack() as stack:
        folder.prepare()
        if not locked:
            stack.callback(folder.lock().release)
        store = await _ready_assets(settings, on_progress)
        tokens = await asyncio.to_thread(load_token_counter, settings.context.tokenizer, store.tiktoken_dir)
        models, embedder = _embedding(settings, store, vectors, stack)
        stores = await _open_stores(settings, folder, sources.clock, embedder, stack, rebuild_index=rebuild_index)
        indexer = await _caught_up(stores, embedder, stack, on_progress)
        short_term = _short_term(settings, stores, sources, embedder, tokens=tokens, stack=stack)
        long_term = _long_term(settings, stores, sources, embedder, indexer)
        purger = asyncio.create_task(_purge_now_and_then(short_term.purge_expired))
        stack.push_async_callback(_cancelled, purger)
        reindexer = Reindexer(ledger=stores.ledger, index=stores.index, indexer=indexer, embedder=embedder)
        maintenance = Maintenance(stores.ledger, stores.index, indexer, reindexer, models.exchanged)
        yield MemoryService(long_term, short_term, maintenance)


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where time and ids come from."""

    clock: Clock
    ids: IdSource


@dataclass(frozen=True, slots=True)
class _Stores:
    """What holds memories and contexts."""

    ledger: SqliteLedger
    sessions: SqliteSessionStore
    index: MemoryIndex


def _embedding(
    settings: Settings, store: AssetStore, vectors: VectorCache | None, stack: AsyncExitStack
) -> tuple[Models, CurrentEmbedder | None]:
    """The embedding model, and the place in which it can be exchanged; None for words alone."""
    from agemem_mcp.service.current_embedder import CurrentEmbedder

    models = _models(settings, store, vectors)
    stack.push_async_callback(models.close)
    embedder = None if models.present is None else CurrentEmbedder(models.present)
    models.in_use = lambda: None if embedder is None else embedder.present
    return models, embedder


async def _open_stores(  # noqa: PLR0913  what it stands on
    settings: Settings,
    folder: DataFolder,
    clock: Clock,
    embedder: Embedder | None,
    stack: AsyncExitStack,
    *,
    rebuild_index: bool,
) -> _Stores:
    from agemem_mcp.adapters.ledger import SqliteLedger
    from agemem_mcp.adapters.sessions import SqliteSessionStore

    ledger = await SqliteLedger.open(folder.ledger, clock=clock)
    stack.push_async_callback(ledger.close)
    sessions = await SqliteSessionStore.open(folder.sessions)
    stack.push_async_callback(sessions.close)
    index = await _open_index(settings, folder, ledger, embedder, rebuild=rebuild_index)
    stack.push_async_callback(index.close)
    if rebuild_index:
        await index.clear()
    return _Stores(ledger, sessions, index)


async def _caught_up(
    stores: _Stores, embedder: Embedder | None, stack: AsyncExitStack, on_progress: Callable[[Progress], None]
) -> Indexer:
    """What keeps the index at the ledger's position, once it is there."""
    from agemem_mcp.service.indexing import Indexer

    indexer = Indexer(stores.ledger, stores.index, embedder)
    await indexer.start()
    stack.push_async_callback(indexer.close)
    await indexer.replay(lambda reached, end: on_progress(Progress("bringing the index up to date", reached, end)))
    return indexer


def _short_term(  # noqa: PLR0913  what it stands on
    settings: Settings,
    stores: _Stores,
    sources: _Sources,
    embedder: Embedder | None,
    *,
    tokens: TokenCounter,
    stack: AsyncExitStack,
) -> ShortTermMemory:
    from agemem_mcp.service.relevance import DEFAULT_THETA
    from agemem_mcp.service.sessions import SessionRules, Sessions
    from agemem_mcp.service.short_term import ShortTermMemory
    from agemem_mcp.service.summarising import SummarizerChain

    mode = FilterMode.LEXICAL if embedder is None else settings.filter.mode
    rules = SessionRules(budget_tokens=settings.context.budget_tokens, lives=settings.context.lives)
    desk = Sessions(tokens=tokens, clock=sources.clock, ids=sources.ids, rules=rules)
    return ShortTermMemory(
        store=stores.sessions,
        sessions=desk,
        embedder=embedder,
        summarizers=SummarizerChain(_summarizers(settings, tokens, stack), count=desk.count),
        clock=sources.clock,
        filter_mode=mode,
        filter_theta=DEFAULT_THETA[mode] if settings.filter.theta is None else settings.filter.theta,
    )


def _long_term(
    settings: Settings, stores: _Stores, sources: _Sources, embedder: Embedder | None, indexer: Indexer
) -> LongTermMemory:
    from agemem_mcp.service.long_term import LongTermMemory

    return LongTermMemory(
        ledger=stores.ledger,
        index=stores.index,
        indexer=indexer,
        embedder=embedder,
        clock=sources.clock,
        ids=sources.ids,
        half_life=None if settings.recency_days is None else timedelta(days=settings.recency_days),
        retention=Retention.parse(settings.retention),
        quota=settings.quota.limits,
    )


@dataclass(frozen=True, slots=True)
class Archive:
    """What is stored, to be looked at."""

    memories: MemoryArchive
    sessions: SessionArchive
    ledger: SqliteLedger
    session_store: SqliteSessionStore


@asynccontextmanager
async def open_archive(settings: Settings) -> AsyncGenerator[Archive]:
    """Open ledger and sessions for reading, also while a server has the folder.

    Raises:
        ConfigurationError: there is nothing at that place.
        StoreError: a database cannot be read.
    """
    from agemem_mcp.adapters.data_folder import DataFolder
    from agemem_mcp.adapters.ledger import SqliteLedger
    from agemem_mcp.adapters.sessions import SqliteSessionStore
    from agemem_mcp.adapters.system import SystemClock
    from agemem_mcp.service.archive import MemoryArchive, SessionArchive

    folder = DataFolder(settings.data_dir)
    if not folder.has_memory:
        msg = f"There is no memory in {settings.data_dir} yet. Start `agemem-mcp serve`, or name another --data-dir."
        raise ConfigurationError(msg)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        ledger = await SqliteLedger.open(folder.ledger, clock=clock, read_only=True)
        stack.push_async_callback(ledger.close)
        sessions = await SqliteSessionStore.open(folder.sessions, read_only=True)
        stack.push_async_callback(sessions.close)
        yield Archive(MemoryArchive(ledger, clock), SessionArchive(sessions, clock), ledger, sessions)


@asynccontextmanager
async def open_upkeep(
    settings: Settings, *, clock: Clock | None = None, on_progress: Callable[[Progress], None] = lambda _: None
) -> AsyncGenerator[Upkeep]:
    """Open what is needed to look through memories, also while a server has the folder.

    Raises:
        ConfigurationError: there is nothing at that place.
        StoreError: the ledger cannot be read.
    """
    from agemem_mcp.adapters.system import SystemClock
    from agemem_mcp.service.upkeep import Upkeep

    async with open_archive(settings) as archive, AsyncExitStack() as stack:
        models = _models(settings, await _ready_assets(settings, on_progress))
        stack.push_async_callback(models.close)
        yield Upkeep(archive.ledger, models.present, clock or SystemClock())


async def _ready_assets(settings: Settings, on_progress: Callable[[Progress], None]) -> AssetStore:
    """Fetch what is missing of the files; if that fails the server still opens, and says so when they are needed."""
    from agemem_mcp.adapters.assets import pull

    store = asset_store(settings)
    missing = sorted(set(needed_assets(settings)) & set(store.missing()))
    if not missing:
        return store

    def report(progress: AssetProgress) -> None:
        on_progress(Progress(f"{progress.what}: {progress.stage}", progress.done_bytes, progress.total_bytes))

    on_progress(Progress("fetching the model and tokenizer files"))
    try:
        outcome = await asyncio.to_thread(pull, store, only=missing, hub_url=settings.hub_url, progress=report)
        outcome.raise_for_failure()
    except AgeMemError as error:
        log.warning("files could not be fetched", error=str(error))
    return store


def _models(settings: Settings, store: AssetStore, vectors: VectorCache | None = None) -> Models:
    """The embedding model of the settings, which can be exchanged for another."""
    from agemem_mcp.adapters.models import Models

    models = Models(store.model_dir, threads=settings.embedding_threads, vectors=vectors)
    folder = None if settings.embedding_path is None else str(settings.embedding_path)
    models.present = models.make(settings.embedding, folder)
    return models


def _summarizers(settings: Settings, tokens: TokenCounter, stack: AsyncExitStack) -> list[Summarizer]:
    from agemem_mcp.adapters.summarizers import EndpointSummarizer, ExtractiveSummarizer

    extractive = ExtractiveSummarizer(tokens)
    url, model, key = settings.summary.url, settings.summary.model, settings.summary.api_key
    if url is None or model is None:
        return [extractive]
    endpoint = EndpointSummarizer(url=url, model=model, api_key=None if key is None else key.get_secret_value())
    stack.push_async_callback(endpoint.close)
    return [endpoint, extractive]


async def _open_index(
    settings: Settings, folder: DataFolder, ledger: SqliteLedger, embedder: Embedder | None, *, rebuild: bool
) -> MemoryIndex:
    ledger_id = await ledger.ledger_id()
    dimensions = None if embedder is None else embedder.dimensions
    if settings.qdrant_url is None:
        from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex

        return await QdrantEdgeIndex.open(
            folder.index,
            embedding=settings.embedding,
            dimensions=dimensions,
            ledger_id=ledger_id,
            rebuild=rebuild,
        )
    from agemem_mcp.adapters.qdrant_remote import QdrantRemoteIndex

    key = settings.qdrant_api_key
    return await QdrantRemoteIndex.connect(
        settings.qdrant_url,
        api_key=None if key is None else key.get_secret_value(),
        collection=settings.qdrant_collection,
        embedding=settings.embedding,
        dimensions=dimensions,
        ledger_id=ledger_id,
    )


async def _purge_now_and_then(purge: Callable[[], Awaitable[int]]) -> None:
    while True:
        try:
            if purged := await purge():
                log.info("expired sessions purged", count=purged)
        except AgeMemError as error:
            log.warning("expired sessions could not be purged", error=str(error))
        await asyncio.sleep(_PURGE_INTERVAL_S)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def service_gate(  # noqa: PLR0913  as above
    settings: Settings,
    *,
    clock: Clock | None = None,
    ids: IdSource | None = None,
    vectors: VectorCache | None = None,
    locked: bool = False,
    rebuild_index: bool = False,
) -> ServiceGate:
    """A gate to the service of these settings, not yet opened; see :func:`open_service`."""

    def load() -> None:
        index = "qdrant_edge" if settings.qdrant_url is None else "qdrant_remote"
        for module in ("assets", "data_folder", "embedding", "ledger", index, "sessions", "summarizers", "tokens"):
            import_module(f"agemem_mcp.adapters.{module}")
        import_module("agemem_mcp.service.memory_service")

    def open_(note: Callable[[Progress], None]) -> AbstractAsyncContextManager[MemoryService]:
        return open_service(
            settings,
            clock=clock,
            ids=ids,
            vectors=vectors,
            locked=locked,
            rebuild_index=rebuild_index,
            on_progress=note,
        )

    # Loading takes the better part of a second: in a thread it holds up nobody's handshake.
    return ServiceGate(open_, prepare=load)
