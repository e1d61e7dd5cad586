"""Comparing the index with the ledger: does it hold the present version of each memory, and nothing else?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agemem_mcp.domain.memory import MemoryRecord
    from agemem_mcp.domain.ports import Ledger, MemoryIndex

_BATCH = 500


class MemoryKey(NamedTuple):
    """Names a memory over all scopes."""

    scope_key: str
    memory_id: str


@dataclass(frozen=True, slots=True)
class IndexComparison:
    """How the index differs from the ledger."""

    missing: frozenset[MemoryKey]
    """In the ledger, neither deleted nor in the index. Expired memories are in both."""
    stale: frozenset[MemoryKey]
    """In the index in another version."""
    surplus: frozenset[MemoryKey]
    """In the index, but deleted from the ledger or never in it."""
    total: int
    """How many memories the ledger holds that are not deleted."""

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.stale or self.surplus)


async def compare(ledger: Ledger, index: MemoryIndex) -> IndexComparison:
    """Compare the index with the ledger. Let the index catch up first: what it has yet to do is a difference.

    Both may be in use: memories that change meanwhile are left out of the comparison. Holds a key and
    a version for each memory, about 30 MB for 100,000.

    Raises:
        StoreError: one of them could not be read.
    """
    began = await ledger.last_seq()
    unseen: dict[MemoryKey, int] = {}
    async for head in _changed_since(ledger, 0):
        if head.deleted:
            unseen.pop(_key(head), None)
        else:
            unseen[_key(head)] = head.version
    total = len(unseen)
    stale: set[MemoryKey] = set()
    surplus: set[MemoryKey] = set()
    async for page in index.entries():
        for entry in page:
            key = MemoryKey(entry.scope_key, entry.memory_id)
            version = unseen.pop(key, None)
            if version is None:
                surplus.add(key)
            elif version != entry.version:
                stale.add(key)
    changed = {_key(head) async for head in _changed_since(ledger, began)}
    differences = (frozenset(keys - changed) for keys in (unseen.keys(), stale, surplus))
    return IndexComparison(*differences, total=total)


async def _changed_since(ledger: Ledger, seq: int) -> AsyncIterator[MemoryRecord]:
    while True:
        heads, seq = await ledger.changed_since(seq, limit=_BATCH)
        if not heads:
            return
        for head in heads:
            yield head


def _key(record: MemoryRecord) -> MemoryKey:
    return MemoryKey(record.scope.key, record.memory_id)
