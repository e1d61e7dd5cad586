"""What was acknowledged is never lost: the daemon killed under load, the index cut back, damaged or gone.

Short here; `make soak` runs the same with `SOAK_ROUNDS=50`.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.raw_client import RawClient

from agemem_mcp.app import open_archive
from agemem_mcp.domain.memory import Scope
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "3"))
WRITERS = 4


class Writer:
    """A client that changes memories of its own, and knows what was acknowledged."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.kept: dict[str, str | None] = {}
        """Text by id as acknowledged; None once deleted."""
        self.attempted: tuple[str | None, str | None] | None = None
        """Id and text of the change that was under way: it may have been done or not."""
        self.unsure: set[str] = set()
        """Texts of additions that were never acknowledged."""
        self.made = 0

    async def write(self, place: Any) -> None:
        """Change memories until the daemon is gone."""
        chance = random.Random(f"{self.number} {self.made}")
        with suppress(EOFError, OSError):
            async with RawClient(place) as client:
                while True:
                    await self._change(client, chance)

    async def _change(self, client: RawClient, chance: random.Random) -> None:
        self.made += 1
        text = f"Writer {self.number} says number {self.made}."
        live = [memory_id for memory_id, kept in self.kept.items() if kept is not None]
        what = chance.choice(["add", "add", "add", "update", "delete"]) if live else "add"
        if what == "add":
            self.attempted = (None, text)
            self.unsure.add(text)
            memory_id = (await client.call(self.made, "Add_memory", content=text))["memory_id"]
            self.unsure.remove(text)
            self.kept[memory_id] = text
        elif what == "update":
            memory_id = chance.choice(live)
            self.attempted = (memory_id, text)
            await client.call(self.made, "Update_memory", memory_id=memory_id, content=text)
            self.kept[memory_id] = text
        else:
            memory_id = chance.choice(live)
            self.attempted = (memory_id, None)
            await client.call(self.made, "Delete_memory", memory_id=memory_id, confirmation=True)
            self.kept[memory_id] = None
        self.attempted = None

    def check(self, stored: dict[str, str]) -> None:
        """Compare what is stored with what was acknowledged, and take over what came of the last change."""
        if self.attempted is not None and (memory_id := self.attempted[0]) is not None:
            assert stored.get(memory_id) in (self.kept[memory_id], self.attempted[1])
            self.kept[memory_id] = stored.get(memory_id)
        self.attempted = None
        assert {memory_id: stored.get(memory_id) for memory_id in self.kept} == self.kept


async def stored_in(place: Any) -> dict[str, str]:
    """Live memories by id, as the ledger has them."""
    settings = load_settings(data_dir=place.data, embedding="none", context={"tokenizer": "estimate"})
    async with open_archive(settings) as archive:
        return {one.memory_id: one.content for one in await archive.memories.list_memories(Scope())}


async def start(place: Any) -> None:
    """Start the daemon and wait until the memory is open."""
    async with place.stdio() as client:
        result = await client.call_tool("Retrieve_memory", {"query": "open"})
        assert not result.is_error, result.content


async def is_found(place: Any, stored: dict[str, str], wanted: Collection[str] | None = None) -> None:
    """Every stored memory, or those wanted of them, is found by its own words, and nothing that is not stored."""
    async with RawClient(place) as client:
        for number, memory_id in enumerate(sorted(stored if wanted is None else wanted), start=1):
            text = stored[memory_id]
            found = await client.call(number, "Retrieve_memory", query=text, top_k=3)
            hits = {one["memory_id"]: one["content"] for one in found["memories"]}
            assert hits.get(memory_id) == text
            assert hits.items() <= stored.items()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_daemon_that_is_ended_under_load_loses_nothing_acknowledged(place: Any, number: int) -> None:
    writers = [Writer(n) for n in range(WRITERS)]
    chance = random.Random(7)
    stored: dict[str, str] = {}
    for _ in range(ROUNDS):
        await start(place)
        tasks = [asyncio.create_task(writer.write(place)) for writer in writers]
        await asyncio.sleep(chance.uniform(0.02, 0.5))
        place.end_daemon(number)
        await asyncio.gather(*tasks)
        stored = await stored_in(place)
        for writer in writers:
            writer.check(stored)
        unsure = {text for writer in writers for text in writer.unsure}
        known = {memory_id for writer in writers for memory_id in writer.kept}
        assert {text for memory_id, text in stored.items() if memory_id not in known} <= unsure
        assert max(Counter(stored.values()).values(), default=1) == 1
    assert sum(len(writer.kept) for writer in writers) > ROUNDS
    await start(place)
    await is_found(place, stored, chance.sample(sorted(stored), min(100, len(stored))))
    assert place.run("doctor", "--deep", "--json").status == 0
    # Nothing that a kill leaves behind is taken for damage: it is replayed, not made anew.
    assert not list(place.data.glob("index.damaged-*"))


@pytest.mark.parametrize("harm", ["cut back to its last flush", "gone", "a file cut in half", "manifest gone"])
async def test_an_index_that_lost_something_is_brought_up_to_date_from_the_ledger(place: Any, harm: str) -> None:
    chance = random.Random(harm)
    writer = Writer(0)
    backup = place.root / "flushed"
    for _ in range(max(1, ROUNDS // 3)):
        await start(place)
        async with RawClient(place) as client:
            for _ in range(20):
                await writer._change(client, chance)
        place.end_daemon()
        shutil.copytree(place.data / "index", backup, dirs_exist_ok=True)
        await start(place)
        async with RawClient(place) as client:
            for _ in range(20):
                await writer._change(client, chance)
        place.end_daemon(signal.SIGKILL)
        _harm(place.data / "index", backup, harm, chance)
        await start(place)
        stored = await stored_in(place)
        writer.check(stored)
        await is_found(place, stored)
        assert place.run("doctor", "--deep", "--json").status == 0
        place.end_daemon()


def _harm(index: Path, backup: Path, harm: str, chance: random.Random) -> None:
    if harm == "cut back to its last flush":
        shutil.rmtree(index)
        shutil.copytree(backup, index)
    elif harm == "gone":
        shutil.rmtree(index)
    elif harm == "manifest gone":
        (index / "manifest.json").unlink()
    else:
        files = sorted(path for path in index.rglob("*") if path.is_file() and path.stat().st_size > 1024)
        victim = chance.choice(files)
        os.truncate(victim, victim.stat().st_size // 2)
