"""Long-term memory: entries, their scope, and how they are searched."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from pydantic import JsonValue

from agemem_mcp.errors import InvalidOperation

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    VectorD: TypeAlias = NDArray[np.float32]
    """One embedding of D dimensions, unit length."""
    MatrixND: TypeAlias = NDArray[np.float32]
    """N embeddings of D dimensions, unit length each."""

Metadata: TypeAlias = dict[str, JsonValue]

FoundBy: TypeAlias = Literal["dense", "lexical", "neighbour", "link"]


_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}")


def check_namespace(name: str) -> str:
    """Return ``name`` if it can be a namespace.

    Raises:
        InvalidOperation: it cannot.
    """
    if not _NAMESPACE.fullmatch(name):
        msg = f"{name[:60]!r} is no namespace: use 1 to 128 letters, digits and . _ @ : + - (a letter or digit first)."
        raise InvalidOperation(msg)
    return name


class Actor(StrEnum):
    """Who set an operation off. Rewards and statistics of a policy count ``POLICY`` rows alone."""

    POLICY = "policy"
    ENVIRONMENT = "environment"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Scope:
    """What one caller can see: a namespace within a principal.

    The principal comes from the transport (a token, or ``local``); no tool argument can name it.
    """

    principal: str = "local"
    namespace: str = "default"

    @property
    def key(self) -> str:
        """One string per scope; the separator cannot occur in either part."""
        return f"{self.principal}\x1f{self.namespace}"


def title_of(metadata: Mapping[str, object]) -> str | None:
    """The title that leads a memory's text in the index, if its metadata has one."""
    title = metadata.get("title")
    return title if isinstance(title, str) and title.strip() else None


class MemoryEventKind(StrEnum):
    """What a row of the ledger did to an entry."""

    ADD = "add"
    UPDATE = "update"
    DELETE = "delete"
    RESTORE = "restore"


def metadata_text(metadata: Metadata) -> str:
    """Metadata as it is stored."""
    return json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """The current state of one long-term memory."""

    scope: Scope
    memory_id: str
    version: int
    """1 for the first text; every change, deletion and restoration adds one."""
    content: str
    memory_type: str | None
    metadata: Metadata
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    deleted: bool = False
    follows: str | None = None
    """The entry that the same writer stored just before this one."""

    def is_live(self, now: datetime) -> bool:
        """Whether the entry can be retrieved at ``now``: neither deleted nor expired."""
        return not self.deleted and (self.expires_at is None or self.expires_at > now)

    @property
    def bytes(self) -> int:
        """What it counts for in its scope's usage: text and metadata in UTF-8."""
        return len(self.content.encode()) + len(metadata_text(self.metadata).encode())


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """One row of the ledger: the state of an entry after one operation, and who did it."""

    seq: int
    """Position in the ledger, over all scopes; strictly increasing."""
    kind: MemoryEventKind
    actor: Actor
    session_id: str | None
    at: datetime
    record: MemoryRecord


class Usage(NamedTuple):
    """What the entries of a scope take up."""

    entries: int
    bytes: int
    """UTF-8 bytes of texts and metadata."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The entry carries at least one of ``facets`` (see :func:`facet`)."""

    facets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number or time under ``key`` lies within the bounds; times are seconds since 1970, UTC."""

    key: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


Condition: TypeAlias = AnyOf | Range


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What the index holds of one live memory."""

    record: MemoryRecord
    text: str
    """What is embedded and what its words are taken from."""
    vector_D: VectorD | None
    """None where no embedding model is configured."""


class IndexedVersion(NamedTuple):
    """Which version of an entry the index holds."""

    scope_key: str
    memory_id: str
    version: int


@dataclass(frozen=True, slots=True)
class MemoryQuery:
    """A search within one scope."""

    scope: Scope
    text: str
    vector_D: VectorD | None
    limit: int
    """How many candidates each list may hold."""
    now: datetime
    """Entries that expired by then are left out."""
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoredId:
    """A memory id and its score in one list."""

    memory_id: str
    score: float


@dataclass(frozen=True, slots=True)
class ScoreLists:
    """What the index found: two lists, best first. Fusing them is the service's business."""

    dense: list[ScoredId] = field(default_factory=list[ScoredId])
    """Cosine similarity, -1 to 1."""
    sparse: list[ScoredId] = field(default_factory=list[ScoredId])
    """BM25 with IDF over the scope, above 0, unbounded."""


@dataclass(frozen=True, slots=True)
class ScoredMemory:
    """A retrieved memory and its score, 0 to 1."""

    record: MemoryRecord
    score: float
    found_by: tuple[FoundBy, ...]
    """How it was found; the meanings are those of :class:`~agemem_mcp.domain.results.RetrievedMemory`."""
