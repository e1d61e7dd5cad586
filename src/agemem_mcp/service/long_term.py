"""Long-term memory: add, update, delete, search, history and restoring."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog

from agemem_mcp.domain.facets import conditions_from
from agemem_mcp.domain.limits import Quota, Retention
from agemem_mcp.domain.memory import (
    Actor,
    MemoryEventKind,
    MemoryQuery,
    MemoryRecord,
)
from agemem_mcp.domain.results import AddResult, DeleteResult, SimilarMemory, UpdateResult
from agemem_mcp.domain.text import digest
from agemem_mcp.errors import InvalidOperation, NotFound, StoreError
from agemem_mcp.service.archive import no_such_memory
from agemem_mcp.service.indexing import indexed_text
from agemem_mcp.service.long_text import embed_whole
from agemem_mcp.service.retrieval import CANDIDATES, Retriever
from agemem_mcp.service.versions import Versions, without_nulls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from agemem_mcp.domain.memory import MemoryEvent, Scope, ScoredMemory, VectorD
    from agemem_mcp.domain.operations import AddMemory, DeleteMemory, UpdateMemory
    from agemem_mcp.domain.ports import Clock, Embedder, IdSource, Ledger, LedgerTransaction, MemoryIndex
    from agemem_mcp.service.indexing import Indexer

log = structlog.get_logger(__name__)

NEIGHBOUR_GAP = timedelta(minutes=10)
"""How long after a memory of the same writer the next one still belongs to it."""

_SIMILAR_SHOWN = 3
_SIMILAR_COSINE = 0.6
"""MiniLM: paraphrases and changed versions of one fact lie above, other facts on the topic mostly below."""

_SIMILAR_WORDS = 0.5
"""The same by shared words (Jaccard), where there is no model."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, on which session's behalf; written to every row of the ledger."""

    actor: Actor = Actor.POLICY
    session_id: str | None = None
    writer: str | None = None
    """Whose successive memories belong together: the session if the caller named one, else the connection."""


