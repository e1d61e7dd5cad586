"""One Qdrant Edge shard: entries in, score lists out. Synchronous, for use by one thread at a time."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import qdrant_edge

from agemem_mcp.adapters import qdrant_payload as shared
from agemem_mcp.domain.memory import AnyOf, ScoreLists
from agemem_mcp.errors import AgeMemError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence
    from pathlib import Path

    from agemem_mcp.domain.memory import Condition, IndexedVersion, IndexEntry, MemoryQuery, MemoryRecord

PAGE = 256
"""Entries per page of a listing, and per step of copying: each holds the interpreter lock for a few milliseconds."""

_PROBED_POINTS = 16
# A graph for each scope large enough to need one, and none over all of them: every search is within one scope.
# At 100,000 embedded sentences in one scope it finds 1.000 of the true first ten, .993 of the first hundred.
_GRAPH = qdrant_edge.HnswIndexConfig(m=0, payload_m=16, ef_construct=128, full_scan_threshold=10_000)
# Among the entries that pass a further filter the graph is sparse; this way of walking it looks two edges far. With a
# filter that one in 12 passes it finds .991 instead of .311 of the true first ten, in 7 ms; a graph for each common
# facet would find as much in 3 ms, but takes five times as long to build.
_FILTERED = qdrant_edge.SearchParams(acorn=qdrant_edge.AcornSearchParams(enable=True, max_selectivity=1.0))
# One segment: what is searched is then one graph, and the entries that came after it.
_OPTIMIZERS = qdrant_edge.EdgeOptimizersConfig(indexing_threshold=10_000, default_segment_number=1)
_KNOWN_IDS = 100_000  # about 20 MB


class Shard:
    """An open shard, with vectors of a given length or none."""

    def __init__(self, path: Path, dimensions: int | None, open_shard: Callable[[], qdrant_edge.EdgeShard]) -> None:
        """Use :meth:`create` or :meth:`load`."""
        self.path = path
        self._dimensions = dimensions
        self._encoder = shared.SparseEncoder()
        # Which memory a point is: fixed for ever by its id, and a search then reads no payload (5 µs for each hit).
        self._memory_ids: dict[int, str] = {}
        self._shard: qdrant_edge.EdgeShard | None = open_shard()
        self._some_expire = False

    @classmethod
    def create(cls, path: Path, dimensions: int | None) -> Shard:
        """Make an empty shard in a folder that does not exist yet.

        Raises:
            StoreError: the folder cannot be written.
        """
        with translated(path, "created"):
            shard = cls(path, dimensions, lambda: qdrant_edge.EdgeShard.create(str(path), _config(dimensions)))
        try:
            with translated(path, "created"):
                shard._ensure_payload_indexes()
                shard.flush()
        except BaseException:
            shard.close()
            raise
        return shard

    @classmethod
    def load(cls, path: Path, dimensions: int | None) -> Shard:
        """Open a shard that no other process has open.

        Raises:
            StoreError: it is damaged.
        """
        with translated(path, "loaded"):
            shard = cls(path, dimensions, lambda: qdrant_edge.EdgeShard.load(str(path), _config(dimensions)))
        try:
            with translated(path, "loaded"):
                # Some damage shows only when points are read.
                probe = qdrant_edge.ScrollRequest(limit=_PROBED_POINTS, with_payload=True, with_vector=True)
                shard._open.scroll(probe)
                shard._ensure_payload_indexes()
                shard._some_expire = shard._open.info().payload_schema[shared.EXPIRY_FIELD].points > 0
        except BaseException:
            shard.close()
            raise
        return shard

    @property
    def points(self) -> int:
        """Number of entries."""
        with translated(self.path, "counted"):
            return self._open.info().points_count

    def largest_scope(self) -> int:
        """Number of entries of the scope that has most."""
        with translated(self.path, "counted"):
            hits = self._open.facet(qdrant_edge.FacetRequest(shared.SCOPE_FIELD, limit=1)).hits
        return hits[0].count if hits else 0

    def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Upsert, then delete."""
        with translated(self.path, "changed"):
            for batch in shared.batches(upserts, shared.EDGE_BATCH):
                points = [self._point(entry) for entry in batch]
                self._open.update(qdrant_edge.UpdateOperation.upsert_points(points))
            if deletes:
                ids: list[Any] = [shared.record_point_id(record) for record in deletes]
                self._open.update(qdrant_edge.UpdateOperation.delete_points(ids))

    def copy_points(self, ids: Sequence[str], source: Shard) -> None:
        """Give these points the state they have in another shard, of which this is a copy; what is not there goes."""
        with translated(self.path, "changed"):
            records = source._open.retrieve(list(ids), with_payload=True, with_vector=True)
            points = [qdrant_edge.Point(record.id, record.vector or {}, record.payload) for record in records]
            if points:
                self._open.update(qdrant_edge.UpdateOperation.upsert_points(points))
            gone: list[Any] = list(set(ids) - {str(record.id) for record in records})
            if gone:
                self._open.update(qdrant_edge.UpdateOperation.delete_points(gone))
            self._some_expire = self._some_expire or source._some_expire
            self._memory_ids = source._memory_ids

    def search(self, query: MemoryQuery) -> ScoreLists:
        """Both lists in one batch, which is planned as a whole."""
        terms = self._encoder.query(query.text)
        dense = query.vector_D is not None and self._dimensions is not None
        if query.limit < 1 or not (dense or terms):
            return ScoreLists()
        with translated(self.path, "searched"):
            scope = _scope_condition(query)
            passing = self._filter(scope, query)
            requests: list[qdrant_edge.QueryRequest] = []
            if query.vector_D is not None and dense:
                nearest = qdrant_edge.Query.Nearest(shared.components(query.vector_D), using=shared.DENSE)
                way = _FILTERED if query.conditions else None
                requests.append(qdrant_edge.QueryRequest(limit=query.limit, query=nearest, filter=passing, params=way))
            if terms:
                words = qdrant_edge.SparseVector(terms.indices, terms.values)
                nearest = qdrant_edge.Query.Nearest(words, using=shared.SPARSE)
                # How rare a word is, is counted among the scope's entries alone: other scopes must neither
                # influence the ranking nor show through it.
                corpus = qdrant_edge.IdfParams(corpus=qdrant_edge.Filter(must=[scope]))
                counted = qdrant_edge.SearchParams(idf=corpus)
                requests.append(
                    qdrant_edge.QueryRequest(limit=query.limit, query=nearest, filter=passing, params=counted)
                )
            answers = self._open.query_batch(qdrant_edge.QueryBatchRequest(requests))
            # Each id is taken once: it is made anew each time it is asked for.
            found = [[(_number(point.id), point.score) for point in points] for points in answers]
            names = self._names({number for hits in found for number, _ in hits})
        lists = [shared.ranked((names[number], score) for number, score in hits) for hits in found]
        return ScoreLists(dense=lists[0] if dense else [], sparse=lists[-1] if terms else [])

    def page(self, offset: str | None) -> tuple[list[IndexedVersion], str | None]:
        """Up to :data:`PAGE` entries from a point id on, and the point id that the next page starts with."""
        with translated(self.path, "listed"):
            fields: Any = list(shared.VERSION_FIELDS)
            request = qdrant_edge.ScrollRequest(offset=offset, limit=PAGE, with_payload=fields, with_vector=False)
            records, following = self._open.scroll(request)
            entries = [shared.indexed_version(record.payload or {}) for record in records]
        return entries, None if following is None else str(following)

    def clear(self) -> None:
        """Delete all points."""
        with translated(self.path, "emptied"):
            everything = qdrant_edge.Filter(must=[])
            self._open.update(qdrant_edge.UpdateOperation.delete_points_by_filter(everything))

    def flush(self) -> None:
        """Make everything applied so far durable.

        About 80 files are synchronised, whatever has changed, and the interpreter lock is held meanwhile: 20 ms on a
        disk that is idle, half a second on one that is not.
        """
        with translated(self.path, "flushed"):
            self._open.flush()

    def count(self) -> int:
        """Number of points."""
        with translated(self.path, "counted"):
            return self._open.count(qdrant_edge.CountRequest(exact=True))

    def close(self) -> None:
        """Close the shard; does not flush. Closing twice is allowed."""
        shard, self._shard = self._shard, None
        if shard is not None:
            with translated(self.path, "closed"):
                shard.close()

    @property
    def _open(self) -> qdrant_edge.EdgeShard:
        if self._shard is None:
            msg = "The memory index is closed."
            raise StoreError(msg)
        return self._shard

    def _ensure_payload_indexes(self) -> None:
        present = self._open.info().payload_schema
        # Graphs are built for scopes alone: one for each common facet or time as well takes several times as long.
        wanted: dict[str, Any] = {
            shared.SCOPE_FIELD: qdrant_edge.KeywordIndexParams(is_tenant=True),
            shared.FACETS_FIELD: qdrant_edge.KeywordIndexParams(enable_hnsw=False),
            **dict.fromkeys(shared.NUMBER_FIELDS, qdrant_edge.FloatIndexParams(enable_hnsw=False)),
        }
        for name, schema in wanted.items():
            if name not in present:
                self._open.update(qdrant_edge.UpdateOperation.create_field_index(name, schema))

    def _point(self, entry: IndexEntry) -> qdrant_edge.Point:
        vectors: dict[str, Any] = {}
        if entry.vector_D is not None and self._dimensions is not None:
            vectors[shared.DENSE] = shared.components(entry.vector_D)
        terms = self._encoder.document(entry.text)
        if terms is not None:
            vectors[shared.SPARSE] = qdrant_edge.SparseVector(terms.indices, terms.values)
        if entry.record.expires_at is not None:
            self._some_expire = True
        point = shared.point_uuid(entry.record.scope.key, entry.record.memory_id)
        if len(self._memory_ids) < _KNOWN_IDS:
            self._memory_ids[point.int] = entry.record.memory_id
        return qdrant_edge.Point(point, vectors, shared.payload_of(entry))

    def _filter(self, scope: qdrant_edge.FieldCondition, query: MemoryQuery) -> qdrant_edge.Filter:
        conditions: list[Any] = [scope, *(_condition(condition) for condition in query.conditions)]
        if not self._some_expire:  # asked of each entry, it would cost a third of a search
            return qdrant_edge.Filter(must=conditions)
        # Not expired by now, rather than expiring later: true of entries without the field as well.
        until = qdrant_edge.RangeFloat(lte=query.now.timestamp())
        expired = qdrant_edge.FieldCondition(shared.EXPIRY_FIELD, range=until)
        return qdrant_edge.Filter(must=conditions, must_not=[expired])

    def _names(self, numbers: Collection[int]) -> dict[int, str]:
        """The memory ids of points."""
        known = self._memory_ids
        unknown = [number for number in numbers if number not in known]
        if unknown:
            if len(known) + len(unknown) > _KNOWN_IDS:
                # Begun anew; what this search needs of the old is read again.
                known.clear()
                unknown = list(numbers)
            ids: list[Any] = [UUID(int=number) for number in unknown]
            for record in self._open.retrieve(ids, with_payload=[shared.ID_FIELD], with_vector=False):
                known[_number(record.id)] = str((record.payload or {})[shared.ID_FIELD])
        return known


