"""A collection on a Qdrant server: whether it is ours, and what the server's errors mean."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from agemem_mcp.adapters import qdrant_payload as shared
from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

_OLDEST_SERVER = (1, 19)
_LONGEST_DETAIL = 300
# ValueError is how local mode and the client's own checks report, say, a collection that is gone.
_VENDOR_ERRORS = (ApiException, QdrantException, ValueError)


log = structlog.get_logger(__name__)


class Server:
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
                f"{where} was made with the embedding {described(*made)}, but {described(*configured)} is "
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


def described(embedding: object, dimensions: object) -> str:
    """An embedding in words."""
    return f"{embedding!r} ({'no vectors' if dimensions is None else f'{dimensions} dimensions'})"
