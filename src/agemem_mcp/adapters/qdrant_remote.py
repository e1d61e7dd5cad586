"""The memory index on a Qdrant server, version 1.19 or newer.

Older servers ignore the request to count word frequencies within one scope, so that what other
scopes hold would influence a scope's ranking; they are refused.

What the collection was made with, and how far it reaches in the ledger, lies in its metadata. A
server has no call to flush: updates are waited for, and how they survive a power cut is the server's
affair. On several shards IDF is per shard; give the collection one shard to have it over the scope.

``AsyncQdrantClient(":memory:")`` works as well, for tests: it searches exactly, supports the IDF
corpus and the metadata, has no payload indexes, and blocks the event loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qdrant_client import AsyncQdrantClient, models

from agemem_mcp.adapters import qdrant_payload as shared
from agemem_mcp.adapters.qdrant_server import Server, described
from agemem_mcp.domain.memory import AnyOf, ScoreLists
from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from agemem_mcp.domain.memory import Condition, IndexedVersion, IndexEntry, MemoryQuery, MemoryRecord, ScoredId
    from agemem_mcp.domain.ports import MemoryIndex

_PAGE = 1000


class QdrantRemoteIndex:
    """A :class:`~agemem_mcp.domain.ports.MemoryIndex` in one collection of a Qdrant server."""

    def __init__(self, server: Server, *, dimensions: int | None, owns_client: bool) -> None:
        """Use :meth:`connect` or :meth:`open`."""
        self._server = server
        self._client = server.client
        self._collection = server.collection
        self._dimensions = dimensions
        self._owns_client = owns_client
        self._encoder = shared.SparseEncoder()
        self._closed = False

    @classmethod
    async def connect(  # noqa: PLR0913  one keyword per setting
        cls,
        url: str,
        *,
        api_key: str | None,
        collection: str,
        embedding: str,
        dimensions: int | None,
        ledger_id: str,
        timeout_s: int = 10,
    ) -> QdrantRemoteIndex:
        """Open the index on the server at ``url``; see :meth:`open`."""
        # The host alone: an address can carry a password.
        name = f"Qdrant at {urlsplit(url).hostname or 'the configured address'}"
        try:
            # The client's own compatibility check would make a blocking request from the constructor.
            client = AsyncQdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False)
        except ValueError as error:
            msg = f"{name}: the address cannot be used ({error}). It looks like http://localhost:6333."
            raise ConfigurationError(msg) from error
        server = Server(client, collection, name=name, api_key=api_key)
        try:
            await server.prepare(embedding=embedding, dimensions=dimensions, ledger_id=ledger_id)
        except BaseException:
            await client.close()
            raise
        return cls(server, dimensions=dimensions, owns_client=True)

    @classmethod
    async def open(
        cls,
        client: AsyncQdrantClient,
        *,
        collection: str,
        embedding: str,
        dimensions: int | None,
        ledger_id: str,
    ) -> QdrantRemoteIndex:
        """Open the index through a client, which stays the caller's; create the collection when absent.

        Args:
            client: where the collection is.
            collection: its name; it must be this ledger's alone.
            embedding: name of the embedding model, or of its absence.
            dimensions: length of its vectors; ``None`` for an index of words alone.
            ledger_id: identity of the ledger the entries come from.

        Raises:
            StoreError: the server cannot be reached or failed.
            ConfigurationError: it is too old, refuses the API key, or the collection was made with
                another embedding model, for another ledger, or by another program.
        """
        server = Server(client, collection, name="Qdrant", api_key=None)
        await server.prepare(embedding=embedding, dimensions=dimensions, ledger_id=ledger_id)
        return cls(server, dimensions=dimensions, owns_client=False)

    async def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Put the present state of entries in; returns when the server has applied it."""
        self._require_open()
        for batch in shared.batches(shared.latest(upserts), shared.REMOTE_BATCH):
            points = await asyncio.to_thread(self._points, batch)
            with self._server.translated("store memories"):
                await self._client.upsert(self._collection, points=points, wait=True)
        for gone in shared.batches(deletes, shared.REMOTE_BATCH):
            ids: list[Any] = [shared.record_point_id(record) for record in gone]
            with self._server.translated("delete memories"):
                selector = models.PointIdsList(points=ids)
                await self._client.delete(self._collection, points_selector=selector, wait=True)

    async def search(self, query: MemoryQuery) -> ScoreLists:
        """Find candidates within the query's scope; both lists in one request."""
        self._require_open()
        terms = self._encoder.query(query.text)
        dense = query.vector_D is not None and self._dimensions is not None
        if query.limit < 1 or not (dense or terms):
            return ScoreLists()
        requests: list[models.QueryRequest] = []
        if query.vector_D is not None and dense:
            requests.append(_request(shared.components(query.vector_D), shared.DENSE, query))
        if terms:
            # How rare a word is, is counted among the scope's entries alone: other scopes must neither
            # influence the ranking nor show through it.
            corpus = models.IdfCorpusParams(corpus=models.Filter(must=[_scope_condition(query)]))
            words = models.SparseVector(indices=terms.indices, values=terms.values)
            requests.append(_request(words, shared.SPARSE, query, models.SearchParams(idf=corpus)))
        with self._server.translated("search memories"):
            responses = await self._client.query_batch_points(self._collection, requests=requests)
        found = [_hits(response.points) for response in responses]
        return ScoreLists(dense=found[0] if dense else [], sparse=found[-1] if terms else [])

    async def flushed_seq(self) -> int:
        """The ledger position that was last recorded in the collection."""
        self._require_open()
        metadata = await self._server.metadata()
        return int(metadata.get("flushed_seq", 0))

    async def flush(self, seq: int) -> None:
        """Record that everything applied reaches ``seq``."""
        self._require_open()
        with self._server.translated("record the ledger position"):
            await self._client.update_collection(self._collection, metadata={"flushed_seq": seq})

    async def count(self) -> int:
        """Number of entries over all scopes."""
        self._require_open()
        with self._server.translated("count memories"):
            return (await self._client.count(self._collection, exact=True)).count

    async def entries(self) -> AsyncIterator[list[IndexedVersion]]:
        """Which version of which entry it holds, page by page."""
        offset: Any = None
        while True:
            self._require_open()
            with self._server.translated("list memories"):
                records, offset = await self._client.scroll(
                    self._collection,
                    limit=_PAGE,
                    offset=offset,
                    with_payload=list(shared.VERSION_FIELDS),
                    with_vectors=False,
                )
            if records:
                yield [shared.indexed_version(record.payload or {}) for record in records]
            if offset is None:
                return

    async def clear(self) -> None:
        """Drop every entry, and remember at once that the index is at the ledger's beginning."""
        self._require_open()
        with self._server.translated("delete memories"):
            selector = models.FilterSelector(filter=models.Filter())
            await self._client.delete(self._collection, points_selector=selector, wait=True)
        await self.flush(0)

    async def optimise_if_needed(self) -> None:
        """Nothing: a server optimises by itself."""

    async def successor(self, *, embedding: str, dimensions: int | None) -> MemoryIndex:
        """Not offered: see the error.

        Raises:
            ConfigurationError: always.
        """
        msg = (
            f"The index on a Qdrant server cannot be made anew for the embedding {described(embedding, dimensions)} "
            f"beside collection {self._collection!r}. Set AGEMEM_QDRANT_COLLECTION to a new name and AGEMEM_EMBEDDING "
            "to the model, and restart: that collection is then filled from the ledger, and nothing is lost."
        )
        raise ConfigurationError(msg)

    async def replace_by(self, successor: MemoryIndex) -> None:
        """Not possible, as there is no successor.

        Raises:
            StoreError: always.
        """
        msg = f"{successor!r} is no successor of collection {self._collection!r}."
        raise StoreError(msg)

    async def close(self) -> None:
        """Close the connection, unless the client is the caller's. Closing twice is allowed."""
        if not self._closed:
            self._closed = True
            if self._owns_client:
                await self._client.close()

    def _require_open(self) -> None:
        if self._closed:
            msg = "The memory index is closed."
            raise StoreError(msg)

    def _points(self, entries: Sequence[IndexEntry]) -> list[models.PointStruct]:
        return [self._point(entry) for entry in entries]

    def _point(self, entry: IndexEntry) -> models.PointStruct:
        vectors: dict[str, Any] = {}
        if entry.vector_D is not None and self._dimensions is not None:
            vectors[shared.DENSE] = shared.components(entry.vector_D)
        terms = self._encoder.document(entry.text)
        if terms is not None:
            vectors[shared.SPARSE] = models.SparseVector(indices=terms.indices, values=terms.values)
        payload = shared.payload_of(entry)
        return models.PointStruct(id=shared.record_point_id(entry.record), vector=vectors, payload=payload)


