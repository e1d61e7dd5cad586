"""The memory index inside this process: a Qdrant Edge shard in a folder of its own.

The folder's lock is taken before the shard is touched: an attempt to load a shard that another
process has open corrupts that process's next flush, even though the attempt is refused.

The shard is used from one worker thread. It is a synchronous library; a hop costs 0.04 ms, and the
event loop gets its turn between two calls. (Version 0.9 keeps the interpreter lock during a call, so
a single slow call, such as a flush of 30-100 ms, is still felt.)
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import qdrant_edge

from agemem_mcp.adapters import qdrant_payload as shared
from agemem_mcp.adapters.qdrant_folder import DamagedIndexError, IndexFolder, Manifest
from agemem_mcp.domain.memory import AnyOf, ScoreLists
from agemem_mcp.errors import AgeMemError, ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from agemem_mcp.domain.memory import Condition, IndexEntry, MemoryQuery, MemoryRecord, ScoredId

T = TypeVar("T")

_PROBED_POINTS = 16


class QdrantEdgeIndex:
    """A :class:`~agemem_mcp.domain.ports.MemoryIndex` on disk, for one process."""

    def __init__(self, store: _Shard, worker: ThreadPoolExecutor) -> None:
        """Use :meth:`open`."""
        self._store = store
        self._worker = worker
        self._closed = False

    @classmethod
    async def open(cls, directory: Path, *, embedding: str, dimensions: int | None, ledger_id: str) -> QdrantEdgeIndex:
        """Open the index in ``directory``, or make a new one.

        A damaged index, or one of another ledger, is set aside next to the folder and replaced by an
        empty one, whose :meth:`flushed_seq` is 0: the caller fills it from the ledger.

        Args:
            directory: a folder for this index alone.
            embedding: name of the embedding model, or of its absence.
            dimensions: length of its vectors; ``None`` for an index of words alone.
            ledger_id: identity of the ledger the entries come from.

        Raises:
            StoreError: another process has the index open.
            ConfigurationError: it was made with another embedding model or a newer program, or the
                folder cannot be written.
        """
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-index")
        wanted = Manifest(embedding=embedding, dimensions=dimensions, ledger_id=ledger_id)
        opening = worker.submit(_Shard.open, directory, wanted)
        try:
            store = await asyncio.wrap_future(opening)
        except BaseException:
            # Cancelled while the thread was still opening: without this the lock would stay held.
            worker.submit(_abandon, opening)
            worker.shutdown(wait=False)
            raise
        return cls(store, worker)

    async def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Put the present state of entries in; survives the end of this process, not a power cut."""
        if upserts or deletes:
            await self._run(lambda: self._store.apply(upserts, deletes))

    async def search(self, query: MemoryQuery) -> ScoreLists:
        """Find candidates within the query's scope."""
        return await self._run(lambda: self._store.search(query))

    async def flushed_seq(self) -> int:
        """The ledger position up to which everything is known to be on stable storage."""
        return await self._run(lambda: self._store.manifest.flushed_seq)

    async def flush(self, seq: int) -> None:
        """Make everything applied so far durable and remember that it reaches ``seq``."""
        await self._run(lambda: self._store.flush(seq))

    async def count(self) -> int:
        """Number of entries over all scopes."""
        return await self._run(self._store.count)

    async def clear(self) -> None:
        """Drop every entry, and remember at once that the index is at the ledger's beginning."""
        await self._run(self._store.clear)

    async def close(self) -> None:
        """Release the shard and the lock; does not flush. Closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        closing = self._worker.submit(self._store.close)
        self._worker.shutdown(wait=False)
        await asyncio.wrap_future(closing)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            msg = "The memory index is closed."
            raise StoreError(msg)
        # Shielded: a caller that gives up must not take a queued change back, which a later flush would
        # then wrongly count as applied.
        return await asyncio.shield(asyncio.wrap_future(self._worker.submit(work)))


class _Shard:
    """The shard in its folder; synchronous, for use by one thread at a time."""

    def __init__(self, folder: IndexFolder, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._encoder = shared.SparseEncoder()
        self._shard: qdrant_edge.EdgeShard | None = None

    @classmethod
    def open(cls, directory: Path, wanted: Manifest) -> _Shard:
        """Lock the folder and load or create the shard."""
        try:
            shard = cls(IndexFolder(directory), wanted)
            try:
                shard._load_or_create(wanted)
            except BaseException:
                shard.close()
                raise
        except OSError as error:
            msg = (
                f"The memory index in {directory} cannot be used: {error}. Make the folder writable or choose another."
            )
            raise ConfigurationError(msg) from error
        return shard

    def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Upsert, then delete."""
        with self._translated("stored"):
            self.folder.mark_changed()
            for batch in shared.batches(shared.latest(upserts), shared.EDGE_BATCH):
                points = [self._point(entry) for entry in batch]
                self._open.update(qdrant_edge.UpdateOperation.upsert_points(points))
            if deletes:
                ids: list[Any] = [shared.record_point_id(record) for record in deletes]
                self._open.update(qdrant_edge.UpdateOperation.delete_points(ids))

    def search(self, query: MemoryQuery) -> ScoreLists:
        """Both lists in one batch, which is planned as a whole."""
        terms = self._encoder.query(query.text)
        dense = query.vector_D is not None and self.manifest.dimensions is not None
        if query.limit < 1 or not (dense or terms):
            return ScoreLists()
        with self._translated("searched"):
            requests: list[qdrant_edge.QueryRequest] = []
            if query.vector_D is not None and dense:
                nearest = qdrant_edge.Query.Nearest(shared.components(query.vector_D), using=shared.DENSE)
                requests.append(_request(nearest, query))
            if terms:
                words = qdrant_edge.SparseVector(terms.indices, terms.values)
                nearest = qdrant_edge.Query.Nearest(words, using=shared.SPARSE)
                # How rare a word is, is counted among the scope's entries alone: other scopes must neither
                # influence the ranking nor show through it.
                corpus = qdrant_edge.Filter(must=[_scope_condition(query)])
                idf = qdrant_edge.SearchParams(idf=qdrant_edge.IdfParams(corpus=corpus))
                requests.append(_request(nearest, query, idf))
            found = [_hits(points) for points in self._open.query_batch(qdrant_edge.QueryBatchRequest(requests))]
        return ScoreLists(dense=found[0] if dense else [], sparse=found[-1] if terms else [])

    def clear(self) -> None:
        """Delete all points."""
        with self._translated("emptied"):
            self.folder.mark_changed()
            everything = qdrant_edge.Filter(must=[])
            self._open.update(qdrant_edge.UpdateOperation.delete_points_by_filter(everything))
        self.flush(0)

    def flush(self, seq: int) -> None:
        """Flush the shard first: a manifest ahead of it would hide lost entries from the replay."""
        with self._translated("flushed"):
            self._open.flush()
            self._write_manifest(seq)

    def count(self) -> int:
        """Number of points."""
        with self._translated("counted"):
            return self._open.count(qdrant_edge.CountRequest(exact=True))

    def close(self) -> None:
        """Close the shard, then give the lock back."""
        try:
            if self._shard is not None:
                with self._translated("closed"):
                    self._shard.close()
        finally:
            self._shard = None
            self.folder.release()

    @property
    def _open(self) -> qdrant_edge.EdgeShard:
        if self._shard is None:
            msg = "The memory index is closed."
            raise StoreError(msg)
        return self._shard

    def _load_or_create(self, wanted: Manifest) -> None:
        if not self.folder.is_new:
            try:
                self._load(wanted)
            except DamagedIndexError as damage:
                if self._shard is not None:
                    with suppress(StoreError), self._translated("closed"):
                        self._shard.close()
                    self._shard = None
                self.folder.set_aside(str(damage))
            else:
                return
        self.manifest = wanted
        self._create()

    def _load(self, wanted: Manifest) -> None:
        self.manifest = self.folder.read_manifest()
        if self.manifest.ledger_id != wanted.ledger_id:
            msg = "it belongs to another ledger"
            raise DamagedIndexError(msg)
        if (self.manifest.embedding, self.manifest.dimensions) != (wanted.embedding, wanted.dimensions):
            msg = (
                f"The memory index in {self.folder.directory} was made with the embedding {self.manifest.made_with}, "
                f"but {wanted.made_with} is configured. Set AGEMEM_EMBEDDING back to {self.manifest.embedding!r}, or "
                "move that folder away: the index is then rebuilt from the ledger, and nothing is lost."
            )
            raise ConfigurationError(msg)
        try:
            with self._translated("loaded"):
                self._shard = qdrant_edge.EdgeShard.load(str(self.folder.shard), _shard_config(wanted))
                # Some damage shows only when points are read.
                probe = qdrant_edge.ScrollRequest(limit=_PROBED_POINTS, with_payload=True, with_vector=True)
                self._shard.scroll(probe)
                self._ensure_payload_indexes()
                points = self._shard.info().points_count
        except StoreError as error:
            raise DamagedIndexError(str(error.__cause__ or error)) from error
        if points != self.manifest.points and not self.folder.is_changed:
            msg = f"it holds {points} entries where {self.manifest.points} were flushed"
            raise DamagedIndexError(msg)

    def _create(self) -> None:
        with self._translated("created"):
            self._shard = qdrant_edge.EdgeShard.create(str(self.folder.shard), _shard_config(self.manifest))
            self._ensure_payload_indexes()
            self._shard.flush()
            # Last: a folder without a manifest is half created, and set aside at the next start.
            self._write_manifest(0)

    def _write_manifest(self, flushed_seq: int) -> None:
        points = self._open.info().points_count
        self.manifest = self.manifest.model_copy(update={"flushed_seq": flushed_seq, "points": points})
        self.folder.write_manifest(self.manifest)

    def _ensure_payload_indexes(self) -> None:
        present = self._open.info().payload_schema
        wanted: dict[str, Any] = {
            shared.SCOPE_FIELD: qdrant_edge.KeywordIndexParams(is_tenant=True),
            shared.FACETS_FIELD: qdrant_edge.KeywordIndexParams(),
            **dict.fromkeys(shared.NUMBER_FIELDS, qdrant_edge.PayloadSchemaType.Float),
        }
        for name, schema in wanted.items():
            if name not in present:
                self._open.update(qdrant_edge.UpdateOperation.create_field_index(name, schema))

    def _point(self, entry: IndexEntry) -> qdrant_edge.Point:
        vectors: dict[str, Any] = {}
        if entry.vector_D is not None and self.manifest.dimensions is not None:
            vectors[shared.DENSE] = shared.components(entry.vector_D)
        terms = self._encoder.document(entry.text)
        if terms is not None:
            vectors[shared.SPARSE] = qdrant_edge.SparseVector(terms.indices, terms.values)
        return qdrant_edge.Point(shared.record_point_id(entry.record), vectors, shared.payload_of(entry))

    @contextmanager
    def _translated(self, doing: str) -> Generator[None]:
        """Translate what the library raises: bare ``Exception`` and, on some damage, a Rust panic."""
        try:
            yield
        except AgeMemError:
            raise
        except BaseException as error:  # a panic is no Exception; this thread gets no KeyboardInterrupt
            msg = (
                f"The memory index in {self.folder.directory} could not be {doing}: {error}. If this persists, stop "
                "the server and move that folder away: the index is then rebuilt from the ledger, and nothing is lost."
            )
            raise StoreError(msg) from error


