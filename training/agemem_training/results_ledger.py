"""The rows that a server's ledger has, by what the server answered: for a server whose ledger is out of reach.

A row is made of a successful call of ``Add_memory``, ``Update_memory`` or ``Delete_memory``, by the server's own rules
of what changes what. Positions are this ledger's own, and it lacks what no result tells: a retention that the server is
set to, and what was carried out although its answer never came.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from agemem_mcp.adapters.system import SteppingClock
from agemem_mcp.domain.limits import Retention
from agemem_mcp.domain.memory import Actor, MemoryEvent, MemoryEventKind
from agemem_mcp.domain.operations import AddMemory, DeleteMemory, UpdateMemory, parse_operation
from agemem_mcp.domain.results import AddResult, UpdateResult
from agemem_mcp.errors import StoreError
from agemem_mcp.service.versions import Versions
from agemem_policies.memory import MemoryTools

if TYPE_CHECKING:
    from mcp.client.client import Client

    from agemem_mcp.domain.memory import MemoryRecord, Scope
    from agemem_policies.memory import Observation


class ResultsLedger:
    """What was done to the memories of one scope, which was empty at first and has no other writer."""

    def __init__(self, scope: Scope) -> None:
        """Begin without rows."""
        self._scope = scope
        self._heads: dict[str, MemoryRecord] = {}
        # Shows the latest time that the server told; only it knows its time.
        self._clock = SteppingClock(datetime.min.replace(tzinfo=UTC), timedelta())
        self._versions = Versions(self._clock, Retention())
        self.events: list[MemoryEvent] = []
        """Oldest first."""

    def note(
        self, name: str, arguments: dict[str, Any], result: dict[str, Any], *, session_id: str | None, actor: Actor
    ) -> None:
        """Write the row of a call that succeeded, if it changed anything.

        Raises:
            StoreError: it changed a memory that nobody added here.
        """
        kind, before = MemoryEventKind.UPDATE, self._heads.get(str(result.get("memory_id")))
        match parse_operation(name, arguments):
            case AddMemory() as operation:
                added = AddResult.model_validate(result)
                self._told(added.created_at)
                if added.duplicate:
                    after = self._versions.repeated(_known(before, result), operation)
                else:
                    kind, after = (
                        MemoryEventKind.ADD,
                        self._versions.first(self._scope, added.memory_id, operation, follows=None),
                    )
            case UpdateMemory() as operation:
                self._told(UpdateResult.model_validate(result).updated_at)
                after = self._versions.changed(
                    _known(before, result), content=operation.content, metadata=operation.metadata
                )
            case DeleteMemory():
                kind, after = MemoryEventKind.DELETE, self._versions.deleted(_known(before, result))
            case _:
                return
        if after is not before:
            self._heads[after.memory_id] = after
            self.events.append(MemoryEvent(len(self.events) + 1, kind, actor, session_id, after.updated_at, after))

    def _told(self, moment: datetime) -> None:
        # What is told of a memory that was left as it is lies back.
        self._clock.moment = max(self._clock.moment, moment)


class NotedTools(MemoryTools):
    """Tools whose successful calls are noted in a ledger."""

    def __init__(self, client: Client, ledger: ResultsLedger) -> None:
        """Use a client that is connected already, and works in the ledger's scope."""
        super().__init__(client)
        self._ledger = ledger

    async def call(
        self, name: str, arguments: dict[str, Any], *, session_id: str | None, actor: Actor = Actor.POLICY
    ) -> Observation:
        """See :meth:`agemem_policies.memory.MemoryTools.call`."""
        observation = await super().call(name, arguments, session_id=session_id, actor=actor)
        if not observation.is_error:
            self._ledger.note(name, arguments, observation.structured, session_id=session_id, actor=actor)
        return observation


def _known(record: MemoryRecord | None, result: dict[str, Any]) -> MemoryRecord:
    if record is None:
        msg = f"{result['memory_id']} was stored by somebody else, in an episode's own namespace. Use another server."
        raise StoreError(msg)
    return record
