"""What a search returns, on a real ledger and index, by words alone."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import AddMemory, DeleteMemory, UpdateMemory
from agemem_mcp.service.long_term import NEIGHBOUR_GAP, Origin

if TYPE_CHECKING:
    from agemem_mcp.adapters.system import SteppingClock
    from agemem_mcp.domain.memory import ScoredMemory
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

SCOPE = Scope()
QUERY = "Where did Mel go hiking?"
ASKED, ANSWERED = "Mel, where do you go hiking?", "In the dunes, at dawn."


async def add(service: MemoryService, content: str, writer: str | None = "w", **metadata: Any) -> str:
    """Store a memory; returns its id."""
    operation = AddMemory(content=content, metadata=metadata)
    return (await service.long_term.add(SCOPE, operation, Origin(writer=writer))).memory_id


async def search(
    service: MemoryService, query: str, scope: Scope = SCOPE, top_k: int = 10, **metadata_filter: Any
) -> list[ScoredMemory]:
    """What is found."""
    return await service.long_term.search(scope, query, top_k=top_k, metadata_filter=metadata_filter)


async def texts(service: MemoryService, query: str, **metadata_filter: Any) -> list[str]:
    """The texts that are found."""
    return [hit.record.content for hit in await search(service, query, **metadata_filter)]


async def test_an_answer_is_found_by_the_question_stored_before_it(lexical_service: MemoryService) -> None:
    await add(lexical_service, ASKED)
    await add(lexical_service, ANSWERED)
    await add(lexical_service, "Something else entirely.")
    hits = await search(lexical_service, QUERY)
    assert [(hit.record.content, hit.found_by) for hit in hits] == [
        (ASKED, ("lexical",)),
        (ANSWERED, ("neighbour",)),
    ]
    assert hits[1].score == pytest.approx(hits[0].score / 2)


async def test_writers_that_take_turns_keep_their_own_neighbours(lexical_service: MemoryService) -> None:
    for one, other in ((ASKED, "Rain again today."), (ANSWERED, "And tomorrow.")):
        await add(lexical_service, one, "a")
        await add(lexical_service, other, "b")
    assert await texts(lexical_service, QUERY) == [ASKED, ANSWERED]


async def test_what_is_stored_long_after_is_no_neighbour(lexical_service: MemoryService, clock: SteppingClock) -> None:
    await add(lexical_service, ASKED)
    clock.moment += NEIGHBOUR_GAP + timedelta(seconds=1)
    await add(lexical_service, ANSWERED)
    assert await texts(lexical_service, QUERY) == [ASKED]


async def test_without_a_writer_nothing_is_a_neighbour(lexical_service: MemoryService) -> None:
    await add(lexical_service, ASKED, None)
    await add(lexical_service, ANSWERED, None)
    assert await texts(lexical_service, QUERY) == [ASKED]


async def test_neighbours_must_meet_the_filter(lexical_service: MemoryService) -> None:
    await add(lexical_service, ASKED, day=1)
    await add(lexical_service, ANSWERED, day=1)
    await add(lexical_service, "Mel, did you take a map for hiking?", day=1)
    await add(lexical_service, "I did.", day=2)
    assert set(await texts(lexical_service, QUERY, day=1)) == {
        ASKED,
        ANSWERED,
        "Mel, did you take a map for hiking?",
    }
    assert ANSWERED in await texts(lexical_service, QUERY, day={"lt": 1.5})
    assert "I did." not in await texts(lexical_service, QUERY, day={"lt": 1.5})


async def test_deleted_and_replaced_texts_are_not_found_as_neighbours(lexical_service: MemoryService) -> None:
    await add(lexical_service, "A first remark.")
    deleted = await add(lexical_service, "To be deleted.")
    await add(lexical_service, ASKED)
    changed = await add(lexical_service, "At the river.")
    await lexical_service.long_term.delete(SCOPE, DeleteMemory(memory_id=deleted, confirmation=True), Origin())
    await lexical_service.long_term.update(
        SCOPE, UpdateMemory(memory_id=changed, content=ANSWERED, metadata={}), Origin()
    )
    assert await texts(lexical_service, QUERY) == [ASKED, ANSWERED]


async def test_other_scopes_change_nothing(lexical_service: MemoryService) -> None:
    for content in (ASKED, ANSWERED, "Mel likes hiking.", "A hiking map."):
        await add(lexical_service, content)
    before = await search(lexical_service, QUERY)
    other = Scope(namespace="other")
    for content in (ASKED, "Hiking, hiking, hiking.", "Mel went hiking."):
        await lexical_service.long_term.add(other, AddMemory(content=content, metadata={}), Origin(writer="w"))
    assert await search(lexical_service, QUERY) == before


async def test_a_title_named_by_a_good_hit_is_carried_by_it(lexical_service: MemoryService) -> None:
    await add(lexical_service, "The thriller Night Ferry was directed by Ann Lee.", title="Night Ferry")
    await add(lexical_service, "She was born in Hull, where her thriller began.", title="Ann Lee (director)")
    await add(lexical_service, "He was born in Hull, where his thriller began.", title="Bob Roe")
    hits = await search(lexical_service, "Who made the thriller Night Ferry, and born where?")
    found = {hit.record.metadata["title"]: hit for hit in hits}
    assert [found[title].found_by for title in ("Night Ferry", "Ann Lee (director)", "Bob Roe")] == [
        ("lexical",),
        ("lexical", "link"),
        ("lexical",),
    ]
    assert found["Ann Lee (director)"].score > found["Bob Roe"].score


async def test_repeats_in_other_punctuation_do_not_fill_the_list(lexical_service: MemoryService) -> None:
    for n in range(30):
        await add(lexical_service, f"Mel{'!' * n} likes hiking", writer=None)
    await add(lexical_service, "A hiking map, some water and bread.", writer=None)
    await add(lexical_service, "Hiking with others is fine, with a map and bread.", writer=None)
    hits = await search(lexical_service, "Mel hiking", top_k=3)
    assert sum(hit.record.content.startswith("Mel") for hit in hits) == 1
    everything = await search(lexical_service, "Mel hiking", top_k=50)
    assert len(everything) == 32
    assert [hit.score for hit in everything] == sorted((hit.score for hit in everything), reverse=True)


async def test_texts_that_differ_by_a_word_are_no_repeats(lexical_service: MemoryService) -> None:
    for name in ("Ann", "Bea", "Cleo"):
        await add(lexical_service, f"The favourite tea of {name} is jasmine.", writer=None)
    hits = await search(lexical_service, "favourite tea")
    assert len({round(hit.score, 6) for hit in hits}) == 1


async def test_nothing_is_found_in_an_empty_scope_or_without_a_shared_word(lexical_service: MemoryService) -> None:
    assert await search(lexical_service, QUERY) == []
    await add(lexical_service, ASKED)
    assert await search(lexical_service, "zzz qqq") == []


async def test_newer_memories_come_first_only_if_wanted(lexical_settings: Settings, clock: SteppingClock) -> None:
    for days in (None, 30.0):
        settings = lexical_settings.model_copy(
            update={"recency_days": days, "data_dir": lexical_settings.data_dir / str(days)}
        )
        async with open_service(settings, clock=clock, ids=RandomIds(seed=7)) as service:
            await add(service, "hiking in Spain", None)
            clock.moment += timedelta(days=30)
            await add(service, "hiking in Italy", None)
            scores = {hit.record.content[-5:]: hit.score for hit in await search(service, "hiking")}
        # after one half-life (1 + 1/2) / 2
        assert scores["Spain"] == pytest.approx(scores["Italy"] * (1.0 if days is None else 0.75), rel=1e-6)


async def test_a_nonsense_query_scores_near_nothing(full_settings: Settings) -> None:
    async with open_service(full_settings) as service:
        for content in ("The user prefers dark mode.", "Mel went hiking in the dunes.", "Rent is due on the first."):
            await add(service, content, None)
        assert max(hit.score for hit in await search(service, "flurbish wendicott zarp")) < 0.1
        sensible = await search(service, "Which colour scheme does the user like?")
    assert sensible[0].record.content == "The user prefers dark mode."
    assert sensible[0].score > 0.2
