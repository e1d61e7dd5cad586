"""Entries and queries that the contract tests share."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from agemem_mcp.domain.facets import conditions_from
from agemem_mcp.domain.memory import IndexEntry, MemoryQuery, MemoryRecord, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.domain.memory import ScoredId, VectorD
    from agemem_mcp.domain.ports import MemoryIndex

DIMENSIONS = 8
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ALICE = Scope("alice", "work")
BOB = Scope("bob", "work")


def vector(text: str) -> VectorD:
    """A unit vector that depends on the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    values = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    unit: VectorD = values / np.float32(np.linalg.norm(values))
    return unit


def entry(memory_id: str, text: str, *, scope: Scope = ALICE, **changed: Any) -> IndexEntry:
    """An entry whose record has ``changed`` fields."""
    record = MemoryRecord(scope, memory_id, 1, text, None, {}, created_at=NOW, updated_at=NOW)
    return IndexEntry(replace(record, **changed), text, vector(text))


def query(text: str, *, scope: Scope = ALICE, limit: int = 10, **metadata_filter: Any) -> MemoryQuery:
    """A search with vector and words."""
    return MemoryQuery(scope, text, vector(text), limit, NOW, conditions_from(metadata_filter))


def ids(found: Sequence[ScoredId]) -> list[str]:
    """Memory ids in order."""
    return [scored.memory_id for scored in found]


async def matching(index: MemoryIndex, metadata_filter: dict[str, Any]) -> set[str]:
    """Ids that pass the filter; both lists must agree, as all entries share the word."""
    conditions = conditions_from(metadata_filter)
    found = await index.search(MemoryQuery(ALICE, "note", vector("note"), 50, NOW, conditions))
    assert set(ids(found.dense)) == set(ids(found.sparse))
    return set(ids(found.dense))
