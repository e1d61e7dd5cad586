"""What every memory index keeps and refuses over its life."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.domain.memory import Scope
from agemem_mcp.errors import ConfigurationError, StoreError

from .entries import ALICE, BOB, NOW, entry, ids, query

if TYPE_CHECKING:
    from agemem_mcp.domain.ports import MemoryIndex

    from .conftest import IndexBackend


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


async def held(index: MemoryIndex) -> dict[tuple[str, str], int]:
    """The version of each entry, none of which may be listed twice."""
    listed = [one async for page in index.entries() for one in page]
    assert len({(one.scope_key, one.memory_id) for one in listed}) == len(listed)
    return {(one.scope_key, one.memory_id): one.version for one in listed}


async def test_every_entry_is_listed_once_in_its_last_version(index: MemoryIndex) -> None:
    assert await held(index) == {}
    long = Scope("p" * 300, "work")
    await index.apply([entry(f"m{number}", "tea") for number in range(1500)], [])
    await index.apply([entry("m7", "tea", version=5), entry("m7", "tea", scope=BOB), entry("x", "tea", scope=long)], [])
    await index.apply([], [entry("m8", "tea").record])
    expected = {(ALICE.key, f"m{number}"): 1 for number in range(1500) if number != 8}
    assert await held(index) == {**expected, (ALICE.key, "m7"): 5, (BOB.key, "m7"): 1, (long.key, "x"): 1}


async def test_entries_that_expired_are_listed(index: MemoryIndex) -> None:
    await index.apply([entry("m1", "tea", expires_at=NOW - timedelta(days=1))], [])
    assert list(await held(index)) == [(ALICE.key, "m1")]


async def test_optimising_is_always_allowed(index: MemoryIndex) -> None:
    await index.apply([entry("m1", "tea")], [])
    await index.optimise_if_needed()
    assert ids((await index.search(query("tea"))).dense) == ["m1"]
