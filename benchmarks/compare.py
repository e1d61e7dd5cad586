"""Our memory server against others, measured as a client sees them; one table at the end.

    python benchmarks/compare.py [--quick] [--up-to N] [--only PART …] [--json OUT]

Everything goes through the official MCP client over stdio, on the same made-up facts (`corpus.py`), and every server
that embeds uses the model files that `agemem-mcp assets pull` fetched. The peers are installed by the script
(`peers.py`); one that cannot be is named in the table with what is missing. Progress goes to stderr. Machines are
noisy: trust ratios, which compare calls made in turn, more than milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agemem_mcp.app import asset_store, needed_assets
from agemem_mcp.settings import load_settings
from corpus import MAX_FACTS
from growth import Stock, grown, keep, stopped
from peers import install_all
from report import as_text
from servers import OURS, served, temporary_folder
from starts import start_figures
from timing import Journal
from trials import clients_memory, eight_in_flight, eight_processes, in_turn

if TYPE_CHECKING:
    from peers import Peer

_PASSES = 3
PARTS = ("starts", "sizes", "processes")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    sizes: tuple[int, ...]
    """Facts stored; every server is measured at these."""
    ours_alone: tuple[int, ...]
    """Further sizes, at which only ours is measured."""
    runs: int
    """Starts of each server."""
    rounds: int
    """Stores and searches in turn, at each size."""
    calls_in_flight: int
    stores_each: int
    """Stores of each of eight clients on one folder."""

    def up_to(self, most: int) -> Plan:
        """The same without the sizes above ``most``."""
        kept = (tuple(size for size in sizes if size <= most) for sizes in (self.sizes, self.ours_alone))
        return replace(self, sizes=next(kept), ours_alone=next(kept))


FULL = Plan(sizes=(1_000, 10_000), ours_alone=(100_000,), runs=7, rounds=200, calls_in_flight=150, stores_each=25)
QUICK = Plan(sizes=(1_000,), ours_alone=(), runs=2, rounds=40, calls_in_flight=40, stores_each=5)


class Comparison:
    """One run of the benchmark; ``figures`` is filled part by part."""

    def __init__(self, plan: Plan, peers: list[Peer], journal: Journal) -> None:
        self._plan = plan
        self._peers = peers
        self._everyone = [OURS, *(peer.tools for peer in peers)]
        self._journal = journal
        self.figures: dict[str, Any] = {}

    async def starts(self) -> None:
        """From starting a server to its list of tools."""
        self._journal.note(f"starting each server {self._plan.runs} times")
        self.figures["start"] = await start_figures([peer.tools for peer in self._peers], runs=self._plan.runs)

    async def processes(self) -> None:
        """Eight clients with a server each on one folder."""
        figures: dict[str, Any] = {}
        for tools in self._everyone:
            self._journal.note(f"{tools.name}: eight processes on one folder")
            with temporary_folder() as root:
                folder = root / tools.name
                folder.mkdir()
                figures[tools.name] = await eight_processes(tools, folder, each=self._plan.stores_each)
        self.figures["eight_processes"] = figures

    async def sizes(self) -> None:
        """All servers at the first sizes, ours alone at the others."""
        self.figures["sizes"] = {}
        with temporary_folder() as root:
            stocks = [Stock(OURS, root / OURS.name)]
            stocks += [Stock(peer.tools, root / peer.tools.name, peer) for peer in self._peers]
            for stock in stocks:
                stock.folder.mkdir()
            ours = stocks[0]
            kept: Path | None = None
            for size in (*self._plan.sizes, *self._plan.ours_alone):
                compared = size in self._plan.sizes
                at_size: dict[str, Any] = {"fill_per_s": await ours.fill(size, self._journal)}
                at_size["ours"] = await grown(
                    ours, size=size, questions=self._plan.rounds, kept=kept, journal=self._journal
                )
                kept = kept or keep(ours, size)
                if compared:
                    for stock in stocks[1:]:
                        await stock.fill(size, self._journal)
                    at_size |= await self._together(stocks, size)
                    at_size["memory"] = await self._memory(stocks, size)
                self.figures["sizes"][str(size)] = at_size

    async def _together(self, stocks: list[Stock], size: int) -> dict[str, Any]:
        """All servers at once: call by call in turn, then each with eight calls in flight, some passes in turn."""
        plan = self._plan
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(served(stock.tools, stock.folder)) for stock in stocks]
            for server in running:
                await server.timed(server.tools.search(size - 1))
            self._journal.note(f"storing and searching in turn on all servers, at {size:,}")
            turns = await in_turn(running, size=size, first_new=size, rounds=plan.rounds)
            passes: dict[str, list[dict[str, float]]] = {server.tools.name: [] for server in running}
            first_new = size + plan.rounds
            for _ in range(_PASSES):
                for server in running:
                    self._journal.note(f"{server.tools.name}: eight calls in flight, at {size:,}")
                    taken = await eight_in_flight(server, size=size, first_new=first_new, calls=plan.calls_in_flight)
                    passes[server.tools.name].append(taken)
                first_new += plan.calls_in_flight
        for stock in stocks:
            stock.facts = first_new
        flight = {
            name: {key: statistics.median(taken[key] for taken in all_taken) for key in all_taken[0]}
            for name, all_taken in passes.items()
        }
        return {"in_turn": turns, "in_flight": flight}

    async def _memory(self, stocks: list[Stock], size: int) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for stock in stocks:
            await stopped(stock)
            clients = 8 if stock.tools is OURS else 1
            self._journal.note(f"{stock.tools.name}: memory with {clients} clients at {size:,}")
            figures[stock.tools.name] = await clients_memory(stock.tools, stock.folder, clients=clients)
        return figures


async def measure(plan: Plan, parts: list[str]) -> dict[str, Any]:
    journal = Journal()
    journal.note("making sure that the peers are installed")
    settings = load_settings()
    store = asset_store(settings)
    if absent := set(needed_assets(settings)) & set(store.missing()):
        sys.exit(f"Missing on this machine: {', '.join(sorted(absent))}. Run `agemem-mcp assets pull` first.")
    peers, missing = await asyncio.to_thread(install_all, settings.embedding_path or store.model_dir)
    comparison = Comparison(plan, peers, journal)
    for part in parts:
        await getattr(comparison, part)()
    journal.note("done")
    return {
        "machine": journal.machine(),
        "plan": asdict(plan),
        "peers": {peer.tools.name: {"version": peer.version, "note": peer.note} for peer in peers},
        "missing": missing,
        **comparison.figures,
    }


async def cancelled_by_signal(plan: Plan, parts: list[str]) -> dict[str, Any]:
    """Measure; a SIGTERM ends it as Ctrl-C does, with every server ended and every folder removed."""
    task = asyncio.ensure_future(measure(plan, parts))
    with suppress(NotImplementedError):  # Windows has no such handlers
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 facts and few rounds")
    parser.add_argument("--up-to", type=int, default=MAX_FACTS, metavar="N", help="leave out sizes above N facts")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone; repeatable")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    arguments = parser.parse_args()
    plan = (QUICK if arguments.quick else FULL).up_to(arguments.up_to)
    try:
        figures = asyncio.run(cancelled_by_signal(plan, arguments.only or list(PARTS)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("Ended by a signal; every server was ended and nothing was left behind.")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(as_text(figures))


if __name__ == "__main__":
    main()
