"""What every memory index does, whichever backend holds it."""

from __future__ import annotations

import hashlib
import random
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient

from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex
from agemem_mcp.adapters.qdrant_remote import QdrantRemoteIndex
from agemem_mcp.domain.facets import conditions_from
from agemem_mcp.domain.memory import IndexEntry, MemoryQuery, MemoryRecord, Scope, ScoreLists
from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agemem_mcp.domain.memory import ScoredId, VectorD
    from agemem_mcp.domain.ports import MemoryIndex

    from .conftest import IndexBackend

DIMENSIONS = 8
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
ALICE = Scope("alice", "work")
BOB = Scope("bob", "work")


def vector(text: str) -> VectorD:
    """A unit vector that depends on the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    values = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    unit: VectorD = values / np.float32(np.linalg.norm(values))
    return unit


def entry(memory_id: str, text: str, *, scope: Scope = ALICE, **changed: Any) -> IndexEntry:
    """An entry whose record has ``changed`` fields."""
    record = MemoryRecord(scope, memory_id, 1, text, None, {}, created_at=NOW, updated_at=NOW)
    return IndexEntry(replace(record, **changed), text, vector(text))


def query(text: str, *, scope: Scope = ALICE, limit: int = 10, **metadata_filter: Any) -> MemoryQuery:
    """A search with vector and words."""
    return MemoryQuery(scope, text, vector(text), limit, NOW, conditions_from(metadata_filter))


def ids(found: Sequence[ScoredId]) -> list[str]:
    """Memory ids in order."""
    return [scored.memory_id for scored in found]


async def matching(index: MemoryIndex, metadata_filter: dict[str, Any]) -> set[str]:
    """Ids that pass the filter; both lists must agree, as all entries share the word."""
    conditions = conditions_from(metadata_filter)
    found = await index.search(MemoryQuery(ALICE, "note", vector("note"), 50, NOW, conditions))
    assert set(ids(found.dense)) == set(ids(found.sparse))
    return set(ids(found.dense))


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


ODD_METADATA: dict[str, dict[str, Any]] = {
    "dots": {"a.b.c": "v1"},
    "quotes": {'say "hi"': 'it\'s "fine"'},
    "spaces": {"  two  words ": " padded "},
    "unicode": {"größe 大小 🍵": "naïve 値"},
    "brackets": {"list[0].x[]": "[v]"},
    "empty key": {"": "empty"},
    "backslash": {"c:\\temp\\": "\\n"},
    "separator": {"a\x1fb": "\x00\x1e"},
    "lone surrogate": {"k\ud800": "v\udfff"},
    "very long": {"k" * 400: "v" * 100_000},
    "number": {"count": 7},
    "float": {"ratio": 0.25},
    "negative": {"offset": -3},
    "true": {"flag": True},
    "false": {"flag": False},
    "null": {"nothing": None},
    "nested": {"outer": {"inner": {"deep": "v"}}},
}


@pytest.mark.parametrize("name", ODD_METADATA)
async def test_any_metadata_can_be_matched_exactly(index: MemoryIndex, name: str) -> None:
    await index.apply([entry(other, "note", metadata=metadata) for other, metadata in ODD_METADATA.items()], [])
    assert await matching(index, ODD_METADATA[name]) == {name}


async def test_a_list_of_values_matches_any_and_a_stored_list_matches_each(index: MemoryIndex) -> None:
    stored = {"m1": ["red", "blue"], "m2": ["green"], "m3": list[str]()}
    await index.apply([entry(name, "note", metadata={"tags": tags}) for name, tags in stored.items()], [])
    assert await matching(index, {"tags": "blue"}) == {"m1"}
    assert await matching(index, {"tags": ["blue", "green"]}) == {"m1", "m2"}
    assert await matching(index, {"tags": "yellow"}) == set()


async def test_several_conditions_must_all_hold(index: MemoryIndex) -> None:
    await index.apply(
        [
            entry("m1", "note", memory_type="fact", metadata={"n": 1, "project": {"name": "x"}}),
            entry("m2", "note", memory_type="fact", metadata={"n": 5, "project": {"name": "x"}}),
            entry("m3", "note", memory_type="event", metadata={"n": 1, "project": {"name": "x"}}),
        ],
        [],
    )
    wanted = {"memory_type": "fact", "n": {"lt": 3}, "project": {"name": "x"}}
    assert await matching(index, wanted) == {"m1"}


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"gt": 2}, {"m3", "m2.5"}),
        ({"gte": 2}, {"m2", "m2.5", "m3"}),
        ({"lt": 2}, {"m1", "m-1"}),
        ({"lte": 2, "gt": -1}, {"m1", "m2"}),
        ({"gt": 100}, set[str]()),
    ],
)
async def test_numbers_compare(index: MemoryIndex, bounds: dict[str, Any], expected: set[str]) -> None:
    numbers = [1, 2, 2.5, 3, -1]
    entries = [entry(f"m{number}", "note", metadata={"a.b [x]": number}) for number in numbers]
    await index.apply([*entries, entry("text", "note", metadata={"a.b [x]": "high"}), entry("none", "note")], [])
    assert await matching(index, {"a.b [x]": bounds}) == expected


async def test_times_compare_whether_of_the_record_or_in_its_metadata(index: MemoryIndex) -> None:
    days = {f"m{day}": datetime(2026, 3, day, 9, tzinfo=UTC) for day in (1, 2, 3)}
    entries = [
        entry(name, "note", created_at=day, updated_at=day + timedelta(days=30), metadata={"due": day.isoformat()})
        for name, day in days.items()
    ]
    await index.apply(entries, [])
    assert await matching(index, {"created_at": {"after": "2026-03-02"}}) == {"m2", "m3"}
    assert await matching(index, {"created_at": {"after": "2026-03-02T10:00:00Z"}}) == {"m3"}
    assert await matching(index, {"updated_at": {"before": "2026-04-01"}}) == {"m1"}
    assert await matching(index, {"due": {"gte": "2026-03-02T09:00:00+00:00"}}) == {"m2", "m3"}
    assert await matching(index, {"due": {"before": "2026-03-02T10:00:00+02:00"}}) == {"m1"}


async def test_an_entry_is_found_until_the_moment_it_expires(index: MemoryIndex) -> None:
    moments = {"past": -1, "now": 0, "soon": 0.001, "later": 3600}
    entries = [entry(name, "note", expires_at=NOW + timedelta(seconds=delay)) for name, delay in moments.items()]
    await index.apply([*entries, entry("never", "note")], [])
    assert await matching(index, {}) == {"soon", "later", "never"}


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


async def test_what_was_flushed_is_remembered_when_opened_again(index_backend: IndexBackend) -> None:
    index = await index_backend.open()
    assert await index.flushed_seq() == 0
    await index.apply([entry("m1", "green tea")], [])
    await index.flush(17)
    assert await index.flushed_seq() == 17
    await index.close()
    index = await index_backend.open()
    assert await index.flushed_seq() == 17
    assert ids((await index.search(query("tea"))).sparse) == ["m1"]
    await index.apply([entry("m2", "black tea")], [])
    await index.close()
    index = await index_backend.open()
    assert await index.flushed_seq() == 17
    assert await index.count() == 2


async def test_an_emptied_index_holds_nothing_and_stands_at_the_beginning(index: MemoryIndex) -> None:
    await index.apply([entry("m1", "one"), entry("m2", "two", scope=Scope("bob"))], [])
    await index.flush(9)
    await index.clear()
    assert (await index.count(), await index.flushed_seq()) == (0, 0)
    await index.apply([entry("m3", "three")], [])
    assert ids((await index.search(query("three"))).dense) == ["m3"]


async def test_a_closed_index_refuses_and_closing_twice_is_allowed(index: MemoryIndex) -> None:
    await index.close()
    await index.close()
    with pytest.raises(StoreError, match="closed"):
        await index.search(query("tea"))


@pytest.mark.parametrize(("embedding", "dimensions"), [("other-model", 8), ("test-model", 4), ("none", None)])
async def test_another_embedding_is_refused_with_a_way_out(
    index_backend: IndexBackend, embedding: str, dimensions: int | None
) -> None:
    await (await index_backend.open()).close()
    with pytest.raises(ConfigurationError, match=r"AGEMEM_EMBEDDING back to 'test-model'.*nothing is lost") as refusal:
        await index_backend.open(embedding=embedding, dimensions=dimensions)
    assert repr(embedding) in str(refusal.value)
    assert await (await index_backend.open()).count() == 0


WORDS = ("tea", "coffee", "green", "black", "house", "cat", "river", "stone", "cloud", "seven", "quick", "winter")


def _random_entry(chance: random.Random) -> IndexEntry:
    text = " ".join(chance.choices(WORDS, k=chance.randint(0, 12)))
    return entry(
        f"m{chance.randrange(40)}",
        text,
        scope=chance.choice([ALICE, BOB]),
        metadata={"n": chance.randrange(6), "tag": chance.sample(WORDS, k=2)},
        expires_at=chance.choice([None, None, NOW - timedelta(days=1), NOW + timedelta(days=1)]),
    )


def _random_query(chance: random.Random) -> MemoryQuery:
    metadata_filter = chance.choice([{}, {}, {"n": {"gte": chance.randrange(6)}}, {"tag": chance.sample(WORDS, k=3)}])
    text = " ".join(chance.choices(WORDS, k=chance.randint(0, 4)))
    return query(text, scope=chance.choice([ALICE, BOB]), limit=100, **metadata_filter)


@pytest.mark.parametrize("seed", range(3))
async def test_both_backends_give_the_same_ids_and_scores_after_the_same_operations(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    client = AsyncQdrantClient(location=":memory:")
    settings: dict[str, Any] = {"embedding": "test-model", "dimensions": DIMENSIONS, "ledger_id": "ledger-1"}
    edge = await QdrantEdgeIndex.open(tmp_path / "index", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # local mode has no payload indexes, and says so
        remote = await QdrantRemoteIndex.open(client, collection="congruence", **settings)
    compared = 0
    for _ in range(200):
        if chance.random() < 0.6:
            upserts = [_random_entry(chance) for _ in range(chance.randint(0, 3))]
            deletes = [_random_entry(chance).record for _ in range(chance.randint(0, 2))]
            await edge.apply(upserts, deletes)
            await remote.apply(upserts, deletes)
            assert await edge.count() == await remote.count()
            continue
        asked = _random_query(chance)
        ours, theirs = await edge.search(asked), await remote.search(asked)
        for left, right in ((ours.dense, theirs.dense), (ours.sparse, theirs.sparse)):
            scores = {item.memory_id: item.score for item in left}
            assert scores == pytest.approx({item.memory_id: item.score for item in right}, abs=1e-4)
            assert [scores[name] for name in ids(right)] == pytest.approx(
                sorted(scores.values(), reverse=True), abs=1e-4
            )
            compared += len(left)
    assert compared > 300
    await edge.close()
    await remote.close()
    await client.close()
