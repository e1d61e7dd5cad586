"""What is measured of memory servers side by side: calls in turn, calls in flight, memory, and many on one folder."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agemem_mcp.adapters.embedding import FastEmbedEmbedder
from agemem_mcp.app import asset_store
from agemem_mcp.settings import load_settings
from corpus import asked, fact, question
from processes import memory
from servers import MemoryTools, Running, ServerError, in_flight, served
from timing import quantiles_ms

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EMBEDDING = "embedding alone"
REFUSED = "a refused call"
_CLIENTS = 8


async def in_turn(servers: Sequence[Running], *, size: int, first_new: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Store and search on all servers call by call, each round in another order.

    In the same rounds, one text at a time: the embedding of those very texts by our embedder in this process, and a
    call that our server refuses. What is left of our calls without these two is our own overhead.

    Args:
        servers: all hold the same facts.
        size: so many of them; questions go to these.
        first_new: number of the first fact that none of them holds; the next ``rounds`` are stored.
        rounds: stores and searches on each server.

    Returns:
        By server (and ``embedding alone``, ``a refused call``): quantiles of ``store`` and ``search``, and ``hit@10``.
    """
    order = random.Random(size)
    times_s: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    hits: defaultdict[str, int] = defaultdict(int)
    embedder = our_embedder()
    await embedder.embed(["the model is loaded by now"])

    async def one(what: Running | str, stored: int, wanted: int) -> None:
        if isinstance(what, str):
            times_s[what]["store"].append(await _embedded_s(embedder, fact(stored)))
            times_s[what]["search"].append(await _embedded_s(embedder, question(wanted)))
            return
        tools = what.tools
        times_s[tools.name]["store"].append((await what.timed(tools.store(stored)))[0])
        took_s, answer = await what.timed(tools.search(wanted))
        times_s[tools.name]["search"].append(took_s)
        hits[tools.name] += fact(wanted) in answer
        if tools.refused is not None:
            started = time.perf_counter()
            await what.call(tools.refused)
            times_s[REFUSED]["store"].append(time.perf_counter() - started)

    try:
        for turn, wanted in enumerate(asked(rounds, size)):
            everyone: list[Running | str] = [*servers, EMBEDDING]
            order.shuffle(everyone)
            for what in everyone:
                await one(what, first_new + turn, wanted)
    finally:
        await embedder.close()
    figures: dict[str, dict[str, Any]] = {
        name: {kind: quantiles_ms(values) for kind, values in kinds.items()} for name, kinds in times_s.items()
    }
    for name, count in hits.items():
        figures[name]["hit@10"] = round(count / rounds, 3)
    return figures


def our_embedder() -> FastEmbedEmbedder:
    """The embedder our server uses, on the files it uses."""
    settings = load_settings()
    model_dir = settings.embedding_path or asset_store(settings).model_dir
    return FastEmbedEmbedder(model_dir, model_name=settings.embedding, threads=settings.embedding_threads)


async def _embedded_s(embedder: FastEmbedEmbedder, text: str) -> float:
    started = time.perf_counter()
    await embedder.embed([text])
    return time.perf_counter() - started


async def eight_in_flight(running: Running, *, size: int, first_new: int, calls: int) -> dict[str, float]:
    """Searches and stores per second with eight calls in flight on one session."""
    tools = running.tools
    # Not the questions of the rounds before: no answer or vector may be kept from there.
    searches = await in_flight(running, [tools.search(i) for i in asked(calls, size, start=size // 2)])
    stores = await in_flight(running, [tools.store(i) for i in range(first_new, first_new + calls)])
    return {"searches_per_s": round(searches, 1), "stores_per_s": round(stores, 1)}


async def clients_memory(tools: MemoryTools, folder: Path, *, clients: int) -> dict[str, Any]:
    """What several clients of one folder cost in memory together, after each made a call, and how many were served."""
    answered = 0
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(served(tools, folder))
        others = [await stack.enter_async_context(Running(tools, folder)) for _ in range(clients - 1)]
        for number, client in enumerate((first, *others)):
            answered += not (await client.call(tools.search(number))).is_error
        taken = memory(folder)
    return {"clients": clients, "served": answered, **({} if taken is None else asdict(taken))}


async def eight_processes(tools: MemoryTools, folder: Path, *, each: int) -> dict[str, Any]:
    """Eight clients, each with a server of its own on one folder, store ``each`` facts at once; what is kept?"""

    async def client(number: int) -> list[int]:
        acknowledged: list[int] = []
        try:
            async with Running(tools, folder) as running:
                for i in range(number * each, (number + 1) * each):
                    result = await running.call(tools.store(i))
                    if not result.is_error:
                        acknowledged.append(i)
        except Exception as error:  # noqa: BLE001  one that cannot share its folder fails in its own way; it is counted
            return _reported(acknowledged, error)
        return acknowledged

    outcomes = await asyncio.gather(*(client(number) for number in range(_CLIENTS)))
    acknowledged = [i for stored in outcomes for i in stored]
    kept = 0
    async with served(tools, folder) as running:
        for i in acknowledged:
            try:
                kept += await running.found(i, tools.look_up(i))
            except ServerError:
                break
    return {
        "clients": _CLIENTS,
        "served": sum(bool(stored) for stored in outcomes),
        "of": _CLIENTS * each,
        "acknowledged": len(acknowledged),
        "kept": kept,
    }


def _reported(acknowledged: list[int], error: Exception) -> list[int]:
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    print(f"    a server could not be used beside others: {reason[0]}", file=sys.stderr)
    return acknowledged
