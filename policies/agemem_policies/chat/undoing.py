"""Taking back what was done to long-term memory in a chat, the last change first.

The ledger tells what was changed: each event names the session on whose behalf it was made. What is taken back is
never destroyed either: it stays in the memory's history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agemem_mcp.domain.memory import Actor, MemoryEventKind
from agemem_mcp.domain.text import preview
from agemem_mcp.errors import InvalidOperation
from agemem_policies.memory import MemoryTools, Observation

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_policies.chat.places import Place

_CHANGES = ("Add_memory", "Update_memory", "Delete_memory")


class Witness(MemoryTools):
    """Tools that note which memories they changed and which sessions they worked for, also where a run breaks off."""

    def __init__(self, tools: MemoryTools) -> None:
        """Pass calls on to ``tools``."""
        self.tools = tools
        """Exchanged when the connection was lost and another one is there."""
        self.changed: dict[str, None] = {}
        """Ids of memories, in the order of their first change."""
        self.sessions: dict[str, None] = {}
        """Handles, in the order of their first use."""

    async def call(
        self, name: str, arguments: dict[str, Any], *, session_id: str | None, actor: Actor = Actor.POLICY
    ) -> Observation:
        """Call a tool; see :class:`~agemem_policies.memory.MemoryTools`."""
        observation = await self.tools.call(name, arguments, session_id=session_id, actor=actor)
        if not observation.is_error:
            session = session_id or observation.structured.get("session_id")
            if session is not None:
                self.sessions[str(session)] = None
            if name in _CHANGES:
                self.changed[str(observation.structured["memory_id"])] = None
        return observation


@dataclass(frozen=True, slots=True)
class Change:
    """Something done to a memory in this chat."""

    event: MemoryEvent
    content: str
    """What the memory said before; of one that was added, what it says."""
    overtaken: bool
    """Whether somebody else changed the memory afterwards."""


def last_change(
    histories: Sequence[Sequence[MemoryEvent]],
    sessions: Collection[str],
    since: datetime,
    settled: Collection[tuple[str, int]],
) -> Change | None:
    """The last change that can be taken back.

    Args:
        histories: all events of each memory, oldest first.
        sessions: of the chat.
        since: when the chat began; its session may be older.
        settled: memories and versions that are done with: taken back, or made by taking back.
    """
    latest: Change | None = None
    for history in histories:
        for position, event in enumerate(history):
            open_ = (event.record.memory_id, event.record.version) not in settled
            if not open_ or event.session_id not in sessions or event.at < since:
                continue
            if latest is None or event.seq > latest.event.seq:
                later = history[position + 1 :]
                overtaken = any((one.record.memory_id, one.record.version) not in settled for one in later)
                before = history[position - 1] if position else event
                latest = Change(event, before.record.content, overtaken)
    return latest


class Undoing:
    """Takes the changes of one chat back."""

    def __init__(self, place: Place, witness: Witness, since: datetime) -> None:
        """Set it up.

        Args:
            place: where the memory is.
            witness: what the chat changed.
            since: when the chat began.
        """
        self._place = place
        self._witness = witness
        self._since = since
        self._settled: set[tuple[str, int]] = set()

    async def undo(self) -> str:
        """Take the last change back, and say what that was.

        Raises:
            AgeMemError: it cannot be taken back.
        """
        histories = await self._place.history_of(self._witness.changed)
        change = last_change(histories, self._witness.sessions, self._since, self._settled)
        if change is None:
            done = "There is nothing more to take back."
            return done if self._settled else "There is nothing to take back: no memory was changed in this chat."
        record, kind = change.event.record, change.event.kind
        name = record.memory_id
        if change.overtaken:
            self._settled.add((name, record.version))
            msg = (
                f"{name} was changed elsewhere since, so it stays as it is. `agemem-mcp memories history {name}` tells."
            )
            raise InvalidOperation(msg)
        if kind is MemoryEventKind.ADD:
            await self._place.delete(name)
            made = record.version + 1
            said = f"{name} is deleted again: {preview(change.content)}"
        else:
            # A change is made to a live memory: the version before it is what there was.
            made = int((await self._place.restore(name, record.version - 1))["version"])
            verb = "is back" if kind is MemoryEventKind.DELETE else "says again"
            said = f"{name} {verb}: {preview(change.content)}"
        self._settled |= {(name, record.version), (name, made)}
        return said
