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
import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from agemem_mcp.adapters import qdrant_payload as shared
from agemem_mcp.domain.memory import AnyOf, ScoreLists
from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence

    from agemem_mcp.domain.memory import Condition, IndexedVersion, IndexEntry, MemoryQuery, MemoryRecord, ScoredId

_OLDEST_SERVER = (1, 19)
_LONGEST_DETAIL = 300
_PAGE = 1000
# ValueError is how local mode and the client's own checks report, say, a collection that is gone.
_VENDOR_ERRORS = (ApiException, QdrantException, ValueError)


log = structlog.get_logger(__name__)


class QdrantRemoteIndex:
    """A :class:`~agemem_mcp.domain.ports.MemoryIndex` in one collection of a Qdrant server."""

    def __init__(self, server: _Server, *, dimensions: int | None, owns_client: bool) -> None:
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
        server = _Server(client, collection, name=name, api_key=api_key)
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
        server = _Server(client, collection, name="Qdrant", api_key=None)
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


class _Server:
    """The collection on its server, and what its errors mean."""

    def __init__(self, client: AsyncQdrantClient, collection: str, *, name: str, api_key: str | None) -> None:
        self.client = client
        self.collection = collection
        self._name = name
        self._api_key = api_key

    async def prepare(self, *, embedding: str, dimensions: int | None, ledger_id: str) -> None:
        """Create the collection when absent, and check that it is ours."""
        await self._check_version()
        made_with = {
            "schema_version": shared.SCHEMA_VERSION,
            "embedding": embedding,
            "dimensions": dimensions,
            "ledger_id": ledger_id,
        }
        with self.translated("open the collection"):
            if await self.client.collection_exists(self.collection):
                await self._remove_outdated(made_with)
            if not await self.client.collection_exists(self.collection):
                await self._create(dimensions, {**made_with, "flushed_seq": 0})
        self._check_made_with(await self.metadata(), made_with)
        with self.translated("index the collection's fields"):
            await self._ensure_payload_indexes()

    async def metadata(self) -> dict[str, Any]:
        """What is recorded with the collection."""
        with self.translated("read the collection's metadata"):
            info = await self.client.get_collection(self.collection)
        return dict(info.config.metadata or {})

    @contextmanager
    def translated(self, doing: str) -> Generator[None]:
        """Translate vendor errors; the API key never gets into the text."""
        try:
            yield
        except _VENDOR_ERRORS as error:
            detail = _detail(error)
            if self._api_key:
                detail = detail.replace(self._api_key, "***")
            if isinstance(error, UnexpectedResponse) and error.status_code in {401, 403}:
                msg = f"{self._name} does not let us {doing}: {detail}. Check the API key and what it may do."
                raise ConfigurationError(msg) from error
            msg = f"{self._name} failed to {doing} in collection {self.collection!r}: {detail}."
            raise StoreError(msg) from error

    async def _check_version(self) -> None:
        with self.translated("tell its version"):
            version = (await self.client.info()).version
        numbers = re.match(r"v?(\d+)\.(\d+)", version)
        if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST_SERVER:
            needed = ".".join(map(str, _OLDEST_SERVER))
            msg = f"{self._name} is version {version}, older than {needed}. Update it, or use the embedded index."
            raise ConfigurationError(msg)

    async def _create(self, dimensions: int | None, metadata: dict[str, Any]) -> None:
        vectors: dict[str, models.VectorParams] = {}
        if dimensions is not None:
            vectors[shared.DENSE] = models.VectorParams(size=dimensions, distance=models.Distance.COSINE)
        try:
            await self.client.create_collection(
                self.collection,
                vectors_config=vectors,
                sparse_vectors_config={shared.SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                # Every search is within one scope: a graph per scope, and none over all of them.
                hnsw_config=models.HnswConfigDiff(m=0, payload_m=16),
                # Hosted servers refuse filters on fields without an index; metadata can have any field.
                strict_mode_config=models.StrictModeConfig(unindexed_filtering_retrieve=True),
                metadata=metadata,
            )
        except _VENDOR_ERRORS:
            # Another process may have created it since we looked; then it is checked like any other.
            if not await self.client.collection_exists(self.collection):
                raise

    async def _remove_outdated(self, wanted: dict[str, Any]) -> None:
        """Remove a collection that an older version made of the same ledger with the same embedding."""
        found = await self.metadata()
        version = found.get("schema_version")
        older = isinstance(version, int) and version < shared.SCHEMA_VERSION
        if older and all(found.get(key) == wanted[key] for key in ("ledger_id", "embedding", "dimensions")):
            log.info("memory_index_rebuilt", collection=self.collection, schema_version=version)
            await self.client.delete_collection(self.collection)

    def _check_made_with(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        where = f"Collection {self.collection!r} of {self._name}"
        rebuild = (
            "choose another collection name (AGEMEM_QDRANT_COLLECTION): it is then filled from the ledger, "
            "and nothing is lost"
        )
        version = found.get("schema_version")
        if not isinstance(version, int):
            msg = f"{where} was not made by agemem-mcp. Please {rebuild}."
            raise ConfigurationError(msg)
        if version != wanted["schema_version"]:
            msg = (
                f"{where} has index schema {version}, this version of agemem-mcp needs {wanted['schema_version']}. "
                f"Use the version that made it, or {rebuild}."
            )
            raise ConfigurationError(msg)
        if found.get("ledger_id") != wanted["ledger_id"]:
            msg = f"{where} belongs to another ledger. Please {rebuild}."
            raise ConfigurationError(msg)
        made, configured = ((data.get("embedding"), data.get("dimensions")) for data in (found, wanted))
        if made != configured:
            msg = (
                f"{where} was made with the embedding {_described(*made)}, but {_described(*configured)} is "
                f"configured. Set AGEMEM_EMBEDDING back to {made[0]!r}, or {rebuild}."
            )
            raise ConfigurationError(msg)

    async def _ensure_payload_indexes(self) -> None:
        keyword = models.KeywordIndexType.KEYWORD
        wanted: dict[str, Any] = {
            shared.SCOPE_FIELD: models.KeywordIndexParams(type=keyword, is_tenant=True),
            shared.FACETS_FIELD: models.KeywordIndexParams(type=keyword),
            **dict.fromkeys(shared.NUMBER_FIELDS, models.PayloadSchemaType.FLOAT),
        }
        present = (await self.client.get_collection(self.collection)).payload_schema
        for name, schema in wanted.items():
            if name not in present:
                await self.client.create_payload_index(self.collection, name, field_schema=schema, wait=True)


def _detail(error: Exception) -> str:
    if isinstance(error, UnexpectedResponse):
        try:
            text = str(json.loads(error.content)["status"]["error"])
        except (ValueError, LookupError, TypeError):
            text = error.reason_phrase
        text = f"HTTP {error.status_code}, {text}"
    else:
        source = getattr(error, "source", error)
        text = f"{type(source).__name__} {source}"
    return text.strip()[:_LONGEST_DETAIL]


def _described(embedding: object, dimensions: object) -> str:
    return f"{embedding!r} ({'no vectors' if dimensions is None else f'{dimensions} dimensions'})"


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
