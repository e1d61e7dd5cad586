"""One memory that grows: what filling, searching, restarting and keeping it costs at each size.

Every server has one folder for the whole benchmark. Facts 0, 1, 2, … go in, in order; whatever is measured at a
size is measured with that many facts, and those stored while measuring count towards the next size.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import parse_operation
from agemem_mcp.settings import load_settings
from corpus import asked, fact
from processes import memory
from servers import OURS, MemoryTools, Running, end, in_flight, served
from timing import quantiles_ms

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_mcp.service.memory_service import MemoryService
    from peers import Peer
    from timing import Journal

_PORTION = 2000
_PATIENCE_S = 900.0
"""What would take longer than this through the tools is stored in this process."""
_WIDTH_INSIDE = 64
_CALLS_WORTH_IT = 100
"""Fewer missing facts than this are stored by calls, also where a peer can be filled at once."""


@dataclass
class Stock:
    """A server's folder, and how many facts it holds."""

    tools: MemoryTools
    folder: Path
    peer: Peer | None = None
    facts: int = 0

    async def fill(self, size: int, journal: Journal) -> float | None:
        """Store the next facts until there are ``size``; per second, where they went through the tools one by one."""
        missing = size - self.facts
        if missing <= 0:
            return None
        journal.note(f"{self.tools.name}: filling up to {size:,}")
        per_s = None
        if self.peer is not None and self.peer.fill is not None and missing > _CALLS_WORTH_IT:
            await asyncio.to_thread(self.peer.fill, self.folder, self.facts, size)
        elif self.peer is not None and self.peer.fill_call is not None:
            async with served(self.tools, self.folder) as running:
                for start in range(self.facts, size, _PORTION):
                    await running.timed(self.peer.fill_call(start, min(size, start + _PORTION)))
        else:
            per_s = await self._fill_by_calls(size, journal)
        self.facts = size
        return per_s

    async def _fill_by_calls(self, size: int, journal: Journal) -> float | None:
        """Eight calls in flight on one session; stores per second. What would take too long is stored in-process."""
        spent_s, stored = 0.0, 0
        async with served(self.tools, self.folder) as running:
            # One call alone first: it waits for the model to be loaded.
            await running.timed(self.tools.store(self.facts))
            self.facts += 1
            while self.facts < size:
                calls = [self.tools.store(i) for i in range(self.facts, min(size, self.facts + _PORTION))]
                per_s = await in_flight(running, calls)
                spent_s += len(calls) / per_s
                stored += len(calls)
                self.facts += len(calls)
                if size - self.facts > 0:
                    journal.note(f"    {self.facts:,} facts, the last {len(calls):,} at {per_s:.0f}/s")
                if (size - self.facts) / per_s > _PATIENCE_S:
                    break
        if self.facts < size:
            journal.note(f"    too slow for {size - self.facts:,} more: the rest goes to the service in this process")
            async with open_service(load_settings(data_dir=self.folder)) as service:
                await store_in(service, self.facts, size, width=_WIDTH_INSIDE)
        return round(stored / spent_s, 1) if stored else None


async def store_in(service: MemoryService, start: int, stop: int, *, width: int) -> None:
    """Store facts from ``start`` to ``stop`` in a service of this process, ``width`` at a time."""
    waiting = iter(range(start, stop))

    async def worker() -> None:
        for i in waiting:
            await service.apply(Scope(), parse_operation(*OURS.store(i)))

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(worker())


async def grown(ours: Stock, *, size: int, questions: int, kept: Path | None, journal: Journal) -> dict[str, Any]:
    """Our own figures at one size: restart, search, what is found, memory and disk.

    Args:
        ours: holds exactly ``size`` facts; nothing serves it at the moment.
        size: of these facts.
        questions: so many searches are timed.
        kept: a copy of an earlier, smaller state, searched in turn with it; so both meet the same machine.
        journal: hears what is going on.
    """
    journal.note(f"{ours.tools.name}: restarting and searching at {size:,}")
    started = time.perf_counter()
    async with served(OURS, ours.folder) as running:
        await running.timed(OURS.search(size - 1))
        first_s = time.perf_counter() - started
        figures: dict[str, Any] = {"restart_listed_s": round(running.ready_s, 3), "restart_first_search_s": first_s}
        wanted = asked(questions, size, start=size // 3)
        if kept is None:
            figures |= await _searched(running, wanted)
        else:
            smaller = len(wanted)
            async with served(OURS, kept) as beside:
                figures |= await _searched(running, wanted, beside=beside, others=asked(smaller, kept_size(kept)))
        if (taken := memory(ours.folder)) is not None:
            figures |= asdict(taken)
    figures["restart_first_search_s"] = round(first_s, 3)
    figures["index_mb"] = _size_mb(ours.folder / "index")
    figures["folder_mb"] = _size_mb(ours.folder)
    return figures


async def _searched(
    running: Running, wanted: list[int], *, beside: Running | None = None, others: list[int] | None = None
) -> dict[str, Any]:
    times_s: list[float] = []
    beside_s: list[float] = []
    hits = 0
    for turn, i in enumerate(wanted):
        took_s, answer = await running.timed(OURS.search(i))
        times_s.append(took_s)
        hits += fact(i) in answer
        if beside is not None and others is not None:
            beside_s.append((await beside.timed(OURS.search(others[turn])))[0])
    figures: dict[str, Any] = {"search": quantiles_ms(times_s), "hit@10": round(hits / len(wanted), 3)}
    if beside_s:
        figures["search_smallest_meanwhile"] = quantiles_ms(beside_s)
    return figures


def keep(stock: Stock, size: int) -> Path:
    """Copy a folder that nothing serves at the moment, to be searched beside it when it has grown."""
    copy = stock.folder.parent / f"kept-{size}"
    shutil.copytree(stock.folder, copy)
    return copy


def kept_size(copy: Path) -> int:
    """How many facts a copy that :func:`keep` made holds."""
    return int(copy.name.rpartition("-")[2])


def _size_mb(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20, 1)


async def stopped(stock: Stock) -> None:
    """Make sure that nothing serves a folder."""
    await end(stock.tools, stock.folder)
