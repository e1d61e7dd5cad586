"""Looking at what is stored without changing it: works beside a process that serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agemem_mcp.domain.text import preview
from agemem_mcp.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from agemem_mcp.domain.context import Message, Session
    from agemem_mcp.domain.memory import MemoryEvent, MemoryRecord, Scope
    from agemem_mcp.domain.ports import Clock, Ledger, SessionStore, SessionTransaction


@dataclass(frozen=True, slots=True)
class MemoryArchive:
    """The scope's long-term memories and their history."""

    ledger: Ledger
    clock: Clock

    async def list_memories(
        self, scope: Scope, *, limit: int | None = None, include_deleted: bool = False
    ) -> list[MemoryRecord]:
        """Memories, last changed first; deleted and expired ones only when asked for."""
        heads = await self.ledger.list_heads(scope, limit=limit if include_deleted else None, include_deleted=True)
        now = self.clock.now()
        return [head for head in heads if include_deleted or head.is_live(now)][:limit]

    async def get(self, scope: Scope, memory_id: str) -> MemoryRecord:
        """One memory in its present state, deleted and expired ones included.

        Raises:
            NotFound: the scope never held it.
        """
        head = (await self.ledger.heads(scope, [memory_id])).get(memory_id)
        if head is None:
            raise no_such_memory(memory_id)
        return head

    async def history(self, scope: Scope, memory_id: str) -> list[MemoryEvent]:
        """Every version of a memory, oldest first.

        Raises:
            NotFound: the scope never held it.
        """
        events = await self.ledger.history(scope, memory_id)
        if not events:
            raise no_such_memory(memory_id)
        return events


@dataclass(frozen=True, slots=True)
class SessionArchive:
    """The scope's sessions, with everything they ever held."""

    store: SessionStore
    clock: Clock

    async def list_sessions(self, scope: Scope, *, limit: int | None = None) -> list[Session]:
        """Sessions that have not expired, last used first."""
        return await self.store.list_sessions(scope, now=self.clock.now(), limit=limit)

    async def messages(self, scope: Scope, session_id: str) -> list[Message]:
        """Every message of a session by position, removed ones included.

        Raises:
            NotFound: unknown, expired or another caller's session.
        """

        def work(store: SessionTransaction) -> list[Message]:
            session = store.session(scope, session_id)
            if session is None or session.expires_at <= self.clock.now():
                msg = f"There is no session {preview(session_id, 60)!r}. `agemem-mcp sessions list` shows those alive."
                raise NotFound(msg)
            return store.messages(session_id, active_only=False)

        return await self.store.read(work)

    async def operations(self, scope: Scope, session_id: str) -> Sequence[dict[str, Any]]:
        """What was done to a session's context, by whom, oldest first.

        Raises:
            NotFound: unknown, expired or another caller's session.
        """
        await self.messages(scope, session_id)
        return await self.store.operations(session_id)


def no_such_memory(memory_id: str) -> NotFound:
    """The error for an id that the scope never held; the same whether or not another scope does."""
    return NotFound(f"There is no memory {preview(memory_id, 60)!r} here. Ids come from Add_memory or Retrieve_memory.")
