"""How long a client waits over stdio: from starting the process to the list of tools.

    python benchmarks/startup.py [--runs 10] [--json OUT]

Each run starts `agemem-mcp serve` with the official client, lists the tools and stops; then once more
up to the answer of a first Add_memory, which waits for the model. A bare interpreter and one that
imports the MCP SDK are timed in the same rounds, since they bound what any server can reach.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def server(folder: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "agemem_mcp", "serve", "--data-dir", str(Path(folder) / "data")],
        env=dict(os.environ),
    )


async def tools_listed_s(mode: str) -> float:
    with tempfile.TemporaryDirectory(prefix="agemem-startup-") as folder:
        started = time.perf_counter()
        async with Client(server(folder), mode=mode) as client:
            await client.list_tools()
            return time.perf_counter() - started


async def first_add_s() -> float:
    with tempfile.TemporaryDirectory(prefix="agemem-startup-") as folder:
        started = time.perf_counter()
        async with Client(server(folder)) as client:
            await client.list_tools()
            result = await client.call_tool("Add_memory", {"content": "The first memory."})
            assert not result.is_error, result.content
            return time.perf_counter() - started


async def python_s(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


async def measure(runs: int) -> dict[str, dict[str, float]]:
    cases: dict[str, Callable[[], Awaitable[float]]] = {
        "interpreter": lambda: python_s("pass"),
        "interpreter + import of the SDK's server": lambda: python_s("import mcp.server.lowlevel.server"),
        "start → tools listed (2026-07-28)": lambda: tools_listed_s("auto"),
        "start → tools listed (handshake)": lambda: tools_listed_s("legacy"),
        "start → first Add_memory answered": first_add_s,
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(runs + 1):
        for name, case in cases.items():
            times[name].append(await case())
    # The first round warms the file cache.
    return {
        name: {
            "median_s": round(statistics.median(values[1:]), 3),
            "min_s": round(min(values[1:]), 3),
            "max_s": round(max(values[1:]), 3),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.runs))
    for name, values in figures.items():
        print(f"{name:<42} {values['median_s']:.3f} s  ({values['min_s']:.3f} to {values['max_s']:.3f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
