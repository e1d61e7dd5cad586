"""Where the time of one store and one search goes, layer by layer.

    python benchmarks/overhead.py [--size 1000] [--rounds 200] [--json OUT]

The same calls are made at three depths, in turn: on the service (with the calls it makes of its adapters timed, by
wrapping their methods), on the MCP server in this process, and over stdio on a process of its own. Beside them
stands a call that is refused at once: what MCP and the transport cost by themselves. Each depth is given as the mean
over the faster half of its rounds, in milliseconds: parts then add up to their whole, and a busy machine disturbs
little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp.client.client import Client

from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import parse_operation
from agemem_mcp.server.tools import MemoryServer
from agemem_mcp.settings import load_settings
from corpus import asked
from growth import store_in
from servers import OURS, served, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_TIMED = {
    "embedding": ("adapters.embedding", "FastEmbedEmbedder", "embed"),
    "index: search": ("adapters.qdrant_edge", "QdrantEdgeIndex", "search"),
    "index: apply": ("adapters.qdrant_edge", "QdrantEdgeIndex", "apply"),
    "ledger: commit": ("adapters.ledger", "SqliteLedger", "write"),
    "ledger: heads": ("adapters.ledger", "SqliteLedger", "heads"),
    "ledger: changed_since": ("adapters.ledger", "SqliteLedger", "changed_since"),
    "ledger: last_seq": ("adapters.ledger", "SqliteLedger", "last_seq"),
    "session: hits into the context": ("service.short_term", "ShortTermMemory", "insert_retrieved"),
}
"""What is timed within the service: no two of these contain each other."""
SERVICE = "= service"


class Spans:
    """Time spent in the wrapped methods, for one operation at a time."""

    def __init__(self) -> None:
        self.current_s: defaultdict[str, float] = defaultdict(float)

    def wrap(self) -> None:
        """Wrap the methods, for the rest of this process."""
        for name, (module, owner, method) in _TIMED.items():
            found = getattr(import_module(f"agemem_mcp.{module}"), owner)
            setattr(found, method, self._timed(name, getattr(found, method)))

    def take(self) -> dict[str, float]:
        """What came together since the last time."""
        taken = dict(self.current_s)
        self.current_s.clear()
        return taken

    def _timed(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(method)
        async def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return await method(*arguments, **named)
            finally:
                self.current_s[name] += time.perf_counter() - started

        return timed


async def timed_s(call: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await call
    return time.perf_counter() - started


def calls_of(rounds: int, size: int) -> dict[str, list[list[int]]]:
    """Numbers of facts for each kind of call and each of the three depths: no text is used twice."""
    stores = iter(range(size, size + 3 * rounds))
    searches = iter(asked(3 * rounds, size))
    return {
        "store": [[next(stores) for _ in range(rounds)] for _ in range(3)],
        "search": [[next(searches) for _ in range(rounds)] for _ in range(3)],
    }


async def inside(folder: Path, size: int, rounds: int) -> dict[str, Any]:
    """Fill a folder, then measure the service, and the MCP server around it, in this process."""
    spans = Spans()
    spans.wrap()
    settings = load_settings(data_dir=folder)
    numbers = calls_of(rounds, size)
    parts: dict[str, defaultdict[str, list[float]]] = {kind: defaultdict(list) for kind in numbers}
    gate = service_gate(settings)
    server = MemoryServer(gate, scope_of=lambda _: Scope())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(gate.close)
        client = await stack.enter_async_context(Client(server.mcp, mode="legacy"))
        service = await gate.service()
        await store_in(service, 0, size, width=8)
        for turn in range(rounds):
            for kind, call in (("store", OURS.store), ("search", OURS.search)):
                spans.take()
                operation = parse_operation(*call(numbers[kind][0][turn]))
                whole_s = await timed_s(service.apply(Scope(), operation))
                taken = spans.take()
                for name in _TIMED:
                    parts[kind][name].append(taken.get(name, 0.0))
                parts[kind]["rules, and waiting for a turn"].append(whole_s - sum(taken.values()))
                parts[kind][SERVICE].append(whole_s)
                parts[kind]["= MCP in this process"].append(
                    await timed_s(client.call_tool(*call(numbers[kind][1][turn])))
                )
            assert OURS.refused is not None
            parts["store"]["a refused call in this process"].append(await timed_s(client.call_tool(*OURS.refused)))
    return {kind: faster_half_ms(named) for kind, named in parts.items()}


async def outside(folder: Path, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """The same over stdio, and a call that is refused."""
    numbers = calls_of(rounds, size)
    times: dict[str, dict[str, list[float]]] = {"store": defaultdict(list), "search": defaultdict(list)}
    async with served(OURS, folder) as running:
        assert OURS.refused is not None
        await running.timed(OURS.search(0))
        for turn in range(rounds):
            for kind, call in (("store", OURS.store), ("search", OURS.search)):
                took_s, _ = await running.timed(call(numbers[kind][2][turn]))
                times[kind]["= over stdio"].append(took_s)
            times["store"]["a refused call over stdio"].append(await timed_s(running.call(OURS.refused)))
    return {kind: faster_half_ms(named) for kind, named in times.items()}


def faster_half_ms(named: dict[str, list[float]]) -> dict[str, float]:
    """The mean over the faster half of the rounds; what is part of the service goes by the rounds of the service."""
    whole = named.get(SERVICE)
    figures: dict[str, float] = {}
    for name, values in named.items():
        by = whole if whole is not None and not name.startswith(("= MCP", "a refused")) else values
        rounds = sorted(range(len(values)), key=by.__getitem__)
        half = rounds[: max(1, len(rounds) // 2)]
        figures[name] = round(statistics.mean(values[turn] for turn in half) * 1000, 3)
    return figures


async def profile(size: int, rounds: int) -> dict[str, Any]:
    with temporary_folder() as root:
        folder = root / OURS.name
        figures = await inside(folder, size, rounds)
        for kind, values in (await outside(folder, size, rounds)).items():
            figures[kind].update(values)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = asyncio.run(profile(arguments.size, arguments.rounds))
    for kind, values in figures.items():
        print(f"{kind} at {arguments.size:,}, ms")
        for name, value in values.items():
            print(f"  {name:<36} {value:8.2f}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