@contextmanager
def translated(path: Path, doing: str) -> Generator[None]:
    """Translate what the library raises: bare ``Exception`` and, on some damage, a Rust panic."""
    try:
        yield
    except AgeMemError:
        raise
    except BaseException as error:  # a panic is no Exception; the worker thread gets no KeyboardInterrupt
        msg = (
            f"The memory index in {path.parent} could not be {doing}: {error}. If this persists, stop the server and "
            "move that folder away: the index is then rebuilt from the ledger, and nothing is lost."
        )
        raise StoreError(msg) from error


def _config(dimensions: int | None) -> qdrant_edge.EdgeConfig:
    vectors: dict[str, qdrant_edge.EdgeVectorParams] = {}
    if dimensions is not None:
        vectors[shared.DENSE] = qdrant_edge.EdgeVectorParams(dimensions, qdrant_edge.Distance.Cosine)
    sparse = qdrant_edge.EdgeSparseVectorParams(modifier=qdrant_edge.Modifier.Idf)
    return qdrant_edge.EdgeConfig(
        vectors=vectors, sparse_vectors={shared.SPARSE: sparse}, hnsw_config=_GRAPH, optimizers=_OPTIMIZERS
    )


def _number(point_id: int | str | UUID) -> int:
    return point_id.int if isinstance(point_id, UUID) else UUID(str(point_id)).int


def _scope_condition(query: MemoryQuery) -> qdrant_edge.FieldCondition:
    return qdrant_edge.FieldCondition(shared.SCOPE_FIELD, match=qdrant_edge.MatchValue(shared.keyword(query.scope.key)))


def _condition(condition: Condition) -> qdrant_edge.FieldCondition:
    if isinstance(condition, AnyOf):
        wanted = [shared.keyword(facet) for facet in condition.facets]
        return qdrant_edge.FieldCondition(shared.FACETS_FIELD, match=qdrant_edge.MatchAny(wanted))
    bounds = qdrant_edge.RangeFloat(gt=condition.gt, gte=condition.gte, lt=condition.lt, lte=condition.lte)
    return qdrant_edge.FieldCondition(f"numbers.{condition.key}", range=bounds)
