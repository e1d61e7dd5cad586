"""What every memory index finds, whichever backend holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agemem_mcp.domain.memory import Scope, ScoreLists
from agemem_mcp.errors import StoreError

from .entries import BOB, DIMENSIONS, entry, ids, query, vector

if TYPE_CHECKING:
    from agemem_mcp.domain.ports import MemoryIndex

    from .conftest import IndexBackend


async def test_the_nearest_vector_comes_first_with_its_cosine(index: MemoryIndex) -> None:
    entries = [entry(f"m{number}", f"text number {number}") for number in range(5)]
    await index.apply(entries, [])
    found = (await index.search(query("text number 3"))).dense
    expected = {item.record.memory_id: float(vector("text number 3") @ vector(item.text)) for item in entries}
    assert ids(found) == sorted(expected, key=lambda name: -expected[name])
    assert {item.memory_id: item.score for item in found} == pytest.approx(expected, abs=1e-5)


async def test_words_are_found_in_any_inflection_and_rare_ones_weigh_more(index: MemoryIndex) -> None:
    texts = ("the cat sleeps in the house", "a house with a garden", "houses by the sea", "nothing of the kind")
    await index.apply([entry(f"m{number}", text) for number, text in enumerate(texts, 1)], [])
    found = (await index.search(query("sleeping houses"))).sparse
    assert ids(found)[0] == "m1"
    assert set(ids(found)) == {"m1", "m2", "m3"}
    assert all(item.score > 0 for item in found)


async def test_a_changed_entry_replaces_the_old_one(index: MemoryIndex) -> None:
    await index.apply([entry("m1", "green tea", metadata={"k": "old"})], [])
    await index.apply([entry("m1", "black coffee", version=2, metadata={"k": "new"})], [])
    assert await index.count() == 1
    assert (await index.search(query("tea"))).sparse == []
    assert ids((await index.search(query("coffee", k="new"))).sparse) == ["m1"]
    assert (await index.search(query("coffee", k="old"))) == ScoreLists()


async def test_the_last_state_given_for_an_entry_wins(index: MemoryIndex) -> None:
    await index.apply([entry("m1", "green tea"), entry("m1", "black coffee")], [])
    assert await index.count() == 1
    assert ids((await index.search(query("coffee"))).sparse) == ["m1"]


async def test_a_deleted_entry_is_gone_and_deleting_an_absent_one_is_harmless(index: MemoryIndex) -> None:
    one, two = entry("m1", "green tea"), entry("m2", "black tea")
    await index.apply([one, two], [])
    await index.apply([], [one.record, entry("never", "seen").record])
    found = await index.search(query("tea"))
    assert ids(found.dense) == ids(found.sparse) == ["m2"]
    assert await index.count() == 1


async def test_applying_the_same_twice_changes_nothing(index: MemoryIndex) -> None:
    entries, gone = [entry("m1", "green tea"), entry("m2", "black tea")], [entry("m3", "tea").record]
    await index.apply(entries, gone)
    before = await index.search(query("green tea"))
    await index.apply(entries, gone)
    assert await index.search(query("green tea")) == before
    assert await index.count() == 2


async def test_nothing_to_apply_is_allowed(index: MemoryIndex) -> None:
    await index.apply([], [])
    assert await index.count() == 0
    assert await index.search(query("anything")) == ScoreLists()


async def test_more_entries_than_fit_one_batch_are_all_stored(index: MemoryIndex) -> None:
    entries = [entry(f"m{number}", f"note {number}") for number in range(300)]
    await index.apply(entries, [])
    assert await index.count() == 300
    await index.apply([], [item.record for item in entries[:299]])
    assert ids((await index.search(query("note"))).dense) == ["m299"]


@pytest.mark.parametrize(
    "other",
    [BOB, Scope("alice", "home"), Scope("alicework", ""), Scope("ALICE", "work")],
    ids=lambda scope: repr(scope.key),
)
async def test_a_search_sees_its_own_scope_alone(index: MemoryIndex, other: Scope) -> None:
    await index.apply([entry("same-id", "green tea"), entry("same-id", "green tea", scope=other)], [])
    assert await index.count() == 2
    found = await index.search(query("green tea"))
    assert ids(found.dense) == ids(found.sparse) == ["same-id"]
    await index.apply([], [entry("same-id", "green tea").record])
    assert await index.search(query("green tea")) == ScoreLists()
    assert ids((await index.search(query("green tea", scope=other))).dense) == ["same-id"]


async def test_other_scopes_do_not_influence_the_scores_of_words(index: MemoryIndex) -> None:
    await index.apply([entry("m1", "green tea"), entry("m2", "black coffee"), entry("m3", "green apples")], [])
    before = await index.search(query("green tea"))
    await index.apply([entry(f"b{number}", "green green tea", scope=BOB) for number in range(30)], [])
    await index.apply([entry(f"c{number}", "unrelated words", scope=BOB) for number in range(50)], [])
    after = await index.search(query("green tea"))
    assert ids(before.sparse) == ids(after.sparse)
    assert [item.score for item in after.sparse] == pytest.approx([item.score for item in before.sparse], rel=1e-6)


async def test_the_scope_s_own_entries_do_influence_the_scores_of_words(index: MemoryIndex) -> None:
    await index.apply([entry("m1", "green tea"), entry("m2", "black coffee")], [])
    before = (await index.search(query("tea"))).sparse[0].score
    await index.apply([entry(f"n{number}", "tea for two") for number in range(20)], [])
    after = {item.memory_id: item.score for item in (await index.search(query("tea", limit=50))).sparse}["m1"]
    assert after < before / 2


async def test_filters_narrow_the_results_and_leave_the_scores_alone(index: MemoryIndex) -> None:
    await index.apply([entry(f"m{number}", "tea note", metadata={"n": number}) for number in range(6)], [])
    everything = {item.memory_id: item.score for item in (await index.search(query("tea"))).sparse}
    filtered = (await index.search(query("tea", n=[1, 2]))).sparse
    assert {item.memory_id: item.score for item in filtered} == pytest.approx(
        {name: everything[name] for name in ("m1", "m2")}
    )


async def test_each_list_holds_at_most_the_limit_and_the_best(index: MemoryIndex) -> None:
    await index.apply([entry(f"m{number}", f"note {'tea ' * number}") for number in range(20)], [])
    everything = await index.search(query("tea", limit=20))
    found = await index.search(query("tea", limit=3))
    assert ids(found.dense) == ids(everything.dense)[:3]
    assert ids(found.sparse) == ids(everything.sparse)[:3]
    assert await index.search(query("tea", limit=0)) == ScoreLists()


@pytest.mark.parametrize("text", ["", "   ", "the of and", "?!…", "\ud800"])
async def test_a_query_without_words_has_no_word_list(index: MemoryIndex, text: str) -> None:
    await index.apply([entry("m1", "the of and green tea")], [])
    found = await index.search(query(text))
    assert ids(found.dense) == ["m1"]
    assert found.sparse == []
    assert await index.search(replace(query(text), vector_D=None)) == ScoreLists()


async def test_a_text_without_words_is_found_by_its_vector(index: MemoryIndex) -> None:
    await index.apply([entry("m1", ""), entry("m2", "the of and"), entry("m3", "\ud800")], [])
    found = await index.search(query("tea"))
    assert set(ids(found.dense)) == {"m1", "m2", "m3"}
    assert found.sparse == []


async def test_a_query_without_a_vector_has_no_dense_list(index: MemoryIndex) -> None:
    await index.apply([entry("m1", "green tea")], [])
    found = await index.search(replace(query("tea"), vector_D=None))
    assert found.dense == []
    assert ids(found.sparse) == ["m1"]


async def test_an_index_without_vectors_finds_words(index_backend: IndexBackend) -> None:
    index = await index_backend.open(embedding="none", dimensions=None)
    await index.apply([replace(entry("m1", "green tea"), vector_D=None), entry("m2", "black tea"), entry("m3", "")], [])
    assert await index.count() == 3
    found = await index.search(query("green tea"))
    assert found.dense == []
    assert ids(found.sparse) == ["m1", "m2"]
    assert await index.search(query("")) == ScoreLists()


async def test_a_vector_of_another_length_is_a_store_error(index: MemoryIndex) -> None:
    wrong = replace(entry("m1", "green tea"), vector_D=np.ones(DIMENSIONS + 1, dtype=np.float32))
    with pytest.raises(StoreError):
        await index.apply([wrong], [])
