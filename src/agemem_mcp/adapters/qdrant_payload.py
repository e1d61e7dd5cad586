"""What the embedded and the remote Qdrant index have in common: ids, payload, sparse vectors, ranking.

One point per live entry. Its payload::

    scope       Scope.key, the tenant every search is filtered by
    memory_id   returned by a search
    version     the record's, so that the index can be compared with the ledger
    scope_key   Scope.key as JSON, where `scope` is a digest of it
    facets      exact-match strings (see agemem_mcp.domain.facets)
    numbers     {number key: float}, times in seconds since 1970
    expires_at  seconds since 1970; absent when the entry does not expire

Both backends hold the same sparse vectors, made by the same encoder, so their scores agree.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import qdrant_edge

from agemem_mcp.domain.facets import facets_of, number_key, numbers_of
from agemem_mcp.domain.memory import IndexedVersion, ScoredId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agemem_mcp.domain.memory import IndexEntry, MemoryRecord, VectorD

T = TypeVar("T")

SCHEMA_VERSION: Final = 2
"""Raise it when ids, payload or sparse vectors change: older indexes are then rebuilt from the ledger."""

DENSE = "dense"
SPARSE = "sparse"

SCOPE_FIELD = "scope"
ID_FIELD = "memory_id"
VERSION_FIELD = "version"
SCOPE_KEY_FIELD = "scope_key"
FACETS_FIELD = "facets"
EXPIRY_FIELD = "expires_at"

VERSION_FIELDS = (SCOPE_FIELD, SCOPE_KEY_FIELD, ID_FIELD, VERSION_FIELD)
"""What :func:`indexed_version` reads."""

NUMBER_FIELDS = (EXPIRY_FIELD, f"numbers.{number_key('created_at')}", f"numbers.{number_key('updated_at')}")
"""Indexed as floats. Without it each search reads the payload of every entry to tell whether it has
expired: 24 ms instead of 2 ms at 10,000 entries. Other number keys are read from the payload."""

EDGE_BATCH = 256
"""Points per update of the embedded shard; it holds the interpreter lock for about 0.05 ms each."""
REMOTE_BATCH = 128
"""Points per request; at 3,072 dimensions 8 MB of JSON, where the server allows 32 MB."""

_NAMESPACE = uuid.UUID("6f1d7f0e-3c4a-5d1b-9a53-2f6f1f0f7a11")
_LONGEST_KEYWORD = 256


class SparseTerms(NamedTuple):
    """A sparse vector: token ids and their weights."""

    indices: list[int]
    values: list[float]


class SparseEncoder:
    """Texts to BM25 term weights; IDF is applied by the index at query time."""

    def __init__(self) -> None:
        """Make the encoder; it needs no files."""
        self._model = qdrant_edge.Bm25(qdrant_edge.Bm25Config(language="english"))

    def document(self, text: str) -> SparseTerms | None:
        """Weights of a text to be found, ``None`` when it holds no words but stop words."""
        return _terms(self._model.embed_document(_encodable(text)))

    def query(self, text: str) -> SparseTerms | None:
        """Weights of a query, ``None`` when it holds no words but stop words."""
        return _terms(self._model.embed_query(_encodable(text)))


def _terms(vector: qdrant_edge.SparseVector) -> SparseTerms | None:
    indices = list(vector.indices)
    return SparseTerms(indices, list(vector.values)) if indices else None


def point_uuid(scope_key: str, memory_id: str) -> uuid.UUID:
    """The point id of an entry: the same for each version of it, different in each scope."""
    return uuid.uuid5(_NAMESPACE, _encodable(f"{scope_key}\x1e{memory_id}"))


def record_point_id(record: MemoryRecord) -> str:
    """The point id of a record, as text."""
    return str(point_uuid(record.scope.key, record.memory_id))


def payload_of(entry: IndexEntry) -> dict[str, Any]:
    """The payload of an entry; see the module's docstring."""
    record = entry.record
    payload: dict[str, Any] = {
        SCOPE_FIELD: keyword(record.scope.key),
        ID_FIELD: record.memory_id,
        VERSION_FIELD: record.version,
        FACETS_FIELD: [keyword(facet) for facet in facets_of(record)],
        "numbers": numbers_of(record),
    }
    if payload[SCOPE_FIELD] != record.scope.key:
        payload[SCOPE_KEY_FIELD] = json.dumps(record.scope.key)
    if record.expires_at is not None:
        payload[EXPIRY_FIELD] = record.expires_at.timestamp()
    return payload


def indexed_version(payload: Mapping[str, Any]) -> IndexedVersion:
    """Which version of which entry a point holds."""
    given = payload.get(SCOPE_KEY_FIELD)
    scope_key = payload[SCOPE_FIELD] if given is None else json.loads(given)
    return IndexedVersion(str(scope_key), str(payload[ID_FIELD]), int(payload[VERSION_FIELD]))


def keyword(text: str) -> str:
    """``text`` as the index stores and compares it.

    Very long values and lone surrogates (JSON can carry them, UTF-8 cannot) are stored as a digest:
    they are only ever compared as a whole.
    """
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= _LONGEST_KEYWORD and data.decode("utf-8", "ignore") == text:
        return text
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def components(vector_D: VectorD) -> list[float]:
    """A dense vector as the plain floats both clients take."""
    values: list[float] = vector_D.tolist()
    return values


def latest(entries: Sequence[IndexEntry]) -> list[IndexEntry]:
    """One entry per memory, the last one given: within a batch the backends leave it open which wins."""
    return list({record_point_id(entry.record): entry for entry in entries}.values())


def ranked(hits: Iterable[tuple[str, float]]) -> list[ScoredId]:
    """Hits best first; equal scores by id, so that the order does not depend on the backend."""
    return [ScoredId(memory_id, score) for memory_id, score in sorted(hits, key=lambda hit: (-hit[1], hit[0]))]


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in runs of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
