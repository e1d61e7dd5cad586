"""How long a client waits from starting a memory server to its list of tools.

    python benchmarks/starts.py [--runs 10]

Ours is started from nothing (no daemon, no data), then with its daemon running; a bare interpreter, and one that
imports the MCP SDK, are timed in the same rounds, since they bound what a server in Python can reach.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from servers import OURS, MemoryTools, Running, end, served, temporary_folder
from timing import Journal, spread_s

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_INTERPRETER = {
    "interpreter alone": "pass",
    "interpreter and import of the SDK's server": "import mcp.server.lowlevel.server",
}


async def start_figures(peers: Sequence[MemoryTools], *, runs: int) -> dict[str, dict[str, dict[str, float]]]:
    """Start every server in turn, ``runs`` times after one round that warms the file cache.

    Returns:
        By server, then by circumstance: median, minimum and maximum in seconds.
    """
    times_s: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(runs + 1):
        with temporary_folder() as root:
            taken = {OURS.name: await _ours_s(root)}
            for peer in peers:
                taken[peer.name] = {"from nothing": await _listed_s(peer, _made(root / peer.name))}
        taken["Python"] = {name: _python_s(code) for name, code in _INTERPRETER.items()}
        if turn:
            for name, cases in taken.items():
                for case, seconds in cases.items():
                    times_s[name][case].append(seconds)
    return {name: {case: spread_s(values) for case, values in cases.items()} for name, cases in times_s.items()}


async def _ours_s(root: Path) -> dict[str, float]:
    folder = _made(root / OURS.name)
    taken = {"from nothing": await _listed_s(OURS, folder)}
    taken["from nothing, 2026-07-28"] = await _listed_s(OURS, folder, mode="auto")
    started = time.perf_counter()
    async with served(OURS, folder) as running:
        await running.timed(OURS.store(0))
        taken["from nothing to the first memory stored"] = time.perf_counter() - started
        # The first client's session keeps what serves the folder alive and warm.
        async with Running(OURS, folder) as second:
            taken["with the daemon running"] = second.ready_s
    return taken


async def _listed_s(tools: MemoryTools, folder: Path, *, mode: str = "legacy") -> float:
    try:
        async with Running(tools, folder, mode=mode) as running:
            return running.ready_s
    finally:
        await end(tools, folder)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _python_s(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    journal = Journal()
    journal.note("starting our server again and again")
    for cases in asyncio.run(start_figures([], runs=arguments.runs)).values():
        for case, values in cases.items():
            print(f"{case:<44} {values['median_s']:.3f} s  ({values['min_s']:.3f} to {values['max_s']:.3f})")


if __name__ == "__main__":
    main()
