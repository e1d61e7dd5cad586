"""The one door to memory and context: an operation in, its result out, everything recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agemem_mcp.domain.memory import title_of
from agemem_mcp.domain.operations import (
    AddMemory,
    AppendContext,
    DeleteMemory,
    FilterContext,
    RetrieveMemory,
    ShowContext,
    SummaryContext,
    UpdateMemory,
)
from agemem_mcp.domain.results import RetrievedMemory, RetrieveResult
from agemem_mcp.service.long_term import LongTermMemory, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.domain.memory import Scope, ScoredMemory
    from agemem_mcp.domain.operations import AnyOperation
    from agemem_mcp.domain.results import OperationResult
    from agemem_mcp.service.maintenance import Maintenance
    from agemem_mcp.service.short_term import ShortTermMemory


@dataclass(frozen=True, slots=True)
class MemoryService:
    """Carries out operations for a scope."""

    long_term: LongTermMemory
    short_term: ShortTermMemory
    maintenance: Maintenance

    async def apply(self, scope: Scope, operation: AnyOperation, origin: Origin | None = None) -> OperationResult:  # noqa: PLR0911  one return per operation
        """Carry out one operation.

        Args:
            scope: whose memory; never taken from the operation's arguments.
            operation: what to do.
            origin: who asks; by default the policy, on no session's behalf.

        Raises:
            AgeMemError: it could not be carried out; nothing was changed, and the text says what to do.
        """
        origin = origin or Origin()
        match operation:
            case AddMemory():
                return await self.long_term.add(scope, operation, origin)
            case UpdateMemory():
                return await self.long_term.update(scope, operation, origin)
            case DeleteMemory():
                return await self.long_term.delete(scope, operation, origin)
            case RetrieveMemory():
                return await self._retrieve(scope, operation, origin)
            case SummaryContext():
                return await self.short_term.summarise(scope, operation, origin.actor)
            case FilterContext():
                return await self.short_term.filter(scope, operation, origin.actor)
            case AppendContext():
                return await self.short_term.append(scope, operation, origin.actor)
            case ShowContext():
                return await self.short_term.show(scope, operation)

    async def _retrieve(self, scope: Scope, operation: RetrieveMemory, origin: Origin) -> RetrieveResult:
        hits = await self.long_term.search(
            scope, operation.query, top_k=operation.top_k, metadata_filter=operation.metadata_filter
        )
        memories = [_shown(hit) for hit in hits]
        session_id, message_id, info = await self.short_term.insert_retrieved(
            scope,
            operation.session_id,
            text=retrieved_text(memories) if memories else None,
            actor=origin.actor,
            query=operation.query,
            memory_ids=[memory.memory_id for memory in memories],
        )
        return RetrieveResult(
            session_id=session_id,
            message_id=message_id,
            memories=memories,
            search="lexical" if self.long_term.lexical_only else "hybrid",
            context=info,
        )


def retrieved_text(memories: Sequence[RetrievedMemory]) -> str:
    """Retrieved memories, one to a paragraph, with the ids that Update needs and what tells old from new."""
    return "\n".join(_line(memory) for memory in memories)


def _line(memory: RetrievedMemory) -> str:
    title = title_of(memory.metadata)
    about = [memory.updated_at.date().isoformat()]
    about += [memory.memory_type] if memory.memory_type else []
    about += [] if title is None else [title]
    return f"[{memory.memory_id}] ({', '.join(about)}) {memory.content}"


def _shown(hit: ScoredMemory) -> RetrievedMemory:
    record = hit.record
    return RetrievedMemory(
        memory_id=record.memory_id,
        content=record.content,
        memory_type=record.memory_type,
        metadata=record.metadata,
        score=round(hit.score, 4),
        found_by=list(hit.found_by),
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