class LongTermMemory:
    """The rules of long-term memory over ledger, index and embedder."""

    def __init__(  # noqa: PLR0913  the ports it stands on
        self,
        *,
        ledger: Ledger,
        index: MemoryIndex,
        indexer: Indexer,
        embedder: Embedder | None,
        clock: Clock,
        ids: IdSource,
        half_life: timedelta | None = None,
        retention: Retention = Retention(),  # noqa: B008  frozen
        quota: Quota = Quota(),  # noqa: B008  frozen
    ) -> None:
        self._ledger = ledger
        self._index = index
        self._indexer = indexer
        self._embedder = embedder
        self._clock = clock
        self._ids = ids
        self._retriever = Retriever(ledger, index, half_life=half_life)
        self._versions = Versions(clock, retention)
        self._quota = quota

    @property
    def lexical_only(self) -> bool:
        """Whether searching goes by words alone, because no embedding model is configured."""
        return self._embedder is None

    async def add(self, scope: Scope, operation: AddMemory, origin: Origin) -> AddResult:
        """Store a memory, or return the one with the same text, with new metadata merged into it.

        Raises:
            InvalidOperation: ``metadata.expires_at`` is not a time to come.
            QuotaExceeded: the scope may not hold more.
            EmbeddingError: the text could not be embedded; nothing was stored.
        """
        metadata = without_nulls(operation.metadata)
        self._versions.given_end(metadata)
        vector = await self._embed(indexed_text(operation.content, dict(metadata)))
        near = await self._near(scope, operation.content, vector)
        fingerprint = digest(operation.content)

        def work(ledger: LedgerTransaction) -> tuple[MemoryRecord, bool, int]:
            existing = ledger.head_by_digest(scope, fingerprint)
            if existing is not None:
                record = self._versions.repeated(existing, operation)
                return record, True, self._put(ledger, MemoryEventKind.UPDATE, existing, record, origin)
            follows = _just_before(ledger, scope, origin.writer, self._clock.now())
            record = self._versions.first(scope, self._new_id(ledger, scope), operation, follows)
            return record, False, self._put(ledger, MemoryEventKind.ADD, None, record, origin)

        record, duplicate, seq = await self._ledger.write(work)
        await self._indexer.try_catch_up(seq, record)
        return AddResult(
            memory_id=record.memory_id,
            content=record.content,
            created_at=record.created_at,
            duplicate=duplicate,
            similar=[one for one in near if one.memory_id != record.memory_id][:_SIMILAR_SHOWN],
        )

    async def update(self, scope: Scope, operation: UpdateMemory, origin: Origin) -> UpdateResult:
        """Replace a memory's text and merge its metadata; an update that changes nothing adds no version.

        Raises:
            NotFound: the scope holds no such memory, or it was deleted or has expired.
            InvalidOperation: the merged metadata cannot be stored, or another memory has this text already.
            QuotaExceeded: the scope may not hold more.
            EmbeddingError: the text could not be embedded; nothing was changed.
        """
        # Embedded before it is stored (the index then finds it in the embedder's cache): a model that fails must
        # leave the memory as it was.
        known = (await self._ledger.heads(scope, [operation.memory_id])).get(operation.memory_id)
        if known is not None:
            await self._embed(indexed_text(operation.content, {**known.metadata, **operation.metadata}))

        def work(ledger: LedgerTransaction) -> tuple[MemoryRecord, MemoryRecord, int]:
            before = self._live(ledger, scope, operation.memory_id)
            after = self._versions.changed(before, content=operation.content, metadata=operation.metadata)
            return before, after, self._put(ledger, MemoryEventKind.UPDATE, before, after, origin)

        before, after, seq = await self._ledger.write(work)
        await self._indexer.try_catch_up(seq, after)
        return UpdateResult(
            memory_id=after.memory_id,
            version=after.version,
            previous_content=before.content,
            updated_at=after.updated_at,
        )

    async def delete(self, scope: Scope, operation: DeleteMemory, origin: Origin) -> DeleteResult:
        """Remove a memory from retrieval; its history stays and it can be restored.

        Raises:
            InvalidOperation: not confirmed.
            NotFound: the scope holds no such memory, or it was deleted or has expired.
        """
        if not operation.confirmation:
            msg = f"{operation.memory_id} was not deleted. Call Delete_memory again with confirmation: true."
            raise InvalidOperation(msg)

        def work(ledger: LedgerTransaction) -> int:
            before = self._live(ledger, scope, operation.memory_id)
            return self._put(ledger, MemoryEventKind.DELETE, before, self._versions.deleted(before), origin)

        await self._indexer.try_catch_up(await self._ledger.write(work))
        return DeleteResult(memory_id=operation.memory_id, deleted=True)

    async def search(
        self, scope: Scope, query: str, *, top_k: int, metadata_filter: Mapping[str, Any]
    ) -> list[ScoredMemory]:
        """Find memories by meaning, words and what good hits point to, best first.

        Raises:
            InvalidOperation: the filter cannot be read.
            EmbeddingError: the query could not be embedded.
        """
        conditions = conditions_from(metadata_filter)
        await self._indexer.catch_up(await self._ledger.last_seq())
        wanted = MemoryQuery(
            scope=scope,
            text=query,
            vector_D=await self._embed(query),
            limit=max(CANDIDATES, top_k),
            now=self._clock.now(),
            conditions=conditions,
        )
        return await self._retriever.find(wanted, top_k=top_k)

    async def events(self, scope: Scope) -> list[MemoryEvent]:
        """Everything that was done to a scope's memories, and by whom, oldest first."""
        return await self._ledger.events(scope)

    async def count(self) -> int:
        """Number of entries the index holds, over all scopes."""
        return await self._index.count()

    async def restore(self, scope: Scope, memory_id: str, version: int | None, origin: Origin) -> MemoryRecord:
        """Bring back an earlier version, or with None the last text of a deleted or expired memory.

        Raises:
            NotFound: the scope never held the memory or that version of it.
            InvalidOperation: another memory has this text already.
            QuotaExceeded: the scope may not hold more.
        """
        versions = {event.record.version: event.record for event in await self._ledger.history(scope, memory_id)}
        if not versions:
            raise no_such_memory(memory_id)
        texts = [number for number, record in versions.items() if not record.deleted]
        chosen = versions.get(version if version is not None else max(texts))
        if chosen is None or chosen.deleted:
            msg = f"{memory_id} has no version {version} to restore. It has {', '.join(map(str, sorted(texts)))}."
            raise NotFound(msg)

        def work(ledger: LedgerTransaction) -> tuple[MemoryRecord, int]:
            head = ledger.head(scope, memory_id)
            if head is None:
                raise no_such_memory(memory_id)
            after = self._versions.revived(head, chosen)
            return after, self._put(ledger, MemoryEventKind.RESTORE, head, after, origin)

        record, seq = await self._ledger.write(work)
        await self._indexer.try_catch_up(seq, record)
        return record

    def _put(
        self,
        ledger: LedgerTransaction,
        kind: MemoryEventKind,
        before: MemoryRecord | None,
        after: MemoryRecord,
        origin: Origin,
    ) -> int:
        """Append the next state of a memory, if it is one and may be; returns its position, 0 without a change."""
        if after is before:
            return 0
        fingerprint = digest(after.content)
        if not after.deleted:
            now = self._clock.now()
            was_live = before is not None and before.is_live(now)
            if before is not None and not (was_live and digest(before.content) == fingerprint):
                _refuse_twin(ledger.head_by_digest(after.scope, fingerprint), after)
            if self._quota.limits:
                held = before.bytes if before is not None and was_live else 0
                used = ledger.usage(after.scope, now)
                growth = {"entries": int(not was_live), "bytes_": after.bytes - held}
                self._quota.check(after.scope.namespace, used, **growth)
        event = ledger.append(
            kind,
            after,
            digest=fingerprint,
            actor=origin.actor,
            session_id=origin.session_id,
            writer=origin.writer,
        )
        return event.seq

    def _new_id(self, ledger: LedgerTransaction, scope: Scope) -> str:
        created = ledger.created_in_scope(scope)
        attempt = 0
        while ledger.head(scope, memory_id := self._ids.memory_id(scope, created, attempt)) is not None:
            attempt += 1
        return memory_id

    def _live(self, ledger: LedgerTransaction, scope: Scope, memory_id: str) -> MemoryRecord:
        head = ledger.head(scope, memory_id)
        if head is None:
            raise no_such_memory(memory_id)
        if not head.is_live(self._clock.now()):
            state = "was deleted" if head.deleted else "has expired"
            msg = f"Memory {memory_id} {state}. Add it again, or restore it with `agemem-mcp memories restore`."
            raise NotFound(msg)
        return head

    async def _live_heads(self, scope: Scope, memory_ids: list[str]) -> dict[str, MemoryRecord]:
        """The ledger has the last word on what a search may show: scope, text, deletion and expiry."""
        now = self._clock.now()
        heads = await self._ledger.heads(scope, memory_ids)
        return {memory_id: head for memory_id, head in heads.items() if head.is_live(now)}

    async def _embed(self, text: str) -> VectorD | None:
        return None if self._embedder is None else (await embed_whole(self._embedder, [text]))[0]

    async def _near(self, scope: Scope, content: str, vector: VectorD | None) -> list[SimilarMemory]:
        """Existing memories close to a text: by cosine, or by shared words where there is no model."""
        words = content if vector is None else ""
        query = MemoryQuery(scope=scope, text=words, vector_D=vector, limit=_SIMILAR_SHOWN + 1, now=self._clock.now())
        try:
            lists = await self._index.search(query)
        except StoreError as error:
            # The index may be out of reach for a while; what is to be remembered goes to the ledger all the same.
            log.warning("close memories could not be looked for", error=str(error))
            return []
        scores = {one.memory_id: one.score for one in lists.dense if one.score >= _SIMILAR_COSINE}
        candidates = list(scores) if vector is not None else [one.memory_id for one in lists.sparse]
        heads = await self._live_heads(scope, candidates)
        if vector is None:
            scores = {memory_id: _shared_words(content, head.content) for memory_id, head in heads.items()}
        return [
            SimilarMemory(memory_id=memory_id, content=heads[memory_id].content, score=round(scores[memory_id], 4))
            for memory_id in sorted(heads, key=lambda one: -scores[one])
            if scores[memory_id] >= _SIMILAR_WORDS or vector is not None
        ]


def _just_before(ledger: LedgerTransaction, scope: Scope, writer: str | None, now: datetime) -> str | None:
    """The memory that the writer stored just before ``now``, unless too long ago to belong together."""
    last = None if writer is None else ledger.last_added(scope, writer)
    return None if last is None or now - last[1] > NEIGHBOUR_GAP else last[0]


def _refuse_twin(twin: MemoryRecord | None, after: MemoryRecord) -> None:
    """Two live memories with one text would both be shown, and an Add could not tell which one it repeats."""
    if twin is not None:
        msg = (
            f"{after.memory_id} was not changed: memory {twin.memory_id} has this text already. Use that one, and "
            f"delete {after.memory_id} if it is no longer needed; or delete {twin.memory_id} first and call again."
        )
        raise InvalidOperation(msg)


def _shared_words(first: str, second: str) -> float:
    """Jaccard overlap of two texts' words."""
    one, other = set(first.lower().split()), set(second.lower().split())
    return len(one & other) / len(one | other)