def _abandon(opening: Future[_Shard]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _shard_config(manifest: Manifest) -> qdrant_edge.EdgeConfig:
    vectors: dict[str, qdrant_edge.EdgeVectorParams] = {}
    if manifest.dimensions is not None:
        vectors[shared.DENSE] = qdrant_edge.EdgeVectorParams(manifest.dimensions, qdrant_edge.Distance.Cosine)
    sparse = qdrant_edge.EdgeSparseVectorParams(modifier=qdrant_edge.Modifier.Idf)
    return qdrant_edge.EdgeConfig(vectors=vectors, sparse_vectors={shared.SPARSE: sparse})


def _request(
    nearest: qdrant_edge.Query, query: MemoryQuery, params: qdrant_edge.SearchParams | None = None
) -> qdrant_edge.QueryRequest:
    # Not expired by now, rather than expiring later: true of entries without the field as well.
    expired = qdrant_edge.FieldCondition(shared.EXPIRY_FIELD, range=qdrant_edge.RangeFloat(lte=query.now.timestamp()))
    conditions: list[Any] = [_scope_condition(query), *(_condition(condition) for condition in query.conditions)]
    return qdrant_edge.QueryRequest(
        limit=query.limit,
        query=nearest,
        filter=qdrant_edge.Filter(must=conditions, must_not=[expired]),
        params=params,
        with_payload=[shared.ID_FIELD],
    )


def _scope_condition(query: MemoryQuery) -> qdrant_edge.FieldCondition:
    return qdrant_edge.FieldCondition(shared.SCOPE_FIELD, match=qdrant_edge.MatchValue(shared.keyword(query.scope.key)))


def _condition(condition: Condition) -> qdrant_edge.FieldCondition:
    if isinstance(condition, AnyOf):
        wanted = [shared.keyword(facet) for facet in condition.facets]
        return qdrant_edge.FieldCondition(shared.FACETS_FIELD, match=qdrant_edge.MatchAny(wanted))
    bounds = qdrant_edge.RangeFloat(gt=condition.gt, gte=condition.gte, lt=condition.lt, lte=condition.lte)
    return qdrant_edge.FieldCondition(f"numbers.{condition.key}", range=bounds)


def _hits(points: Sequence[qdrant_edge.ScoredPoint]) -> list[ScoredId]:
    return shared.ranked((str((point.payload or {})[shared.ID_FIELD]), point.score) for point in points)
