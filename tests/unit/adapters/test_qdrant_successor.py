"""Another generation is filled beside the embedded index, and takes its place or leaves no trace."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.adapters import qdrant_optimisation
from agemem_mcp.errors import StoreError

from .test_qdrant_edge import contents, entries, filled, found, opened, shard
from .test_qdrant_optimisation import Program, many

if TYPE_CHECKING:
    from pathlib import Path

NEW = {"embedding": "new-model", "dimensions": 8}


async def test_a_successor_is_filled_beside_and_takes_the_place(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    await filled(directory)
    index = await opened(directory)
    successor = await index.successor(embedding="new-model", dimensions=8)
    assert (await successor.count(), await successor.flushed_seq()) == (0, 0)
    await successor.apply(entries(30), [])
    await index.apply(entries(22), [])
    assert (await index.count(), await successor.count()) == (22, 30)
    assert json.loads((directory / "manifest.json").read_text())["embedding"] == "test-model"
    await successor.flush(31)
    assert await successor.flushed_seq() == 31
    await index.replace_by(successor)
    for _ in range(2):
        assert await found(index) == {f"m{number}" for number in range(30)}
        assert await index.flushed_seq() == 31
        await index.close()
        assert contents(directory) == {"manifest.json", "shard-2"}
        index = await opened(directory, **NEW)
    await index.close()


async def test_the_index_goes_on_after_it_was_replaced(tmp_path: Path) -> None:
    index = await opened(tmp_path / "index")
    for number in (1, 2, 3):
        successor = await index.successor(embedding="new-model", dimensions=8)
        await successor.apply(entries(10 * number), [])
        await index.replace_by(successor)
        await index.apply(entries(10 * number + 1), [])
        await index.flush(number)
        assert await found(index) == {f"m{one}" for one in range(10 * number + 1)}
    await index.close()
    index = await opened(tmp_path / "index", **NEW)
    assert (await index.count(), await index.flushed_seq()) == (31, 3)
    await index.close()


@pytest.mark.parametrize("end", ["closed", "with the index", "killed"])
async def test_a_successor_that_is_not_used_leaves_no_trace(tmp_path: Path, end: str) -> None:
    directory = tmp_path / "index"
    await filled(directory)
    index = await opened(directory)
    successor = await index.successor(embedding="new-model", dimensions=8)
    await successor.apply(entries(30), [])
    await successor.flush(30)
    if end == "closed":
        await successor.close()
        assert contents(directory) == {"manifest.json", "shard-1"}
        await (await index.successor(embedding="new-model", dimensions=8)).close()
    elif end == "killed":
        (directory / "shard-9").mkdir()  # as one that nobody could close
    await index.close()
    with pytest.raises(StoreError, match="closed"):
        await successor.count()
    index = await opened(directory)
    assert (await index.count(), await index.flushed_seq()) == (20, 20)
    await index.close()
    assert contents(directory) == {"manifest.json", "shard-1"}


async def test_there_is_one_successor_at_a_time(tmp_path: Path) -> None:
    index = await opened(tmp_path / "index")
    successor = await index.successor(embedding="new-model", dimensions=8)
    with pytest.raises(StoreError, match="already"):
        await index.successor(embedding="new-model", dimensions=8)
    with pytest.raises(StoreError, match="no successor"):
        await successor.successor(embedding="new-model", dimensions=8)
    await successor.close()
    another = await index.successor(embedding="new-model", dimensions=8)
    with pytest.raises(StoreError, match="no successor"):
        await index.replace_by(successor)
    with pytest.raises(StoreError, match="no successor"):
        await another.replace_by(index)
    await index.replace_by(another)
    with pytest.raises(StoreError, match="no successor"):
        await index.replace_by(another)
    await another.close()
    assert await index.count() == 0
    await index.close()


async def test_a_successor_whose_making_is_cancelled_leaves_no_trace(tmp_path: Path) -> None:
    index = await opened(tmp_path / "index")
    making = asyncio.create_task(index.successor(embedding="new-model", dimensions=8))
    while len(contents(tmp_path / "index")) == 2:  # noqa: ASYNC110  another thread makes it
        await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    successor = await index.successor(embedding="new-model", dimensions=8)
    await successor.close()
    await index.close()
    await (await opened(tmp_path / "index")).close()
    assert contents(tmp_path / "index") == {"manifest.json", "shard-1"}


async def test_a_replacement_that_fails_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    await filled(directory)
    index = await opened(directory)
    successor = await index.successor(embedding="new-model", dimensions=8)
    await successor.apply(entries(30), [])
    (directory / "manifest.json.new").mkdir()
    with pytest.raises(StoreError, match="could not be replaced"):
        await index.replace_by(successor)
    assert (await index.count(), await index.flushed_seq()) == (20, 20)
    (directory / "manifest.json.new").rmdir()
    await index.replace_by(successor)
    assert await index.count() == 30
    await index.close()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
async def test_a_successor_ends_an_optimisation_and_none_begins_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(qdrant_optimisation, "_PROGRAM", program.path)
        patch.setattr(qdrant_optimisation, "MIN_UNOPTIMISED", 100)
        index = await many(tmp_path / "index")
        optimising = asyncio.create_task(index.optimise_if_needed())
        await program.running()
        successor = await index.successor(embedding="new-model", dimensions=8)
        await optimising
        await index.optimise_if_needed()
        await successor.optimise_if_needed()
    assert contents(tmp_path / "index") == {"manifest.json", "shard-1", "shard-3"}
    await successor.apply(entries(200), [])
    await index.replace_by(successor)
    monkeypatch.setattr(qdrant_optimisation, "MIN_UNOPTIMISED", 100)
    await index.optimise_if_needed()
    assert shard(tmp_path / "index").name == "shard-4"
    assert await index.count() == 200
    await index.close()
