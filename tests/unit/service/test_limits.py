"""Retention and quotas at work, and two memories that would come to say the same."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import MemoryRecord, Scope
from agemem_mcp.domain.operations import AddMemory, DeleteMemory, UpdateMemory
from agemem_mcp.errors import InvalidOperation, QuotaExceeded
from agemem_mcp.service.long_term import Origin
from agemem_mcp.settings import QuotaSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agemem_mcp.adapters.system import SteppingClock
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

SCOPE = Scope()
OTHER = Scope(namespace="other")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Memory:
    """Long-term memory with short calls."""

    def __init__(self, service: MemoryService) -> None:
        """Work on a service."""
        self.long_term = service.long_term

    async def add(self, content: str, memory_type: str | None = None, *, scope: Scope = SCOPE, **metadata: Any) -> str:
        """Add a memory; returns its id."""
        operation = AddMemory(content=content, memory_type=memory_type, metadata=metadata)
        return (await self.long_term.add(scope, operation, Origin())).memory_id

    async def update(self, memory_id: str, content: str, **metadata: Any) -> None:
        """Update a memory."""
        operation = UpdateMemory(memory_id=memory_id, content=content, metadata=metadata)
        await self.long_term.update(SCOPE, operation, Origin())

    async def delete(self, memory_id: str) -> None:
        """Delete a memory."""
        await self.long_term.delete(SCOPE, DeleteMemory(memory_id=memory_id, confirmation=True), Origin())

    async def restore(self, memory_id: str, version: int | None = None) -> MemoryRecord:
        """Restore a memory."""
        return await self.long_term.restore(SCOPE, memory_id, version, Origin())

    async def head(self, memory_id: str) -> MemoryRecord:
        """The present state of a memory."""
        return (await self.long_term._ledger.heads(SCOPE, [memory_id]))[memory_id]

    async def life(self, memory_id: str) -> timedelta | None:
        """How long a memory lives, counted from its last change."""
        head = await self.head(memory_id)
        return None if head.expires_at is None else head.expires_at - head.updated_at

    async def found(self, query: str) -> list[str]:
        """The texts a search finds."""
        hits = await self.long_term.search(SCOPE, query, top_k=50, metadata_filter={})
        return [hit.record.content for hit in hits]

    async def used(self) -> tuple[int, int]:
        """What the ledger says is in use."""
        return await self.long_term._ledger.usage(SCOPE)


@asynccontextmanager
async def opened(settings: Settings, clock: SteppingClock, **changed: Any) -> AsyncGenerator[Memory]:
    """Long-term memory with other settings."""
    async with open_service(settings.model_copy(update=changed), clock=clock, ids=RandomIds(3)) as service:
        yield Memory(service)


@pytest.fixture
async def kept(lexical_settings: Settings, clock: SteppingClock) -> AsyncGenerator[Memory]:
    """Events live a day, notes an hour, everything else for ever."""
    async with opened(lexical_settings, clock, retention="event=1d,note=1h") as memory:
        yield memory


async def test_a_memory_without_an_end_of_its_own_lives_as_long_as_its_type(kept: Memory, clock: SteppingClock) -> None:
    event, note = await kept.add("Parcel came.", "Event"), await kept.add("Buy milk.", "note")
    fact, untyped = await kept.add("Ana likes tea.", "fact"), await kept.add("Bo drives.")
    assert [await kept.life(one) for one in (event, note, fact, untyped)] == [DAY, HOUR, None, None]
    assert (await kept.head(event)).metadata == {}
    clock.advance(HOUR)
    assert await kept.found("parcel milk") == ["Parcel came."]
    clock.advance(DAY)
    assert await kept.found("parcel milk ana") == ["Ana likes tea."]


async def test_an_end_given_by_hand_wins_until_it_is_taken_away(kept: Memory) -> None:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    event = await kept.add("Parcel came.", "event", expires_at=end.isoformat())
    assert (await kept.head(event)).expires_at == end
    await kept.update(event, "The parcel came.")
    assert (await kept.head(event)).expires_at == end
    await kept.update(event, "The parcel came.", expires_at=None)
    assert await kept.life(event) == DAY
    await kept.update(event, "The parcel came.", expires_at=end.isoformat())
    assert (await kept.head(event)).expires_at == end


async def test_a_change_and_a_repetition_renew_the_life(kept: Memory, clock: SteppingClock) -> None:
    event = await kept.add("Parcel came.", "event")
    for change in (
        kept.update(event, "The parcel came."),
        kept.update(event, "The parcel came."),
        kept.add("The parcel came."),
    ):
        clock.advance(DAY - HOUR)
        await change
        assert await kept.life(event) == DAY
    assert (await kept.head(event)).version == 4
    clock.advance(DAY)
    assert await kept.found("parcel") == []


async def test_a_new_type_brings_its_own_life(kept: Memory) -> None:
    one = await kept.add("Buy milk.", "note")
    await kept.add("Buy milk.", "fact")
    assert await kept.life(one) is None
    await kept.add("Buy milk.", "event")
    assert await kept.life(one) == DAY


async def test_a_restored_memory_lives_as_long_as_its_type_again(kept: Memory, clock: SteppingClock) -> None:
    event = await kept.add("Parcel came.", "event")
    given = await kept.add("Buy milk.", "note", expires_at=(clock.moment + DAY).isoformat())
    clock.advance(2 * DAY)
    assert (await kept.restore(event)).version == 2
    assert (await kept.restore(given)).metadata == {}
    assert [await kept.life(event), await kept.life(given)] == [DAY, HOUR]


async def test_a_retention_taken_back_no_longer_ends_what_is_changed(
    lexical_settings: Settings, clock: SteppingClock
) -> None:
    async with opened(lexical_settings, clock, retention="*=1d") as memory:
        ids = [await memory.add("Ana likes tea."), await memory.add("Bo drives.", "fact")]
        assert [await memory.life(one) for one in ids] == [DAY, DAY]
    async with opened(lexical_settings, clock) as memory:
        await memory.update(ids[0], "Ana likes milk.")
        assert [await memory.life(one) for one in ids] == [None, DAY]


async def test_a_full_scope_takes_nothing_new_but_changes_deletions_and_other_scopes(
    lexical_settings: Settings, clock: SteppingClock
) -> None:
    async with opened(lexical_settings, clock, quota=QuotaSettings(entries=2)) as memory:
        first, second = await memory.add("one"), await memory.add("two")
        with pytest.raises(QuotaExceeded, match=r"holds 2 of at most 2 memories.*AGEMEM_QUOTA__ENTRIES"):
            await memory.add("three")
        assert await memory.found("three") == []
        assert await memory.add("one", source="again") == first
        await memory.update(second, "two, and much longer than before")
        await memory.add("three", scope=OTHER)
        await memory.delete(first)
        third = await memory.add("three")
        with pytest.raises(QuotaExceeded):
            await memory.restore(first)
        await memory.delete(third)
        assert (await memory.restore(first)).content == "one"
        assert (await memory.restore(second, 1)).content == "two"


async def test_bytes_of_text_and_metadata_are_limited_and_shrinking_always_works(
    lexical_settings: Settings, clock: SteppingClock
) -> None:
    async with opened(lexical_settings, clock) as memory:
        one = await memory.add("é" * 50, tag="x")
        assert await memory.used() == (1, 100 + len('{"tag":"x"}'))
    async with opened(lexical_settings, clock, quota=QuotaSettings(bytes=60)) as memory:
        with pytest.raises(QuotaExceeded, match="of at most 60 bytes"):
            await memory.add("x")
        with pytest.raises(QuotaExceeded, match="this needs 1 more"):
            await memory.update(one, "é" * 50 + "x")
        await memory.update(one, "é" * 40)
        await memory.update(one, "é" * 10, tag=None)
        assert await memory.used() == (1, 22)
        await memory.add("x" * 36)
        assert await memory.used() == (2, 60)
        with pytest.raises(QuotaExceeded, match="holds 60 of at most 60 bytes"):
            await memory.update(one, "é" * 10 + "y")


async def test_expired_memories_make_room(lexical_settings: Settings, clock: SteppingClock) -> None:
    async with opened(lexical_settings, clock, quota=QuotaSettings(entries=1), retention="note=1h") as memory:
        note = await memory.add("one", "note")
        with pytest.raises(QuotaExceeded):
            await memory.add("two")
        clock.advance(HOUR)
        await memory.add("two")
        with pytest.raises(QuotaExceeded):
            await memory.restore(note)


async def test_a_quota_is_exact_however_many_add_at_once(lexical_settings: Settings, clock: SteppingClock) -> None:
    async with opened(lexical_settings, clock, quota=QuotaSettings(entries=7)) as memory:
        outcomes = await asyncio.gather(*(memory.add(f"note {n}") for n in range(20)), return_exceptions=True)
        assert sum(isinstance(one, str) for one in outcomes) == 7
        assert sum(isinstance(one, QuotaExceeded) for one in outcomes) == 13
        assert (await memory.used())[0] == 7


@pytest.fixture
def memory(lexical_service: MemoryService) -> Memory:
    """Long-term memory without limits."""
    return Memory(lexical_service)


async def test_an_update_to_the_text_of_another_memory_is_refused_naming_it(memory: Memory) -> None:
    tea, milk = await memory.add("Ana likes tea."), await memory.add("Ana likes milk.")
    with pytest.raises(InvalidOperation) as caught:
        await memory.update(milk, " Ana likes  tea.")
    assert f"{milk} was not changed: memory {tea} has this text already" in str(caught.value)
    assert f"delete {milk}" in str(caught.value)
    assert (await memory.head(milk)).version == 1
    await memory.update(milk, " Ana likes  milk.")
    await memory.update(milk, " Ana likes  milk.", topic="drinks")
    await memory.delete(tea)
    await memory.update(milk, "Ana likes tea.")
    await memory.add("Ana likes tea.", scope=OTHER)
    assert await memory.found("tea") == ["Ana likes tea."]


async def test_restoring_a_text_that_another_memory_has_is_refused_naming_it(memory: Memory) -> None:
    old = await memory.add("Ana likes tea.")
    await memory.delete(old)
    new = await memory.add("Ana likes tea.")
    with pytest.raises(InvalidOperation, match=f"{old} was not changed: memory {new} has this text already"):
        await memory.restore(old)
    await memory.update(new, "Ana likes milk.")
    other = await memory.add("Ana likes tea.")
    with pytest.raises(InvalidOperation, match=f"{new} was not changed: memory {other} has this text already"):
        await memory.restore(new, 1)
    await memory.delete(other)
    assert (await memory.restore(old)).content == "Ana likes tea."


async def test_of_many_updates_to_one_text_at_once_one_succeeds(memory: Memory) -> None:
    ids = [await memory.add(f"note {number}") for number in range(6)]
    outcomes = await asyncio.gather(*(memory.update(one, "Ana likes tea.") for one in ids), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, InvalidOperation) for outcome in outcomes) == 5
    assert await memory.found("tea") == ["Ana likes tea."]
