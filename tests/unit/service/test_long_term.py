"""The rules of long-term memory, on a real ledger and index."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import Actor, MemoryEvent, MemoryRecord, Scope
from agemem_mcp.domain.operations import AddMemory, AddResult, DeleteMemory, UpdateMemory, UpdateResult
from agemem_mcp.errors import InvalidOperation, NotFound
from agemem_mcp.service.long_term import NEIGHBOUR_GAP, Origin

if TYPE_CHECKING:
    from agemem_mcp.adapters.system import SteppingClock
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

SCOPE = Scope()
OTHER = Scope(namespace="other")
DAY = timedelta(days=1)


class Memory:
    """Long-term memory with short calls."""

    def __init__(self, service: MemoryService, clock: SteppingClock) -> None:
        """Work on a service."""
        self.long_term = service.long_term
        self.clock = clock

    async def add(
        self, content: str, memory_type: str | None = None, *, scope: Scope = SCOPE, **metadata: Any
    ) -> AddResult:
        """Add a memory."""
        operation = AddMemory(content=content, memory_type=memory_type, metadata=metadata)
        return await self.long_term.add(scope, operation, Origin())

    async def update(self, memory_id: str, content: str, scope: Scope = SCOPE, **metadata: Any) -> UpdateResult:
        """Update a memory."""
        operation = UpdateMemory(memory_id=memory_id, content=content, metadata=metadata)
        return await self.long_term.update(scope, operation, Origin())

    async def delete(self, memory_id: str, *, scope: Scope = SCOPE, confirmation: bool = True) -> None:
        """Delete a memory."""
        operation = DeleteMemory(memory_id=memory_id, confirmation=confirmation)
        await self.long_term.delete(scope, operation, Origin())

    async def restore(self, memory_id: str, version: int | None = None, scope: Scope = SCOPE) -> MemoryRecord:
        """Restore a memory."""
        return await self.long_term.restore(scope, memory_id, version, Origin(Actor.USER))

    async def found(self, query: str, scope: Scope = SCOPE, **metadata_filter: Any) -> list[str]:
        """The texts a search finds, best first."""
        hits = await self.long_term.search(scope, query, top_k=10, metadata_filter=metadata_filter)
        return [hit.record.content for hit in hits]

    async def head(self, memory_id: str) -> MemoryRecord:
        """The present state of a memory."""
        return (await self.long_term._ledger.heads(SCOPE, [memory_id]))[memory_id]

    async def events(self, memory_id: str) -> list[MemoryEvent]:
        """The history of a memory."""
        return await self.long_term._ledger.history(SCOPE, memory_id)

    def later(self, by: timedelta) -> str:
        """An ISO time from now."""
        return (self.clock.moment + by).isoformat()


@pytest.fixture
def memory(lexical_service: MemoryService, clock: SteppingClock) -> Memory:
    """Long-term memory without a model."""
    return Memory(lexical_service, clock)


async def test_a_new_memory_is_stored_as_given_and_found(memory: Memory) -> None:
    added = await memory.add(" Ana likes tea.\n", "fact", topic="drinks", gone=None)
    assert (added.content, added.duplicate, added.similar) == (" Ana likes tea.\n", False, [])
    head = await memory.head(added.memory_id)
    assert (head.version, head.memory_type, head.metadata) == (1, "fact", {"topic": "drinks"})
    assert head.created_at == head.updated_at == added.created_at
    assert await memory.found("tea") == [" Ana likes tea.\n"]


@pytest.mark.parametrize("again", ["Ana likes tea.", "  Ana  likes\ntea. "])
async def test_the_same_text_again_returns_the_memory_there_is(memory: Memory, again: str) -> None:
    first = await memory.add("Ana likes tea.", topic="drinks")
    second = await memory.add(again, topic="drinks")
    assert second == first.model_copy(update={"duplicate": True})
    assert len(await memory.events(first.memory_id)) == 1
    assert await memory.found("tea") == ["Ana likes tea."]


async def test_other_metadata_with_the_same_text_is_merged_as_a_new_version(memory: Memory) -> None:
    first = await memory.add("Ana likes tea.", topic="drinks", source="chat", n=1)
    second = await memory.add("Ana likes tea.", "fact", source="mail", n=None, new=[1])
    assert (second.memory_id, second.duplicate) == (first.memory_id, True)
    head = await memory.head(first.memory_id)
    assert (head.version, head.memory_type) == (2, "fact")
    # Models fill in what they leave out with null: in a new memory it says nothing.
    assert head.metadata == {"topic": "drinks", "source": "mail", "n": 1, "new": [1]}
    assert await memory.found("tea", source="mail") == ["Ana likes tea."]
    assert await memory.found("tea", source="chat") == []


async def test_a_fact_that_was_to_end_stays_when_it_is_added_again_without_an_end(memory: Memory) -> None:
    first = await memory.add("Ana is in Oslo.", expires_at="2030-01-01")
    assert (await memory.add("Ana is in Oslo.")).memory_id == first.memory_id
    head = await memory.head(first.memory_id)
    assert (head.expires_at, head.metadata, head.version) == (None, {}, 2)


async def test_the_same_text_in_another_scope_is_another_memory(memory: Memory) -> None:
    await memory.add("Ana likes tea.")
    assert not (await memory.add("Ana likes tea.", scope=OTHER)).duplicate


async def test_the_text_of_a_deleted_or_changed_memory_is_new_again(memory: Memory) -> None:
    deleted, changed = await memory.add("Ana likes tea."), await memory.add("Bo likes milk.")
    await memory.delete(deleted.memory_id)
    await memory.update(changed.memory_id, "Bo likes juice.")
    for text in ("Ana likes tea.", "Bo likes milk."):
        again = await memory.add(text)
        assert not again.duplicate
        assert again.memory_id not in (deleted.memory_id, changed.memory_id)
    assert (await memory.add("Bo likes juice.")).memory_id == changed.memory_id


async def test_close_memories_are_listed_with_a_new_one_closest_first(memory: Memory) -> None:
    for text in ("Ana likes green tea", "Ana likes tea", "Ana likes tea a lot", "Ana likes tea so", "Bo drives"):
        await memory.add(text)
    await memory.add("Ana likes tea too", scope=OTHER)
    added = await memory.add("Ana likes tea so very")
    assert [one.content for one in added.similar] == ["Ana likes tea so", "Ana likes tea", "Ana likes green tea"]
    assert [one.score for one in added.similar] == [0.8, 0.6, 0.5]


async def test_a_paraphrase_is_listed_as_similar_by_its_meaning(
    full_service: MemoryService, clock: SteppingClock
) -> None:
    memory = Memory(full_service, clock)
    first = await memory.add("My sister lives in Madrid.")
    await memory.add("The stock market fell on Monday.")
    added = await memory.add("The user's sister resides in Madrid, Spain")
    (close,) = added.similar
    assert close.memory_id == first.memory_id
    assert 0.6 <= close.score < 1
    assert (await memory.found("where does my sibling live"))[0].endswith(("Madrid.", "Spain"))


async def test_an_expired_memory_is_gone_and_its_text_is_new_again(memory: Memory) -> None:
    first = await memory.add("Parcel comes today.", expires_at=memory.later(DAY))
    assert await memory.found("parcel") == ["Parcel comes today."]
    memory.clock.advance(DAY)
    assert await memory.found("parcel") == []
    with pytest.raises(NotFound, match="has expired"):
        await memory.update(first.memory_id, "Parcel came.")
    with pytest.raises(NotFound, match="has expired"):
        await memory.delete(first.memory_id)
    again = await memory.add("Parcel comes today.")
    assert (again.duplicate, again.similar) == (False, [])
    assert again.memory_id != first.memory_id


@pytest.mark.parametrize(
    ("expires_at", "said"),
    [
        ("2020-01-01", "has already passed"),
        ("2026-01-01T00:00:00Z", "has already passed"),
        ("soon", "must be an ISO time"),
        (5, "must be an ISO time"),
        ("0001-01-01T00:00:00+14:00", "must be an ISO time"),
        ([], "must be an ISO time"),
    ],
)
async def test_an_end_that_is_no_time_to_come_is_refused(memory: Memory, expires_at: object, said: str) -> None:
    with pytest.raises(InvalidOperation, match=said):
        await memory.add("Parcel comes.", expires_at=expires_at)
    assert await memory.found("parcel") == []
    kept = await memory.add("Parcel comes.")
    with pytest.raises(InvalidOperation, match=said):
        await memory.update(kept.memory_id, "Parcel came.", expires_at=expires_at)
    assert await memory.found("parcel") == ["Parcel comes."]


async def test_an_end_can_be_moved_and_taken_away(memory: Memory) -> None:
    added = await memory.add("Parcel comes.", expires_at=memory.later(DAY))
    await memory.update(added.memory_id, "Parcel comes.", expires_at=memory.later(3 * DAY))
    memory.clock.advance(2 * DAY)
    assert await memory.found("parcel") == ["Parcel comes."]
    await memory.update(added.memory_id, "Parcel comes.", expires_at=None)
    memory.clock.advance(9 * DAY)
    assert await memory.found("parcel") == ["Parcel comes."]
    assert (await memory.head(added.memory_id)).metadata == {}


async def test_an_update_replaces_the_text_and_merges_the_metadata(memory: Memory) -> None:
    added = await memory.add("Ana likes tea.", "fact", topic="drinks", source="chat")
    updated = await memory.update(added.memory_id, "Ana likes coffee.", source=None, page=3)
    head = await memory.head(added.memory_id)
    assert (updated.version, updated.previous_content) == (2, "Ana likes tea.")
    assert head.updated_at == updated.updated_at > added.created_at == head.created_at
    assert (head.memory_type, head.metadata) == ("fact", {"topic": "drinks", "page": 3})
    assert await memory.found("tea") == []
    assert await memory.found("coffee") == ["Ana likes coffee."]


@pytest.mark.parametrize("metadata", [{}, {"topic": "drinks"}, {"absent": None}])
async def test_an_update_that_changes_nothing_adds_no_version(memory: Memory, metadata: dict[str, Any]) -> None:
    added = await memory.add("Ana likes tea.", topic="drinks")
    updated = await memory.update(added.memory_id, "Ana likes tea.", **metadata)
    assert (updated.version, updated.updated_at) == (1, added.created_at)
    assert len(await memory.events(added.memory_id)) == 1


async def test_true_in_the_place_of_1_is_a_change(memory: Memory) -> None:
    added = await memory.add("Task", done=0)
    assert (await memory.update(added.memory_id, "Task", done=False)).version == 2
    assert await memory.found("task", done=False) == ["Task"]


async def test_merged_metadata_may_not_outgrow_its_limit(memory: Memory) -> None:
    added = await memory.add("Ana likes tea.", first="x" * 10_000)
    with pytest.raises(InvalidOperation, match="merged metadata is larger"):
        await memory.update(added.memory_id, "Ana likes tea.", second="x" * 10_000)
    assert (await memory.head(added.memory_id)).version == 1


async def test_a_delete_wants_confirmation(memory: Memory) -> None:
    added = await memory.add("Ana likes tea.")
    with pytest.raises(InvalidOperation, match=r"was not deleted.*confirmation: true"):
        await memory.delete(added.memory_id, confirmation=False)
    assert await memory.found("tea") == ["Ana likes tea."]
    await memory.delete(added.memory_id)
    assert await memory.found("tea") == []


async def test_a_deleted_memory_cannot_be_changed_until_it_is_restored(memory: Memory) -> None:
    added = await memory.add("Ana likes tea.")
    await memory.delete(added.memory_id)
    for call in (memory.delete(added.memory_id), memory.update(added.memory_id, "x")):
        with pytest.raises(NotFound, match=r"was deleted. Add it again, or restore it"):
            await call
    restored = await memory.restore(added.memory_id)
    assert (restored.version, restored.deleted) == (3, False)
    assert await memory.found("tea") == ["Ana likes tea."]
    assert (await memory.update(added.memory_id, "Ana likes milk.")).version == 4


async def test_restoring_an_expired_memory_gives_it_life_without_end(memory: Memory) -> None:
    added = await memory.add("Parcel comes.", expires_at=memory.later(DAY), topic="post")
    memory.clock.advance(2 * DAY)
    restored = await memory.restore(added.memory_id)
    assert (restored.expires_at, restored.metadata) == (None, {"topic": "post"})
    assert await memory.found("parcel") == ["Parcel comes."]


async def test_an_earlier_version_can_be_restored_with_its_metadata(memory: Memory) -> None:
    added = await memory.add("one", "fact", n=1)
    await memory.update(added.memory_id, "two", n=2)
    await memory.delete(added.memory_id)
    restored = await memory.restore(added.memory_id, 1)
    assert (restored.version, restored.content, restored.metadata) == (4, "one", {"n": 1})
    assert (await memory.restore(added.memory_id)).content == "one"
    assert [one.kind for one in await memory.events(added.memory_id)] == ["add", "update", "delete", "restore"]
    assert await memory.found("one", n=1) == ["one"]


@pytest.mark.parametrize("version", [0, 2, 3, -1])
async def test_a_version_without_a_text_cannot_be_restored(memory: Memory, version: int) -> None:
    added = await memory.add("one")
    await memory.delete(added.memory_id)
    with pytest.raises(NotFound, match=f"has no version {version} to restore. It has 1."):
        await memory.restore(added.memory_id, version)


async def test_an_unknown_and_another_scopes_memory_are_refused_with_the_same_text(memory: Memory) -> None:
    foreign = (await memory.add("Ana likes tea.", scope=OTHER)).memory_id

    async def refusals(memory_id: str) -> list[str]:
        texts: list[str] = []
        for call in (memory.update(memory_id, "x"), memory.delete(memory_id), memory.restore(memory_id)):
            with pytest.raises(NotFound) as caught:
                await call
            texts.append(str(caught.value).replace(memory_id, "ID"))
        return texts

    assert await refusals(foreign) == await refusals("mem_none")
    assert await memory.found("tea") == []
    assert await memory.found("tea", OTHER) == ["Ana likes tea."]


async def test_every_row_of_the_ledger_names_who_did_it_for_which_session(memory: Memory) -> None:
    add = await memory.long_term.add(SCOPE, AddMemory(content="one", metadata={}), Origin(Actor.ENVIRONMENT, "ctx_1"))
    again = AddMemory(content="one", metadata={"a": 1})
    await memory.long_term.add(SCOPE, again, Origin(Actor.POLICY, "ctx_2"))
    update = UpdateMemory(memory_id=add.memory_id, content="two", metadata={})
    await memory.long_term.update(SCOPE, update, Origin(Actor.USER, "ctx_3"))
    delete = DeleteMemory(memory_id=add.memory_id, confirmation=True)
    await memory.long_term.delete(SCOPE, delete, Origin(Actor.POLICY, "ctx_4"))
    await memory.long_term.restore(SCOPE, add.memory_id, None, Origin(Actor.USER))
    assert [(one.kind, one.actor, one.session_id) for one in await memory.events(add.memory_id)] == [
        ("add", "environment", "ctx_1"),
        ("update", "policy", "ctx_2"),
        ("update", "user", "ctx_3"),
        ("delete", "policy", "ctx_4"),
        ("restore", "user", None),
    ]


async def test_what_one_writer_stores_without_a_long_break_hangs_together(memory: Memory) -> None:
    async def add(content: str, writer: str | None, scope: Scope = SCOPE) -> str:
        added = await memory.long_term.add(scope, AddMemory(content=content, metadata={}), Origin(writer=writer))
        return added.memory_id

    async def follows(memory_id: str) -> str | None:
        return (await memory.head(memory_id)).follows

    first, other = await add("one", "w1"), await add("two", "w2")
    second = await add("three", "w1")
    assert (await follows(first), await follows(other), await follows(second)) == (None, None, first)
    assert await add("one", "w1") == first
    assert await follows(await add("four", None)) is None
    await memory.update(second, "three, in other words")
    assert await follows(second) == first
    memory.clock.advance(NEIGHBOUR_GAP - timedelta(seconds=1))
    third = await add("five", "w1")
    assert await follows(third) == second
    memory.clock.advance(NEIGHBOUR_GAP)
    assert await follows(await add("six", "w1")) is None
    assert await memory.long_term._ledger.read(lambda view: view.neighbours(SCOPE, [second])) == {
        second: (first, third)
    }
    await add("one", "w1", OTHER)
    assert (await memory.long_term._ledger.list_heads(OTHER, limit=None, include_deleted=True))[0].follows is None


async def test_memories_added_at_once_by_one_writer_form_one_chain(memory: Memory) -> None:
    operations = [AddMemory(content=f"note {number}", metadata={}) for number in range(10)]
    await asyncio.gather(*(memory.long_term.add(SCOPE, one, Origin(writer="w")) for one in operations))
    heads = await memory.long_term._ledger.list_heads(SCOPE, limit=None, include_deleted=True)
    assert [one.follows for one in heads] == [*(one.memory_id for one in heads[1:]), None]


class CollidingIds(RandomIds):
    """The same id each time, until it proves taken."""

    def memory_id(self, scope: Scope, created_in_scope: int, attempt: int) -> str:
        """An id by attempt alone."""
        return f"mem_{attempt}"


async def test_an_id_that_is_taken_is_never_given_again(lexical_settings: Settings, clock: SteppingClock) -> None:
    async with open_service(lexical_settings, clock=clock, ids=CollidingIds(seed=1)) as service:
        memory = Memory(service, clock)
        ids = [(await memory.add(f"note {number}")).memory_id for number in range(3)]
        assert ids == ["mem_0", "mem_1", "mem_2"]
        await memory.delete("mem_1")
        assert (await memory.add("note 4")).memory_id == "mem_3"
        assert (await memory.add("note 5", scope=OTHER)).memory_id == "mem_0"


@pytest.mark.parametrize(
    ("metadata_filter", "expected"),
    [
        ({}, {1, 2, 3}),
        ({"n": 2}, {2}),
        ({"n": [1, "3"]}, {1, 3}),
        ({"n": {"gte": 2}}, {2, 3}),
        ({"n": {"gt": 1, "lt": 3}}, {2}),
        ({"memory_type": "odd"}, {1, 3}),
        ({"memory_type": ["even", "none"]}, {2}),
        ({"tags": "t3"}, {3}),
        ({"day": {"after": "2026-05-01", "before": "2026-05-03"}}, {2}),
        ({"deep": {"n": 1}}, {1}),
        ({"n": 2, "memory_type": "odd"}, set()),
        ({"absent": 1}, set()),
        ({"created_at": {"before": "2026-01-01T00:00:00Z"}}, set()),
        ({"created_at": {"after": "2025-12-31"}, "updated_at": {"gte": "2026-01-01"}}, {1, 2, 3}),
    ],
    ids=str,
)
async def test_a_search_is_narrowed_by_metadata(
    memory: Memory, metadata_filter: dict[str, Any], expected: set[int]
) -> None:
    for n in (1, 2, 3):
        kind = "odd" if n % 2 else "even"
        await memory.add(f"note {n}", kind, n=n, tags=[f"t{n}", "all"], day=f"2026-05-0{n}", deep={"n": n})
    assert {int(text[-1]) for text in await memory.found("note", **metadata_filter)} == expected


async def test_a_search_gives_no_more_than_asked_best_first(memory: Memory) -> None:
    for text in ("tea", "tea with milk", "tea with milk and honey", "bread"):
        await memory.add(text)
    hits = await memory.long_term.search(SCOPE, "milk honey", top_k=2, metadata_filter={})
    assert [hit.record.content for hit in hits] == ["tea with milk and honey", "tea with milk"]
    assert 1 >= hits[0].score > hits[1].score > 0