def _request(
    vector: list[float] | models.SparseVector, using: str, query: MemoryQuery, params: models.SearchParams | None = None
) -> models.QueryRequest:
    # Not expired by now, rather than expiring later: true of entries without the field as well.
    expired = models.FieldCondition(key=shared.EXPIRY_FIELD, range=models.Range(lte=query.now.timestamp()))
    conditions: list[Any] = [_scope_condition(query), *(_condition(condition) for condition in query.conditions)]
    return models.QueryRequest(
        query=vector,
        using=using,
        filter=models.Filter(must=conditions, must_not=[expired]),
        params=params,
        limit=query.limit,
        with_payload=[shared.ID_FIELD],
    )


def _scope_condition(query: MemoryQuery) -> models.FieldCondition:
    scope = shared.keyword(query.scope.key)
    return models.FieldCondition(key=shared.SCOPE_FIELD, match=models.MatchValue(value=scope))


def _condition(condition: Condition) -> models.FieldCondition:
    if isinstance(condition, AnyOf):
        wanted = [shared.keyword(facet) for facet in condition.facets]
        return models.FieldCondition(key=shared.FACETS_FIELD, match=models.MatchAny(any=wanted))
    bounds = models.Range(gt=condition.gt, gte=condition.gte, lt=condition.lt, lte=condition.lte)
    return models.FieldCondition(key=f"numbers.{condition.key}", range=bounds)


def _hits(points: Sequence[models.ScoredPoint]) -> list[ScoredId]:
    return shared.ranked((str((point.payload or {})[shared.ID_FIELD]), point.score) for point in points)
