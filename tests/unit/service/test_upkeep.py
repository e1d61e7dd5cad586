"""What a look through a scope finds, on a real ledger."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.app import open_service, open_upkeep
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import AddMemory, DeleteMemory, UpdateMemory
from agemem_mcp.errors import AssetsMissing, ConfigurationError
from agemem_mcp.service.long_term import Origin

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from agemem_mcp.adapters.system import SteppingClock
    from agemem_mcp.domain.memory import MemoryRecord
    from agemem_mcp.service.long_term import LongTermMemory
    from agemem_mcp.service.upkeep import Review
    from agemem_mcp.settings import Settings

SCOPE = Scope()
DAY = timedelta(days=1)


class Place:
    """A folder of memories and a look through it, while the server has it open."""

    def __init__(self, settings: Settings, long_term: LongTermMemory, clock: SteppingClock) -> None:
        """Work on a service."""
        self.settings = settings
        self.long_term = long_term
        self.clock = clock

    async def add(self, content: str, memory_type: str | None = None, *, scope: Scope = SCOPE, **metadata: Any) -> str:
        """Add a memory; returns its id."""
        operation = AddMemory(content=content, memory_type=memory_type, metadata=metadata)
        return (await self.long_term.add(scope, operation, Origin())).memory_id

    async def review(self, **changed: Any) -> Review:
        """Look through the scope."""
        async with open_upkeep(self.settings, clock=self.clock) as upkeep:
            return await upkeep.review(SCOPE, **changed)


@asynccontextmanager
async def opened(settings: Settings, clock: SteppingClock) -> AsyncGenerator[Place]:
    """The folder, served."""
    async with open_service(settings, clock=clock, ids=RandomIds(3)) as service:
        yield Place(settings, service.long_term, clock)


@pytest.fixture
async def place(lexical_settings: Settings, clock: SteppingClock) -> AsyncGenerator[Place]:
    """A folder whose memories are compared by words."""
    async with opened(lexical_settings, clock) as place:
        yield place


def ids(records: Any) -> list[str]:
    """Memory ids."""
    found: list[MemoryRecord] = list(records)
    return [one.memory_id for one in found]


async def test_near_duplicates_are_grouped_oldest_first_closest_group_first(place: Place) -> None:
    tea = [await place.add(f"Ana likes tea with milk and a lot of honey {mark}") for mark in ("", "too", "now")]
    trip = [await place.add(f"the ferry to Oslo leaves at nine on Monday {mark}") for mark in ("morning", "evening")]
    await place.add("Bo drives a red car.")
    await place.add("Ana likes tea with milk and a lot of honey!!", scope=Scope(namespace="other"))
    review = await place.review()
    assert (review.compared, review.by, review.threshold) == (6, "words", 0.8)
    assert [ids(group.memories) for group in review.duplicates] == [tea, trip]
    assert [round(group.similarity, 2) for group in review.duplicates] == [0.91, 0.82]
    assert (review.replaced, review.expired, review.expiring, review.unchanged) == ([], [], [], [])
    assert [ids(group.memories) for group in (await place.review(threshold=0.85)).duplicates] == [tea]


async def test_deleted_and_expired_memories_are_no_duplicates(place: Place) -> None:
    text = "Ana likes tea with milk and a lot of honey"
    await place.add(text)
    gone = await place.add(f"{text} too")
    await place.add(f"{text} now", expires_at=(place.clock.moment + DAY).isoformat())
    await place.long_term.delete(SCOPE, DeleteMemory(memory_id=gone, confirmation=True), Origin())
    assert len((await place.review()).duplicates[0].memories) == 2
    place.clock.advance(DAY)
    assert (await place.review()).duplicates == []


async def test_a_memory_looks_replaced_by_a_similar_later_one_of_its_title_and_type(place: Place) -> None:
    old = await place.add("Ana lives in Oslo now", "fact", title="Ana's home")
    await place.add("Ana lives in Oslo too", "fact", title="Somebody else's home")
    await place.add("Ana lives in Rome then", "note", title="Ana's home")
    await place.add("Ana sells old books there", "fact", title="Ana's home")
    await place.add("Ana lives in Oslo still")
    newer = await place.add("Ana lives in Bergen now", "Fact", title=" ANA's home")
    newest = await place.add("Ana lives in Trondheim now", "fact", title="Ana's home")
    (first, second) = (await place.review()).replaced
    assert {first.older.memory_id, second.older.memory_id} == {old, newer}
    assert first.newer.memory_id in (newer, newest)
    assert all(0.5 <= one.similarity < 0.8 for one in (first, second))


async def test_what_was_changed_last_is_the_later_one(place: Place) -> None:
    first = await place.add("Ana lives in Oslo now", "fact")
    second = await place.add("Ana lives in Bergen now", "fact")
    update = UpdateMemory(memory_id=first, content="Ana lives in Rome now", metadata={})
    await place.long_term.update(SCOPE, update, Origin())
    (one,) = (await place.review()).replaced
    assert (one.older.memory_id, one.newer.memory_id) == (second, first)


async def test_ends_and_age_are_listed_most_pressing_first(place: Place) -> None:
    async def ending(days: float) -> str:
        return await place.add(f"parcel {days}", expires_at=(place.clock.moment + days * DAY).isoformat())

    old = [await place.add("Bo drives."), await place.add("Ana likes tea.")]
    place.clock.advance(181 * DAY)
    past, passed = await ending(1), await ending(0.5)
    place.clock.advance(DAY)
    soon, sooner, late = await ending(6), await ending(2), await ending(8)
    review = await place.review()
    assert ids(review.expired) == [past, passed]
    assert ids(review.expiring) == [sooner, soon]
    assert ids(review.unchanged) == old
    assert ids((await place.review(soon=9 * DAY)).expiring) == [sooner, soon, late]
    assert ids((await place.review(stale=DAY / 2)).unchanged) == old
    assert (await place.review(stale=183 * DAY)).unchanged == []


async def test_a_review_changes_nothing(place: Place) -> None:
    await place.add("Ana likes tea.")
    before = await place.long_term._ledger.last_seq()
    await place.review()
    assert await place.long_term._ledger.last_seq() == before


async def test_an_empty_scope_has_nothing_to_look_through(place: Place) -> None:
    review = await place.review()
    assert (review.compared, review.duplicates, review.replaced) == (0, [], [])


async def test_near_duplicates_are_found_by_meaning_with_a_report_on_the_way(
    full_settings: Settings, clock: SteppingClock
) -> None:
    async with opened(full_settings, clock) as place:
        same = [await place.add("My sister lives in Madrid."), await place.add("My sister is living in Madrid now.")]
        older = await place.add("The office is in Oslo, on the third floor.", "fact")
        newer = await place.add("The office is in Bergen, on the third floor.", "fact")
        for number in range(70):
            await place.add(
                f"Note {number}: {number * 7919 % 1000} {['apples', 'pears', 'plums', 'figs', 'nuts'][number % 5]}"
            )
        reports: list[tuple[int, int]] = []
        review = await place.review(threshold=0.93, report=lambda done, total: reports.append((done, total)))
    assert (review.by, review.compared) == ("meaning", 74)
    assert same in [ids(group.memories) for group in review.duplicates]
    assert (older, newer) in [(one.older.memory_id, one.newer.memory_id) for one in review.replaced]
    assert reports == [(0, 74), (64, 74), (74, 74)]


async def test_without_a_memory_or_a_model_it_is_said_what_to_do(
    lexical_settings: Settings, full_settings: Settings, tmp_path: Path, clock: SteppingClock
) -> None:
    with pytest.raises(ConfigurationError, match="There is no memory in"):
        async with open_upkeep(lexical_settings):
            pytest.fail("it was opened")
    async with opened(lexical_settings, clock) as place:
        await place.add("Ana likes tea.")
        place.settings = full_settings.model_copy(
            update={"assets_dir": tmp_path / "none", "hub_url": "http://127.0.0.1:9", "embedding_path": tmp_path}
        )
        with pytest.raises(AssetsMissing, match="assets pull"):
            await place.review()
