"""The embedded and the remote index give the same after the same operations."""

from __future__ import annotations

import random
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from qdrant_client import AsyncQdrantClient

from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex
from agemem_mcp.adapters.qdrant_remote import QdrantRemoteIndex

from .entries import ALICE, BOB, DIMENSIONS, NOW, entry, ids, query

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_mcp.domain.memory import IndexEntry, MemoryQuery


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
